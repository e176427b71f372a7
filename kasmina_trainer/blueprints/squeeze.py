"""SE module: each channel is scaled by what the whole map says (Hu et al. 2018).

The original ends in a sigmoid, which is a half at birth; here it ends in a tanh, which is zero.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, channel_map, pooled, zeroed
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class SqueezeConfig(BlueprintConfig):
    """Settings of `se`.

    Attributes:
        hidden: Channels in the middle, 1 to 512.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=512)] = 8


class SqueezeBranch(nn.Module):
    """``x * tanh(up(relu(down(mean(x)))))``; ``up`` is zero at birth."""

    def __init__(self, port: Port, hidden: int) -> None:
        super().__init__()
        self.layout = port.layout
        self.down = channel_map(port, port.channels, hidden)
        self.up = zeroed(channel_map(port, hidden, port.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) or (N, C, L) to the same shape."""
        scale = torch.tanh(self.up(torch.relu(self.down(pooled(x, self.layout)))))
        return x * scale


@blueprint("se", version=1)
class Squeeze(GraftBlueprint):
    """``2 C h + h + C`` parameters, computed once a frame, not at every place."""

    summary = "scales channels by what the whole map says: contrast, lighting"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    Config = SqueezeConfig

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return SqueezeBranch(port, SqueezeConfig.own(config).hidden)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        hidden = SqueezeConfig.own(config).hidden
        return linear_cost(port.channels, hidden) + linear_cost(hidden, port.channels)
