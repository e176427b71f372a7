"""Has the mean of a stream of vectors moved, at whatever pace: windows of many lengths against all that came before.

At every look the mean of the last ``w`` vectors is held against the mean of everything before them, in units of the
reference's covariance and with the error of both means (the likelihood ratio of a change at that place; Siegmund and
Venkatraman 1995, scanned over a ladder of lengths as in MOSUM, Eichinger and Kirch 2018)::

    Q = |mean(last w) - mean(the n before)|^2 / (1/w + 1/n)

Short windows see a leap within tens of samples, long ones a creeping change long before any sample looks odd.

A sum of few vectors is far from normal where single ones lie far out, so windows shorter than `SURE` add up shortened
vectors: whitened, none longer than all but one in a hundred of the reference's. Long windows take them as they are: a
gradual drift shows in far points first.

Lines are computed. While nothing changes, ``Q`` is chi-square in the limit. Its variance and third moment in a short
window are taken from sums of reference vectors drawn at random, and the line is the quantile of the gamma distribution
with these moments (Pearson's third type); that the covariance is an estimate is allowed for by Bartlett's factor. The
chances of all looks at all lengths add up to one false alarm in ``samples`` (Boole), of which windows shorter than
`SURE` get a hundredth, because a limit is least to be trusted far out in a short sum's tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammainccinv

Points = npt.NDArray[np.float64]
STEP = 8
"""Vectors from one look to the next, of the shortest windows."""
WINDOWS = (96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
LOOKS_A_WINDOW = 16
SURE = 1024
SHORT_PART = 0.01
LONGEST = 0.99
"""Share of reference vectors that are not shortened for short windows."""
_DRAWN_WINDOW = 96
_DRAWS = 20_000
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Found:
    """A mean that moved.

    Attributes:
        row: The vector that settled it, counted from the reference's end.
        window: Vectors that were held against those before.
        shift: By how much they differ, in the vectors' own units.  # (F,)
    """

    row: int
    window: int
    shift: Points


class MeanScan:
    """Scans a stream of vectors; not safe for several threads.

    Args:
        reference: Vectors without change.  # (N, F)
        samples: Vectors between false alarms that are aimed at.
        seed: Of the draws that lines of short windows are computed from.
    """

    def __init__(self, reference: Points, *, samples: float = 1e8, seed: int = 0) -> None:
        self._centre = reference.mean(0)
        self.scale = np.maximum(reference.std(0), 1e-12)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.corrcoef(reference / self.scale, rowvar=False)))
        kept = values > _TOLERANCE * values.max()
        self._turn = (vectors[:, kept] / np.sqrt(values[kept])) / self.scale[:, None]
        self._known = len(reference)
        self._width = width = int(kept.sum())
        white = (reference - self._centre) @ self._turn
        self._longest = float(np.quantile(np.linalg.norm(white, axis=1), LONGEST))
        self._middle = np.zeros(width)
        self._middle = self._shortened(white).mean(0)
        rng = np.random.default_rng(seed)
        moments = {False: _moments(white, rng), True: _moments(self._shortened(white), rng)}
        self.lines = {
            window: _line(window, width, *moments[window < SURE], self._known, chance)
            for window, chance in _chances(samples).items()
        }
        # running sums at every STEP-th vector, the last WINDOWS[-1] of them: vectors as they are, and shortened
        self._sums = np.zeros((1, 2 * width))
        self._pending = np.zeros((0, 2 * width))
        self._steps = 0

    def update(self, vectors: Points) -> Found | None:
        """Take in vectors in their order, until the first that settles a change.

        Returns:
            The first change; the scan is then of no more use. None when there is none.
        """
        white = (vectors - self._centre) @ self._turn
        rows = np.concatenate([self._pending, np.hstack([white, self._shortened(white)])])
        whole = len(rows) // STEP
        self._pending = rows[whole * STEP :]
        steps = rows[: whole * STEP].reshape(whole, STEP, self._sums.shape[1]).sum(1)
        sums = np.cumsum(np.concatenate([self._sums[-1:], steps]), 0)
        first = self._steps - len(self._sums) + 1  # the step that the oldest sum kept stands for
        sums = np.concatenate([self._sums, sums[1:]])
        found = self._look(sums, first, self._steps + 1, self._steps + whole)
        self._steps += whole
        self._sums = sums[-(WINDOWS[-1] // STEP + 1) :]
        return found

    def _shortened(self, white: Points) -> Points:
        """Whitened vectors of at most the longest length, about their reference's mean."""
        lengths = np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
        short: Points = white * np.minimum(1.0, self._longest / lengths) - self._middle
        return short

    def _look(self, sums: Points, first: int, begin: int, end: int) -> Found | None:
        best: tuple[int, int] | None = None
        for window, line in self.lines.items():
            length = window // STEP
            every = _every(window)
            looks = np.arange(-(-max(begin, length) // every) * every, end + 1, every)
            if not len(looks):
                continue
            part = slice(self._width, None) if window < SURE else slice(self._width)
            gaps, error = self._gaps(sums[:, part], looks - first, looks, length)
            crossed = np.flatnonzero((gaps * gaps).sum(1) > line * error)
            if len(crossed) and (best is None or looks[crossed[0]] < best[0]):
                best = int(looks[crossed[0]]), window
        if best is None:
            return None
        look, window = best
        gap, _ = self._gaps(sums[:, : self._width], np.array([look - first]), np.array([look]), window // STEP)
        # a covariance times the whitened gap is the gap itself
        shift: Points = np.linalg.pinv(self._turn.T) @ gap[0]
        return Found(look * STEP - 1, window, shift)

    def _gaps(
        self, sums: Points, at: npt.NDArray[np.intp], looks: npt.NDArray[np.int64], length: int
    ) -> tuple[Points, Points]:
        """Mean of the last ``length`` steps less that of all before, and the variance of that difference."""
        before = self._known + (looks - length) * STEP
        earlier = sums[at - length]
        gaps: Points = (sums[at] - earlier) / (length * STEP) - earlier / before[:, None]
        error: Points = 1.0 / (length * STEP) + 1.0 / before
        return gaps, error


def _every(window: int) -> int:
    return max(1, window // STEP // LOOKS_A_WINDOW)


def _chances(samples: float) -> dict[int, float]:
    """The chance that one look of each window length may have of a false alarm."""
    short = sum(w < SURE for w in WINDOWS)
    part = {True: SHORT_PART / short, False: (1.0 - SHORT_PART) / (len(WINDOWS) - short)}
    return {w: part[w < SURE] * STEP * _every(w) / samples for w in WINDOWS}


def _moments(rows: Points, rng: np.random.Generator) -> tuple[float, float]:
    """Variance and third central moment of ``Q`` of windows of `_DRAWN_WINDOW` whitened reference vectors."""
    drawn = []
    for _ in range(0, _DRAWS, 1000):
        sums = rows[rng.integers(len(rows), size=(1000, _DRAWN_WINDOW))].sum(1)
        drawn.append((sums * sums).sum(1) / _DRAWN_WINDOW)
    values = np.concatenate(drawn)
    centred = values - values.mean()
    return float((centred**2).mean()), float((centred**3).mean())


def _line(window: int, width: int, variance: float, third: float, known: int, chance: float) -> float:
    """What ``Q`` exceeds with that chance; what exceeds chi-square's moments fades as one by the window."""
    fade = _DRAWN_WINDOW / window
    spread = 2 * width + max(0.0, variance - 2 * width) * fade
    skew = (8 * width + max(0.0, third - 8 * width) * fade) / spread**1.5
    shape = 4 / skew**2
    quantile = width + (float(gammainccinv(shape, chance)) - shape) * math.sqrt(spread / shape)
    freedom = known - 1 - width / 2  # Bartlett 1938: (n - 1 - F/2) log(1 + T^2 / (n - 1)) is near chi-square
    return (known - 1) * math.expm1(quantile / freedom)
