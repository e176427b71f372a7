"""Attention of one head: over the value itself (mini-attention) or over a second one (cross-attention).

Keys and values come from at most ``tokens`` places: a larger map or a longer row is averaged into windows first, which
keeps the price linear in its size. The map back to the site's channels is zero at birth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, constant_cost, linear_cost
from kasmina_trainer.blueprints.mixing import zeroed
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint


class AttentionConfig(BlueprintConfig):
    """Settings of `mini-attention` and `cross-attention`.

    Attributes:
        size: Length of queries, keys and values, 1 to 256.
        tokens: Most places that keys are taken from, 1 to 1024.
        norm: Layer norms in front.
    """

    size: Annotated[int, Width(), Field(ge=1, le=256)] = 16
    tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    norm: bool = False


class AttentionBranch(nn.Module):
    """``out(softmax(q k / sqrt(d)) v)``; ``out`` is zero at birth.

    Args:
        port: Whose places ask.
        source: Whose places answer.
        config: Sizes.
    """

    def __init__(self, port: Port, source: Port, config: AttentionConfig) -> None:
        super().__init__()
        self.shape, self.layout, self.source = port.shape, port.layout, source.layout
        self.windows, self.strides = _windows(source, config.tokens)
        self.scale = config.size**-0.5
        self.norm: nn.Module = nn.LayerNorm(port.channels) if config.norm else nn.Identity()
        self.source_norm: nn.Module = nn.LayerNorm(source.channels) if config.norm else nn.Identity()
        self.query = nn.Linear(port.channels, config.size, bias=False)
        self.key = nn.Linear(source.channels, config.size, bias=False)
        self.value = nn.Linear(source.channels, config.size)
        self.out = zeroed(nn.Linear(config.size, port.channels))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """The site's value, and the second one where there is one, to the site's shape."""
        others = self.source_norm(_rows(self._averaged(x if context is None else context), self.source))
        asked = self.query(self.norm(_rows(x, self.layout))) * self.scale
        weights = torch.softmax(torch.matmul(asked, self.key(others).transpose(1, 2)), -1)
        found: torch.Tensor = self.out(torch.matmul(weights, self.value(others)))
        if self.layout is Layout.IMAGE:
            return found.reshape(-1, *self.shape[1:], self.shape[0]).permute(0, 3, 1, 2)
        return found

    def _averaged(self, x: torch.Tensor) -> torch.Tensor:
        if max(self.windows) == 1:
            return x
        if self.source is Layout.IMAGE:
            return F.avg_pool2d(x, self.windows, self.strides)
        return F.avg_pool2d(x.unsqueeze(1), self.windows, self.strides).squeeze(1)


class _Attention(GraftBlueprint):
    """What both kinds share."""

    Config = AttentionConfig

    def _source(self, port: Port) -> Port:
        return port

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        keys = _keys(self._source(port), AttentionConfig.own(config).tokens)
        return "" if keys > 1 else f"it chooses between 2 places or more, got {keys}"

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return AttentionBranch(port, self._source(port), AttentionConfig.own(config))

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        settings, source = AttentionConfig.own(config), self._source(port)
        keys = _keys(source, settings.tokens)
        products = Cost(0, 2 * port.positions * keys * settings.size, 0)
        cost = products + linear_cost(port.channels, settings.size, port.positions, bias=False)
        cost += linear_cost(source.channels, settings.size, keys, bias=False)
        cost += linear_cost(source.channels, settings.size, keys)
        cost += linear_cost(settings.size, port.channels, port.positions)
        return cost + constant_cost(2 * (port.channels + source.channels) if settings.norm else 0)


@blueprint("mini-attention", version=1)
class MiniAttention(_Attention):
    """Every place looks at every window of the same value."""

    summary = "one small head of attention over the value itself"
    ranks = frozenset({2, 3})
    layouts = frozenset({Layout.TOKENS, Layout.IMAGE})


@blueprint("cross-attention", version=1)
class CrossAttention(_Attention):
    """Every place looks at every window of the port's second value."""

    summary = "one small head of attention over a second value of the network"
    ranks = frozenset({2, 3})
    layouts = frozenset({Layout.TOKENS, Layout.IMAGE})
    reads = "context"

    def _source(self, port: Port) -> Port:
        return port.other()


def _rows(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Places in a row, channels last.  # (N, P, C)"""
    if layout is Layout.IMAGE:
        return x.permute(0, 2, 3, 1).flatten(1, 2)
    if layout is Layout.SERIES:
        return x.transpose(1, 2)
    return x.unsqueeze(1) if layout is Layout.VECTOR else x


def _axes(source: Port) -> tuple[int, ...]:
    """Lengths of the two axes that are averaged over; a channel axis among them has a window of 1."""
    if source.layout is Layout.IMAGE:
        return source.shape[1:]
    if source.layout is Layout.SERIES:
        return (1, source.shape[1])
    return (source.shape[0] if source.layout is Layout.TOKENS else 1, 1)


def _cells(lengths: Sequence[int], most: int) -> tuple[int, ...]:
    """How many windows an axis, at most ``most`` together."""
    share = 1
    while True:
        high, wide = (-(-length // share) for length in lengths)
        if high * wide <= most:
            return (high, wide)
        share += 1


def _windows(source: Port, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Windows and strides that reach every place; neighbours overlap where the length is no multiple."""
    lengths = _axes(source)
    cells = _cells(lengths, most)
    strides = tuple(length // count for length, count in zip(lengths, cells, strict=True))
    windows = tuple(n - (count - 1) * step for n, count, step in zip(lengths, cells, strides, strict=True))
    return windows, strides


def _keys(source: Port, most: int) -> int:
    high, wide = _cells(_axes(source), most)
    return high * wide
