"""Which frames show the same scene: a camera films a thing more than once, and a repeat on both sides is a leak."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

HOLDOUT_SHARE = 0.25
SAME_SCENE = (
    0.02  # root mean square difference, share of full scale; two frames under sensor noise of 0.01 differ by 0.014
)
_BLOCK = 256  # rows compared at once

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Division:
    """Rows parted so that no scene is on both sides.

    Attributes:
        learn: Rows to learn from.  # (N,)
        judge: Rows to judge by; each differs from every row to learn from by more than the tolerance.  # (N,)
    """

    learn: Mask
    judge: Mask

    @property
    def between(self) -> Mask:
        """Rows of neither side: of another scene than those that judge, and too near to one of them.  # (N,)"""
        return ~(self.learn | self.judge)


def scene_groups(x: npt.NDArray[np.float32], *, tolerance: float = SAME_SCENE) -> npt.NDArray[np.int64]:
    """A number for each row: that of the first row that leads a scene and differs by no more than ``tolerance``.

    Rows in order become leaders where no earlier leader is near (Hartigan 1975, Clustering Algorithms, chapter 3). So
    a scene reaches no farther than the tolerance from its leader, and low contrast does not chain all frames into one.
    Rows of two scenes may still be near each other: `divide` keeps such rows apart.

    Args:
        x: Frames.  # (N, ...)
        tolerance: Root mean square difference up to which two frames show one scene, as a share of full scale: of 1 for
            frames in [0, 1], of the values' range for others (bytes, millivolts).

    Returns:
        The lowest row of each row's scene, which leads it.  # (N,)

    >>> frames = np.stack([np.zeros((2, 2)), np.ones((2, 2)), np.full((2, 2), 0.01)]).astype(np.float32)
    >>> scene_groups(frames).tolist()
    [0, 1, 0]
    """
    flat, limit = _measured(x, tolerance)
    squares = (flat**2).sum(1)
    group = np.full(len(flat), -1, np.int64)
    for row in range(len(flat)):
        if group[row] < 0:
            group[row] = row
            open_ = row + 1 + np.flatnonzero(group[row + 1 :] < 0)
            distances = squares[row] + squares[open_] - 2 * flat[open_] @ flat[row]
            group[open_[distances <= limit]] = row
    return group


def divide(
    x: npt.NDArray[np.float32], *, share: float = HOLDOUT_SHARE, seed: int, tolerance: float = SAME_SCENE
) -> Division:
    """Rows to judge by, in whole scenes, rows to learn from, and a border between them that belongs to neither.

    Args:
        x: Frames.  # (N, ...)
        share: Of the rows that judge; scenes in seeded order, what does not fill it stays with the others.
        seed: Chooses the scenes.
        tolerance: As in `scene_groups`; no row to learn from is that near to one that judges.
    """
    groups = scene_groups(x, tolerance=tolerance)
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    judge = np.isin(groups, order[np.cumsum(sizes) <= share * len(x)])
    return Division(~(judge | _near(x, judge, tolerance)), judge)


def _near(x: npt.NDArray[np.float32], judge: Mask, tolerance: float) -> Mask:
    """Rows that differ from one of those that judge by no more than the tolerance.  # (N,)"""
    flat, limit = _measured(x, tolerance)
    judged = flat[judge]
    squares, theirs = (flat**2).sum(1), (judged**2).sum(1)
    near = np.zeros(len(flat), np.bool_)
    for first in range(0, len(flat) if len(judged) else 0, _BLOCK):
        part = slice(first, first + _BLOCK)
        near[part] = (squares[part, None] + theirs - 2 * flat[part] @ judged.T <= limit).any(1)
    return near


def _measured(x: npt.NDArray[np.float32], tolerance: float) -> tuple[npt.NDArray[np.float64], float]:
    """Rows as vectors around their mean, and the squared distance of the tolerance."""
    flat = x.reshape(len(x), prod(x.shape[1:])).astype(np.float64)
    limit = (tolerance * _full_scale(flat)) ** 2 * max(1, flat.shape[1])
    return flat - flat.mean(0) if len(flat) else flat, limit


def _full_scale(x: npt.NDArray[np.float64]) -> float:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    return 1.0 if low >= 0 and high <= 1 else high - low
