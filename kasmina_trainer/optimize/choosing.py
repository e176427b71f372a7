"""Which of several measured points is taken. Pure: figures come in, a verdict with its reasons comes out.

No decision rests on a difference that is smaller than an estimate's band: latencies whose bands overlap are a tie, and
a tie is decided by accuracy, then by size, then by the order of the recipes. An estimate whose band is unknown orders
nothing, but a longest latency is held against the estimate itself: all else would let any network pass. Where a
longest latency is asked for, a point that is estimated to keep it goes before every one that nothing is known of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasmina_edge.errors import InputError

_Z = 1.959964  # 95 %, two-sided


@dataclass(frozen=True)
class Goals:
    """What is asked for; None: anything will do.

    Attributes:
        max_loss: Points of accuracy that may be lost against the measured float network.
        max_ms: Longest latency on the target.
        max_kb: Largest file, in kB of 1000 bytes.
    """

    max_loss: float | None = None
    max_ms: float | None = None
    max_kb: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max-loss", self.max_loss), ("max-ms", self.max_ms), ("max-kb", self.max_kb)):
            if value is not None and not (math.isfinite(value) and (value > 0 or (name == "max-loss" and value == 0))):
                raise InputError(f"{name}: expected a number above 0, got {value}")


@dataclass(frozen=True)
class Loss:
    """Accuracy lost against the float network on the same inputs, in points; the 95 % interval of the difference."""

    mean: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Point:
    """One recipe, measured.

    Attributes:
        name: The recipe's.
        loss: On the inputs that recipes are chosen by.
        size_bytes: Of the file.
        latency_ms: Estimated on the target; None where the profile has nothing to estimate from.
        band: Relative half-width of the estimate; None: unknown.
        fits: Whether the target can hold it.
        why_not: What it lacks.
    """

    name: str
    loss: Loss
    size_bytes: int
    latency_ms: float | None
    band: float | None
    fits: bool = True
    why_not: str = ""

    @property
    def fastest_ms(self) -> float:
        """The lower end of the band; 0 where nothing is known."""
        return 0.0 if self.latency_ms is None or self.band is None else self.latency_ms * (1 - self.band)

    @property
    def slowest_ms(self) -> float:
        """The upper end of the band; infinite where nothing is known."""
        return math.inf if self.latency_ms is None or self.band is None else self.latency_ms * (1 + self.band)


@dataclass(frozen=True)
class Verdict:
    """What was chosen.

    Attributes:
        index: Of the point; None when none keeps the goals.
        reasons: Sentences.
        misses: Of each point, the goals that it misses; () when it keeps all, or it cannot be told.
        front: Points that no other beats in loss, size and latency.
    """

    index: int | None
    reasons: tuple[str, ...]
    misses: tuple[tuple[str, ...], ...]
    front: tuple[int, ...]


def paired_loss(before: Sequence[bool], after: Sequence[bool]) -> Loss:
    """Accuracy lost from ``before`` to ``after`` on the same rows, in points.

    The interval is Agresti and Min's (2005, "Simple improved confidence intervals for comparing matched proportions"):
    half a row is added to each kind of disagreement, so that no disagreement is no certainty.

    Raises:
        InputError: No rows, or of different numbers.

    >>> paired_loss([True] * 100, [True] * 99 + [False]).mean
    1.0
    """
    if len(before) != len(after) or not len(before):
        raise InputError(f"paired loss of {len(before)} and {len(after)} rows: as many, and at least one, are needed")
    first, second = np.asarray(before, np.bool_), np.asarray(after, np.bool_)
    lost, won, count = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    b, c, n = lost + 0.5, won + 0.5, count + 2
    middle, half = (b - c) / n, _Z * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return Loss(100 * (lost - won) / count, 100 * (middle - half), 100 * (middle + half), count)


def choose(points: Sequence[Point], goals: Goals) -> Verdict:
    """The point to take: within the goals the fastest beyond the band, of those the most accurate, then the smallest.

    Args:
        points: In the order of the recipes.
        goals: What is asked for.
    """
    misses = tuple(_misses(point, goals) for point in points)
    left = [i for i, found in enumerate(misses) if not found]
    front = pareto(points)
    if not left:
        return Verdict(None, _nearest(points, misses), misses, front)
    reasons = [f"{len(left)} of {len(points)} recipes keep the goals on the inputs that recipes are chosen by"]
    estimated = [i for i in left if points[i].latency_ms is not None]
    if goals.max_ms is not None and 0 < len(estimated) < len(left):
        reasons.append(
            f"of {len(left) - len(estimated)} of them nothing tells the latency, and at most {goals.max_ms:g} ms are "
            "asked for: those that are estimated to keep that go first"
        )
        left = estimated
    bound = min(points[i].slowest_ms for i in left)
    tied = [i for i in left if points[i].fastest_ms <= bound]
    if len(tied) < len(left):
        reasons.append(f"{len(left) - len(tied)} of them are slower by more than the band")
    best = min(points[i].loss.mean for i in tied)
    accurate = [i for i in tied if points[i].loss.mean == best]
    chosen = min(accurate, key=lambda i: (points[i].size_bytes, i))
    if len(tied) > 1:
        what = "no latency can be told" if bound == math.inf else "latencies differ by less than the band"
        decided = "accuracy" if len(accurate) == 1 else "size" if _sizes_differ(points, accurate) else "order"
        reasons.append(f"{len(tied)} tie ({what}): decided by {decided}")
    reasons += _doubts(points[chosen], goals)
    return Verdict(chosen, tuple(reasons), misses, front)


def confirmation(chosen: Loss, fresh: Loss, goals: Goals) -> tuple[str, bool]:
    """What inputs that nothing was chosen by say of the chosen recipe, and whether they refute that it keeps the goal.

    Args:
        chosen: Its loss on the inputs that it was chosen by.
        fresh: On the others.
        goals: What is asked for.

    Returns:
        A sentence; true where the interval of the fresh inputs lies wholly beyond the goal.
    """
    seen = (
        f"{fresh.mean:.2f} points lost on {fresh.samples} fresh inputs (95 % interval {fresh.low:.2f} to "
        f"{fresh.high:.2f}), {chosen.mean:.2f} on the {chosen.samples} that it was chosen by"
    )
    most = goals.max_loss
    if most is None:
        return seen, False
    if fresh.low > most:
        return f"{seen}: more than the {most:g} that are asked for, the whole interval lies beyond", True
    if fresh.high <= most:
        return f"{seen}: at most {most:g} are asked for, the whole interval keeps that", False
    side = "within" if fresh.mean <= most else "beyond"
    return f"{seen}: at most {most:g} are asked for, the mean lies {side}, the interval on both sides", False


def pareto(points: Sequence[Point]) -> tuple[int, ...]:
    """Points that no other beats: as good in loss, size and latency, and better in one. Exact figures, for drawing."""

    def key(p: Point) -> tuple[float, float, float]:
        return p.loss.mean, float(p.size_bytes), 0.0 if p.latency_ms is None else p.latency_ms

    found = []
    for i, a in enumerate(points):
        beaten = any(
            all(x <= y for x, y in zip(key(b), key(a), strict=True)) and (key(b) != key(a) or j < i)
            for j, b in enumerate(points)
            if j != i
        )
        if not beaten and a.fits:
            found.append(i)
    return tuple(found)


def _misses(point: Point, goals: Goals) -> tuple[str, ...]:
    found = []
    if not point.fits:
        found.append(point.why_not or "does not fit the target")
    if goals.max_loss is not None and point.loss.mean > goals.max_loss:
        found.append(f"loses {point.loss.mean:.2f} points, at most {goals.max_loss:g} are asked for")
    if goals.max_ms is not None and point.latency_ms is not None:
        if point.band is None and point.latency_ms > goals.max_ms:
            found.append(
                f"takes {point.latency_ms:.3g} ms by an estimate whose band is unknown, at most {goals.max_ms:g} are "
                "asked for"
            )
        elif point.band is not None and point.fastest_ms > goals.max_ms:
            found.append(f"takes {point.fastest_ms:.3g} ms at least, at most {goals.max_ms:g} are asked for")
    if goals.max_kb is not None and point.size_bytes > 1000 * goals.max_kb:
        found.append(f"has {point.size_bytes / 1000:.1f} kB, at most {goals.max_kb:g} are asked for")
    return tuple(found)


def _doubts(point: Point, goals: Goals) -> list[str]:
    """What is kept, but not proven."""
    found = []
    if goals.max_loss is not None and point.loss.high > goals.max_loss:
        found.append(
            f"the loss of {point.loss.mean:.2f} points is not proven to be at most {goals.max_loss:g}: "
            f"its 95 % interval on {point.loss.samples} inputs ends at {point.loss.high:.2f}"
        )
    if goals.max_ms is not None and point.slowest_ms > goals.max_ms:
        if point.latency_ms is None:
            how = "nothing is there to estimate it from"
        elif point.band is None:
            how = f"it is estimated at {point.latency_ms:.3g} ms, and its band is unknown"
        else:
            how = f"its band ends at {point.slowest_ms:.3g} ms"
        found.append(f"the latency is not proven to be at most {goals.max_ms:g} ms: {how}")
    return found


def _nearest(points: Sequence[Point], misses: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if not points:
        return ("no recipe was measured",)
    near = min(range(len(points)), key=lambda i: (len(misses[i]), points[i].loss.mean, i))
    return (
        f"none of {len(points)} recipes keeps the goals",
        f"nearest is {points[near].name}: {'; '.join(misses[near])}",
    )


def _sizes_differ(points: Sequence[Point], rows: Sequence[int]) -> bool:
    return len({points[i].size_bytes for i in rows}) > 1
