"""Before anything learns, branches that tell frames apart are shown some of both kinds; no gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import one_core
from kasmina_trainer.training.rows import shifted

MET = 256
"""Most rows of each kind."""


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
        batch: Rows of one pass; what is kept of them is three numbers a channel.
        most: Rows of each kind.

    Returns:
        How many branches met them.
    """
    branches = [b for name in network.sites if hasattr(b := network.site(name).branch, "meet")]
    if not branches:
        return 0
    generator = torch.Generator().manual_seed(seed)
    first, second = (x[torch.randperm(len(x), generator=generator)[:most].to(x.device)] for x in (clean, target))
    rows = shifted(torch.cat([first, second]), shift, generator)
    with one_core():
        for branch in branches:
            assert branch is not None
            learn: Any = branch.meet
            learn(
                torch.cat([_seen(network, branch, rows[at : at + batch]) for at in range(0, len(rows), batch)]),
                len(first),
            )
    return len(branches)


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
