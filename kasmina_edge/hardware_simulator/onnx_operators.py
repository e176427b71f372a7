"""What ONNX operators are called in a workload, what they multiply, and which disappear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kasmina_edge.hardware_simulator.onnx_graph import Node, Shape

KINDS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "maximum", "Min": "minimum", "ReduceMean": "mean",
    "ReduceSum": "sum", "ReduceMax": "reduce_max", "AveragePool": "average_pool_2d", "MaxPool": "max_pool_2d",
    "GlobalAveragePool": "mean", "GlobalMaxPool": "reduce_max", "Concat": "concatenation", "Split": "split",
    "Slice": "slice", "Pad": "pad", "Reshape": "reshape", "Flatten": "reshape", "Squeeze": "squeeze",
    "Unsqueeze": "expand_dims", "Transpose": "transpose", "Softmax": "softmax", "Sigmoid": "logistic", "Tanh": "tanh",
    "Relu": "relu", "Clip": "relu6", "LeakyRelu": "leaky_relu", "HardSwish": "hard_swish", "PRelu": "prelu",
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Abs": "abs", "Neg": "neg", "Resize": "resize_nearest_neighbor",
    "Upsample": "resize_nearest_neighbor", "DepthToSpace": "depth_to_space", "SpaceToDepth": "space_to_depth",
    "Gather": "gather", "ArgMax": "argmax", "QuantizeLinear": "quantize", "DequantizeLinear": "dequantize",
    "LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "QLinearAdd": "add", "QLinearMul": "mul", "QLinearSigmoid": "logistic",
    "QLinearLeakyRelu": "leaky_relu", "QLinearGlobalAveragePool": "mean", "QLinearConcat": "concatenation",
}  # fmt: skip
"""Operator to the word of `workload.KINDS`; others stand under their own name in lower case."""
ALIASES = ("Identity", "Dropout")
FUSED_BEHIND = ("Conv", "ConvTranspose", "QLinearConv", "Gemm", "MatMul", "Add", "Mul")
_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "ConvTranspose")
_IMAGES = (*_CONVOLUTIONS, "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
           "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "InstanceNormalization", "LRN",
           "QLinearGlobalAveragePool")  # fmt: skip
_AS_THEY_ARE = ("MatMul", "MatMulInteger", "QLinearMatMul", "Reshape", "Flatten", "Transpose", "Gemm", "MatMulNBits",
                "Squeeze", "Unsqueeze")  # fmt: skip
_WEIGHTS_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


class Operand(Protocol):
    """A tensor as `onnx_values.Value` has it."""

    name: str
    shape: Shape
    dtype: str
    constant: bool


@dataclass(frozen=True)
class Description:
    """What an operation is in a workload.

    Attributes:
        kind: Its word.
        macs: Multiply-accumulates.
        weights: As `OpWork.weights`.
        weights_dtype: As there.
        stride: Height and width.
        dilation: Height and width.
        groups: Of a convolution.
        image: Its operands are images (channels come second in the file); None: they may be.
        constant_bytes: Of constants that are packed, by name.
    """

    kind: str
    macs: int = 0
    weights: Shape = ()
    weights_dtype: str = ""
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    image: bool | None = None
    constant_bytes: dict[str, int] = field(default_factory=dict)


def described(node: Node, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Description:
    """Word, cost and options of one operation."""
    image = True if node.kind in _IMAGES else False if node.kind in _AS_THEY_ARE else None
    place = _WEIGHTS_AT.get(node.kind, 1)
    w = inputs[place] if len(inputs) > place else None
    results = math.prod(outputs[0].shape) if outputs else 0
    if node.kind in _CONVOLUTIONS and w is not None and len(w.shape) >= 3 and outputs:
        return _convolution(node, inputs, w, results)
    if node.kind in ("Gemm", "QGemm", "MatMul", "MatMulInteger", "QLinearMatMul") and w is not None and inputs[0].shape:
        return _product(node, inputs, w, results)
    if node.kind == "MatMulNBits" and w is not None:
        units, width, bits = (node.ints.get(key, (0,))[0] for key in ("N", "K", "bits"))
        kind = "int4" if bits == 4 else "int8"
        packed = -(-units * width * (bits or 4) // 8)
        return Description("fully_connected", results * width, (units, width), kind, image=False,
                           constant_bytes={w.name: packed})  # fmt: skip
    if node.kind in ("LSTM", "GRU", "RNN") and len(inputs) > 2 and len(inputs[0].shape) == 3:
        steps = inputs[0].shape[0] * inputs[0].shape[1]
        macs = steps * (math.prod(inputs[1].shape) + math.prod(inputs[2].shape))
        held = inputs[1] if inputs[1].constant else None
        return Description(KINDS[node.kind], macs, held.shape if held else (), held.dtype if held else "")
    kind = KINDS.get(node.kind, node.kind.lower())
    if node.kind in ("Resize", "Upsample") and node.texts.get("mode") in ("linear", "cubic"):
        kind = "resize_bilinear"
    stride = _pair(node.ints.get("strides")) if image else (1, 1)
    return Description(kind, stride=stride, image=image)


def _convolution(node: Node, inputs: Sequence[Operand], w: Operand, results: int) -> Description:
    groups = node.ints.get("group", (1,))[0]
    kernel = w.shape[2:]
    stride, dilation = _pair(node.ints.get("strides")), _pair(node.ints.get("dilations"))
    if len(kernel) == 1:
        kernel = (1, *kernel)
        stride, dilation = (1, stride[0]), (1, dilation[0])
    filters, channels = w.shape[:2]
    macs = results * channels * math.prod(kernel)
    kind, weights = "conv_2d", (filters, *kernel, channels)
    if node.kind == "ConvTranspose":
        kind, weights = "transpose_conv", (channels * groups, *kernel, filters)
        macs = math.prod(inputs[0].shape) * math.prod(w.shape[1:])
    elif len(kernel) == 3:
        kind, weights = "conv_3d", (*kernel, channels, filters)
        stride = dilation = (1, 1)
    elif channels == 1 and groups > 1 and groups == inputs[0].shape[1]:
        kind, weights = "depthwise_conv_2d", (1, *kernel, filters)
    held, dtype = (weights, w.dtype) if w.constant else ((), "")
    return Description(kind, macs, held, dtype, stride, dilation, groups, image=True)


def _product(node: Node, inputs: Sequence[Operand], w: Operand, results: int) -> Description:
    a = inputs[0].shape
    width = a[0] if node.ints.get("transA", (0,))[0] and len(a) == 2 else a[-1]
    if not w.constant or len(w.shape) != 2:
        held, kind = (w.shape, w.dtype) if w.constant else ((), "")
        return Description("batch_matmul", results * width, held, kind, image=False)
    units = w.shape[0] if node.ints.get("transB", (0,))[0] else w.shape[1]
    return Description("fully_connected", results * width, (units, width), w.dtype, image=False)


def _pair(values: tuple[int, ...] | None) -> tuple[int, int]:
    if not values:
        return (1, 1)
    return (values[0], values[1]) if len(values) > 1 else (values[0], values[0])
