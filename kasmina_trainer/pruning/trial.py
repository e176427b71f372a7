"""Pruning as a trial: whatever happens, the network is what it was, unless what is left was judged good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.choosing import Amount
from kasmina_trainer.pruning.snapshot import Snapshot
from kasmina_trainer.pruning.strategy import Cut, Strategy


class Verdict(Protocol):
    """What a judge says; `kasmina_edge.contracts.manifest.Acceptance` is one."""

    @property
    def accepted(self) -> bool:
        """Whether the pruned network may stay."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not; () when it may."""


@dataclass(frozen=True)
class Judgement:
    """The plainest verdict."""

    accepted: bool
    reasons: tuple[str, ...] = ()


Judge = Callable[[nn.Module], Verdict]
FineTune = Callable[[nn.Module], object]


@dataclass
class Trial:
    """A pruned network that nobody has agreed to yet.

    Attributes:
        network: The network itself, smaller.
        strategy: Name of the strategy.
        cut: What was taken.
        judge: Says whether the network may stay so.
        verdict: What the judge said; None before it was asked.
        log: Every step, in order, in words.
    """

    network: nn.Module
    strategy: str
    cut: Cut
    judge: Judge = field(repr=False)
    log: list[str] = field(default_factory=list)
    verdict: Verdict | None = None

    def accept(self) -> bool:
        """Ask the judge; the network stays pruned only if the last answer was True.

        Raises:
            InputError: A weight is not finite, or the judge gave no verdict; no earlier verdict stands then.
        """
        self.verdict = None
        _require_finite(self.network, "before it was judged")
        verdict = self.judge(self.network)
        if not (hasattr(verdict, "accepted") and hasattr(verdict, "reasons")):
            raise InputError(
                f"the judge of {self.strategy} gave {verdict!r}, which is no verdict",
                "Return Judgement(accepted=..., reasons=(...)), or an Acceptance.",
            )
        self.verdict = verdict
        self.log.append(
            "accepted" if verdict.accepted else f"refused: {'; '.join(verdict.reasons) or 'no reason given'}"
        )
        return bool(verdict.accepted)

    @property
    def accepted(self) -> bool:
        """Whether the last verdict lets the network stay."""
        return self.verdict is not None and bool(self.verdict.accepted)


@contextmanager
def pruned(
    network: nn.Module,
    strategy: Strategy,
    amount: Amount | float,
    frames: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    accept: Judge,
    finetune: FineTune | None = None,
) -> Iterator[Trial]:
    """Prune a network in place, for the length of a ``with`` block.

    Score, take, fine-tune, hold; then the block may look at the network and call `Trial.accept`. On leaving, the
    network stays pruned if the last verdict accepted it. Otherwise, and after any exception whatever - a fault in the
    middle, memory that ran out, a number that is none, an interrupt - it is what it was, bit for bit: the same tensor
    objects, values, gradients, modes. Peak memory is one copy of the network more.

    Args:
        network: Changed in place. Nobody else may use it meanwhile.
        strategy: How.
        amount: How much, as the strategy takes it.
        frames: Inputs to score by.  # (N, C, ...)
        labels: Their classes, or None.  # (N,)
        accept: Judges the pruned network on data that nothing was scored or trained by.
        finetune: Trains what is left.

    Raises:
        InputError: Frames or labels that are no tensors, or of other numbers; so much cannot go, or a value of the
            network is not finite; it was put back.
    """
    _require_tensors(frames, labels)
    _require_finite(network, "before it was pruned")
    before = Snapshot(network)
    kept = False
    try:
        cut = strategy.take(network, strategy.scores(network, frames, labels), amount, frames)
        before.release(network)
        told = f"{strategy.name}: {cut.count} of {cut.of} taken; {cut.note}"
        trial = Trial(network, strategy.name, cut, accept, [told])
        if finetune is not None:
            finetune(network)
            strategy.hold(network, cut)
            trial.log.append("fine-tuned")
        _require_finite(network, "after it was pruned")
        yield trial
        if trial.accepted:
            _require_finite(network, "when it was to be kept")
            kept = True
            strategy.settle(network, cut)
    finally:
        if not kept:
            before.put_back()


def _require_tensors(frames: object, labels: object) -> None:
    if not isinstance(frames, torch.Tensor):
        raise InputError(f"frames are {type(frames).__name__}, expected a tensor (N, C, ...)", "torch.from_numpy(x).")
    if labels is not None and (not isinstance(labels, torch.Tensor) or labels.shape != frames.shape[:1]):
        found = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise InputError(f"labels are {found}, expected a tensor ({len(frames)},), one a frame, or None")


def _require_finite(network: nn.Module, when: str) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{count} of {value.numel()} numbers of {name} are not finite {when}; the network is as it was",
                "Lower the learning rate of the fine-tuning, or look at the frames.",
            )
