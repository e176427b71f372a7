"""How early drift could be flagged by somebody who knows the old and the new blobs and the schedule.

A test that says nothing in ``samples`` calm samples on average needs ``log(samples)`` nats of evidence against the old
blobs (Lorden 1971), and a sample gives the divergence of the present blobs from the old ones on average. The sum over
the schedule says when that is reached. It is a mean over streams: one stream can be luckier. A watcher who has to find
out what the new blobs are, and knows the old ones from a few thousand points only, needs more.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.gaussian import Blobs, DriftingBlobs

POINTS = 21
ROWS = 20_000


def earliest_share(drifting: DriftingBlobs, samples: float) -> float:
    """Share of the new at which the evidence suffices, for gradual and incremental drift; 1 where it never does."""
    grid = np.linspace(0.0, 1.0, POINTS)
    if drifting.schedule.kind == "gradual":
        divergences = _mixed(drifting, grid)
    else:
        divergences = np.array([_divergence(drifting.before.between(drifting.after, s), drifting.before) for s in grid])
    at = (np.arange(drifting.schedule.length) + 0.5) / drifting.schedule.length
    evidence = np.cumsum(np.interp(at, grid, divergences))
    reached = int(np.searchsorted(evidence, math.log(samples)))
    return min(1.0, reached / drifting.schedule.length)


def earliest_sudden(drifting: DriftingBlobs, samples: float) -> float:
    """Samples after a sudden change at which the evidence suffices."""
    return math.log(samples) / _divergence(drifting.after, drifting.before)


def _mixed(drifting: DriftingBlobs, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divergence of every mixture of old and new points from the old ones."""
    ratios = []
    for blobs in (drifting.before, drifting.after):
        x, _ = blobs.draw(ROWS, np.random.default_rng(5))
        ratios.append(np.exp(_log_density(drifting.after, x) - _log_density(drifting.before, x)))
    old, new = (np.log1p(shares[:, None] * (r - 1.0)[None]).mean(1) for r in ratios)
    found: npt.NDArray[np.float64] = np.maximum((1 - shares) * old + shares * new, 0.0)
    return found


def _divergence(new: Blobs, old: Blobs) -> float:
    x, _ = new.draw(ROWS, np.random.default_rng(6))
    return max(0.0, float((_log_density(new, x) - _log_density(old, x)).mean()))


def _log_density(blobs: Blobs, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.logaddexp.reduce(blobs.log_densities(x), axis=1)
    return found
