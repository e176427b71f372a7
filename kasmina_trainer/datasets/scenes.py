"""Which frames show the same scene: a camera films a thing more than once, and a repeat on both sides is a leak."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HOLDOUT_SHARE = 0.25
SAME_SCENE = (
    0.02  # root mean square difference, share of full scale; two frames under sensor noise of 0.01 differ by 0.014
)


def scene_groups(x: npt.NDArray[np.float32], *, tolerance: float = SAME_SCENE) -> npt.NDArray[np.int64]:
    """A number for each row; rows that differ by no more than ``tolerance``, directly or over others, share one.

    Args:
        x: Frames.  # (N, ...)
        tolerance: Root mean square difference up to which two frames show one scene, as a share of full scale: of 1 for
            frames in [0, 1], of the values' range for others (bytes, millivolts).

    Returns:
        The lowest row of each row's scene.  # (N,)

    >>> frames = np.stack([np.zeros((2, 2)), np.ones((2, 2)), np.full((2, 2), 0.01)]).astype(np.float32)
    >>> scene_groups(frames).tolist()
    [0, 1, 0]
    """
    flat = x.reshape(len(x), -1).astype(np.float64)
    squares = (flat**2).sum(1)
    limit = (tolerance * _full_scale(flat)) ** 2 * max(1, flat.shape[1])
    group = np.arange(len(x), dtype=np.int64)
    for row in range(len(x)):
        distances = squares[row] + squares[row + 1 :] - 2 * flat[row + 1 :] @ flat[row]
        for other in row + 1 + np.flatnonzero(distances <= limit):
            low, high = sorted((int(group[row]), int(group[other])))
            if low != high:
                group[group == high] = low
    return group


def set_aside(x: npt.NDArray[np.float32], *, share: float = HOLDOUT_SHARE, seed: int) -> npt.NDArray[np.bool_]:
    """Rows to judge by: whole scenes in seeded order, up to ``share`` of the rows.

    Args:
        x: Frames.  # (N, ...)
        share: Of the rows; what does not fill it stays with the others.
        seed: Chooses the scenes.

    Returns:
        True for the rows set aside.  # (N,)
    """
    groups = scene_groups(x)
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    return np.isin(groups, order[np.cumsum(sizes) <= share * len(x)])


def _full_scale(x: npt.NDArray[np.float64]) -> float:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    return 1.0 if low >= 0 and high <= 1 else high - low
