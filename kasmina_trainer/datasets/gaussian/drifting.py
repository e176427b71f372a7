"""Streams of points whose blobs change: suddenly, gradually, incrementally, or again and again (Gama et al. 2014).

- *sudden*: from one sample to the next the new blobs are drawn from.
- *gradual*: old and new blobs take turns, the new ones ever more often over ``length`` samples.
- *incremental*: the blobs themselves move from the old to the new over ``length`` samples.
- *recurring*: new blobs for ``length`` samples, then the old ones for as long, and so on.
- *none*: nothing changes; what a false alarm is counted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels
from kasmina_trainer.datasets.gaussian.blobs import Blobs, Points

Kind = Literal["none", "sudden", "gradual", "incremental", "recurring"]
KINDS: tuple[Kind, ...] = ("none", "sudden", "gradual", "incremental", "recurring")
BLOCK_ROWS = 4096
Classify = Callable[[Images], Labels]


@dataclass(frozen=True)
class Schedule:
    """When blobs change.

    Attributes:
        kind: One of `KINDS`.
        begin: First sample of the change, from 0.
        length: Samples that it takes (gradual, incremental), or that each phase lasts (recurring).
    """

    kind: Kind
    begin: int = 0
    length: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"drift {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.begin < 0 or self.length < 1:
            raise InputError(f"drift: begin {self.begin} >= 0 and length {self.length} >= 1 must hold")

    def share(self, at: npt.NDArray[np.integer]) -> Points:
        """How much of the new there is at each sample, 0 to 1.

        >>> Schedule("incremental", 10, 4).share(np.arange(9, 16)).tolist()
        [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        """
        since = np.asarray(at, np.float64) - self.begin
        if self.kind == "none":
            return np.zeros(since.shape)
        if self.kind == "sudden":
            return (since >= 0).astype(np.float64)
        if self.kind == "recurring":
            new: Points = ((since >= 0) & (np.floor(since / self.length) % 2 == 0)).astype(np.float64)
            return new
        return np.clip(since / self.length, 0.0, 1.0)


class Block(NamedTuple):
    """A stretch of a stream: samples (N, D), classes (N,), and the share of the new at each (N,)."""

    x: Images
    y: Labels
    share: Points


@dataclass(frozen=True, eq=False)
class DriftingBlobs:
    """Blobs that change by a schedule.

    Attributes:
        before: The blobs at first.
        after: The new ones, as many in as many dimensions.
        schedule: When.
    """

    before: Blobs
    after: Blobs
    schedule: Schedule

    def __post_init__(self) -> None:
        if self.before.means.shape != self.after.means.shape:
            raise InputError(
                f"drift: blobs {self.before.means.shape} and {self.after.means.shape}, expected equal shapes"
            )

    def stream(self, count: int, seed: int = 0) -> Iterator[Block]:
        """``count`` samples in blocks of at most `BLOCK_ROWS`; the same seed gives the same samples."""
        rng = np.random.default_rng(seed)
        for start in range(0, count, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, count - start)
            share = self.schedule.share(np.arange(start, start + rows))
            yield self._block(share, rng)

    def whole(self, count: int, seed: int = 0) -> Block:
        """The same samples in one piece."""
        blocks = list(self.stream(count, seed))
        return Block(
            np.concatenate([b.x for b in blocks]),
            np.concatenate([b.y for b in blocks]),
            np.concatenate([b.share for b in blocks]),
        )

    def accuracy(self, classify: Classify, share: float, *, rows: int = 20_000, seed: int = 0) -> float:
        """Share of right answers of a fixed classifier while so much is new; the same draws for every share."""
        if self.schedule.kind == "incremental":
            x, y = self.before.between(self.after, share).draw(rows, np.random.default_rng(seed))
            return float((classify(x) == y).mean())
        ends = []
        for blobs in (self.before, self.after):
            x, y = blobs.draw(rows, np.random.default_rng(seed))
            ends.append(float((classify(x) == y).mean()))
        return (1 - share) * ends[0] + share * ends[1]

    def _block(self, share: Points, rng: np.random.Generator) -> Block:
        """One block; its draws depend on neither schedule nor length, so streams of a seed are equal up to a change."""
        rows = len(share)
        turn, which = (rng.random(BLOCK_ROWS)[:rows] for _ in range(2))
        noise = rng.normal(0.0, 1.0, (BLOCK_ROWS, self.before.means.shape[1]))[:rows]
        moves = self.schedule.kind == "incremental"
        part = share if moves else (turn < share).astype(np.float64)
        shares = self._mixed(part, self.before.shares, self.after.shares)
        y: Labels = (which[:, None] >= np.cumsum(shares, 1)[:, :-1]).sum(1).astype(np.int64)
        means = self._mixed(part, self.before.means[y], self.after.means[y], gathered=True)
        factors = self._mixed(part, self.before.factors[y], self.after.factors[y], gathered=True)
        x = means + np.einsum("nij,nj->ni", factors, noise)
        return Block(x.astype(np.float32), y, share)

    @staticmethod
    def _mixed(part: Points, old: Points, new: Points, *, gathered: bool = False) -> Points:
        weight = part.reshape(-1, *([1] * (old.ndim - 1 if gathered else old.ndim)))
        mixed: Points = (1 - weight) * old + weight * new
        return mixed


def moved(blobs: Blobs, distance: float, seed: int = 0, *, only: int | None = None) -> Blobs:
    """The same blobs, each centre moved its own way.

    Args:
        blobs: Where they are.
        distance: How far, in standard deviations of a round blob.
        seed: Chooses the ways.
        only: Move this one alone; None moves all.
    """
    ways = np.random.default_rng(seed).normal(0.0, 1.0, blobs.means.shape)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    if only is not None:
        ways = ways * (np.arange(len(blobs)) == only)[:, None]
    return Blobs(blobs.means + distance * ways, blobs.factors, blobs.shares)


def spread(blobs: Blobs, factor: float) -> Blobs:
    """The same centres and shapes, ``factor`` times as wide."""
    if factor <= 0:
        raise InputError(f"blobs {factor:g} times as wide: expected more than 0")
    return Blobs(blobs.means, blobs.factors * factor, blobs.shares)
