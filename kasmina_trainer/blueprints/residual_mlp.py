"""Residual MLP: several layers over channels at every place; what one bottleneck cannot bend."""

from __future__ import annotations

from itertools import pairwise
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


class ResidualMlpConfig(BlueprintConfig):
    """Settings of `residual-mlp`.

    Attributes:
        hidden: Channels of each hidden layer, 1 to 1024.
        depth: Hidden layers, 1 to 4.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=1024)] = 16
    depth: Annotated[int, Field(ge=1, le=4)] = 2


class ResidualMlpBranch(nn.Module):
    """Linear maps over channels with ReLUs between; the last is zero at birth."""

    def __init__(self, port: Port, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(channel_map(port, a, b) for a, b in pairwise(widths))
        zeroed(self.layers[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        out: torch.Tensor = self.layers[-1](x)
        return out


@blueprint("residual-mlp", version=1)
class ResidualMlp(GraftBlueprint):
    """An MLP of ``depth`` hidden layers at every place."""

    summary = "a small MLP over channels at every place"
    ranks = frozenset({1, 2, 3})
    Config = ResidualMlpConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return ResidualMlpBranch(port, _widths(port, config))

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return sum((map_cost(port, a, b) for a, b in pairwise(_widths(port, config))), Cost())


def _widths(port: Port, config: BlueprintConfig) -> list[int]:
    settings = ResidualMlpConfig.own(config)
    return [port.channels, *[settings.hidden] * settings.depth, port.channels]
