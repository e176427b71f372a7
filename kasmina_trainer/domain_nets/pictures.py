"""A network for 28x28 grey pictures: plain convolutions, wide where pictures are small."""

from __future__ import annotations

import torch
from torch import nn


class PictureBlock(nn.Module):
    """Convolution 3x3, batch norm, ReLU, and a place where something can grow."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        passed: torch.Tensor = self.site(torch.relu(self.norm(self.conv(x))))
        return passed


class PictureNet(nn.Module):
    """Classifier of 28x28 grey pictures, 56,346 parameters with ten classes; 3.4 million multiplications a picture.

    Args:
        classes: Width of the answer.

    >>> sum(p.numel() for p in PictureNet().parameters())
    56346
    """

    input_shape = (1, 28, 28)
    seed_sites = ("input", "blocks.0.site", "blocks.1.site", "blocks.2.site", "blocks.3.site")

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        shapes = ((1, 16, 2), (16, 32, 1), (32, 64, 2), (64, 56, 1))
        self.blocks = nn.Sequential(*(PictureBlock(*shape) for shape in shapes))
        self.head = nn.Linear(56, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) in [0, 1] to logits (N, classes)."""
        logits: torch.Tensor = self.head(self.blocks(x).mean((2, 3), keepdim=True).flatten(1))
        return logits
