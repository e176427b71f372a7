"""Depthwise residual: a spatial filter a channel, then a 1x1 mix that starts at zero.

A parallel adapter (Rebuffi et al. 2018) with a filter in front: what a blurred, hazy or shifted input needs. The filter
covers about a third of the map: 5x5 from a side of 12 on, else 3x3. With ``K`` taps a filter and ``C`` channels it has
``C * (K + 1) + C * (C + 1)`` parameters.
"""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.blueprints.registry import GraftBlueprint, Shape, register

WIDE_FROM = 12  # side of a map from which the filter is 5x5


class DepthwiseBranch(nn.Module):
    """Depthwise filter with bias, ReLU, pointwise 1x1 with bias; the pointwise part is zero at birth."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, width, 1, width // 2, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.pointwise.weight)
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        mixed: torch.Tensor = self.pointwise(torch.relu(self.depthwise(x)))
        return mixed


class Depthwise(GraftBlueprint):
    """Removable; ends, as every graft, in the site's multiply by its gate constant."""

    name = "depthwise"
    version = 1

    def _build(self, shape: Shape) -> nn.Module:
        return DepthwiseBranch(shape[0], width=5 if min(shape[1:]) >= WIDE_FROM else 3)


register(Depthwise())
