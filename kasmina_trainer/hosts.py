"""Host networks. Thin stage: one depthwise-separable network for the digits, with its seed sites named.

Depthwise-separable blocks follow MobileNet (Howard et al. 2017). A seed site is an `nn.Identity` in the flow: a place
that does nothing until something grows there, and that no exporter sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kasmina_edge.errors import InputError


class SeparableBlock(nn.Module):
    """Depthwise 3x3, batch norm, ReLU; pointwise 1x1, batch norm, ReLU."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class DigitsHost(nn.Module):
    """Depthwise-separable classifier of 16x16 grey images, 40,906 parameters.

    Args:
        classes: Width of the answer.

    Attributes:
        seed_sites: Names of its seed sites: after the stem and after the first three blocks.
        input_shape: Shape of one input.  # (C, H, W)

    >>> sum(p.numel() for p in DigitsHost().parameters())
    40906
    """

    architecture = "digits-separable"
    seed_sites = ("s1", "s2", "s3", "s4")
    input_shape = (1, 16, 16)

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"classes": classes}
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.s1 = nn.Identity()  # (N, 16, 16, 16)
        self.block1 = SeparableBlock(16, 32, 2)
        self.s2 = nn.Identity()  # (N, 32, 8, 8)
        self.block2 = SeparableBlock(32, 64, 1)
        self.s3 = nn.Identity()  # (N, 64, 8, 8)
        self.block3 = SeparableBlock(64, 128, 2)
        self.s4 = nn.Identity()  # (N, 128, 4, 4)
        self.block4 = SeparableBlock(128, 192, 1)
        self.head = nn.Linear(192, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) in [0, 1] to logits (N, classes)."""
        x = self.s1(torch.relu(self.norm(self.stem(x))))
        x = self.s2(self.block1(x))
        x = self.s3(self.block2(x))
        x = self.s4(self.block3(x))
        x = self.block4(x).mean((2, 3), keepdim=True).flatten(1)
        logits: torch.Tensor = self.head(x)
        return logits


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {DigitsHost.architecture: DigitsHost}


def build_host(architecture: str = DigitsHost.architecture, *, seed: int = 0, **settings: Any) -> nn.Module:
    """A fresh host whose first weights depend on ``seed`` alone.

    Raises:
        InputError: No such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](**settings)
