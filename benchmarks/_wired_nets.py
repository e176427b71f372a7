"""Networks of random wiring as ``.tflite`` bytes: residual sums, concatenations, gates, attention, upsampling.

No framework and no training: weights are noise, shapes and lives of tensors are what counts. One seed, one file.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as s

Shape = tuple[int, ...]
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "SOFTMAX": 2, "LOGISTIC": 2, "TANH": 2, "MEAN": 2,
    "RELU": 2, "BATCH_MATMUL": 2, "ADD": 2, "SUB": 2, "MUL": 2, "CONCATENATION": 2, "MAX_POOL_2D": 2, "PAD": 2,
    "AVERAGE_POOL_2D": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "TRANSPOSE_CONV": 2,
}  # fmt: skip
"""Versions that take int8; 1 for all others."""


@dataclass(frozen=True)
class Wire:
    """A tensor under construction."""

    index: int
    shape: Shape
    scale: float = 0.05
    zero: int = 0


class WiredNet:
    """Appends operations to one subgraph; ``dtype`` is ``int8`` (full integer, per channel) or ``float32``."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self._noise = np.random.default_rng(seed)
        self._model, self._graph = s.ModelT(), s.SubGraphT()
        self._model.version, self._model.description = 3, b"random"
        self._model.buffers, self._model.operatorCodes, self._model.subgraphs = [s.BufferT()], [], [self._graph]
        self._graph.name, self._graph.tensors, self._graph.operators = b"main", [], []
        self._graph.inputs, self._graph.outputs = [], []

    def input(self, shape: Shape) -> Wire:
        """What is fed."""
        wire = self.activation(shape)
        self._graph.inputs.append(wire.index)
        return wire

    def bytes(self, *outputs: Wire) -> bytes:
        """The file."""
        self._graph.outputs = [wire.index for wire in outputs]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def activation(self, shape: Shape, scale: float = 0.05, zero: int = 0) -> Wire:
        """A tensor that is computed."""
        return Wire(self.tensor(shape, self.dtype, None, [scale], [zero]).index, shape, scale, zero)

    def conv(self, x: Wire, filters: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True) -> Wire:
        """CONV_2D, padding "same"."""
        o = s.Conv2DOptionsT()
        o.padding, o.strideH, o.strideW = 0, stride, stride
        o.dilationHFactor, o.dilationWFactor, o.fusedActivationFunction = dilation, dilation, int(relu)
        weights = self._weights((filters, kernel, kernel, x.shape[-1]), 0)
        shape = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), filters)
        return self.op("CONV_2D", [x, weights, self._bias(filters)], shape, "Conv2D", o)

    def depthwise(self, x: Wire, kernel: int, stride: int = 1) -> Wire:
        """DEPTHWISE_CONV_2D, padding "same"."""
        o = s.DepthwiseConv2DOptionsT()
        o.padding, o.strideH, o.strideW, o.depthMultiplier = 0, stride, stride, 1
        o.dilationHFactor, o.dilationWFactor, o.fusedActivationFunction = 1, 1, 1
        channels = x.shape[-1]
        weights = self._weights((1, kernel, kernel, channels), 3)
        shape = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), channels)
        return self.op("DEPTHWISE_CONV_2D", [x, weights, self._bias(channels)], shape, "DepthwiseConv2D", o)

    def transpose_conv(self, x: Wire, filters: int, kernel: int = 2, stride: int = 2) -> Wire:
        """TRANSPOSE_CONV, padding "same"."""
        o = s.TransposeConvOptionsT()
        o.padding, o.strideH, o.strideW = 0, stride, stride
        shape = (x.shape[0], x.shape[1] * stride, x.shape[2] * stride, filters)
        weights = self._weights((filters, kernel, kernel, x.shape[-1]), 0)
        return self.op("TRANSPOSE_CONV", [self.whole(*shape), weights, x], shape, "TransposeConv", o)

    def dense(self, x: Wire, units: int) -> Wire:
        """FULLY_CONNECTED on the last axis of a matrix."""
        weights = self.tensor((units, x.shape[-1]), self.dtype, self._values((units, x.shape[-1])), [0.02], [0])
        return self.op("FULLY_CONNECTED", [x, weights, self._bias(units, each=False)], (x.shape[0], units),
                       "FullyConnected", s.FullyConnectedOptionsT())  # fmt: skip

    def binary(self, kind: str, x: Wire, y: Wire) -> Wire:
        """ADD, SUB or MUL; ``y`` may be one number a channel."""
        return self.op(kind, [x, y], x.shape, kind.capitalize(), getattr(s, f"{kind.capitalize()}OptionsT")())

    def unary(self, kind: str, x: Wire) -> Wire:
        """LOGISTIC, TANH, RELU, HARD_SWISH, SOFTMAX: as many numbers as before."""
        options, zero, scale = None, 0, 0.05
        if kind == "SOFTMAX":
            options = s.SoftmaxOptionsT()
            options.beta = 1.0
        if kind in ("SOFTMAX", "LOGISTIC"):
            zero, scale = -128, 1 / 256
        if kind == "TANH":
            scale = 1 / 128
        out = self.activation(x.shape, scale, zero)
        return self.op(kind, [x], x.shape, "Softmax" if options else "", options, out)

    def pool(self, kind: str, x: Wire, size: int) -> Wire:
        """AVERAGE_POOL_2D or MAX_POOL_2D, windows side by side."""
        o = s.Pool2DOptionsT()
        o.padding, o.strideH, o.strideW, o.filterHeight, o.filterWidth = 0, size, size, size, size
        shape = (x.shape[0], -(-x.shape[1] // size), -(-x.shape[2] // size), x.shape[-1])
        return self.op(kind, [x], shape, "Pool2D", o, self.activation(shape, x.scale, x.zero))

    def reduce(self, kind: str, x: Wire) -> Wire:
        """MEAN, SUM or REDUCE_MAX over the image, axes kept."""
        o = s.ReducerOptionsT()
        o.keepDims = True
        return self.op(kind, [x, self.whole(1, 2)], (x.shape[0], 1, 1, x.shape[-1]), "Reducer", o)

    def concat(self, wires: list[Wire]) -> Wire:
        """CONCATENATION of channels."""
        o = s.ConcatenationOptionsT()
        o.axis = 3
        shape = (*wires[0].shape[:3], sum(w.shape[3] for w in wires))
        return self.op("CONCATENATION", wires, shape, "Concatenation", o)

    def pad(self, x: Wire, amount: int = 1) -> Wire:
        """PAD around the image."""
        table = [[0, 0], [amount, amount], [amount, amount], [0, 0]]
        pads = self.tensor((4, 2), "int32", np.array(table, np.int32))
        shape = (x.shape[0], x.shape[1] + 2 * amount, x.shape[2] + 2 * amount, x.shape[3])
        return self.op("PAD", [x, pads], shape, "Pad", s.PadOptionsT())

    def reshape(self, x: Wire, shape: Shape) -> Wire:
        """RESHAPE."""
        o = s.ReshapeOptionsT()
        o.newShape = list(shape)
        return self.op("RESHAPE", [x, self.whole(*shape)], shape, "Reshape", o)

    def upsample(self, x: Wire) -> Wire:
        """RESIZE_NEAREST_NEIGHBOR by two."""
        shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
        return self.op("RESIZE_NEAREST_NEIGHBOR", [x, self.whole(*shape[1:3])], shape, "ResizeNearestNeighbor",
                       s.ResizeNearestNeighborOptionsT())  # fmt: skip

    def matmul(self, x: Wire, y: Wire, adj_y: bool = False) -> Wire:
        """BATCH_MATMUL of two activations."""
        o = s.BatchMatMulOptionsT()
        o.adjY = adj_y
        return self.op("BATCH_MATMUL", [x, y], (*x.shape[:-1], y.shape[-2 if adj_y else -1]), "BatchMatMul", o)

    def whole(self, *numbers: int) -> Wire:
        """A constant list of whole numbers."""
        return self.tensor((len(numbers),), "int32", np.array(numbers, np.int32))

    def tensor(
        self, shape: Shape, dtype: str, data: Any, scales: list[float] | None = None, zeros: list[int] | None = None,
        axis: int = 0,
    ) -> Wire:  # fmt: skip
        """A tensor; ``data`` makes it a constant, scales quantize it."""
        tensor = s.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.hasRank = f"t{len(self._graph.tensors)}", list(shape), 0, True
        tensor.type = getattr(s.TensorType, dtype.upper())
        if self.dtype == "int8" and scales is not None:
            q = tensor.quantization = s.QuantizationParametersT()
            q.scale, q.zeroPoint, q.quantizedDimension = scales, zeros, axis
        if data is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            tensor.buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(tensor)
        return Wire(len(self._graph.tensors) - 1, shape)

    def op(
        self, kind: str, reads: list[Wire], shape: Shape, named: str = "", options: Any = None, out: Wire | None = None
    ) -> Wire:
        """Any operation, by its names in schema.fbs; ``named`` is that of its options without ``Options``."""
        builtin, codes = getattr(s.BuiltinOperator, kind), self._model.operatorCodes
        index = next((i for i, c in enumerate(codes) if c.builtinCode == builtin), len(codes))
        if index == len(codes):
            code = s.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
            code.version = _VERSIONS.get(kind, 1)
            codes.append(code)
        result = out or self.activation(shape)
        operator = s.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = index, [r.index for r in reads], [result.index]
        operator.builtinOptionsType = getattr(s.BuiltinOptions, f"{named}Options") if named else 0
        operator.builtinOptions = options
        self._graph.operators.append(operator)
        return result

    def _values(self, shape: Shape) -> Any:
        if self.dtype == "int8":
            return self._noise.integers(-127, 128, shape, np.int8)
        return (self._noise.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)

    def _weights(self, shape: Shape, axis: int) -> Wire:
        count = shape[axis]
        return self.tensor(shape, self.dtype, self._values(shape), [0.02] * count, [0] * count, axis)

    def _bias(self, count: int, each: bool = True) -> Wire:
        kind = "int32" if self.dtype == "int8" else "float32"
        many = count if each else 1
        return self.tensor((count,), kind, np.zeros(count, kind), [0.001] * many, [0] * many)


def wired_net(seed: int, dtype: str = "int8", blocks: int = 0) -> bytes:
    """One network: an image, 2 to 10 random blocks, a classifier.

    Args:
        seed: Everything about it.
        dtype: ``int8`` or ``float32``.
        blocks: How many; 0 draws the number too.
    """
    rng, net = random.Random(seed), WiredNet(dtype, seed)
    side = rng.choice((16, 24, 32, 48))
    x = net.conv(net.input((1, side, side, rng.choice((1, 3)))), rng.choice((8, 12, 16)), 3, rng.choice((1, 2)))
    for _ in range(blocks or rng.randint(2, 10)):
        x = rng.choice(_BLOCKS)(net, rng, x)
        if x.shape[-1] > 64 or x.shape[1] > 48:
            x = net.conv(x, 16, 1, 2)
    kept = net.reduce("MEAN", x) if rng.random() < 0.5 else net.pool("AVERAGE_POOL_2D", x, x.shape[1])
    x = net.reshape(kept, (1, x.shape[-1]))
    if rng.random() < 0.5:
        x = net.dense(x, 32)
    x = net.dense(x, 10)
    return net.bytes(net.unary("SOFTMAX", x) if rng.random() < 0.5 else x)


def _plain(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    stride = 2 if x.shape[1] >= 8 and rng.random() < 0.3 else 1
    return net.conv(x, rng.choice((8, 16, 24, 32)), rng.choice((1, 3, 5)), stride, relu=rng.random() < 0.7)


def _separable(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    stride = 2 if x.shape[1] >= 8 and rng.random() < 0.3 else 1
    return net.conv(net.depthwise(x, rng.choice((3, 5)), stride), rng.choice((8, 16, 32)), 1)


def _residual(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    wide = net.conv(x, x.shape[-1] * rng.choice((1, 2, 4)), 1)
    back = net.conv(net.depthwise(wide, 3), x.shape[-1], 1, relu=False)
    return net.binary("ADD", *((x, back) if rng.random() < 0.5 else (back, x)))


def _gate(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    squeezed = net.conv(net.conv(net.reduce(rng.choice(("MEAN", "SUM")), x), 4, 1), x.shape[-1], 1, relu=False)
    return net.binary("MUL", x, net.unary("LOGISTIC", squeezed))


def _branches(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    return net.concat([net.conv(x, rng.choice((4, 8)), k) for k in (1, 3, 5)[: rng.randint(2, 3)]])


def _unfused(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    y = net.unary(rng.choice(("RELU", "LOGISTIC", "TANH", "HARD_SWISH")), net.conv(x, x.shape[-1], 3, relu=False))
    return net.binary("SUB", y, x) if rng.random() < 0.5 else y


def _smaller(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    return net.pool(rng.choice(("MAX_POOL_2D", "AVERAGE_POOL_2D")), x, 2) if x.shape[1] >= 4 else _plain(net, rng, x)


def _larger(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    if x.shape[1] > 24:
        return net.depthwise(net.pad(x), 3, 2)
    return net.upsample(x) if rng.random() < 0.5 else net.transpose_conv(x, 8)


def _attention(net: WiredNet, rng: random.Random, x: Wire) -> Wire:
    if x.shape[1] > 12:
        return _smaller(net, rng, x)
    tokens, width = x.shape[1] * x.shape[2], 8
    q, k, v = (net.reshape(net.conv(x, width, 1, relu=False), (1, tokens, width)) for _ in range(3))
    mixed = net.matmul(net.unary("SOFTMAX", net.matmul(q, k, adj_y=True)), v)
    return net.conv(net.reshape(mixed, (1, *x.shape[1:3], width)), x.shape[-1], 1)


_BLOCKS = (_plain, _separable, _residual, _residual, _gate, _branches, _unfused, _smaller, _larger, _attention)
