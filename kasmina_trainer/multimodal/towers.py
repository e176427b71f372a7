"""Two small networks that put pictures and texts into one space: plain convolutions, int8 throughout.

Their answers are not yet of unit length: a file leaves out the division, and whoever compares answers does it
(`retrieval.unit`). That costs nothing, because only directions are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kasmina_trainer.datasets.captioned.drawing import PICTURE_SHAPE
from kasmina_trainer.datasets.captioned.words import BINS, TEXT_SHAPE
from kasmina_trainer.domain_nets.pictures import PictureBlock

WIDTH = 64
"""Length of an embedding."""


class ImageTower(nn.Module):
    """Pictures of 32x32 in colour to embeddings.

    Where something lies matters as much as what it is, so the last map is not averaged but laid out in a row.

    Args:
        width: Of an embedding.

    Attributes:
        seed_sites: Where something can grow: the picture, after each block, and the embedding.

    >>> sum(p.numel() for p in ImageTower().parameters())
    134048
    """

    input_shape = PICTURE_SHAPE
    seed_sites = ("input", "blocks.0.site", "blocks.1.site", "blocks.2.site", "blocks.3.site", "site")

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        shapes = ((3, 32, 2), (32, 48, 1), (48, 64, 2), (64, 96, 2))
        self.blocks = nn.Sequential(*(PictureBlock(*shape) for shape in shapes))
        self.narrow = nn.Conv2d(96, 32, 1)
        self.head = nn.Linear(32 * 4 * 4, width)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) in [0, 1] to (N, width)."""
        told: torch.Tensor = self.site(self.head(torch.relu(self.narrow(self.blocks(x))).flatten(1)))
        return told


class TextBlock(nn.Module):
    """Convolution over neighbouring words, batch norm, ReLU, added to what came in; a place where something grows."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel, 1, kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, L) to the same shape."""
        passed: torch.Tensor = self.site(x + torch.relu(self.norm(self.conv(x))))
        return passed


class TextTower(nn.Module):
    """Texts to embeddings: trigrams to words, words to phrases, phrases to one vector.

    Args:
        width: Of an embedding.
        channels: Of a word.
        kernels: Words that each block looks at, odd.

    Attributes:
        seed_sites: Where something can grow: after the words, after each block, and the embedding.

    >>> sum(p.numel() for p in TextTower().parameters())
    74368
    """

    input_shape = TEXT_SHAPE
    seed_sites = ("words", "blocks.0.site", "blocks.1.site", "blocks.2.site", "site")

    def __init__(self, width: int = WIDTH, *, channels: int = 64, kernels: Sequence[int] = (3, 3, 5)) -> None:
        super().__init__()
        self.words = nn.Conv1d(BINS, channels, 1)
        self.blocks = nn.Sequential(*(TextBlock(channels, kernel) for kernel in kernels))
        self.wide = nn.Linear(channels, 2 * channels)
        self.head = nn.Linear(2 * channels, width)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, BINS, WORDS) of 0 and 1 to (N, width)."""
        phrases = self.blocks(self.words(x)).mean(2)
        told: torch.Tensor = self.site(self.head(torch.relu(self.wide(phrases))))
        return told
