"""Which of several quantized versions is shipped, by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT
from kasmina_edge.errors import InputError

ACCURACY_PRICE = 0.005
"""Accuracy (share of 1) that pinning may cost against the float network, in exchange for a small update."""


@dataclass(frozen=True)
class Candidate:
    """One quantized version of a network, measured on held-out data.

    Attributes:
        name: ``pinned``, ``partly pinned (...)``, ``free`` or ``free, whole range``.
        data: The TFLite file.
        pinned: How many of the ``inherited`` ranges it keeps.
        inherited: How many activations the parent has a range for.
        agreement: Share of held-out inputs whose top answer is the float network's.
        accuracy: Share of held-out inputs answered rightly; None when their labels are unknown.
    """

    name: str
    data: bytes
    pinned: int
    inherited: int
    agreement: float
    accuracy: float | None


def choose(candidates: Sequence[Candidate], float_accuracy: float | None = None) -> Candidate:
    """The version to ship. Pure.

    The rule: of the versions in order of how much they pin, the first that keeps `MINIMUM_AGREEMENT` and whose accuracy
    is within `ACCURACY_PRICE` of the float network's, or of the best version's where that is lower; where none does,
    the one that agrees best. (A version more accurate than the float network is so by luck, and sets no mark.)

    Args:
        candidates: At least one, most pinned first.
        float_accuracy: The float network's, on the same inputs; None when their labels are unknown.
    """
    if not candidates:
        raise InputError("no quantized version to choose from")
    best = max((c.accuracy for c in candidates if c.accuracy is not None), default=None)
    mark = None if best is None else min(best, best if float_accuracy is None else float_accuracy) - ACCURACY_PRICE
    for candidate in candidates:
        close = mark is None or candidate.accuracy is None or candidate.accuracy >= mark
        if candidate.agreement >= MINIMUM_AGREEMENT and close:
            return candidate
    return max(candidates, key=lambda c: c.agreement)
