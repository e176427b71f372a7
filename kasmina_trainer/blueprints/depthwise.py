"""Depthwise residual: a spatial filter a channel, then a 1x1 mix that starts at zero.

A parallel adapter (Rebuffi et al. 2018) with a filter in front: what a blurred, hazy or shifted input needs. The filter
covers about a third of the map: 5x5 from a side of 12 on, else 3x3. With ``K`` taps a filter and ``C`` channels it has
``C * (K + 1) + C * (C + 1)`` parameters.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, zeroed
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint

WIDE_FROM = 12  # side of a map from which the filter is 5x5


class DepthwiseConfig(BlueprintConfig):
    """Settings of `depthwise`.

    Attributes:
        taps: Taps of a filter, an axis; 0: 5 where the shortest axis has 12 places or more, else 3.
        filters: Filters a channel, 1 to 8.
    """

    taps: Literal[0, 3, 5, 7, 9] = 0
    filters: Annotated[int, Width(), Field(ge=1, le=8)] = 1


class DepthwiseBranch(nn.Module):
    """Depthwise filter with bias, ReLU, pointwise 1x1 with bias; the pointwise part is zero at birth."""

    def __init__(self, layout: Layout, channels: int, taps: int, filters: int = 1) -> None:
        super().__init__()
        inner = channels * filters
        self.depthwise: nn.Module
        self.pointwise: nn.Module
        if layout is Layout.SERIES:
            self.depthwise = nn.Conv1d(channels, inner, taps, 1, taps // 2, groups=channels)
            self.pointwise = zeroed(nn.Conv1d(inner, channels, 1))
        else:
            self.depthwise = nn.Conv2d(channels, inner, taps, 1, taps // 2, groups=channels)
            self.pointwise = zeroed(nn.Conv2d(inner, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) or (N, C, L) to the same shape."""
        mixed: torch.Tensor = self.pointwise(torch.relu(self.depthwise(x)))
        return mixed


@blueprint("depthwise", version=1)
class Depthwise(GraftBlueprint):
    """Removable; ends, as every graft, in the site's multiply by its gate constant."""

    summary = "a spatial filter a channel, then a 1x1 mix: blur, haze, shifts"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    Config = DepthwiseConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        settings = DepthwiseConfig.own(config)
        return DepthwiseBranch(port.layout, port.channels, _taps(port, settings), settings.filters)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        settings = DepthwiseConfig.own(config)
        inner, taps = port.channels * settings.filters, _taps(port, settings) ** (port.rank - 1)
        filters = linear_cost(1, inner, port.positions, taps=taps)
        return filters + linear_cost(inner, port.channels, port.positions)


def _taps(port: Port, settings: DepthwiseConfig) -> int:
    return settings.taps or (5 if min(port.shape[1:]) >= WIDE_FROM else 3)
