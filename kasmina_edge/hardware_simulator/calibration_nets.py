"""The networks that calibration measures: few layers of one kind over many shapes, then mixtures of all kinds.

Every kind stands in chains of different length, so that what a layer costs is told from what a call costs, with widths
that do not divide by any tile too. The mixtures show what only happens between layers: caches that are cold, parts that
the delegate does not take. Mixtures of other seeds measure how far a prediction is off: they are never fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kasmina_edge.hardware_simulator.net_writer import NetWriter

MOST_MACS = 12_000_000
MOST_CONSTANT_BYTES = 1_500_000
MIXED = 10
REFERENCE = "kasmina-reference"
"""What `reference_net` is called, with the type of number behind it; networks/reference.py has its table."""
_KERNELS: tuple[int | tuple[int, int], ...] = (3, 3, 3, 3, 5, 7, (1, 3), (3, 1), (1, 5), 2)
_DEEP_KERNELS: tuple[int | tuple[int, int], ...] = (3, 3, 3, 3, 5, 5, 7, (1, 3), (1, 5), (1, 9), (3, 1))
Rng = np.random.Generator
Fill = Callable[[Rng, NetWriter], None]


@dataclass(frozen=True)
class CalibrationNet:
    """A file to time.

    Attributes:
        kind: Which of `KINDS`, or ``mixture``.
        data: The ``.tflite`` file.
    """

    kind: str
    data: bytes


def calibration_nets(count: int, *, dtype: str = "int8", seed: int = 0) -> Iterator[CalibrationNet]:
    """``count`` networks of every kind in turns, mixtures `MIXED` times as often; equal arguments give equal files."""
    order = [*KINDS, *["mixture"] * MIXED]
    for i in range(count):
        kind = order[i % len(order)]
        yield CalibrationNet(kind, _make(kind, dtype, (seed, 1, i)))


def mixtures(count: int, *, dtype: str = "int8", seed: int = 0) -> Iterator[CalibrationNet]:
    """``count`` mixtures that `calibration_nets` never gives: to see how far predictions are off."""
    for i in range(count):
        yield CalibrationNet("mixture", _make("mixture", dtype, (seed, 2, i)))


def reference_net(dtype: str = "int8") -> bytes:
    """A small network with a bit of everything; some 30 us on a desk's processor."""
    net = NetWriter((1, 32, 32, 3), dtype, seed=7)
    x = net.conv(net.input, 16, 3, stride=2)
    for width in (24, 32):
        y = net.conv(net.depthwise(x), net.shape_of(x)[3], act="")
        x = net.conv(net.add(x, y, act="relu"), width, 3, stride=2)
    s = net.logistic(net.conv(net.conv(net.mean(x), 8), 32, act=""))
    return net.finish(net.dense(net.flatten(net.mean(net.mul(x, s))), 10))


def _make(kind: str, dtype: str, seed: tuple[int, int, int]) -> bytes:
    rng = np.random.default_rng(seed)
    if kind == "mixture":
        return _mixture(rng, dtype)
    shape, fill = KINDS[kind]
    net = NetWriter(shape(rng), dtype, seed=int(rng.integers(2**31)))
    fill(rng, net)
    return net.finish()


def _width(rng: Rng, least: int, most: int) -> int:
    """Evenly in logarithm; every other one a multiple of eight, as people like them."""
    value = math.exp(rng.uniform(math.log(least), math.log(most)))
    return max(1, round(value / 8) * 8) if rng.random() < 0.5 and value >= 8 else max(1, round(value))


def _sized(least: int, most: int, channels: int) -> Callable[[Rng], tuple[int, ...]]:
    """An image of at most 200,000 numbers."""

    def shape(rng: Rng) -> tuple[int, ...]:
        side = _width(rng, least, most)
        wide = min(channels, max(1, 200_000 // side**2))
        return (1, side, side, _width(rng, min(3, wide), wide))

    return shape


def _row(rng: Rng) -> tuple[int, ...]:
    return (1, _width(rng, 4, 700))


def _room(net: NetWriter, x: int, macs_of_one: int) -> int:
    """The most output channels within `MOST_MACS`, where one takes so many."""
    return max(1, min(256, MOST_MACS // max(1, macs_of_one) // 2, MOST_CONSTANT_BYTES // 4 // net.shape_of(x)[3]))


def _products(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 6)):
        _, h, w, c = net.shape_of(x)
        x = net.conv(x, min(_width(rng, 4, 256), _room(net, x, h * w * c)))


def _convs(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for i in range(rng.integers(1, 5)):
        _, h, w, c = net.shape_of(x)
        kernel: int | tuple[int, int] = _KERNELS[rng.integers(len(_KERNELS))]
        taps = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
        stride = 2 if rng.random() < 0.3 else 1
        pixels = -(-h // stride) * -(-w // stride)
        kernel = 1 if stride == 2 and i and rng.random() < 0.2 else kernel
        x = net.conv(x, min(_width(rng, 4, 160), _room(net, x, pixels * c * taps)), kernel, stride=stride)


def _images(rng: Rng, net: NetWriter) -> None:
    """First layers: few channels, many pixels."""
    x = net.conv(net.input, _width(rng, 4, 48), [3, 3, 5, 7][rng.integers(4)], stride=int(rng.integers(1, 3)))
    if rng.random() < 0.5:
        net.conv(x, _width(rng, 4, 24))


def _depthwise(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 6)):
        x = net.depthwise(x, _DEEP_KERNELS[rng.integers(len(_DEEP_KERNELS))], stride=2 if rng.random() < 0.25 else 1)


def _dense(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 8)):
        x = net.dense(x, _width(rng, 4, 500), act="relu")


def _sums(rng: Rng, net: NetWriter) -> None:
    x, y = net.input, net.input
    for _ in range(rng.integers(1, 9)):
        x, y = net.add(x, y, act="relu" if rng.random() < 0.5 else ""), x


def _of_two(rng: Rng, net: NetWriter) -> None:
    x, y = net.input, net.input
    for _ in range(rng.integers(1, 9)):
        x, y = net.mul(x, y), x


def _squeeze(rng: Rng, net: NetWriter, x: int) -> int:
    """Squeeze and excite (Hu et al., CVPR 2018)."""
    channels = net.shape_of(x)[3]
    s = net.conv(net.mean(x), max(1, channels // int(rng.choice([2, 4, 8]))))
    return net.mul(x, net.logistic(net.conv(s, channels, act="")))


def _squeezes(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 5)):
        x = _squeeze(rng, net, x)


def _means(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 7)):
        x = net.mul(x, net.mean(x)) if rng.random() < 0.5 else net.add(x, net.mean(x))
    net.mean(x)


def _tables(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 7)):
        x = net.logistic(x)


def _peaks(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 5)):
        size = int(rng.choice([2, 2, 3]))
        if min(net.shape_of(x)[1:3]) < size:
            break
        x = net.pool(x, size, stride=int(rng.choice([1, 2, size])))


def _averages(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 4)):
        whole = rng.random() < 0.3
        size = net.shape_of(x)[1] if whole else int(rng.choice([2, 2, 3]))
        if min(net.shape_of(x)[1:3]) < size:
            break
        x = net.pool(x, size, average=True)
        if rng.random() < 0.5:
            x = net.conv(x, _width(rng, 4, 32))


def _joins(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 5)):
        if math.prod(net.shape_of(x)) > 100_000:
            break
        x = net.concat([x, net.conv(x, _width(rng, 4, 32))] if rng.random() < 0.5 else [x, net.input])
        if net.shape_of(x)[1:3] != net.shape_of(net.input)[1:3]:
            break


def _pads(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 6)):
        x = net.pad(x, 1)


def _sizes(rng: Rng, net: NetWriter) -> None:
    x, bilinear = net.input, bool(rng.random() < 0.5)
    for _ in range(rng.integers(1, 4)):
        if math.prod(net.shape_of(x)) > 60_000:
            break
        x = net.resize(x, 2, bilinear=bilinear)
        if rng.random() < 0.4:
            x = net.conv(x, _width(rng, 4, 16))
    net.resize(x, 2, bilinear=bilinear)


def _swishes(rng: Rng, net: NetWriter) -> None:
    x = net.input
    for _ in range(rng.integers(1, 6)):
        x = net.hard_swish(x if rng.random() < 0.6 else net.depthwise(x, 3))


def _ends(rng: Rng, net: NetWriter) -> None:
    """How networks for classes end."""
    x = net.dense(net.input, _width(rng, 2, 500))
    for _ in range(rng.integers(0, 4)):
        x = net.softmax(x)
    if rng.random() < 0.5:
        x = net.dense(x, _width(rng, 2, 200))


def _flat(rng: Rng, net: NetWriter) -> None:
    x = net.flatten(net.input)
    wide = min(400, MOST_CONSTANT_BYTES // net.shape_of(x)[1])
    net.dense(x, _width(rng, 2, max(4, wide)))


KINDS: dict[str, tuple[Callable[[Rng], tuple[int, ...]], Fill]] = {
    "products": (_sized(1, 64, 256), _products),
    "convs": (_sized(3, 64, 128), _convs),
    "images": (_sized(16, 160, 3), _images),
    "depthwise": (_sized(1, 64, 256), _depthwise),
    "dense": (_row, _dense),
    "sums": (_sized(2, 96, 128), _sums),
    "of_two": (_sized(2, 96, 128), _of_two),
    "squeezes": (_sized(2, 64, 200), _squeezes),
    "means": (_sized(2, 64, 200), _means),
    "tables": (_sized(1, 48, 128), _tables),
    "peaks": (_sized(4, 96, 96), _peaks),
    "averages": (_sized(2, 64, 96), _averages),
    "joins": (_sized(2, 48, 96), _joins),
    "pads": (_sized(2, 96, 64), _pads),
    "sizes": (_sized(2, 32, 64), _sizes),
    "swishes": (_sized(2, 48, 96), _swishes),
    "ends": (_row, _ends),
    "flat": (_sized(1, 24, 128), _flat),
}


def _mixture(rng: Rng, dtype: str) -> bytes:
    """Layers of all kinds one after the other, each drawn anew."""
    side = _width(rng, 8, 128)
    net = NetWriter((1, side, side, int(rng.choice([1, 3, 3, 4, 8]))), dtype, seed=int(rng.integers(2**31)))
    x = net.conv(net.input, _width(rng, 8, 40), int(rng.choice([3, 3, 5])), stride=2 if side > 24 else 1)
    for _ in range(rng.integers(2, 16)):
        _, h, w, c = net.shape_of(x)
        choice = rng.random()
        if choice < 0.2:
            x = net.conv(x, min(_width(rng, 8, 160), _room(net, x, h * w * c * 4)))
        elif choice < 0.35:
            down = 2 if h > 4 and rng.random() < 0.5 else 1
            x = net.conv(x, min(_width(rng, 8, 96), _room(net, x, h * w * c * 36)), 3, stride=down)
        elif choice < 0.6:
            x = net.depthwise(x, int(rng.choice([3, 3, 5])), stride=2 if h > 4 and rng.random() < 0.3 else 1)
            x = net.conv(x, min(_width(rng, 8, 160), _room(net, x, h * w * c * 4)), act="")
        elif choice < 0.75:
            y = net.conv(net.depthwise(x), c, act="") if rng.random() < 0.5 else net.conv(x, c, 1, act="")
            x = net.add(x, y, act="relu")
        elif choice < 0.83:
            x = _squeeze(rng, net, x)
        elif choice < 0.9 and h >= 4:
            x = net.pool(x, 2, average=bool(rng.random() < 0.4))
        elif choice < 0.94 and c < 100:
            x = net.concat([net.conv(x, _width(rng, 4, 32)), net.conv(x, _width(rng, 4, 32))])
        elif choice < 0.97 and h * w * c < 20_000:
            x = net.resize(x, 2, bilinear=bool(rng.random() < 0.5))
        else:
            x = net.hard_swish(x)
    end = rng.random()
    if end < 0.8:
        x = net.flatten(net.mean(x) if end < 0.6 else net.pool(x, net.shape_of(x)[1], average=True))
        x = net.dense(x, _width(rng, 2, 100))
        if end < 0.4:
            net.softmax(x)
    return net.finish()
