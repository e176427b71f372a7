"""ONNX operators that compute, in PyTorch's words: layers, pools, reductions, element by element.

Semantics: onnx/docs/Operators.md; the graph is channels first, as PyTorch is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from kasmina_trainer.export.source import builder
from kasmina_trainer.export.source.onnx_step import Made, Step, Unsupported


def _pads(step: Step, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and behind each spatial axis."""
    axes = len(kernel)
    auto = step.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        strides = step.options.get("strides", [1] * axes)
        dilations = step.options.get("dilations", [1] * axes)
        before, behind = [], []
        for size, k, s, d in zip(step.shape(0)[2:], kernel, strides, dilations, strict=True):
            total = max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            behind.append(large if auto == "SAME_UPPER" else small)
        return before, behind
    pads = [0] * 2 * axes if auto == "VALID" else list(step.options.get("pads", [0] * 2 * axes))
    return pads[:axes], pads[axes:]


def _padded(step: Step, before: Sequence[int], behind: Sequence[int], value: float = 0.0) -> fx.Node:
    flat = [n for pair in zip(reversed(before), reversed(behind), strict=True) for n in pair]
    return step.build.call(F.pad, step.value(0), flat, "constant", value, origin=step.origin)


def conv(step: Step) -> Made:
    """A convolution with constant weights; uneven padding becomes a padding of its own."""
    weight = step.tensor(1)
    if weight.ndim not in (3, 4):
        raise Unsupported(f"has {weight.ndim - 2} spatial axes, one or two can be taken")
    before, behind = _pads(step, weight.shape[2:])
    axes = weight.ndim - 2
    even = before == behind
    layer = builder.convolution(
        weight,
        step.tensor(2) if step.has(2) else None,
        stride=step.options.get("strides", [1] * axes),
        padding=before if even else [0] * axes,
        dilation=step.options.get("dilations", [1] * axes),
        groups=step.options.get("group", 1),
    )
    at = step.value(0) if even else _padded(step, before, behind)
    return [step.build.layer(layer, at, name=step.name, origin=step.origin)]


def conv_transpose(step: Step) -> Made:
    """A transposed convolution with constant weights."""
    weight = step.tensor(1)
    before, behind = _pads(step, weight.shape[2:])
    axes = weight.ndim - 2
    if before != behind or axes not in (1, 2) or "output_shape" in step.options:
        raise Unsupported("has uneven padding or a fixed output shape")
    kinds: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d]
    groups = step.options.get("group", 1)
    layer = kinds[axes - 1](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        tuple(step.options.get("strides", [1] * axes)),
        tuple(before),
        tuple(step.options.get("output_padding", [0] * axes)),
        groups,
        step.has(2),
        tuple(step.options.get("dilations", [1] * axes)),
    )
    return step.layer(builder.with_values(layer, weight=weight, bias=step.tensor(2) if step.has(2) else None))


def gemm(step: Step) -> Made:
    """A linear layer."""
    alpha, beta = float(step.options.get("alpha", 1.0)), float(step.options.get("beta", 1.0))
    if step.options.get("transA", 0) or step.inputs[1] not in step.fixed:
        raise Unsupported("multiplies two computed matrices", "Write it as MatMul.")
    weight = step.tensor(1) * alpha
    weight = weight if step.options.get("transB", 0) else weight.T.contiguous()
    bias = None
    if step.has(2):
        bias = (step.tensor(2) * beta).reshape(-1).expand(weight.shape[0]).contiguous()
    return step.layer(builder.linear(weight, bias))


def matmul(step: Step) -> Made:
    """A linear layer, or a product of two computed matrices."""
    if step.inputs[1] in step.fixed and step.array(1).ndim == 2 and step.rank(0) >= 2:
        return step.layer(builder.linear(step.tensor(1).T.contiguous(), None))
    return step.call(torch.matmul, step.value(0), step.value(1))


def batch_norm(step: Step) -> Made:
    """Normalisation with fixed statistics."""
    if step.options.get("training_mode", 0):
        raise Unsupported("is in training mode", "Export the network in evaluation mode.")
    eps = float(step.options.get("epsilon", 1e-5))
    scale, bias, mean, variance = (step.tensor(i) for i in range(1, 5))
    return step.layer(builder.normalization(step.rank(0), mean, variance, scale, bias, eps))


def layer_norm(step: Step) -> Made:
    """Normalisation over the last axes."""
    axis = int(step.options.get("axis", -1)) % step.rank(0)
    shape = list(step.shape(0)[axis:])
    layer = nn.LayerNorm(shape, float(step.options.get("epsilon", 1e-5)), bias=step.has(2))
    return step.layer(builder.with_values(layer, weight=step.tensor(1), bias=step.tensor(2) if step.has(2) else None))


def clip(step: Step) -> Made:
    """ReLU6, ReLU, or a clamp."""

    def end(option: str, place: int) -> float | None:
        if option in step.options:
            return float(step.options[option])
        return float(step.array(place)) if step.has(place) else None

    low, high = end("min", 1), end("max", 2)
    if (low, high) == (0.0, 6.0):
        return step.layer(nn.ReLU6())
    if low == 0.0 and (high is None or high > 1e30):
        return step.layer(nn.ReLU())
    return step.call(torch.clamp, step.value(0), low, high)


def max_pool(step: Step) -> Made:
    """The largest of a window."""
    kernel = step.options["kernel_shape"]
    before, behind = _pads(step, kernel)
    if step.outputs > 1:
        raise Unsupported("gives indices as well")
    even = before == behind and all(p <= k // 2 for p, k in zip(before, kernel, strict=True))
    kinds: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
    layer = kinds[len(kernel)](
        tuple(kernel),
        tuple(step.options.get("strides", [1] * len(kernel))),
        tuple(before) if even else 0,
        tuple(step.options.get("dilations", [1] * len(kernel))),
        ceil_mode=bool(step.options.get("ceil_mode", 0)),
    )
    at = step.value(0) if even else _padded(step, before, behind, -3.0e38)
    return [step.build.layer(layer, at, name=step.name, origin=step.origin)]


def average_pool(step: Step) -> Made:
    """The mean of a window."""
    kernel = step.options["kernel_shape"]
    before, behind = _pads(step, kernel)
    counts = bool(step.options.get("count_include_pad", 0))
    if before != behind and not counts:
        raise Unsupported("has uneven padding that it does not count", "Pad evenly, or set count_include_pad.")
    kinds: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
    even = before == behind
    layer = kinds[len(kernel)](
        tuple(kernel),
        tuple(step.options.get("strides", [1] * len(kernel))),
        tuple(before) if even else 0,
        ceil_mode=bool(step.options.get("ceil_mode", 0)),
        count_include_pad=counts,
    )
    at = step.value(0) if even else _padded(step, before, behind)
    return [step.build.layer(layer, at, name=step.name, origin=step.origin)]


def reduced(function: Callable[..., Any]) -> Callable[[Step], Made]:
    """A converter of a reduction over chosen axes."""

    def convert(step: Step) -> Made:
        axes = step.ints(1, "axes") or list(range(step.rank(0)))
        keep = bool(step.options.get("keepdims", 1))
        return step.call(function, step.value(0), tuple(a % step.rank(0) for a in axes), keepdim=keep)

    return convert


def over_space(function: Callable[..., Any]) -> Callable[[Step], Made]:
    """A converter of a reduction over all spatial axes, which stay as ones."""

    def convert(step: Step) -> Made:
        return step.call(function, step.value(0), tuple(range(2, step.rank(0))), keepdim=True)

    return convert


def unary(function: Callable[..., Any]) -> Callable[[Step], Made]:
    """A converter of a function of one tensor."""
    return lambda step: step.call(function, step.value(0))


def layered(kind: Callable[[], nn.Module]) -> Callable[[Step], Made]:
    """A converter of an activation that PyTorch has as a layer."""
    return lambda step: step.layer(kind())


def binary(function: Callable[..., Any]) -> Callable[[Step], Made]:
    """A converter of a function of two tensors, chained where there are more."""

    def convert(step: Step) -> Made:
        made: list[Any] = [step.value(0)]
        for place in range(1, len(step.inputs)):
            made = step.call(function, made[0], step.value(place))
        return made

    return convert


def softmax(function: Callable[..., Any]) -> Callable[[Step], Made]:
    """A converter of softmax or its logarithm."""

    def convert(step: Step) -> Made:
        axis = int(step.options.get("axis", -1 if step.opset >= 13 else 1))
        if step.opset < 13 and axis % step.rank(0) != step.rank(0) - 1:
            raise Unsupported(f"of opset {step.opset} over several axes", "Export with opset 13 or later.")
        return step.call(function, step.value(0), axis)

    return convert


def prelu(step: Step) -> Made:
    """Leaky ReLU with a slope a channel."""
    slope = step.tensor(1).reshape(-1)
    layer = nn.PReLU(len(slope))
    return step.layer(builder.with_values(layer, weight=slope))


def gelu(step: Step) -> Made:
    """Gaussian error linear unit."""
    return step.layer(nn.GELU(step.text("approximate", "none")))


def hard_sigmoid(step: Step) -> Made:
    """A line cut off at 0 and 1."""
    alpha, beta = float(step.options.get("alpha", 0.2)), float(step.options.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return step.layer(nn.Hardsigmoid())
    scaled = step.call(torch.mul, step.value(0), alpha)[0]
    return step.call(torch.clamp, step.call(torch.add, scaled, beta)[0], 0.0, 1.0)
