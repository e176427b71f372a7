"""Which rows a step sees, and how far they are moved."""

from __future__ import annotations

import torch
from torch.nn import functional


class Draw:
    """Rows in shuffled epochs without end."""

    def __init__(self, count: int, batch: int, generator: torch.Generator) -> None:
        self.order = torch.empty(0, dtype=torch.int64)
        self.count, self._batch, self._generator = count, batch, generator

    def __next__(self) -> torch.Tensor:
        while len(self.order) < self._batch:
            self.order = torch.cat([self.order, torch.randperm(self.count, generator=self._generator)])
        rows, self.order = self.order[: self._batch], self.order[self._batch :]
        return rows


def shifted(x: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by its own whole pixels, zeros moving in; anything but an image stays where it is."""
    if reach == 0 or x.ndim != 4 or min(x.shape[-2:]) == 1:
        return x
    height, width = x.shape[-2:]
    padded = functional.pad(x, (reach,) * 4)
    moves = torch.randint(0, 2 * reach + 1, (len(x), 2), generator=generator)
    rows = (moves[:, :1] + torch.arange(height)).to(x.device)
    columns = (moves[:, 1:] + torch.arange(width)).to(x.device)
    index = torch.arange(len(x), device=x.device)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
