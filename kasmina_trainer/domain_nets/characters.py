"""Networks for text: causal convolutions that a device can run, and an LSTM to hold them against.

Both give, at every place, the logits of the *next* character, and see nothing behind the place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class CausalBlock(nn.Module):
    """Dilated causal convolution, ReLU, 1x1 convolution, and the way around (van den Oord et al. 2016)."""

    def __init__(self, channels: int, dilation: int, kernel: int) -> None:
        super().__init__()
        self.reach = dilation * (kernel - 1)
        self.wide = nn.Conv1d(channels, 2 * channels, kernel, dilation=dilation)
        self.narrow = nn.Conv1d(2 * channels, channels, 1)
        self.site = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, L) to (N, C, L)."""
        added: torch.Tensor = self.narrow(torch.relu(self.wide(functional.pad(x, (self.reach, 0)))))
        passed: torch.Tensor = self.site(x + added)
        return passed


class CharacterNet(nn.Module):
    """Causal convolutions over one-hot characters.

    Args:
        letters: Length of the alphabet.
        channels: Width.
        dilations: One block each; the last character sees ``1 + (kernel - 1) * sum(dilations)`` characters.
        kernel: Taps of each convolution.

    >>> CharacterNet(4, dilations=(1, 2, 4)).reach
    15
    """

    def __init__(
        self, letters: int, *, channels: int = 64, dilations: Sequence[int] = (1, 2, 4, 8, 16), kernel: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Conv1d(letters, channels, 1)
        self.blocks = nn.Sequential(*(CausalBlock(channels, dilation, kernel) for dilation in dilations))
        self.head = nn.Conv1d(channels, letters, 1)
        self.reach = 1 + sum(block.reach for block in self.blocks if isinstance(block, CausalBlock))
        self.seed_sites = tuple(f"blocks.{i}.site" for i in range(len(self.blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One-hot characters (N, A, L) to logits of the character after each (N, A, L)."""
        logits: torch.Tensor = self.head(torch.relu(self.blocks(self.stem(x))))
        return logits


class NextCharacter(nn.Module):
    """A character network as a classifier: what comes after the last character of a window."""

    def __init__(self, network: CharacterNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One-hot characters (N, A, L) to logits of the next one (N, A)."""
        logits: torch.Tensor = self.network(x)[:, :, -1]
        return logits


class CharacterLstm(nn.Module):
    """A one-layer LSTM over one-hot characters (Hochreiter and Schmidhuber 1997)."""

    def __init__(self, letters: int, width: int = 128) -> None:
        super().__init__()
        self.cells = nn.LSTM(letters, width, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One-hot characters (N, A, L) to logits of the character after each (N, A, L)."""
        told, _ = self.cells(x.transpose(1, 2))
        logits: torch.Tensor = self.head(told).transpose(1, 2)
        return logits


def lstm_of_size(letters: int, parameters: int) -> CharacterLstm:
    """The widest `CharacterLstm` of at most so many parameters.

    >>> sum(p.numel() for p in lstm_of_size(4, 10_000).parameters())
    9756
    """
    width = 1
    while 4 * (width + 1) * (letters + width + 1 + 2) + (width + 2) * letters <= parameters:
        width += 1
    return CharacterLstm(letters, width)


class OneHot(nn.Module):
    """A character network that takes indices; for training, where whole windows of one-hot rows would fill memory."""

    def __init__(self, network: nn.Module, letters: int) -> None:
        super().__init__()
        self.network, self.letters = network, letters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Indices (N, L), int64, to logits (N, A, L)."""
        logits: torch.Tensor = self.network(functional.one_hot(x, self.letters).float().transpose(1, 2))
        return logits
