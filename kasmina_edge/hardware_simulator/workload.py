"""What a network asks of hardware: its operations with their shapes, weights, and the tensors that lie between them.

A workload has no weights' values and no framework: it is read from a model file (`read_workload`) or written as a table
of layers (`networks/`), and every simulation layer estimates from it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

Shape = tuple[int, ...]

KINDS = (
    "conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected", "batch_matmul", "add", "sub", "mul", "div",
    "maximum", "minimum", "mean", "sum", "reduce_max", "average_pool_2d", "max_pool_2d", "concatenation", "split",
    "slice", "pad", "reshape", "transpose", "softmax", "logistic", "tanh", "relu", "relu6", "leaky_relu", "hard_swish",
    "prelu", "exp", "log", "rsqrt", "sqrt", "square", "squared_difference", "abs", "neg", "resize_bilinear",
    "resize_nearest_neighbor", "depth_to_space", "space_to_depth", "gather", "argmax", "quantize", "dequantize", "lstm",
)  # fmt: skip
"""Kinds that layers know: TFLite's built-in names in lower case. ONNX operators are told by the same words; a kind that
is not here stands under its own name, in lower case, and costs what moving its bytes costs."""

BITS = {"float32": 32, "float16": 16, "float64": 64, "int8": 8, "uint8": 8, "int16": 16, "int32": 32, "int64": 64,
        "int4": 4, "bool": 8}  # fmt: skip


_T = TypeVar("_T")


class Once(Generic[_T]):
    """A property that is worked out once, without the lock that `functools.cached_property` takes until Python 3.12.

    A growth loop asks a thousand new networks a second; two threads may both work it out, and find the same.
    """

    def __init__(self, work_out: Callable[[Any], _T]) -> None:
        self._work_out = work_out
        self.__doc__ = work_out.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Once[_T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _T: ...
    def __get__(self, instance: object | None, owner: type) -> _T | Once[_T]:
        if instance is None:
            return self
        value = self._work_out(instance)
        object.__setattr__(instance, self._name, value)
        return value


@dataclass(frozen=True)
class TensorWork:
    """A tensor that is computed or fed, batch axis included.

    Attributes:
        name: Unique in the workload.
        shape: Channels last where it is an image.
        dtype: A key of `BITS`.
        first: Index of the operation that writes it; -1 for the network's inputs.
        last: Index of the last operation that reads it; ``len(ops)`` for the network's outputs.
        readers: The operations that read it; () where a table does not say.
        kept: A variable that outlives the inference: it takes memory beside the arena.
    """

    name: str
    shape: Shape
    dtype: str
    first: int
    last: int
    readers: tuple[int, ...] = field(default=(), compare=False)
    kept: bool = False

    @property
    def elements(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @Once
    def size_bytes(self) -> int:
        """Bytes, 4-bit numbers packed two a byte."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)


@dataclass(frozen=True)
class OpWork:
    """One operation.

    Attributes:
        kind: Of `KINDS`, or the file's own word.
        inputs: Shapes of the activations it reads.
        outputs: Shapes of what it writes.
        dtype: Of its first activation (of its output where it reads none).
        weights: Shape of the main constant: conv (O, H, W, I), depthwise (1, H, W, O), fully connected (O, I); () where
            there is none.
        weights_dtype: Of that constant; "" where there is none.
        constant_bytes: All constants, biases and tables included.
        macs: Multiply-accumulates; 0 for what does not multiply.
        stride: Height and width.
        dilation: Height and width.
        groups: Of a convolution.
        version: The operator's version in a TFLite file; 0 where unknown.
        activation: Fused: "relu", "relu6", "relu_n1_to_1", "tanh", or "".
        place: Where it stands, for messages: ``op 3 CONV_2D``.
    """

    kind: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    dtype: str
    weights: Shape = ()
    weights_dtype: str = ""
    constant_bytes: int = 0
    macs: int = 0
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    version: int = 0
    activation: str = ""
    place: str = field(default="", compare=False)

    def __hash__(self) -> int:
        """Of enough to tell most operations apart: layers remember costs by operation, a thousand times a second."""
        return hash((self.kind, self.inputs, self.weights, self.outputs))

    @Once
    def input_bytes(self) -> int:
        """Bytes of the activations it reads."""
        return sum(-(-math.prod(s) * BITS.get(self.dtype, 8) // 8) for s in self.inputs)

    @Once
    def output_bytes(self) -> int:
        """Bytes of what it writes."""
        return sum(-(-math.prod(s) * BITS.get(self.dtype, 8) // 8) for s in self.outputs)

    @Once
    def output_elements(self) -> int:
        """Numbers that it writes."""
        return sum(math.prod(s) for s in self.outputs)


@dataclass(frozen=True)
class Workload:
    """A network as hardware sees it.

    Attributes:
        name: For people.
        ops: In order of execution.
        tensors: Everything that is computed or fed, with its life; () in a table of layers that does not give lives.
        source: ``tflite``, ``onnx`` or ``table``.
        notes: What was not read or not counted, as sentences.
    """

    name: str
    ops: tuple[OpWork, ...]
    tensors: tuple[TensorWork, ...] = ()
    source: str = "table"
    notes: tuple[str, ...] = ()

    @Once
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(op.macs for op in self.ops)

    @Once
    def constant_bytes(self) -> int:
        """Bytes of all weights, biases and tables."""
        return sum(op.constant_bytes for op in self.ops)

    @Once
    def input_bytes(self) -> int:
        """Bytes that go in from outside."""
        if self.tensors:
            return sum(t.size_bytes for t in self.tensors if t.first < 0)
        return self.ops[0].input_bytes if self.ops else 0

    @Once
    def output_bytes(self) -> int:
        """Bytes that come out."""
        if self.tensors:
            return sum(t.size_bytes for t in self.tensors if t.last >= len(self.ops))
        return self.ops[-1].output_bytes if self.ops else 0

    @Once
    def kept_bytes(self) -> int:
        """Bytes of the variables that a network keeps from one inference to the next."""
        return sum(t.size_bytes for t in self.tensors if t.kept)

    @Once
    def dtypes(self) -> tuple[str, ...]:
        """Types in use, of activations and weights."""
        return tuple(sorted({op.dtype for op in self.ops} | {op.weights_dtype for op in self.ops} - {""}))
