"""One child of a nested seed: a branch behind a gate of its own."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.nesting.config import ChildConfig, NestedSeedConfig
from kasmina_trainer.seeds.lifecycle import SiteState


class ChildSeed(nn.Module):
    """``gate * branch(x)``.

    Args:
        plan: What it is, as the settings of its parent say it.
        branch: What its blueprint built.
        rank: Axes of the value at the site, without the batch.

    Attributes:
        plan: As it was given, with its present intensity.
        state: PROBING until it is accepted.
    """

    gate: torch.Tensor

    def __init__(self, plan: ChildConfig, branch: nn.Module, rank: int) -> None:
        super().__init__()
        self.plan = plan
        self.state = SiteState.PROBING
        self.branch = branch
        self.register_buffer("gate", torch.full((1,) * (1 + rank), plan.intensity))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, *shape) to the same shape."""
        out: torch.Tensor = self.gate * self.branch(x)
        return out

    def set_intensity(self, intensity: float) -> None:
        """Its gate.

        Raises:
            InputError: Outside 0 to 1.
        """
        if not 0.0 <= intensity <= 1.0:
            raise InputError(f"child {self.plan.name}: intensity {intensity}, expected 0 to 1")
        self.plan = self.plan.model_copy(update={"intensity": float(intensity)})
        self.gate.fill_(intensity)

    def now(self) -> ChildConfig:
        """The settings that describe it as it stands, with what has grown inside."""
        grown = getattr(self.branch, "config", None)
        if not isinstance(grown, NestedSeedConfig):
            return self.plan
        return self.plan.model_copy(update={"settings": grown.model_dump(mode="json")})
