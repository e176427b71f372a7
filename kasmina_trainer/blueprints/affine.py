"""Channel affine: a scale and a shift a channel; the removable form of a retuned batch norm."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.blueprints import merging
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost, constant_cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint


class AffineBranch(nn.Module):
    """``a * y + b`` a channel; both zero at birth.

    Args:
        shape: Of scale and shift, so that they meet the channels.  # (1, C, 1, 1), (1, C, 1), (1, 1, D) or (1, C)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        return x * self.scale + self.shift


@blueprint("channel-affine", version=1)
class ChannelAffine(GraftBlueprint):
    """Two parameters a channel."""

    summary = "a scale and a shift a channel: the removable form of a BN retune"
    ranks = frozenset({1, 2, 3})

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """The convolution, linear layer or batch norm behind which the branch stands, with it."""
        assert isinstance(branch, AffineBranch)
        return merging.after(layer, gate * branch.scale.detach().flatten(), gate * branch.shift.detach().flatten())

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return AffineBranch(port.channel_shape)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return constant_cost(2 * port.channels)
