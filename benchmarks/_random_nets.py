"""Random networks of the families that people train, for judging predictions: no calibration ever sees one of them.

The generator shares nothing with the calibration's but the file writer: whole architectures with random widths, depths
and input sizes, 5 thousand to 500 thousand parameters, inputs of 16 to 128 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kasmina_edge.hardware_simulator.net_writer import NetWriter

LEAST, MOST = 5_000, 500_000
MOST_MACS = 40_000_000
Rng = np.random.Generator
FIRST_SEED = 900_000


@dataclass(frozen=True)
class RandomNet:
    """One network: its family, its parameters, its file."""

    family: str
    parameters: int
    data: bytes


def random_nets(count: int, *, dtype: str = "int8", seed: int = FIRST_SEED) -> Iterator[RandomNet]:
    """``count`` networks, families in turns; those outside of the bounds of size are drawn again."""
    from kasmina_edge.hardware_simulator import read_workload

    names = list(FAMILIES)
    for i in range(count):
        for attempt in range(1000):
            rng = np.random.default_rng((seed, i, attempt))
            side = int(rng.integers(16, 129))
            writer = _TorchLike if rng.random() < 0.5 else NetWriter
            net = writer((1, side, side, int(rng.choice([1, 3]))), dtype, seed=int(rng.integers(2**31)))
            FAMILIES[names[i % len(names)]](rng, net)
            if LEAST <= net.parameters <= MOST:
                data = net.finish()
                if read_workload(data).macs <= MOST_MACS:
                    yield RandomNet(names[i % len(names)], net.parameters, data)
                    break


class _TorchLike(NetWriter):
    """Borders as PyTorch's exports have them: a pad of its own, then a convolution without padding."""

    def conv(
        self,
        x: int,
        filters: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        act: str = "relu",
        valid: bool = False,
    ) -> int:
        """As `NetWriter.conv`."""
        if kernel in (3, 5) and stride == 2 and isinstance(kernel, int):
            return super().conv(self.pad(x, kernel // 2), filters, kernel, stride=stride, act=act, valid=True)
        return super().conv(x, filters, kernel, stride=stride, act=act, valid=valid)

    def depthwise(
        self, x: int, kernel: int | tuple[int, int] = 3, *, stride: int = 1, act: str = "relu", valid: bool = False
    ) -> int:
        """As `NetWriter.depthwise`."""
        if kernel in (3, 5) and stride == 2 and isinstance(kernel, int):
            return super().depthwise(self.pad(x, kernel // 2), kernel, stride=stride, act=act, valid=True)
        return super().depthwise(x, kernel, stride=stride, act=act, valid=valid)


def _classes(rng: Rng) -> int:
    return int(rng.integers(2, 101))


def _end(rng: Rng, net: NetWriter, x: int) -> None:
    """Global mean, one dense layer; half of them with a softmax."""
    x = net.dense(net.flatten(net.mean(x)), _classes(rng))
    if rng.random() < 0.5:
        net.softmax(x)


def _plain(rng: Rng, net: NetWriter) -> None:
    """Convolutions and pooling (Simonyan and Zisserman 2014)."""
    x, width = net.input, int(rng.integers(6, 25))
    while net.shape_of(x)[1] >= 8:
        for _ in range(rng.integers(1, 3)):
            x = net.conv(x, width, 3)
        x = net.pool(x, 2)
        width = int(width * rng.uniform(1.2, 2.0))
    if rng.random() < 0.5:
        x = net.dense(net.flatten(x), int(rng.integers(16, 65)), act="relu")
        net.dense(x, _classes(rng))
    else:
        _end(rng, net, x)


def _separable(rng: Rng, net: NetWriter) -> None:
    """Depthwise and pointwise in turns (MobileNet, Howard et al. 2017)."""
    width = rng.uniform(0.15, 0.6)
    x = net.conv(net.input, max(4, int(32 * width)), 3, stride=2, act="relu6")
    for channels in (64, 128, 128, 256, 256, *[512] * int(rng.integers(0, 5)))[: int(rng.integers(4, 12))]:
        down = 2 if net.shape_of(x)[1] > 4 and rng.random() < 0.4 else 1
        x = net.conv(net.depthwise(x, 3, stride=down, act="relu6"), max(4, int(channels * width)), act="relu6")
    _end(rng, net, x)


def _inverted(rng: Rng, net: NetWriter) -> None:
    """Inverted bottlenecks with sums (MobileNetV2, Sandler et al. 2018), some with squeeze and excite (V3, 2019)."""
    squeeze, swish = rng.random() < 0.5, rng.random() < 0.3
    x = net.conv(net.input, int(rng.integers(8, 17)), 3, stride=2)
    for _ in range(rng.integers(3, 9)):
        _, h, _, c = net.shape_of(x)
        down = 2 if h > 4 and rng.random() < 0.4 else 1
        out = c if down == 1 and rng.random() < 0.6 else int(c * rng.uniform(1.0, 1.6))
        y = net.conv(x, c * int(rng.integers(2, 7)))
        y = net.depthwise(y, int(rng.choice([3, 5])), stride=down)
        y = net.hard_swish(y) if swish else y
        y = _excite(net, y, 4) if squeeze else y
        y = net.conv(y, out, act="")
        x = net.add(x, y) if (down, out) == (1, c) else y
    _end(rng, net, x)


def _excite(net: NetWriter, x: int, share: int) -> int:
    channels = net.shape_of(x)[3]
    s = net.conv(net.conv(net.mean(x), max(2, channels // share)), channels, act="")
    return net.mul(x, net.logistic(s))


def _residual(rng: Rng, net: NetWriter) -> None:
    """Residual blocks (He et al. 2016), as MLPerf Tiny's ResNet-8."""
    width = int(rng.integers(8, 25))
    x = net.conv(net.input, width, 3, stride=2 if net.shape[1] > 48 else 1)
    for stage in range(rng.integers(2, 5)):
        for block in range(rng.integers(1, 3)):
            down = 2 if stage and not block else 1
            y = net.conv(net.conv(x, width, 3, stride=down), width, 3, act="")
            short = x if down == 1 and net.shape_of(x)[3] == width else net.conv(x, width, 1, stride=down, act="")
            x = net.add(short, y, act="relu")
        width = int(width * rng.uniform(1.3, 2.0))
    if rng.random() < 0.5:
        x = net.pool(x, net.shape_of(x)[1], average=True)
        net.softmax(net.dense(net.flatten(x), _classes(rng)))
    else:
        _end(rng, net, x)


def _keyword(rng: Rng, net: NetWriter) -> None:
    """A small depthwise network (DS-CNN, Zhang et al. 2017)."""
    width = int(rng.integers(24, 129))
    x = net.conv(net.input, width, int(rng.choice([4, 5, 7])), stride=2)
    if net.shape_of(x)[1] > 24:
        x = net.pool(x, 2)
    for _ in range(rng.integers(2, 6)):
        x = net.conv(net.depthwise(x), width)
    _end(rng, net, x)


def _fire(rng: Rng, net: NetWriter) -> None:
    """Squeeze, expand by two, side by side (SqueezeNet, Iandola et al. 2016)."""
    x = net.pool(net.conv(net.input, int(rng.integers(12, 41)), 3, stride=2), 2)
    for _ in range(rng.integers(2, 7)):
        s, e = int(rng.integers(6, 25)), int(rng.integers(12, 65))
        x = net.conv(x, s)
        x = net.concat([net.conv(x, e), net.conv(x, e, 3)])
        if net.shape_of(x)[1] > 8 and rng.random() < 0.4:
            x = net.pool(x, 2)
    _end(rng, net, net.conv(x, _classes(rng)))


def _hourglass(rng: Rng, net: NetWriter) -> None:
    """Down, up, and across (U-Net, Ronneberger et al. 2015)."""
    width, kept = int(rng.integers(6, 17)), []
    x = net.conv(net.input, width, 3, stride=2)
    for _ in range(rng.integers(1, 4)):
        if net.shape_of(x)[1] % 2 or net.shape_of(x)[1] < 8:
            break
        kept.append(x)
        width = int(width * 1.6)
        x = net.conv(net.pool(x, 2), width, 3)
    bilinear = bool(rng.random() < 0.5)
    for across in reversed(kept):
        x = net.concat([net.resize(x, 2, bilinear=bilinear), across])
        x = net.conv(x, net.shape_of(across)[3], 3)
    net.logistic(net.conv(x, int(rng.integers(1, 5)), act=""))


def _dense(rng: Rng, net: NetWriter) -> None:
    """A first convolution, then dense layers (the autoencoder of MLPerf Tiny has nothing else)."""
    x = net.conv(net.input, int(rng.integers(2, 9)), 3, stride=2)
    while np.prod(net.shape_of(x)) > 2000:
        x = net.pool(x, 2, average=bool(rng.random() < 0.5))
    x = net.flatten(x)
    for _ in range(rng.integers(2, 8)):
        x = net.dense(x, int(rng.integers(8, 257)), act="relu")
    net.dense(x, _classes(rng))


def _grown(rng: Rng, net: NetWriter) -> None:
    """A small host as this project grows them: separable blocks, squeeze and excite, gated branches beside them."""
    x = net.conv(net.input, int(rng.integers(12, 33)), 3, stride=2 if net.shape[1] > 40 else 1)
    for _ in range(rng.integers(2, 5)):
        c = net.shape_of(x)[3]
        y = net.conv(net.depthwise(x), c, act="")
        x = net.add(x, y, act="relu")
        if rng.random() < 0.6:
            x = _excite(net, x, int(rng.choice([4, 8])))
        if rng.random() < 0.6:  # a graft
            x = net.add(x, net.conv(net.conv(x, int(rng.integers(4, 17))), c, act=""))
        x = net.conv(x, int(c * rng.uniform(1.2, 2.0)), 3, stride=2)
    _end(rng, net, x)


FAMILIES: dict[str, Callable[[Rng, NetWriter], None]] = {
    "plain": _plain,
    "separable": _separable,
    "inverted": _inverted,
    "residual": _residual,
    "keyword": _keyword,
    "fire": _fire,
    "hourglass": _hourglass,
    "dense": _dense,
    "grown": _grown,
}
