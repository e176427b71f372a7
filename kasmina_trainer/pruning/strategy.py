"""What a trial asks of a way to prune, and the two that take channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.choosing import Amount, choose_channels
from kasmina_trainer.pruning.groups import Group, Structure, read_structure
from kasmina_trainer.pruning.surgery import take_out
from kasmina_trainer.pruning.taylor import fisher_scores

Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """What a strategy took.

    Attributes:
        taken: Places by the name of the group, tensor or site.
        of: How many places there were.
        shrinks: Whether the exported file becomes smaller.
        note: One sentence for people.
    """

    taken: Mapping[str, tuple[int, ...]]
    of: int
    shrinks: bool
    note: str

    @property
    def count(self) -> int:
        """How many places were taken."""
        return sum(len(places) for places in self.taken.values())


class Strategy(ABC):
    """One way to tell what a network can spare, and to take it.

    Attributes:
        name: For reports.
        shrinks: Whether the exported file becomes smaller.
    """

    name: str
    shrinks: bool

    @abstractmethod
    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        """Worth of every channel, weight or site; higher is worth more.

        Args:
            network: In evaluation mode; it is left as it was.
            frames: Inputs.  # (N, C, ...)
            labels: Their classes, or None.  # (N,)
        """

    @abstractmethod
    def take(self, network: nn.Module, scores: Scores, amount: Amount | float, frames: torch.Tensor) -> Cut:
        """Take an amount of the least worth out of the network itself.

        Raises:
            InputError: So much cannot go; the network is as it was.
        """

    def hold(self, network: nn.Module, cut: Cut) -> None:
        """Put back what fine-tuning must not bring to life again; channels that are gone need nothing."""
        return

    def settle(self, network: nn.Module, cut: Cut) -> None:
        """Make an accepted cut final; where that fails, what was not made final is to be as it was."""
        return


class _Channels(Strategy):
    shrinks = True

    def take(self, network: nn.Module, scores: Scores, amount: Amount | float, frames: torch.Tensor) -> Cut:
        """As `Strategy.take`; a plain number is a share of the multiply-accumulates."""
        structure = read_structure(network, frames)
        amount = amount if isinstance(amount, Amount) else Amount(amount)
        missing = [group.name for group in structure.groups if group.name not in scores]
        if missing:
            raise InputError(f"scores for {len(scores)} groups, none for {missing[0]}")
        worth = {group.name: self._worth(structure, group, scores[group.name], amount) for group in structure.groups}
        choice = choose_channels(structure, worth, amount)
        take_out(network, structure.groups, choice.drop)
        note = f"{choice.macs[0]:,} multiply-accumulates before, {choice.macs[1]:,} after"
        return Cut(choice.drop, choice.channels[1], True, note)

    def _worth(self, structure: Structure, group: Group, scores: torch.Tensor, amount: Amount) -> list[float]:
        """Scores in a unit that may be divided by what the channels save."""
        return [float(score) for score in scores]


class Taylor(_Channels):
    """Channels by what losing them would do to the answers, to first order (see `fisher_scores`); needs no label.

    Args:
        seed: Of the labels that are drawn.
    """

    name = "taylor"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        """Squared units of the loss, comparable over the whole network."""
        return fisher_scores(network, read_structure(network, frames).groups, frames, seed=self._seed)


class GroupNorm(_Channels):
    """Channels by the norm of all weights that read them, over the mean of their group; needs no data.

    What writes a channel does not count: behind a normalisation its scale means nothing (measured: with it, the norm
    chose no better than chance).
    """

    name = "group-norm"

    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        """1 is the mean of a group."""
        tensors = dict(network.named_parameters())
        found = {}
        for group in read_structure(network, frames).groups:
            squares = torch.zeros(len(group))
            for number, (tensor, axis, _) in enumerate(group.channels[0]):
                if (tensor, axis) in group.reading:
                    along = (tensors[tensor].detach().transpose(0, axis).flatten(1) ** 2).sum(1).cpu()
                    squares += along[torch.tensor([channel[number][2] for channel in group.channels])].sum(1)
            norms = squares.sqrt()
            found[group.name] = norms / norms.mean().clamp(min=1e-12)
        return found

    def _worth(self, structure: Structure, group: Group, scores: torch.Tensor, amount: Amount) -> list[float]:
        """A norm says nothing of the answers, so groups are compared by it alone, whatever their channels cost."""
        cost = _macs_of_one(structure, group) if amount.of == "macs" else 1.0
        return [float(score) * cost for score in scores]


def _macs_of_one(structure: Structure, group: Group) -> float:
    """Multiply-accumulates that one channel takes part in."""
    total = 0.0
    for (tensor, axis), count in group.places.items():
        if tensor in structure.work:
            shape = structure.sizes[tensor]
            total += structure.work[tensor] * math.prod(shape) / shape[axis] * count
    return total
