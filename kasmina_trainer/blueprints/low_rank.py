"""Low-rank residual: two linear maps over channels with nothing between; it can be folded into the layer in front."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints import merging
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.mixing import channel_map, map_cost, zeroed
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class LowRankConfig(BlueprintConfig):
    """Settings of `low-rank-residual`.

    Attributes:
        rank: Channels in the middle, 1 to 512.
    """

    rank: Annotated[int, Width(), Field(ge=1, le=512)] = 4


class LowRankBranch(nn.Module):
    """``up(down(x))`` at every place; ``up`` has a bias and is zero at birth."""

    def __init__(self, port: Port, rank: int) -> None:
        super().__init__()
        self.down = channel_map(port, port.channels, rank, bias=False)
        self.up = zeroed(channel_map(port, rank, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        out: torch.Tensor = self.up(self.down(x))
        return out


@blueprint("low-rank-residual", version=1)
class LowRankResidual(GraftBlueprint):
    """``2 C r + C`` parameters for ``C`` channels and rank ``r``."""

    summary = "a linear mix of channels of low rank; folds into the layer in front"
    ranks = frozenset({1, 2, 3})
    Config = LowRankConfig

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """The layer behind which the branch stands, with it."""
        assert isinstance(branch, LowRankBranch)
        up, down, bias = branch.up.weight, branch.down.weight, branch.up.bias
        assert isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor) and isinstance(bias, torch.Tensor)
        return merging.after(layer, gate * (up.flatten(1) @ down.flatten(1)).detach(), gate * bias.detach())

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return LowRankBranch(port, LowRankConfig.own(config).rank)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        rank = LowRankConfig.own(config).rank
        return map_cost(port, port.channels, rank, bias=False) + map_cost(port, rank, port.channels)
