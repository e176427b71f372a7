"""Quant adapter: a scale and a shift a channel, learned on values as an int8 file will hold them."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost, constant_cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint

STEPS = 255


class QuantAdapterConfig(BlueprintConfig):
    """Settings of `quant-adapter`.

    Attributes:
        low: Smallest value that the parent's int8 tensor holds at this site, in the value's own unit.
        high: Largest one; above ``low``.
    """

    low: Annotated[float, Field(ge=-1e6, le=1e6)] = -8.0
    high: Annotated[float, Field(ge=-1e6, le=1e6)] = 8.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low:g} and {self.high:g}")
        return self


class QuantAdapterBranch(nn.Module):
    """``a * clip(y) + b`` a channel; both zero at birth.

    In training the clipped value is rounded to the steps that an int8 tensor of that range has, with the gradient
    passed straight through; in evaluation the file itself does the rounding. The clip is written with two ReLUs: int8
    files have no minimum, and the converter turns a number less a value around.
    """

    def __init__(self, port: Port, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.scale = nn.Parameter(torch.zeros(port.channel_shape))
        self.shift = nn.Parameter(torch.zeros(port.channel_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        return self.held(x) * self.scale + self.shift

    def held(self, x: torch.Tensor) -> torch.Tensor:
        """What an int8 tensor of this range holds of ``x``."""
        held = torch.relu(x - self.low) - torch.relu(x - self.high) + self.low
        if not self.training:
            return held
        step = (self.high - self.low) / STEPS
        rounded = torch.round((held - self.low) / step) * step + self.low
        return held + (rounded - held).detach()


@blueprint("quant-adapter", version=1)
class QuantAdapter(GraftBlueprint):
    """Two parameters a channel."""

    summary = "a scale and a shift a channel that know int8's range and rounding"
    ranks = frozenset({1, 2, 3})
    Config = QuantAdapterConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        settings = QuantAdapterConfig.own(config)
        return QuantAdapterBranch(port, settings.low, settings.high)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return constant_cost(2 * port.channels)
