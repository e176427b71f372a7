"""Input filter: two convolutions on what enters the network, before its first layer sees it."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, convolution, kernel_of, zeroed
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint

INPUT = "input"


class InputFilterConfig(BlueprintConfig):
    """Settings of `input-filter`.

    Attributes:
        hidden: Channels between the two filters, 1 to 256.
        taps: Taps of both filters, an axis.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=256)] = 8
    taps: Literal[3, 5, 7, 9, 11] = 5


class InputFilterBranch(nn.Module):
    """``back(relu(filter(x)))``; ``back`` is zero at birth."""

    def __init__(self, port: Port, hidden: int, taps: int) -> None:
        super().__init__()
        self.filter = convolution(port, port.channels, hidden, taps)
        self.back = zeroed(convolution(port, hidden, port.channels, taps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) or (N, C, L) to the same shape."""
        out: torch.Tensor = self.back(torch.relu(self.filter(x)))
        return out


@blueprint("input-filter", version=1)
class InputFilter(GraftBlueprint):
    """``2 K C h + h + C`` parameters for ``K`` taps, ``C`` input channels and ``h`` hidden ones."""

    summary = "two convolutions on what enters the network: noise, stripes, veils"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    Config = InputFilterConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        place = port.name.split("/")[0]
        return "" if place == INPUT else f"it stands at the site {INPUT!r} alone, got {place!r}"

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        settings = InputFilterConfig.own(config)
        return InputFilterBranch(port, settings.hidden, settings.taps)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        settings = InputFilterConfig.own(config)
        taps = prod(kernel_of(port, settings.taps))
        there = linear_cost(port.channels, settings.hidden, port.positions, taps=taps)
        return there + linear_cost(settings.hidden, port.channels, port.positions, taps=taps)
