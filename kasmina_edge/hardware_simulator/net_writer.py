"""Networks for measuring: a ``.tflite`` file layer by layer, with random weights, without a converter.

What such a network answers means nothing; that it takes as long as a trained one of the same shapes is what
calibration rests on: no kernel of XNNPACK or LiteRT looks at the values of weights. Field and operator numbers are
those of TFLite's schema.fbs; quantization follows TFLite's 8-bit specification (int8 activations, int8 weights with a
scale a channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.engines.tflite_file import IDENTIFIER
from kasmina_edge.hardware_simulator.flat_tables import Packed, Scalar, Table, Value, floats, ints, text, write_flat
from kasmina_edge.hardware_simulator.workload import Shape

_FLOAT32, _INT32, _INT8 = 0, 2, 9  # TensorType
_ACTIVATIONS = {"": 0, "relu": 1, "relu6": 3}
_SCALE, _WEIGHT_SCALE = 0.05, 0.01
_HALF, _HALF_ZERO = 1 / 256, -128  # what softmax and logistic must give
_OPERATORS = {  # kind: BuiltinOperator, BuiltinOptions, the operator's version for 8-bit numbers
    "add": (0, 11, 2), "average_pool_2d": (1, 5, 2), "concatenation": (2, 10, 2), "conv_2d": (3, 1, 3),
    "depthwise_conv_2d": (4, 2, 3), "fully_connected": (9, 8, 5), "logistic": (14, 0, 2), "max_pool_2d": (17, 5, 2),
    "mul": (18, 21, 2), "reshape": (22, 17, 1), "resize_bilinear": (23, 15, 2), "softmax": (25, 9, 2),
    "pad": (34, 22, 2), "mean": (40, 27, 2), "resize_nearest_neighbor": (97, 74, 2), "hard_swish": (117, 91, 1),
}  # fmt: skip
Numbers = npt.NDArray[Any]


@dataclass
class _Tensor:
    shape: Shape
    kind: int
    buffer: int = 0
    scale: float | None = None
    zero: int = 0
    channels: int = 0  # scales, where there is one a channel
    axis: int = 0


@dataclass
class NetWriter:
    """Appends layers; every method gives the number of the tensor that the layer writes.

    Attributes:
        shape: Of the input, batch axis included: (1, H, W, C) or (1, C).
        dtype: "int8" or "float32", of everything.
        seed: Of the weights.

    >>> net = NetWriter((1, 8, 8, 3))
    >>> net.shape_of(net.conv(net.input, 16, 3, stride=2))
    (1, 4, 4, 16)
    """

    shape: Shape
    dtype: str = "int8"
    seed: int = 0
    parameters: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._tensors: list[_Tensor] = []
        self._buffers: list[bytes] = [b""]
        self._operators: list[tuple[str, tuple[int, ...], int, Mapping[int, Value]]] = []
        self._whole = self.dtype == "int8"
        self.input = self._activation(self.shape)

    def shape_of(self, tensor: int) -> Shape:
        """Shape of what a layer writes."""
        return self._tensors[tensor].shape

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
        """A convolution with bias, padded to the same size over ``stride``; ``valid``: not padded."""
        (kh, kw), (sh, sw) = _pair(kernel), _strides(self.shape_of(x), stride)
        constants = self._weights((filters, kh, kw, self.shape_of(x)[3]), filters, 0)
        options = {0: _byte(valid), 1: _int(sw), 2: _int(sh), 3: _byte(_ACTIVATIONS[act])}
        return self._layer("conv_2d", (x, *constants), (1, *self._slid(x, (kh, kw), (sh, sw), valid), filters), options)

    def depthwise(
        self, x: int, kernel: int | tuple[int, int] = 3, *, stride: int = 1, act: str = "relu", valid: bool = False
    ) -> int:
        """A depthwise convolution with bias, one filter a channel; padding as `conv`."""
        c, (kh, kw), (sh, sw) = self.shape_of(x)[3], _pair(kernel), _strides(self.shape_of(x), stride)
        constants = self._weights((1, kh, kw, c), c, 3)
        options = {0: _byte(valid), 1: _int(sw), 2: _int(sh), 3: _int(1), 4: _byte(_ACTIVATIONS[act])}
        shape = (1, *self._slid(x, (kh, kw), (sh, sw), valid), c)
        return self._layer("depthwise_conv_2d", (x, *constants), shape, options)

    def dense(self, x: int, units: int, *, act: str = "") -> int:
        """A fully connected layer with bias over everything that comes in."""
        constants = self._weights((units, math.prod(self.shape_of(x))), units, 0)
        return self._layer("fully_connected", (x, *constants), (1, units), {0: _byte(_ACTIVATIONS[act])})

    def add(self, x: int, y: int, *, act: str = "") -> int:
        """A sum; one of the two may be (1, 1, 1, C)."""
        shape = tuple(np.broadcast_shapes(self.shape_of(x), self.shape_of(y)))
        return self._layer("add", (x, y), shape, {0: _byte(_ACTIVATIONS[act])})

    def mul(self, x: int, y: int) -> int:
        """A product; one of the two may be (1, 1, 1, C)."""
        shape = tuple(np.broadcast_shapes(self.shape_of(x), self.shape_of(y)))
        return self._layer("mul", (x, y), shape, {0: _byte(0)})

    def mean(self, x: int) -> int:
        """The mean over height and width, axes kept."""
        axes = self._constant(np.array([1, 2], np.int32), _INT32)
        return self._layer("mean", (x, axes), (1, 1, 1, self.shape_of(x)[3]), {0: Scalar("?", True)})

    def pool(self, x: int, size: int, *, stride: int = 0, average: bool = False) -> int:
        """A pooling layer without padding; ``stride`` 0: the size."""
        (_, h, w, c), step = self.shape_of(x), stride or size
        (kh, kw), (sh, sw) = (min(size, h), min(size, w)), (step if h > 1 else 1, step if w > 1 else 1)
        options = {0: _byte(1), 1: _int(sw), 2: _int(sh), 3: _int(kw), 4: _int(kh), 5: _byte(0)}
        shape = (1, (h - kh) // sh + 1, (w - kw) // sw + 1, c)
        return self._layer("average_pool_2d" if average else "max_pool_2d", (x,), shape, options, like=x)

    def concat(self, xs: Sequence[int]) -> int:
        """Side by side along the channels."""
        *first, _ = self.shape_of(xs[0])
        shape = (*first, sum(self.shape_of(x)[-1] for x in xs))
        return self._layer("concatenation", tuple(xs), shape, {0: _int(len(shape) - 1), 1: _byte(0)}, like=xs[0])

    def pad(self, x: int, by: int) -> int:
        """Zeros around height and width."""
        (_, h, w, c) = self.shape_of(x)
        amounts = self._constant(np.array([[0, 0], [by, by], [by, by], [0, 0]], np.int32), _INT32)
        return self._layer("pad", (x, amounts), (1, h + 2 * by, w + 2 * by, c), {}, like=x)

    def resize(self, x: int, times: int = 2, *, bilinear: bool = False) -> int:
        """Enlarge height and width."""
        (_, h, w, c) = self.shape_of(x)
        size = self._constant(np.array([h * times, w * times], np.int32), _INT32)
        kind = "resize_bilinear" if bilinear else "resize_nearest_neighbor"
        return self._layer(kind, (x, size), (1, h * times, w * times, c), {}, like=x)

    def flatten(self, x: int) -> int:
        """Everything in one row."""
        shape = (1, math.prod(self.shape_of(x)))
        return self._layer("reshape", (x, self._constant(np.array(shape, np.int32), _INT32)), shape, {}, like=x)

    def logistic(self, x: int) -> int:
        """A sigmoid."""
        return self._layer("logistic", (x,), self.shape_of(x), {}, half=True)

    def softmax(self, x: int) -> int:
        """Over the last axis."""
        return self._layer("softmax", (x,), self.shape_of(x), {0: Scalar("f", 1.0)}, half=True)

    def hard_swish(self, x: int) -> int:
        """``x * relu6(x + 3) / 6``."""
        return self._layer("hard_swish", (x,), self.shape_of(x), {})

    def finish(self, *outputs: int) -> bytes:
        """The file; without ``outputs`` what the last layer writes comes out."""
        kinds = list(dict.fromkeys(kind for kind, *_ in self._operators))
        codes = [
            Table({0: _byte(_OPERATORS[k][0]), 2: _int(self._version(k)), 3: _int(_OPERATORS[k][0])}) for k in kinds
        ]
        operators = []
        for kind, inputs, output, options in self._operators:
            fields: dict[int, Value] = {0: Scalar("I", kinds.index(kind)), 1: ints(inputs), 2: ints([output])}
            if _OPERATORS[kind][1]:
                fields |= {3: Scalar("B", _OPERATORS[kind][1]), 4: Table(options)}
            operators.append(Table(fields))
        graph = Table(
            {
                0: [self._table(number, tensor) for number, tensor in enumerate(self._tensors)],
                1: ints([self.input]),
                2: ints(outputs or [self._operators[-1][2]]),
                3: operators,
            }
        )
        buffers = [Table({0: Packed(len(data), data)} if data else {}) for data in self._buffers]
        return write_flat(Table({0: Scalar("I", 3), 1: codes, 2: [graph], 4: buffers}), IDENTIFIER)

    def _slid(self, x: int, kernel: tuple[int, int], stride: tuple[int, int], valid: bool) -> tuple[int, int]:
        """Height and width after a window went over ``x``."""
        _, h, w, _ = self.shape_of(x)
        (kh, kw), (sh, sw) = kernel, stride
        return (-(-(h - kh + 1) // sh), -(-(w - kw + 1) // sw)) if valid else (-(-h // sh), -(-w // sw))

    def _version(self, kind: str) -> int:
        return _OPERATORS[kind][2] if self._whole else 1

    def _table(self, number: int, tensor: _Tensor) -> Table:
        fields: dict[int, Value] = {
            0: ints(tensor.shape),
            1: _byte(tensor.kind),
            2: Scalar("I", tensor.buffer),
            3: text(f"t{number}"),
        }
        if tensor.scale is not None:
            count = tensor.channels or 1
            fields[4] = Table(
                {2: floats([tensor.scale] * count), 3: ints([tensor.zero] * count, "q"), 6: _int(tensor.axis)}
            )
        return Table(fields)

    def _activation(self, shape: Shape, *, like: int | None = None, half: bool = False) -> int:
        tensor = _Tensor(tuple(int(n) for n in shape), _INT8 if self._whole else _FLOAT32)
        if self._whole:
            tensor.scale, tensor.zero = (_HALF, _HALF_ZERO) if half else (_SCALE, 0)
            if like is not None:
                tensor.scale, tensor.zero = self._tensors[like].scale, self._tensors[like].zero
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _constant(
        self, values: Numbers, kind: int, *, scale: float | None = None, channels: int = 0, axis: int = 0
    ) -> int:
        self._buffers.append(values.tobytes())
        self._tensors.append(_Tensor(values.shape, kind, len(self._buffers) - 1, scale, 0, channels, axis))
        return len(self._tensors) - 1

    def _weights(self, shape: Shape, channels: int, axis: int) -> tuple[int, int]:
        self.parameters += math.prod(shape) + channels
        if not self._whole:
            w = self._rng.normal(0, 1 / math.sqrt(math.prod(shape) / channels), shape).astype(np.float32)
            return self._constant(w, _FLOAT32), self._constant(np.zeros(channels, np.float32), _FLOAT32)
        q = self._rng.integers(-127, 128, shape, dtype=np.int8)
        weights = self._constant(q, _INT8, scale=_WEIGHT_SCALE, channels=channels, axis=axis)
        bias = self._rng.integers(-500, 500, channels, dtype=np.int32)
        return weights, self._constant(bias, _INT32, scale=_SCALE * _WEIGHT_SCALE, channels=channels)

    def _layer(
        self,
        kind: str,
        inputs: tuple[int, ...],
        shape: Shape,
        options: Mapping[int, Value],
        *,
        like: int | None = None,
        half: bool = False,
    ) -> int:
        output = self._activation(shape, like=like, half=half)
        self._operators.append((kind, inputs, output, options))
        return output


def _byte(value: int) -> Scalar:
    return Scalar("b", value)


def _int(value: int) -> Scalar:
    return Scalar("i", value)


def _pair(kernel: int | tuple[int, int]) -> tuple[int, int]:
    return (kernel, kernel) if isinstance(kernel, int) else kernel


def _strides(shape: Shape, stride: int) -> tuple[int, int]:
    """A signal is an image one pixel high: it has no stride there."""
    return (stride if shape[1] > 1 else 1, stride if shape[2] > 1 else 1)
