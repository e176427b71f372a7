"""How early drift is flagged by somebody who knows the old and the new blobs and the pace, but not when it begins.

The evidence for a drift that began at sample ``v`` is the ratio of the likelihoods of all samples since. Summed over
all ``v`` it is the statistic of Shiryaev and Roberts. Less the number of samples it is a martingale while nothing
drifts, so a line at ``samples`` gives no more than one false alarm in so many (Pollak 1985, who also shows that hardly
anything is earlier at that rate). No normal approximation is in it. It is run on the very stream that the warning was
given, so both have the same luck. A watcher who has to find out what the new blobs are, and knows the old ones from a
few thousand points only, needs more.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.gaussian import Blobs, DriftingBlobs

GRID = 21
EVERY = 16
"""Samples from one possible beginning to the next; each stands for so many."""
_BLOCK = 64

Points = npt.NDArray[np.float64]


def earliest(drifting: DriftingBlobs, x: npt.NDArray[np.floating], samples: float) -> int | None:
    """The sample at which who knows both flags the drift; None where never.

    Args:
        drifting: What is known.
        x: The stream.  # (N, D)
        samples: Samples between false alarms, at least.
    """
    starts = np.arange(0, len(x), EVERY)
    found: Points = np.zeros(len(starts))
    for begin in range(0, len(x), _BLOCK):
        at = np.arange(begin, min(len(x), begin + _BLOCK))
        live = starts < at[-1] + 1
        since = at[None] - starts[live][:, None]
        ratios = _log_ratios(drifting, x[at], _shares(drifting, since))
        paths = found[live][:, None] + np.cumsum(np.where(since >= 0, ratios, 0.0), 1)
        begun = np.where(since >= 0, paths, -np.inf)
        total = np.logaddexp.reduce(begun, axis=0) + math.log(EVERY)
        if (total >= math.log(samples)).any():
            return int(at[np.argmax(total >= math.log(samples))])
        found[live] = paths[:, -1]
    return None


def _shares(drifting: DriftingBlobs, since: npt.NDArray[np.int64]) -> Points:
    if drifting.schedule.kind == "sudden":
        return (since >= 0).astype(np.float64)
    return np.clip(since / drifting.schedule.length, 0.0, 1.0)


def _log_ratios(drifting: DriftingBlobs, x: npt.NDArray[np.floating], shares: Points) -> Points:
    """Log density of each sample at each share of the new, less that without any.  # (N, D) and (V, N) to (V, N)"""
    old = _log_density(drifting.before, x)
    if drifting.schedule.kind != "incremental":
        ratio = np.exp(_log_density(drifting.after, x) - old)
        mixed: Points = np.log(np.maximum(1 - shares + shares * ratio, 1e-300))
        return mixed
    # between shares of a grid the logarithm is interpolated: such a density sums to at most 1, so the line still holds
    places = shares * (GRID - 1)
    low = np.minimum(places.astype(np.int64), GRID - 2)
    table = np.zeros((GRID, len(x)))
    for step in range(1, int(low.max(initial=0)) + 2):
        between = drifting.before.between(drifting.after, step / (GRID - 1))
        table[step] = _log_density(between, x) - old
    columns = np.arange(len(x))[None]
    part = places - low
    interpolated: Points = (1 - part) * table[low, columns] + part * table[low + 1, columns]
    return interpolated


def _log_density(blobs: Blobs, x: npt.NDArray[np.floating]) -> Points:
    found: Points = np.logaddexp.reduce(blobs.log_densities(x), axis=1)
    return found
