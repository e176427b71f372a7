"""A network for points: fully connected layers with ReLU."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_edge.errors import InputError


class PointNet(nn.Module):
    """Fully connected classifier of points.

    Args:
        dimensions: Of a point.
        classes: Width of the answer.
        width: Of each hidden layer.
        hidden: How many there are.

    Attributes:
        seed_sites: One `nn.Identity` after each hidden layer, where something can grow.

    >>> sum(p.numel() for p in PointNet(2, 2).parameters())
    4482
    """

    def __init__(self, dimensions: int, classes: int, *, width: int = 64, hidden: int = 2) -> None:
        super().__init__()
        if min(dimensions, classes, width, hidden) < 1:
            raise InputError(f"point net: dimensions {dimensions}, classes {classes}, width {width}, hidden {hidden}")
        layers: list[nn.Module] = []
        for i in range(hidden):
            layers += [nn.Linear(width if i else dimensions, width), nn.ReLU(), nn.Identity()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)
        self.seed_sites = tuple(f"layers.{3 * i + 2}" for i in range(hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, dimensions) to logits (N, classes)."""
        logits: torch.Tensor = self.head(self.layers(x))
        return logits
