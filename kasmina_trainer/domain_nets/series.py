"""A network for windows of sensor series: strided 1-D convolutions, small enough for a microcontroller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kasmina_edge.errors import InputError


class SeriesBlock(nn.Module):
    """Convolution over time with stride 2, batch norm, ReLU, and a place where something can grow."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, kernel, 2, kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, L) to (N, C', L / 2)."""
        passed: torch.Tensor = self.site(torch.relu(self.norm(self.conv(x))))
        return passed


class SeriesNet(nn.Module):
    """Classifier of windows of several channels.

    Args:
        channels: Of a window.
        classes: Width of the answer.
        widths: Channels of each block; time is halved by each.
        kernel: Taps of each convolution, odd.

    >>> sum(p.numel() for p in SeriesNet(6, 6).parameters())
    28326
    """

    def __init__(
        self, channels: int, classes: int, *, widths: Sequence[int] = (24, 32, 48, 64), kernel: int = 5
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or not widths:
            raise InputError(f"series net: kernel {kernel} must be odd, and {len(widths)} blocks at least 1")
        before = (channels, *widths[:-1])
        self.blocks = nn.Sequential(*(SeriesBlock(a, b, kernel) for a, b in zip(before, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes)
        self.seed_sites = tuple(f"blocks.{i}.site" for i in range(len(widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, L) to logits (N, classes)."""
        logits: torch.Tensor = self.head(self.blocks(x).mean(2))
        return logits
