"""Which channels go: the least worth first, by what they cost, until a share is gone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.coupling import Slot
from kasmina_trainer.pruning.groups import Group, Structure


@dataclass(frozen=True)
class Amount:
    """How much is to go.

    Attributes:
        share: 0 to 1, both excluded.
        of: ``macs``: of the multiply-accumulates of convolutions and linear layers; ``channels``: of all channels that
            may go.
        step: Channels go in steps that leave a multiple of it; kernels compute several channels at once, so that an odd
            width costs what the next even one does.
        least: Share of every group that stays.
    """

    share: float
    of: Literal["macs", "channels"] = "macs"
    step: int = 1
    least: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"a share of {self.share:g} of the {self.of}: expected more than 0 and less than 1")
        if self.step < 1 or not 0 <= self.least < 1:
            raise InputError(f"step {self.step}, least {self.least:g}: expected 1 or more, and 0 to 1")


@dataclass(frozen=True)
class Choice:
    """What is to go.

    Attributes:
        drop: Channels by the name of their group.
        channels: How many of how many.
        macs: Multiply-accumulates before and after.
    """

    drop: Mapping[str, tuple[int, ...]]
    channels: tuple[int, int]
    macs: tuple[int, int]


def choose_channels(
    structure: Structure,
    scores: Mapping[str, Sequence[float]],
    amount: Amount,
    *,
    widths: Mapping[str, int] | None = None,
) -> Choice:
    """The channels of least worth for what they save.

    Greedy: at each turn that step of a group goes whose scores, summed, are smallest for the multiplications (or the
    channels) that it saves in the network as it then is; what it saves beyond the share does not count for it.

    Args:
        structure: Of the network.
        scores: By group, higher is worth more.  # one a channel
        amount: How much.
        widths: Channels that each group had in the beginning, for `Amount.least`; None: as many as now.

    Raises:
        InputError: There is nothing to take, or the share cannot be reached; the message says what can.
    """
    if not structure.groups:
        raise InputError("this network has no channels that may go", "Prune single weights with Magnitude.")
    sizes = {name: list(shape) for name, shape in structure.sizes.items()}
    order = {g.name: np.argsort(np.asarray(scores[g.name]), kind="stable") for g in structure.groups}
    gone = dict.fromkeys(order, 0)
    total = structure.macs if amount.of == "macs" else structure.channels
    goal, saved = amount.share * total, 0
    while saved < goal:
        best: tuple[float, int, Group, int, int] | None = None
        for place, group in enumerate(structure.groups):
            count = _next(len(group) - gone[group.name], (widths or {}).get(group.name, len(group)), amount)
            if not count:
                continue
            picked = order[group.name][gone[group.name] : gone[group.name] + count]
            spared = _spared(structure, sizes, group.places, count) if amount.of == "macs" else count
            price = float(np.sum(np.asarray(scores[group.name])[picked])) / max(1e-9, min(spared, goal - saved))
            if best is None or (price, place) < best[:2]:
                best = (price, place, group, count, spared)
        if best is None:
            raise InputError(
                f"{amount.share:.0%} of the {amount.of} cannot go, {saved / total:.0%} can: every group keeps "
                f"{amount.least:.0%} of its channels, in steps of {amount.step}",
                "Take less, or lower `least`.",
            )
        _, _, group, count, spared = best
        for (tensor, axis), each in group.places.items():
            if tensor in sizes:
                sizes[tensor][axis] -= each * count
        gone[group.name] += count
        saved += spared
    left = sum(int(np.prod(sizes[name])) * count for name, count in structure.work.items())
    drop = {name: tuple(sorted(int(i) for i in order[name][:count])) for name, count in gone.items() if count}
    return Choice(drop, (sum(gone.values()), structure.channels), (structure.macs, left))


def _next(left: int, width: int, amount: Amount) -> int:
    """How many channels of a group go at once; 0 when no more may."""
    count = (left - 1) % amount.step + 1
    return count if left - count >= max(1, amount.least * width) else 0


def _spared(structure: Structure, sizes: Mapping[str, list[int]], places: Mapping[Slot, int], count: int) -> int:
    """Multiply-accumulates that go with so many channels."""
    spared = 0
    for name, work in structure.work.items():
        shape = sizes[name]
        cut = [n - count * places.get((name, axis), 0) for axis, n in enumerate(shape)]
        spared += work * (int(np.prod(shape)) - int(np.prod(cut)))
    return spared
