"""Drift early warning: the edge's change detectors over where points lie in the clusters that a model puts them into.

No labels are needed. Reference points and the model's answers to them say, for every cluster, where it lies and how
wide it is. Each new point is then told by its place inside the cluster it was put into: coordinates of mean 0, variance
1 and no correlation, and one more for its distance from the middle. Drift moves their means. They are watched cluster
by cluster (one blob that moves is diluted in the whole) and over all points together (a small move of everything). How
often each cluster is answered is watched too: a blob that moves to where another one was looks at home there. And so is
how rare a place each point has (``-log`` of the rank of its density among the reference's): a few points between the
clusters say more than many that moved a little.

Each of these has three `PageHinkley` detectors of `kasmina_edge.safety.detectors`, for lasting shifts of some 0.15, 0.5
and 2 standard deviations.

Where the lines are is computed, not tuned. A cumulative sum of ``value - delta`` that restarts at 0 needs at least
``exp(theta h)`` values on average to cross ``h`` while nothing changes, where ``theta > 0`` solves
``mean(exp(theta (value - delta))) = 1`` (Lundberg's exponent; Lorden 1971). ``theta`` is solved on the reference values
themselves, so skewed quantities get a line of their own, and ``h = log(samples * detectors) / theta``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors import DriftState, PageHinkley, PageHinkleyConfig
from kasmina_trainer.datasets.digits import Labels

Points = npt.NDArray[np.float64]
SPEEDS = (("creeping", 0.08), ("slow", 0.25), ("quick", 1.0))
"""Name of each detector and the deviation it tolerates, in standard deviations."""
CLIP = 5.0
LEAST_ROWS = 100
EVERYWHERE = -1


@dataclass(frozen=True)
class Alarm:
    """A drift that was flagged.

    Attributes:
        sample: Number of the point that settled it, from 0.
        cluster: The cluster that it shows in, `EVERYWHERE` for all points together.
        quantity: ``place 0``, ``place 1`` ... for coordinates inside the cluster, ``distance`` from its middle,
            ``share``: how often it is answered, ``rarity``: how seldom the reference was there.
        speed: Which of `SPEEDS` saw it.
    """

    sample: int
    cluster: int
    quantity: str
    speed: str

    def __str__(self) -> str:
        where = "all points" if self.cluster == EVERYWHERE else f"cluster {self.cluster}"
        return f"sample {self.sample}: {self.quantity} of {where} ({self.speed})"


@dataclass(frozen=True)
class _Cluster:
    """Where a cluster lies: x - mean, whitened symmetrically, then centred and scaled as the clipped reference is."""

    mean: Points
    whitener: Points
    centre: Points
    scale: Points

    @property
    def log_volume(self) -> float:
        return float(np.linalg.slogdet(self.whitener)[1])

    def square(self, x: Points) -> Points:
        z = (x - self.mean) @ self.whitener
        squares: Points = (z * z).sum(1)
        return squares

    def places(self, x: Points) -> Points:
        return np.clip((self.raw(x) - self.centre) / self.scale, -CLIP, CLIP)

    def raw(self, x: Points) -> Points:
        z = (x - self.mean) @ self.whitener
        distance = np.cbrt((z * z).sum(1, keepdims=True) / z.shape[1])  # near normal: Wilson and Hilferty 1931
        return np.hstack([np.clip(z, -CLIP, CLIP), distance])


class DriftWarning:
    """Watches a stream of points and a model's answers to them; not safe for several threads.

    Args:
        x: Reference points, without drift.  # (N, D)
        answers: What the model answers to them.  # (N,)
        samples: Samples between false alarms that are aimed at, all detectors together.

    Raises:
        InputError: Fewer than 10 D reference points, not finite, or not as many answers.
    """

    def __init__(self, x: npt.NDArray[np.floating], answers: Labels, *, samples: float = 1e8) -> None:
        if x.ndim != 2 or len(x) != len(answers) or len(x) < max(LEAST_ROWS, 10 * x.shape[1]):
            raise InputError(
                f"drift warning: points {x.shape} and {len(answers)} answers, expected "
                f"{max(LEAST_ROWS, 10 * x.shape[1] if x.ndim == 2 else 0)} or more and as many"
            )
        if not np.isfinite(x).all() or not samples > 1:
            raise InputError("drift warning: reference points must be finite, and samples more than 1")
        points = x.astype(np.float64)
        least = max(LEAST_ROWS, 10 * x.shape[1])
        self._whole = _cluster(points)
        self._clusters = {
            int(c): _cluster(points[answers == c]) for c in np.unique(answers) if (answers == c).sum() >= least
        }
        self.dimensions = x.shape[1]
        reference = self._placed(points, answers)
        values = {(EVERYWHERE, self._quantity(j)): reference[:, j] for j in range(self.dimensions + 1)}
        self._levels = {c: float((answers == c).mean()) for c in self._clusters if len(self._clusters) > 1}
        for c in self._clusters:
            rows = reference[answers == c]
            values |= {(c, self._quantity(j)): rows[:, j] for j in range(self.dimensions + 1)}
        values |= {(c, "share"): self._told(c, answers) for c in self._levels}
        sizes = {c: float((answers == c).sum()) for c in self._clusters}
        self._mixture = [(cluster, math.log(sizes[c] / len(x))) for c, cluster in self._clusters.items()]
        self._mixture = self._mixture or [(self._whole, 0.0)]
        self._ranks = np.sort(self._log_density(points))
        values[EVERYWHERE, "rarity"] = self._rarity(points)
        target = math.log(samples * len(values) * len(SPEEDS) * 2)
        self._watch = {key: tuple(_lines(column, target)) for key, column in values.items()}
        self.seen = 0

    @property
    def thresholds(self) -> dict[str, float]:
        """Where each line is, by what it watches."""
        return {
            f"{quantity} of {'all points' if group == EVERYWHERE else f'cluster {group}'} ({speed})": (
                detector.config.threshold
            )
            for (group, quantity), lines in self._watch.items()
            for detector, speed in lines
        }

    def update(self, x: npt.NDArray[np.floating], answers: Labels) -> list[Alarm]:
        """Take in some points in their order.

        Args:
            x: Points; one that is not finite is left out.  # (N, D)
            answers: What the model answers to them.  # (N,)

        Returns:
            Every alarm in its order. A detector that alarmed begins anew from what it sees next.

        Raises:
            InputError: Shapes that do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.dimensions or len(x) != len(answers):
            raise InputError(
                f"drift warning: points {x.shape} and {len(answers)} answers, expected (N, {self.dimensions})"
            )
        points = x.astype(np.float64)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(points).all(1))
        placed = self._placed(np.where(finite[:, None], points, 0.0), answers)
        columns = {(EVERYWHERE, self._quantity(j)): placed[:, j] for j in range(self.dimensions + 1)}
        columns |= {(c, self._quantity(j)): columns[EVERYWHERE, self._quantity(j)] for c, j in self._inside()}
        columns |= {(c, "share"): self._told(c, answers) for c in self._levels}
        columns[EVERYWHERE, "rarity"] = self._rarity(np.where(finite[:, None], points, 0.0))
        alarms: list[Alarm] = []
        for key, column in columns.items():
            group, quantity = key
            inside: npt.NDArray[np.bool_] = finite
            if group != EVERYWHERE and quantity != "share":
                inside = np.logical_and(finite, np.equal(answers, group))
            rows = np.flatnonzero(inside).tolist()
            seen = column[inside].tolist()
            for detector, speed in self._watch[key]:
                take = detector.update
                for row, value in zip(rows, seen, strict=True):
                    if take(value) is DriftState.DRIFT:
                        alarms.append(Alarm(self.seen + row, group, quantity, speed))
        self.seen += len(x)
        return sorted(alarms, key=lambda a: a.sample)

    def _inside(self) -> list[tuple[int, int]]:
        return [(c, j) for c in self._clusters for j in range(self.dimensions + 1)]

    def _told(self, cluster: int, answers: Labels) -> Points:
        """Whether each answer is this cluster, of mean 0 and variance 1 over the reference."""
        level = self._levels[cluster]
        told: Points = np.clip(((answers == cluster) - level) / math.sqrt(level * (1 - level)), -CLIP, CLIP)
        return told

    def _quantity(self, j: int) -> str:
        return "distance" if j == self.dimensions else f"place {j}"

    def _log_density(self, points: Points) -> Points:
        """Of the reference's clusters as normal distributions, up to a constant."""
        logs = [level + cluster.log_volume - 0.5 * cluster.square(points) for cluster, level in self._mixture]
        found: Points = np.logaddexp.reduce(np.stack(logs), axis=0)
        return found

    def _rarity(self, points: Points) -> Points:
        """Of mean 0 and variance 1 where nothing has changed: an exponential variable less its mean."""
        rank = np.searchsorted(self._ranks, self._log_density(points)) + 0.5
        found: Points = np.minimum(-np.log(rank / (len(self._ranks) + 1)) - 1.0, CLIP)
        return found

    def _placed(self, points: Points, answers: Labels) -> Points:
        """Where each point lies in its cluster; in the whole where its cluster was too small to learn."""
        found = self._whole.places(points)
        for number, cluster in self._clusters.items():
            rows = answers == number
            found[rows] = cluster.places(points[rows])
        return found


def _cluster(points: Points) -> _Cluster:
    mean = points.mean(0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(points, rowvar=False)))
    floor = max(float(values.max()), 1e-12) * 1e-9
    whitener = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    width = points.shape[1] + 1
    bare = _Cluster(mean, whitener, np.zeros(width), np.ones(width))
    raw = bare.raw(points)
    return _Cluster(mean, whitener, raw.mean(0), np.maximum(raw.std(0), 1e-9))


def _lines(values: Points, target: float) -> Iterator[tuple[PageHinkley, str]]:
    """A detector for each speed at which the sum can rise at all."""
    for speed, delta in SPEEDS:
        theta = min(lundberg(values, delta), lundberg(-values, delta))
        if math.isinf(theta):
            continue
        theta = min(theta, 2 * delta)  # never surer than of normal values: the running mean has an error of its own
        detector = PageHinkley(PageHinkleyConfig(delta=delta, threshold=target / theta))
        for value in values.tolist():  # the running mean then starts where the reference is
            detector.update(value)
        yield detector, speed


def lundberg(values: Points, delta: float) -> float:
    """The ``theta > 0`` at which ``mean(exp(theta (values - delta)))`` is 1; about ``2 delta`` for normal values.

    Args:
        values: Of mean 0.  # (N,)
        delta: More than 0.

    Returns:
        Infinity where no value is above ``delta``: such a sum never rises.

    Raises:
        InputError: ``delta`` is not above the mean.
    """
    steps = values - delta
    if steps.mean() >= 0:
        raise InputError(f"no exponent: the values' mean {values.mean():.3g} must be below delta {delta:g}")
    if steps.max() <= 0:
        return math.inf

    def excess(theta: float) -> float:
        return float(np.exp(theta * steps).mean()) - 1.0

    high = 1.0
    while excess(high) < 0:
        high *= 2
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high
