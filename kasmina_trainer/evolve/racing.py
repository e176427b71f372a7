"""Successive halving (Jamieson and Talwalkar 2016): many arms on few steps, the better part of them on more; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from kasmina_edge.errors import InputError

SHORTEST = 15
KEPT = 3


@dataclass(frozen=True)
class Rung:
    """One round: so many arms learn for so many steps, each from birth."""

    arms: int
    steps: int


def rungs(arms: int, steps: int, *, keep: int = KEPT, shortest: int = SHORTEST) -> tuple[Rung, ...]:
    """Rounds that halve the arms and double the steps until ``keep`` are left.

    Args:
        arms: How many start.
        steps: Of the last round.
        keep: How many the last round leaves; it is the first one to hold no more than twice as many.
        shortest: No round has fewer steps, unless ``steps`` is fewer; rounds that would all be as short are one, which
            then drops more than half.

    Raises:
        InputError: A number below 1.

    >>> rungs(16, 80)
    (Rung(arms=16, steps=20), Rung(arms=8, steps=40), Rung(arms=4, steps=80))
    >>> rungs(2, 80)
    (Rung(arms=2, steps=80),)
    """
    if min(arms, steps, keep, shortest) < 1:
        raise InputError(f"a race of {arms} arms, {steps} steps, {keep} kept: expected 1 or more of each")
    counts = [arms]
    while counts[-1] > 2 * keep:
        counts.append(ceil(counts[-1] / 2))
    found: dict[int, int] = {}
    for place, count in enumerate(counts):
        found.setdefault(max(min(shortest, steps), steps // 2 ** (len(counts) - 1 - place)), count)
    return tuple(Rung(count, length) for length, count in found.items())


def survivors(scores: Mapping[str, float], keep: int) -> tuple[str, ...]:
    """Names of the best, best first; equal scores in the order of their names, whatever is not a number last.

    >>> survivors({"b": 0.2, "a": 0.2, "c": 0.5, "d": float("nan")}, 3)
    ('c', 'a', 'b')
    """
    ranked = sorted(scores, key=lambda name: (scores[name] != scores[name], -_plain(scores[name]), name))
    return tuple(ranked[: max(0, keep)])


def score(target_before: float, target_after: float, clean_before: float, clean_after: float, price: float) -> float:
    """What an arm is worth: what the target gains, less what clean inputs lose at a price.

    Args:
        target_before: Mean probability of the right class on target rows, without the arm.
        target_after: With it.
        clean_before: The same on clean rows.
        clean_after: With it.
        price: Points of gain that one point of clean loss outweighs.
    """
    return (target_after - target_before) - price * max(0.0, clean_before - clean_after)


def _plain(value: float) -> float:
    return value if value == value else 0.0
