"""Sliding convolution: dilated filters along a series, each reaching twice as far (van den Oord et al. 2016)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, channel_map, convolution, zeroed
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint


class SlidingConfig(BlueprintConfig):
    """Settings of `sliding-conv`.

    Attributes:
        hidden: Channels of each filter bank, 1 to 256.
        taps: Taps of a filter.
        depth: Filter banks, 1 to 6; bank ``i`` has taps ``2**i`` samples apart.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=256)] = 8
    taps: Literal[3, 5, 7, 9] = 5
    depth: Annotated[int, Field(ge=1, le=6)] = 2


class SlidingBranch(nn.Module):
    """Dilated convolutions with ReLUs, then a 1x1 that is zero at birth."""

    def __init__(self, port: Port, config: SlidingConfig) -> None:
        super().__init__()
        inputs = [port.channels, *[config.hidden] * (config.depth - 1)]
        self.filters = nn.ModuleList(
            convolution(port, entering, config.hidden, config.taps, dilation=2**i) for i, entering in enumerate(inputs)
        )
        self.up = zeroed(channel_map(port, config.hidden, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, L) or (N, C, 1, L) to the same shape."""
        for layer in self.filters:
            x = torch.relu(layer(x))
        out: torch.Tensor = self.up(x)
        return out


@blueprint("sliding-conv", version=1)
class SlidingConv(GraftBlueprint):
    """For series, also those that run as maps of height 1."""

    summary = "dilated filters along a series: hum, wander, smoothing"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    Config = SlidingConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        settings = SlidingConfig.own(config)
        if port.layout is Layout.IMAGE and port.shape[1] != 1:
            return f"it slides along a series, (C, L) or (C, 1, L); got a map of height {port.shape[1]}"
        reach = (settings.taps // 2) * 2 ** (settings.depth - 1)
        if port.shape[-1] <= reach:
            return f"its last filter reaches {reach} samples to either side, got a series of {port.shape[-1]}"
        return ""

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return SlidingBranch(port, SlidingConfig.own(config))

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        settings, length = SlidingConfig.own(config), port.positions
        first = linear_cost(port.channels, settings.hidden, length, taps=settings.taps)
        later = linear_cost(settings.hidden, settings.hidden, length, taps=settings.taps)
        cost = first + linear_cost(settings.hidden, port.channels, length)
        return sum([later] * (settings.depth - 1), cost)
