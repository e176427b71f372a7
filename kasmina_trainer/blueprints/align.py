"""Latent align: turns a feature vector back to where the layers behind it expect it."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.blueprints import merging
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost, constant_cost, linear_cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class AlignBranch(nn.Module):
    """``scale * (turn(x) - x)``; ``turn`` starts as a random rotation, ``scale`` is zero at birth.

    At a scale of 1 and a gate of 1, the site's value becomes ``turn(x)``.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.turn = nn.Linear(features, features)
        nn.init.orthogonal_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        self.scale = nn.Parameter(torch.zeros(1, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) to the same shape."""
        out: torch.Tensor = (self.turn(x) - x) * self.scale
        return out


@blueprint("latent-align", version=1)
class LatentAlign(GraftBlueprint):
    """``C (C + 2)`` parameters; folds into the linear layer in front."""

    summary = "turns a feature vector back to where the classifier expects it"
    ranks = frozenset({1})

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """The linear layer behind which the branch stands, with it."""
        assert isinstance(branch, AlignBranch)
        scale, turn = gate * branch.scale.detach().flatten(), branch.turn.weight.detach()
        matrix = scale[:, None] * (turn - torch.eye(len(turn), dtype=turn.dtype, device=turn.device))
        return merging.after(layer, matrix, scale * branch.turn.bias.detach())

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return AlignBranch(port.channels)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return linear_cost(port.channels, port.channels) + constant_cost(port.channels)
