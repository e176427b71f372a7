"""Parts that blueprints are made of, for every layout: maps over channels, convolutions, means over places."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.port import Layout, Port, Shape

M = TypeVar("M", bound=nn.Module)
CHANNELS_FIRST = frozenset({Layout.IMAGE, Layout.SERIES})


def channel_map(port: Port, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
    """A linear map over channels at every place: a 1x1 convolution, or a linear layer where channels come last."""
    if port.layout in CHANNELS_FIRST:
        return convolution(port, inputs, outputs, 1, bias=bias)
    return nn.Linear(inputs, outputs, bias=bias)


def convolution(
    port: Port,
    inputs: int,
    outputs: int,
    taps: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Conv1d | nn.Conv2d:
    """A convolution over a map or a series that keeps its size (at stride 1); an axis of length 1 gets one tap.

    Args:
        port: What flows.
        inputs: Channels that enter.
        outputs: Channels that leave.
        taps: An odd number, an axis.
        stride: Steps along axes longer than 1.
        dilation: Distance of taps.
        groups: Of channels.
        bias: Whether there is one.
    """
    kernel = kernel_of(port, taps)
    padding = tuple(dilation * (k // 2) for k in kernel)
    strides = tuple(stride if length > 1 else 1 for length in port.shape[1:])
    if port.layout is Layout.SERIES:
        return nn.Conv1d(inputs, outputs, kernel[0], strides[0], padding[0], dilation, groups, bias)
    (high, wide), (down, along), (above, beside) = kernel, strides, padding
    return nn.Conv2d(inputs, outputs, (high, wide), (down, along), (above, beside), dilation, groups, bias)


def kernel_of(port: Port, taps: int) -> Shape:
    """Taps an axis: one where the axis has length 1, as the height of a series that runs as a map."""
    return tuple(taps if length > 1 else 1 for length in port.shape[1:])


def map_cost(port: Port, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """Price of `channel_map` at every place of a port."""
    return linear_cost(inputs, outputs, port.positions, bias=bias)


def zeroed(module: M) -> M:
    """The same module with every parameter zero: what comes last in a branch."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def pooled(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Mean over all places, axes kept.  # (N, C, 1, 1), (N, C, 1), (N, 1, D) or (N, C)"""
    if layout is Layout.VECTOR:
        return x
    if layout is Layout.TOKENS:
        return x.mean(1, keepdim=True)
    return x.mean((2, 3) if layout is Layout.IMAGE else (2,), keepdim=True)
