"""Fail-safe gate: another blueprint's branch that is shut where the input is unlike anything it was trained on."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost, constant_cost
from kasmina_trainer.blueprints.mixing import pooled
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint, find_blueprint

NARROWEST = 0.05
"""A channel's range counts as at least this share of the widest one: silent channels must not shut the gate alone."""


class FailSafeConfig(BlueprintConfig):
    """Settings of `fail-safe-gate`.

    Attributes:
        guards: The blueprint whose branch is guarded; it reads the value at the site.
        settings: Its settings, by name; those left out keep their defaults.
        begins: Distance at which the gate begins to shut. The distance is how far the channels' means lie outside the
            ranges seen in training, in ranges, averaged over channels; 0 to 10.
        shut: Distance at which it is shut; above ``begins``.
    """

    guards: str = "adapter"
    settings: dict[str, int | float | bool | str] = {}
    begins: Annotated[float, Field(ge=0, le=10)] = 0.05
    shut: Annotated[float, Field(gt=0, le=20)] = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.begins >= self.shut:
            raise ValueError(f"expected begins below shut, got {self.begins:g} and {self.shut:g}")
        return self

    def scaled(self, width: float) -> Self:
        """With the guarded branch of another width."""
        _, settings = _guarded(self)
        changed = settings.scaled(width).model_dump(mode="json", exclude_defaults=True)
        return self.model_copy(update={"settings": changed})


class FailSafeBranch(nn.Module):
    """``g(x) * B(x)``; ``g`` is 1 inside the ranges seen in training and falls to 0 outside them.

    The ranges are those of the means of each channel, over all frames seen in training mode; they are buffers, so they
    travel with the weights. In training ``g`` is 1. A branch that has seen nothing is open: it adds nothing yet.
    """

    low: torch.Tensor
    high: torch.Tensor
    per_range: torch.Tensor

    def __init__(self, port: Port, guarded: nn.Module, config: FailSafeConfig) -> None:
        super().__init__()
        self.guarded = guarded
        self.layout = port.layout
        self.begins, self.steepness = config.begins, 1.0 / (config.shut - config.begins)
        for name in ("low", "high", "per_range"):
            self.register_buffer(name, torch.zeros(port.channel_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        grown: torch.Tensor = self.guarded(x)
        if self.training:
            self._widen(pooled(x, self.layout).detach())
            return grown
        return grown * self.opening(x)

    def opening(self, x: torch.Tensor) -> torch.Tensor:
        """How far the gate is open for each frame, 0 to 1.  # (N, 1, ...)"""
        means = pooled(x, self.layout)
        outside = torch.relu((means - self.high) * self.per_range) + torch.relu((self.low - means) * self.per_range)
        distance = outside.mean(2 if self.layout is Layout.TOKENS else 1, keepdim=True)
        return torch.relu(torch.relu(distance - self.begins) * -self.steepness + 1.0)

    def _widen(self, means: torch.Tensor) -> None:
        least, most = means.amin(0, keepdim=True), means.amax(0, keepdim=True)
        if bool(self.per_range.any()):
            least, most = torch.minimum(self.low, least), torch.maximum(self.high, most)
        ranges = most - least
        self.low.copy_(least)
        self.high.copy_(most)
        self.per_range.copy_(1.0 / ranges.clamp(min=max(NARROWEST * float(ranges.max()), 1e-6)))


@blueprint("fail-safe-gate", version=1)
class FailSafeGate(GraftBlueprint):
    """The guarded branch's price and three constants a channel."""

    summary = "another blueprint's branch, shut on inputs unlike its training"
    ranks = frozenset({1, 2, 3})
    Config = FailSafeConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        try:
            kind, settings = _guarded(FailSafeConfig.own(config))
        except InputError as exc:
            return f"it guards another blueprint: {exc.message}"
        clause = kind.refusal(port, settings)
        return f"it guards {kind.name}, and that says: {clause}" if clause else ""

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        kind, settings = _guarded(FailSafeConfig.own(config))
        branch = kind.branch(port, settings)
        assert branch is not None
        return FailSafeBranch(port, branch, FailSafeConfig.own(config))

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        kind, settings = _guarded(FailSafeConfig.own(config))
        return kind.ungated_cost(port, settings) + constant_cost(3 * port.channels, learned=False)


def _guarded(config: FailSafeConfig) -> tuple[GraftBlueprint, BlueprintConfig]:
    kind = find_blueprint(config.guards)
    if not isinstance(kind, GraftBlueprint) or kind.reads != "output" or kind.name in ("no-op", "fail-safe-gate"):
        raise InputError(f"{config.guards} has no branch of its own that reads a site")
    return kind, kind.Config.parse(config.settings, where=f"settings of {kind.name}")
