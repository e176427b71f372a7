"""Clean rows that open no branch teach nothing: which ones are left, and how much they stand for.

Where every branch is shut on a row, what flows is the host's, and no branch gets a gradient from it. It stays so
however the branches learn, since what opens them is measured and does not learn: such a row is time for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kasmina_trainer.evolve.meeting import rows_at_once, those_with
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import Thinned, one_core
from kasmina_trainer.training.rows import shifted

LOOKED_AT = 256
"""Most clean rows that are looked at."""


@dataclass(frozen=True)
class Opened:
    """Clean rows on which at least one branch is open.

    Attributes:
        x: Rows, moved already.  # (N, ...)
        y: Their labels.  # (N,)
        share: Of the rows looked at, 0 to 1.
    """

    x: torch.Tensor
    y: torch.Tensor
    share: float


@dataclass(frozen=True)
class Lesson:
    """What a training learns from.

    Attributes:
        sources: Rows (N, ...) and labels (N,) on the CPU.
        thinned: Set where the first source holds a part of its rows.
        keeps_clean: The host's answers to the first source are kept, where the ground says so too.
    """

    sources: Sequence[tuple[torch.Tensor, torch.Tensor]]
    thinned: Thinned | None = None
    keeps_clean: bool = True


@torch.no_grad()
def opened(
    network: SeededNetwork,
    clean: tuple[torch.Tensor, torch.Tensor],
    *,
    seed: int,
    shift: int = 0,
    most: int = LOOKED_AT,
) -> Opened:
    """Look at clean rows with branches that have met both kinds.

    Args:
        network: Every branch of it has an ``opening``.
        clean: Rows (N, ...) and labels (N,).
        seed: Chooses rows and how they are moved; other ones than the branches met, where there are enough.
        shift: As in `TrainingSettings`.
        most: Rows that are looked at.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(clean[0]), generator=generator).flip(0)[:most].to(clean[0].device)
    rows = shifted(clean[0][order], shift, generator)
    found: list[torch.Tensor] = []
    hooks = [branch.register_forward_pre_hook(partial(_look, found)) for branch in those_with("opening", network)]
    is_open = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    try:
        with one_core():
            batch = rows_at_once(network, len(rows))
            for at in range(0, len(rows), batch):
                found.clear()
                network(rows[at : at + batch])
                for each in found:
                    is_open[at : at + batch] |= each
    finally:
        for hook in hooks:
            hook.remove()
    return Opened(rows[is_open], clean[1][order][is_open], float(is_open.float().mean()))


def _look(found: list[torch.Tensor], branch: Any, inputs: tuple[Any, ...]) -> None:
    found.append(branch.opening(inputs[0]).flatten(1).amax(1) > 0)
