"""Two one-dimensional networks as rows of height one: patterns in ten seconds of three leads, a beat in 0.7 s of one.

Depthwise-separable as MobileNet (Howard et al. 2017): what one lead-like channel does over time is looked at by long
depthwise kernels, which cost little, and channels are mixed by pointwise ones. The pattern net ends in a mean, for what
goes on all the time, beside a maximum, for what happens once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from kasmina_trainer.datasets.medical_simulator.patterns import NAMES


class Separable(nn.Module):
    """Depthwise over time, then pointwise, each with batch norm and ReLU."""

    def __init__(self, channels: int, out_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, (1, width), (1, stride), (0, width // 2), groups=channels, bias=False
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, 1, L) to (N, C', 1, L / stride)."""
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class PatternNet(nn.Module):
    """Which pattern is in a window.

    Args:
        classes: How many patterns.

    Attributes:
        seed_sites: Names of its seed sites.
        input_shape: Of one window.  # (C, H, W)

    >>> sum(p.numel() for p in PatternNet().parameters())
    21243
    """

    seed_sites = ("s1", "s2", "s3")
    input_shape = (3, 1, 1280)

    def __init__(self, classes: int = len(NAMES)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, (1, 9), (1, 2), (0, 4), bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.s1 = nn.Identity()  # (N, 16, 1, 640)
        self.block1 = Separable(16, 24, 9, 2)
        self.block2 = Separable(24, 32, 9, 2)
        self.s2 = nn.Identity()  # (N, 32, 1, 160)
        self.block3 = Separable(32, 48, 9, 2)
        self.block4 = Separable(48, 64, 15, 1)
        self.s3 = nn.Identity()  # (N, 64, 1, 80)
        self.block5 = Separable(64, 64, 15, 2)
        self.block6 = Separable(64, 64, 15, 1)
        self.head = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 1, 1280) in [0, 1] to logits (N, classes)."""
        x = self.s1(torch.relu(self.norm(self.stem(x))))
        x = self.s2(self.block2(self.block1(x)))
        x = self.s3(self.block4(self.block3(x)))
        x = self.block6(self.block5(x))
        always = x.mean((2, 3), keepdim=True)
        once = functional.max_pool2d(x, (1, 40))
        logits: torch.Tensor = self.head(torch.cat([always, once], 1).flatten(1))
        return logits


class BeatNet(nn.Module):
    """Whether a beat peaks at the centre of a short window of one lead.

    Attributes:
        input_shape: Of one window.  # (C, H, W)

    >>> sum(p.numel() for p in BeatNet().parameters())
    2538
    """

    input_shape = (1, 1, 96)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, (1, 7), (1, 2), (0, 3), bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = Separable(16, 24, 7, 2)
        self.block2 = Separable(24, 32, 7, 2)
        self.head = nn.Linear(32 * 12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 1, 96) in [0, 1] to logits (N, 2)."""
        x = torch.relu(self.norm(self.stem(x)))
        logits: torch.Tensor = self.head(self.block2(self.block1(x)).flatten(1))
        return logits
