"""Drift early warning: have the clusters that points lie in changed, told without labels.

Reference points and the model's answers to them say where each cluster lies, how wide it is, how often it is answered.
Each new point is told by numbers whose means drift moves (`describing`): its place in each cluster by the chance of
belonging there, products of places, shares of answers, and how rare it is. All of them together are one vector a point,
and one scan over windows of 96 to 16,384 points asks whether its mean has moved (`scanning`), in units of the calm
covariance. Blobs that each move their own way add up in one figure there, where detectors that watch number by number
wait for the one that moves most; and a gradual drift, where a few points come from elsewhere, shows in the products
before any place has moved.

The reference goes on learning: what came before a window is what the window is held against. After an alarm the next
points are learned as a new reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Labels
from kasmina_trainer.datasets.gaussian.describing import EVERYWHERE, Description, Points, describe
from kasmina_trainer.datasets.gaussian.scanning import MeanScan

LEAST_ROWS = 100
RELEARN_ROWS = 1000
"""Points after an alarm that are the next reference."""
_BLOCK = 4096

__all__ = ["EVERYWHERE", "Alarm", "DriftWarning"]


@dataclass(frozen=True)
class Alarm:
    """A drift that was flagged.

    Attributes:
        sample: Number of the point that settled it, from 0.
        cluster: The cluster that it shows in most, `EVERYWHERE` for all points together.
        quantity: What shows it most: ``place 0``, ``place 1`` ... for coordinates inside the cluster, ``shape`` or
            ``distance`` for how points lie around its middle, ``share``: how often it is answered, ``rarity``: how
            seldom the reference was there.
        window: Points that were held against all those before; the change began about so long ago, or earlier.
    """

    sample: int
    cluster: int
    quantity: str
    window: int

    def __str__(self) -> str:
        where = "all points" if self.cluster == EVERYWHERE else f"cluster {self.cluster}"
        return f"sample {self.sample}: {self.quantity} of {where}, last {self.window:,} points"


class DriftWarning:
    """Watches a stream of points and a model's answers to them; not safe for several threads.

    Args:
        x: Reference points, without drift.  # (N, D)
        answers: What the model answers to them.  # (N,)
        samples: Samples between false alarms that are aimed at.

    Raises:
        InputError: Fewer than 10 D reference points, not finite, or not as many answers.
    """

    def __init__(self, x: npt.NDArray[np.floating], answers: Labels, *, samples: float = 1e8) -> None:
        least = max(LEAST_ROWS, 10 * x.shape[1] if x.ndim == 2 else 0)
        if x.ndim != 2 or len(x) != len(answers) or len(x) < least:
            raise InputError(
                f"drift warning: points {x.shape} and {len(answers)} answers, expected {least} or more and as many"
            )
        if not np.isfinite(x).all() or not samples > 1:
            raise InputError("drift warning: reference points must be finite, and samples more than 1")
        points = x.astype(np.float64)
        self.dimensions = x.shape[1]
        self.seen = 0
        self._samples = samples
        self._description: Description = describe(points, answers, least)
        self._begin(self._description.tell(points, answers))

    @property
    def thresholds(self) -> dict[int, float]:
        """Where the line of each window is, by its length; the unit is that of a chi-square."""
        return dict(self._scan.lines)

    def update(self, x: npt.NDArray[np.floating], answers: Labels) -> list[Alarm]:
        """Take in some points in their order.

        Args:
            x: Points; one that is not finite is left out.  # (N, D)
            answers: What the model answers to them.  # (N,)

        Returns:
            Every alarm in its order. After an alarm nothing is said until `RELEARN_ROWS` points were learned.

        Raises:
            InputError: Shapes that do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.dimensions or len(x) != len(answers):
            raise InputError(
                f"drift warning: points {x.shape} and {len(answers)} answers, expected (N, {self.dimensions})"
            )
        alarms: list[Alarm] = []
        for start in range(0, len(x), _BLOCK):
            points = x[start : start + _BLOCK].astype(np.float64)
            rows = np.flatnonzero(np.isfinite(points).all(1))
            told = self._description.tell(points[rows], answers[start : start + _BLOCK][rows])
            alarms += self._take(told, rows + self.seen)
            self.seen += len(points)
        return alarms

    def _begin(self, reference: Points) -> None:
        self._scan = MeanScan(reference, samples=self._samples)
        self._scanned = 0
        self._learning: Points | None = None

    def _take(self, told: Points, numbers: npt.NDArray[np.intp]) -> list[Alarm]:
        """Learn or scan rows until none is left."""
        alarms: list[Alarm] = []
        while len(told):
            if self._learning is not None:
                taken = min(len(told), RELEARN_ROWS - len(self._learning))
                self._learning = np.concatenate([self._learning, told[:taken]])
                if len(self._learning) == RELEARN_ROWS:
                    self._begin(self._learning)
            else:
                found = self._scan.update(told)
                taken = len(told) if found is None else found.row + 1 - self._scanned
                self._scanned += taken
                if found is not None:
                    most = int(np.abs(found.shift / self._scan.scale).argmax())
                    alarms.append(Alarm(int(numbers[taken - 1]), *self._description.names[most], found.window))
                    self._learning = told[:0]
            told, numbers = told[taken:], numbers[taken:]
        return alarms
