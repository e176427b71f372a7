"""Writes a network as a table of layers: shapes are inferred, no weights are needed, and a `Workload` comes out.

Padding follows TensorFlow's two rules (tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2): ``same`` gives
ceil(in / stride), ``valid`` gives ceil((in - span + 1) / stride), span being (kernel - 1) * dilation + 1. Batch
normalisation is folded: a convolution has weights and one 32-bit bias a channel. A fused activation is no operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.workload import BITS, OpWork, Shape, TensorWork, Workload

Padding = Literal["same", "valid"]
Size = int | tuple[int, int]
BIAS_BYTES = 4


@dataclass(frozen=True)
class Node:
    """A tensor of the network under construction.

    Attributes:
        index: In the builder's list of tensors.
        shape: With the batch axis, channels last.
    """

    index: int
    shape: Shape

    @property
    def channels(self) -> int:
        """Length of the last axis."""
        return self.shape[-1]


class LayerTable:
    """Appends layers and builds the workload.

    Args:
        name: Of the network.
        dtype: Of activations and weights, a key of `BITS`; integer types get 32-bit biases, float ones their own.

    >>> table = LayerTable("tiny")
    >>> x = table.conv(table.input((1, 32, 32, 3)), 8, 3, stride=2)
    >>> x = table.fully_connected(table.mean(x), 10)
    >>> work = table.build(x)
    >>> x.shape, work.macs, work.constant_bytes, work.input_bytes, work.output_bytes
    ((1, 10), 55376, 368, 3072, 10)
    """

    def __init__(self, name: str, *, dtype: str = "int8") -> None:
        if dtype not in BITS:
            raise InputError(f"network {name}: dtype {dtype!r} is none of {', '.join(BITS)}")
        self.name = name
        self.dtype = dtype
        self._ops: list[OpWork] = []
        self._tensors: list[TensorWork] = []

    def input(self, shape: Shape, *, dtype: str = "") -> Node:
        """What is fed, batch axis included; dtype "": the table's own."""
        return self._tensor(shape, dtype or self.dtype, first=-1)

    def conv(
        self,
        x: Node,
        filters: int,
        kernel: Size,
        *,
        stride: Size = 1,
        padding: Padding = "same",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str = "relu",
    ) -> Node:
        """A convolution; (1, H, W, C) to (1, H', W', filters)."""
        k, s, d = _pair(kernel), _pair(stride), _pair(dilation)
        channels = self._image(x, "conv_2d")
        if channels % groups or filters % groups:
            raise InputError(f"{self._next('conv_2d')}: {channels} to {filters} channels in {groups} groups")
        out = (x.shape[0], *self._window(x, k, s, d, padding, "conv_2d"), filters)
        weights = (filters, *k, channels // groups)
        return self._weighted("conv_2d", x, out, weights, bias, s, d, groups, activation)

    def depthwise(
        self,
        x: Node,
        kernel: Size = 3,
        *,
        stride: Size = 1,
        padding: Padding = "same",
        dilation: Size = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str = "relu",
    ) -> Node:
        """A filter of its own for every channel; (1, H, W, C) to (1, H', W', C * multiplier)."""
        k, s, d = _pair(kernel), _pair(stride), _pair(dilation)
        filters = self._image(x, "depthwise_conv_2d") * multiplier
        out = (x.shape[0], *self._window(x, k, s, d, padding, "depthwise_conv_2d"), filters)
        return self._weighted("depthwise_conv_2d", x, out, (1, *k, filters), bias, s, d, x.channels, activation)

    def separable(
        self, x: Node, filters: int, kernel: Size = 3, *, stride: Size = 1, dilation: Size = 1, activation: str = "relu"
    ) -> Node:
        """A depthwise and a 1x1 convolution (MobileNetV1's block, arXiv 1704.04861)."""
        x = self.depthwise(x, kernel, stride=stride, dilation=dilation, activation=activation)
        return self.conv(x, filters, 1, activation=activation)

    def transpose_conv(
        self, x: Node, filters: int, kernel: Size, *, stride: Size = 2, padding: Padding = "same", bias: bool = True
    ) -> Node:
        """A transposed convolution; every input pixel is multiplied with the whole kernel."""
        k, s = _pair(kernel), _pair(stride)
        channels = self._image(x, "transpose_conv")
        grown = tuple(n * si if padding == "same" else n * si + max(ki - si, 0)
                      for n, ki, si in zip(x.shape[1:3], k, s, strict=True))  # fmt: skip
        out = (x.shape[0], *grown, filters)
        macs = x.shape[1] * x.shape[2] * math.prod(k) * channels * filters
        weights = (filters, *k, channels)
        op = self._op("transpose_conv", (x,), (out,), weights=weights, bias=filters if bias else 0, macs=macs)
        return self._append(replace(op, stride=s), (x,), out)

    def fully_connected(self, x: Node, units: int, *, bias: bool = True, activation: str = "") -> Node:
        """Every number of ``x`` to each of ``units``; (1, ...) to (1, units)."""
        width = math.prod(x.shape[1:])
        out = (x.shape[0], units)
        op = self._op("fully_connected", (x,), (out,), weights=(units, width), bias=units if bias else 0,
                      macs=x.shape[0] * width * units)  # fmt: skip
        return self._append(replace(op, activation=activation), (x,), out)

    def max_pool(self, x: Node, kernel: Size, *, stride: Size = 0, padding: Padding = "same") -> Node:
        """Largest of each window; stride 0: the kernel's size."""
        return self._pool("max_pool_2d", x, kernel, stride, padding)

    def average_pool(self, x: Node, kernel: Size, *, stride: Size = 0, padding: Padding = "same") -> Node:
        """Mean of each window; stride 0: the kernel's size."""
        return self._pool("average_pool_2d", x, kernel, stride, padding)

    def mean(self, x: Node, *, keep: bool = False) -> Node:
        """Mean over the image; (1, H, W, C) to (1, C), or to (1, 1, 1, C)."""
        out = (x.shape[0], 1, 1, x.channels) if keep else (x.shape[0], x.channels)
        return self._append(self._op("mean", (x,), (out,)), (x,), out)

    def add(self, *parts: Node, activation: str = "") -> Node:
        """Sum of two tensors of one shape."""
        if len(parts) != 2 or parts[0].shape != parts[1].shape:
            raise InputError(f"{self._next('add')}: shapes {[p.shape for p in parts]}, expected two equal ones")
        op = self._op("add", parts, (parts[0].shape,))
        return self._append(replace(op, activation=activation), parts, parts[0].shape)

    def mul(self, x: Node, gate: Node) -> Node:
        """Product; ``gate`` may be one number a channel."""
        return self._append(self._op("mul", (x, gate), (x.shape,)), (x, gate), x.shape)

    def concat(self, parts: Sequence[Node], *, axis: int = -1) -> Node:
        """Tensors side by side."""
        shape = list(parts[0].shape)
        axis %= len(shape)
        for p in parts[1:]:
            if len(p.shape) != len(shape) or any(a != b for i, (a, b) in enumerate(zip(p.shape, shape, strict=True))
                                                 if i != axis):  # fmt: skip
                raise InputError(
                    f"{self._next('concatenation')}: shapes {[q.shape for q in parts]} differ outside axis {axis}"
                )
        shape[axis] = sum(p.shape[axis] for p in parts)
        out = tuple(shape)
        return self._append(self._op("concatenation", tuple(parts), (out,)), tuple(parts), out)

    def affine(self, x: Node, *, activation: str = "relu") -> Node:
        """A batch normalisation that no convolution can take in: a constant a channel to multiply, one to add."""
        for kind, fused in (("mul", ""), ("add", activation)):
            op = self._op(kind, (x,), (x.shape,))
            constants = x.channels * BITS[self.dtype] // 8
            x = self._append(replace(op, constant_bytes=constants, activation=fused), (x,), x.shape)
        return x

    def resize(self, x: Node, height: int, width: int, *, method: str = "resize_bilinear") -> Node:
        """An image of another size; method ``resize_bilinear`` or ``resize_nearest_neighbor``."""
        self._image(x, method)
        out = (x.shape[0], height, width, x.channels)
        return self._append(self._op(method, (x,), (out,)), (x,), out)

    def reshape(self, x: Node, shape: Shape) -> Node:
        """The same numbers in another shape."""
        if math.prod(shape) != math.prod(x.shape):
            raise InputError(f"{self._next('reshape')}: {x.shape} has {math.prod(x.shape)} elements, {shape} has "
                             f"{math.prod(shape)}")  # fmt: skip
        return self._append(self._op("reshape", (x,), (shape,)), (x,), shape)

    def pad(self, x: Node, amount: Size) -> Node:
        """Zeros around an image: that many rows above and below, columns left and right."""
        high, wide = _pair(amount)
        out = (x.shape[0], x.shape[1] + 2 * high, x.shape[2] + 2 * wide, x.channels)
        return self._append(self._op("pad", (x,), (out,)), (x,), out)

    def unary(self, kind: str, x: Node, *, shape: Shape | None = None, dtype: str = "") -> Node:
        """An operation of one input without weights: ``softmax``, ``logistic``, ``argmax``, ``dequantize`` and others.

        Args:
            kind: The operation's word.
            x: What it reads.
            shape: Of what it writes; None: as ``x``.
            dtype: Of what it writes; "": the table's own.
        """
        out = x.shape if shape is None else shape
        return self._append(self._op(kind, (x,), (out,)), (x,), out, dtype=dtype)

    def many(self, kind: str, parts: Sequence[Node], shape: Shape, *, dtype: str = "") -> Node:
        """An operation of several inputs without weights, told by its word."""
        op = self._op(kind, tuple(parts), (shape,))
        return self._append(op, tuple(parts), shape, dtype=dtype)

    def build(self, *outputs: Node) -> Workload:
        """The workload; ``outputs`` are what the network gives, the last tensor where none is named."""
        if not self._ops:
            raise InputError(f"network {self.name}: no layers")
        given = {o.index for o in outputs} or {len(self._tensors) - 1}
        tensors = tuple(replace(t, last=len(self._ops)) if i in given else t for i, t in enumerate(self._tensors))
        return Workload(self.name, tuple(self._ops), tensors, "table")

    def _pool(self, kind: str, x: Node, kernel: Size, stride: Size, padding: Padding) -> Node:
        channels = self._image(x, kind)
        k = _pair(kernel)
        s = k if stride == 0 else _pair(stride)
        out = (x.shape[0], *self._window(x, k, s, (1, 1), padding, kind), channels)
        return self._append(replace(self._op(kind, (x,), (out,)), stride=s), (x,), out)

    def _weighted(
        self,
        kind: str,
        x: Node,
        out: Shape,
        weights: Shape,
        bias: bool,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        activation: str,
    ) -> Node:
        per_output = math.prod(weights[1:]) if kind == "conv_2d" else math.prod(weights[1:3])
        op = self._op(kind, (x,), (out,), weights=weights, bias=out[-1] if bias else 0,
                      macs=math.prod(out) * per_output)  # fmt: skip
        op = replace(op, stride=stride, dilation=dilation, groups=groups, activation=activation)
        return self._append(op, (x,), out)

    def _op(
        self, kind: str, reads: tuple[Node, ...], outputs: tuple[Shape, ...], *, weights: Shape = (), bias: int = 0,
        macs: int = 0,
    ) -> OpWork:  # fmt: skip
        bits = BITS[self.dtype]
        each = BIAS_BYTES if "int" in self.dtype else bits // 8
        return OpWork(
            kind,
            tuple(r.shape for r in reads),
            outputs,
            self._tensors[reads[0].index].dtype,
            weights=weights,
            weights_dtype=self.dtype if weights else "",
            constant_bytes=(-(-math.prod(weights) * bits // 8) if weights else 0) + bias * each,
            macs=macs,
            place=self._next(kind),
        )

    def _append(self, op: OpWork, reads: tuple[Node, ...], out: Shape, *, dtype: str = "") -> Node:
        here = len(self._ops)
        self._ops.append(op)
        for r in reads:
            t = self._tensors[r.index]
            self._tensors[r.index] = replace(t, last=here, readers=(*t.readers, here))
        return self._tensor(out, dtype or self.dtype, first=here)

    def _tensor(self, shape: Shape, dtype: str, *, first: int) -> Node:
        if not shape or min(shape) < 1:
            raise InputError(
                f"network {self.name}, tensor {len(self._tensors)}: shape {shape}, every axis is at least 1"
            )
        index = len(self._tensors)
        self._tensors.append(TensorWork(f"t{index}", shape, dtype, first, first))
        return Node(index, shape)

    def _image(self, x: Node, kind: str) -> int:
        if len(x.shape) != 4:
            raise InputError(f"{self._next(kind)}: shape {x.shape}, expected (batch, height, width, channels)")
        return x.channels

    def _window(
        self, x: Node, k: tuple[int, int], s: tuple[int, int], d: tuple[int, int], padding: Padding, kind: str
    ) -> tuple[int, int]:
        spans = [(ki - 1) * di + 1 for ki, di in zip(k, d, strict=True)]
        sizes = x.shape[1:3]
        if padding == "valid" and any(span > n for span, n in zip(spans, sizes, strict=True)):
            raise InputError(f"{self._next(kind)}: a window of {spans} does not fit into an image of {list(sizes)}")
        lost = [0, 0] if padding == "same" else [span - 1 for span in spans]
        high, wide = (-(-(n - cut) // si) for n, cut, si in zip(sizes, lost, s, strict=True))
        return high, wide

    def _next(self, kind: str) -> str:
        return f"op {len(self._ops)} {kind.upper()}"


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
