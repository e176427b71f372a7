"""Least squares with coefficients that are never negative: a kernel takes no negative time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
_TOLERANCE = 1e-10


def nonnegative_least_squares(a: Numbers, b: Numbers) -> Numbers:
    """The x >= 0 that makes ``|a x - b|`` smallest, by the active-set method.

    Follows Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.

    Args:
        a: (N, K); columns may be of very different size.
        b: (N,).

    Returns:
        (K,); a column of zeros gets 0.

    >>> nonnegative_least_squares(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    size = np.linalg.norm(a, axis=0)
    used = size > 0
    scaled = a[:, used] / size[used]
    if scaled.shape[0] > scaled.shape[1] > 0:  # the same problem in as many rows as there are columns
        q, scaled = np.linalg.qr(scaled)
        b = q.T @ b
    gram, right = scaled.T @ scaled, scaled.T @ b
    count = scaled.shape[1]
    x, free = np.zeros(count), np.zeros(count, bool)
    for _ in range(30 * max(count, 1)):
        gradient = right - gram @ x
        gradient[free] = -np.inf
        if not count or free.all() or gradient.max() <= _TOLERANCE * max(1.0, float(np.linalg.norm(b))):
            break
        free[int(gradient.argmax())] = True
        while True:
            best = np.zeros(count)
            best[free] = np.linalg.lstsq(scaled[:, free], b, rcond=None)[0]
            low = free & (best <= 0)
            if not low.any():
                x = best
                break
            steps = x[low] / np.maximum(x[low] - best[low], 1e-300)
            x = x + float(steps.min()) * (best - x)
            free &= x > _TOLERANCE
            x[~free] = 0.0
            if not free.any():
                break
    out = np.zeros(a.shape[1])
    out[used] = x / size[used]
    return out


def fit_shares(counts: Numbers, times: Numbers, *, rounds: int = 6) -> Numbers:
    """Coefficients that make ``counts @ x`` right within the smallest shares of ``times``.

    Outliers count less from round to round (Huber's weights, at twice the median deviation): on a machine that others
    use too, some measurements are wrong.

    Args:
        counts: (N, K).
        times: (N,), above zero.
        rounds: Of the re-weighting.
    """
    shares = counts / times[:, None]
    weight = np.ones(len(times))
    x = np.zeros(counts.shape[1])
    for _ in range(max(1, rounds)):
        x = nonnegative_least_squares(shares * weight[:, None], weight)
        off = np.abs(shares @ x - 1.0)
        limit = max(2.0 * float(np.median(off)), 1e-6)
        weight = np.sqrt(np.minimum(1.0, limit / np.maximum(off, 1e-12)))
    return x
