"""Gradual structured pruning: a little goes, the rest recovers, until the share is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.choosing import Amount, choose_channels
from kasmina_trainer.pruning.groups import Structure, read_structure
from kasmina_trainer.pruning.recovery import Recovery, recover
from kasmina_trainer.pruning.surgery import take_out
from kasmina_trainer.pruning.taylor import fisher_scores

Array = npt.NDArray[Any]
Scores = Callable[[nn.Module, Structure, torch.Tensor], Mapping[str, torch.Tensor]]
ROUNDS = 4
_LAST_ROUND = 0.6


@dataclass(frozen=True)
class Shrunk:
    """What is left.

    Attributes:
        network: In evaluation mode.
        channels: Channels that could go, before and after.
        macs: Multiply-accumulates of convolutions and linear layers, before and after.
        loss: Mean loss against the whole network at the end of the recovery.
    """

    network: nn.Module
    channels: tuple[int, int]
    macs: tuple[int, int]
    loss: float


def shrink(
    network: nn.Module,
    amount: Amount,
    frames: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    recovery: Recovery | None = None,
    rounds: int = ROUNDS,
    scores: Scores | None = None,
    seed: int = 0,
) -> Shrunk:
    """A smaller network that answers as the whole one does.

    Args:
        network: In evaluation mode, on the CPU; it is not changed.
        amount: How much goes in all.
        frames: Inputs to score and recover by; nothing may be judged by them.  # (N, C, ...)
        labels: Their classes, or None.  # (N,)
        recovery: Fine-tuning over all rounds; the last round has 60 % of its steps.
        rounds: Into how many cuts the amount is divided.
        scores: Worth of channels, by group; None: `fisher_scores`.
        seed: Of everything random.

    Raises:
        InputError: The network cannot be traced, the share cannot be reached, or the recovery diverged.
    """
    if rounds < 1:
        raise InputError(f"{rounds} rounds: expected 1 or more")
    recovery = recovery or Recovery()
    whole = copy.deepcopy(network).eval()
    smaller = copy.deepcopy(network).eval()
    start = now = read_structure(smaller, frames[:1])
    loss = 0.0
    for turn in range(rounds):
        wanted = 1 - amount.share * (turn + 1) / rounds  # of the beginning
        left = (now.macs / start.macs) if amount.of == "macs" else (now.channels / start.channels)
        if left > wanted:
            found = (
                fisher_scores(smaller, now.groups, frames, seed=seed + turn)
                if scores is None else scores(smaller, now, frames)
            )  # fmt: skip
            widths = {group.name: len(group) for group in start.groups}
            part = replace(amount, share=1 - wanted / left)
            choice = choose_channels(now, {k: v.tolist() for k, v in found.items()}, part, widths=widths)
            take_out(smaller, now.groups, choice.drop)
            now = read_structure(smaller, frames[:1])
        last = turn == rounds - 1
        share = _LAST_ROUND if last and rounds > 1 else (1 - _LAST_ROUND) / max(1, rounds - 1) if rounds > 1 else 1.0
        part_of = replace(recovery, steps=round(recovery.steps * share))
        loss = recover(smaller, whole, frames, labels, settings=part_of, seed=seed + turn).last_loss
    return Shrunk(smaller.eval(), (start.channels, now.channels), (start.macs, now.macs), loss)


def take_channels(network: nn.Module, share: float, frames: Array) -> nn.Module:
    """The network with a share of its channels gone and the rest recovered; what `optimize` prunes with.

    Args:
        network: In evaluation mode, on the CPU; it is not changed.
        share: Of all channels that may go, more than 0 and less than 1.
        frames: As an app sees them; half a thousand or more serve best.  # (N, ..., C)

    Raises:
        InputError: As `shrink`; or the network was written down for a batch of one, so that it cannot recover.
    """
    if getattr(network, "fixed_batch", False):
        raise InputError(
            "the network was written down for a batch of one; fine-tuning it needs more",
            "Export it with an open first axis (dynamic_shapes).",
        )
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1), dtype=np.float32))
    return shrink(network, Amount(share, of="channels"), x).network
