"""Before anything learns, branches that tell frames apart are shown some of both kinds; no gradients."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import one_core
from kasmina_trainer.training.rows import shifted

MET = 256
"""Most rows of each kind."""
AT_ONCE = 1 << 26
"""Values of the widest site, over all rows, up to which they pass at once."""


@torch.no_grad()
def meet(
    network: SeededNetwork,
    clean: torch.Tensor,
    target: torch.Tensor,
    *,
    seed: int,
    shift: int = 0,
    batch: int = 64,
    most: int = MET,
) -> int:
    """Show clean and target rows to every branch that has a ``meet``, in order of flow; the host stays as it is.

    Args:
        network: With branches at birth; those behind see what those in front make of the rows.
        clean: Rows (N, ...) that the host knows.
        target: Rows of where it is weak.
        seed: Chooses rows and how they are moved.
        shift: As in `TrainingSettings`.
        batch: Rows of one pass where the sites are too wide for all at once; three numbers a channel are kept of them.
        most: Rows of each kind.

    Returns:
        How many branches met them.
    """
    branches = those_with("meet", network)
    if not branches:
        return 0
    generator = torch.Generator().manual_seed(seed)
    first, second = (x[torch.randperm(len(x), generator=generator)[:most].to(x.device)] for x in (clean, target))
    rows = shifted(torch.cat([first, second]), shift, generator)
    with one_core():
        batch = rows_at_once(network, len(rows), batch)
        if batch == len(rows):
            _all_at_once(network, branches, rows, len(first))
            return len(branches)
        for branch in branches:
            sights = [_seen(network, branch, rows[at : at + batch]) for at in range(0, len(rows), batch)]
            branch.meet(torch.cat(sights), len(first))
    return len(branches)


def begin(network: SeededNetwork) -> None:
    """Let every branch that has met both kinds learn in the way that it has for that."""
    for branch in those_with("begin", network):
        branch.begin()


def settle(network: SeededNetwork) -> None:
    """Give every branch the form that it is shipped in."""
    for branch in those_with("settle", network):
        branch.settle()


def rows_at_once(network: SeededNetwork, rows: int, batch: int = 64) -> int:
    """How many rows of a pass that keeps nothing go together: all, or ``batch`` where the sites are too wide."""
    return rows if rows * max(prod(port.shape) for port in network.ports.values()) <= AT_ONCE else min(batch, rows)


def those_with(call: str, network: SeededNetwork) -> list[Any]:
    """Branches that can do something, in order of flow."""
    return [branch for name in network.sites if hasattr(branch := network.site(name).branch, call)]


def _all_at_once(network: SeededNetwork, branches: list[Any], rows: torch.Tensor, clean: int) -> None:
    """One pass: each branch meets the rows when they reach it, and so changes what those behind it see."""
    hooks = [branch.register_forward_pre_hook(partial(_meet, clean)) for branch in branches]
    try:
        network(rows)
    finally:
        for hook in hooks:
            hook.remove()


def _meet(clean: int, branch: Any, inputs: tuple[Any, ...]) -> None:
    branch.meet(branch.sight(inputs[0]), clean)


class _Seen(Exception):  # noqa: N818 - no error: it ends a pass at the branch that has seen it
    """What a branch saw."""


def _seen(network: SeededNetwork, branch: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    hook = branch.register_forward_pre_hook(_stop)
    try:
        network(rows)
    except _Seen as found:
        seen: torch.Tensor = found.args[0]
        return seen
    finally:
        hook.remove()
    raise AssertionError("the branch is not in the flow")


def _stop(branch: nn.Module, inputs: tuple[Any, ...]) -> None:
    sight: Any = branch.sight
    raise _Seen(sight(inputs[0]))
