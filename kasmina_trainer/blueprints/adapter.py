"""Bottleneck adapter: channels down to a few, ReLU, back up (Houlsby et al. 2019; Rebuffi et al. 2018)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.mixing import channel_map, map_cost, zeroed
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class AdapterConfig(BlueprintConfig):
    """Settings of `adapter`.

    Attributes:
        bottleneck: Channels in the middle, 1 to 1024.
    """

    bottleneck: Annotated[int, Width(), Field(ge=1, le=1024)] = 8


class AdapterBranch(nn.Module):
    """``up(relu(down(x)))`` at every place; ``up`` is zero at birth."""

    def __init__(self, port: Port, bottleneck: int) -> None:
        super().__init__()
        self.down = channel_map(port, port.channels, bottleneck)
        self.up = zeroed(channel_map(port, bottleneck, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        out: torch.Tensor = self.up(torch.relu(self.down(x)))
        return out


@blueprint("adapter", version=1)
class Adapter(GraftBlueprint):
    """``2 C b + b + C`` parameters for ``C`` channels and a bottleneck of ``b``."""

    summary = "channels through a bottleneck with a ReLU: contrast, colour, gain"
    ranks = frozenset({1, 2, 3})
    Config = AdapterConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return AdapterBranch(port, AdapterConfig.own(config).bottleneck)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        middle = AdapterConfig.own(config).bottleneck
        return map_cost(port, port.channels, middle) + map_cost(port, middle, port.channels)
