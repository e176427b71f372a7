"""Gated units: GLU (Dauphin et al. 2017) and a sparse activation that lets only strong values through."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, constant_cost
from kasmina_trainer.blueprints.mixing import channel_map, map_cost, zeroed
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class GluConfig(BlueprintConfig):
    """Settings of `glu`.

    Attributes:
        hidden: Channels of value and gate, 1 to 1024.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=1024)] = 8


class GluBranch(nn.Module):
    """``up(value(x) * sigmoid(gate(x)))`` at every place; ``up`` is zero at birth."""

    def __init__(self, port: Port, hidden: int) -> None:
        super().__init__()
        self.value = channel_map(port, port.channels, hidden)
        self.opening = channel_map(port, port.channels, hidden)
        self.up = zeroed(channel_map(port, hidden, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        out: torch.Tensor = self.up(self.value(x) * torch.sigmoid(self.opening(x)))
        return out


@blueprint("glu", version=1)
class Glu(GraftBlueprint):
    """``3 C h + 2 h + C`` parameters."""

    summary = "a value times its own opening, at every place"
    ranks = frozenset({1, 2, 3})
    Config = GluConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return GluBranch(port, GluConfig.own(config).hidden)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        hidden = GluConfig.own(config).hidden
        into = map_cost(port, port.channels, hidden)
        return into + into + map_cost(port, hidden, port.channels)


class SparseConfig(BlueprintConfig):
    """Settings of `sparse-activation`.

    Attributes:
        threshold: Where each channel's threshold starts, in the value's own unit, 0 to 100.
    """

    threshold: Annotated[float, Field(ge=0, le=100)] = 0.5


class SparseBranch(nn.Module):
    """Soft threshold a channel, ``relu(x - t) - relu(-x - t)``, then a map that is zero at birth.

    It is written without a negation, which int8 files do not have: ``-relu(-x - t)`` is ``(x + t) - relu(x + t)``.
    """

    def __init__(self, port: Port, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full(port.channel_shape, threshold))
        self.mix = zeroed(channel_map(port, port.channels, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        out: torch.Tensor = self.mix(self.shrunk(x))
        return out

    def shrunk(self, x: torch.Tensor) -> torch.Tensor:
        """What passes the threshold: exactly zero where ``|x| <= t``."""
        above = x + self.threshold
        return torch.relu(x - self.threshold) + (above - torch.relu(above))


@blueprint("sparse-activation", version=1)
class SparseActivation(GraftBlueprint):
    """``C (C + 2)`` parameters; the thresholds are learned."""

    summary = "only values beyond a learned threshold are mixed: noise"
    ranks = frozenset({1, 2, 3})
    Config = SparseConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return SparseBranch(port, SparseConfig.own(config).threshold)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return constant_cost(port.channels) + map_cost(port, port.channels, port.channels)
