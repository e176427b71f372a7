"""Page-Hinkley: the cumulative deviation from the running mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors.detector import DRIFT, LEARNING, STABLE, Detector, DriftState


@dataclass(frozen=True)
class PageHinkleyConfig:
    """Where `PageHinkley` draws the line; units are the stream's own, so standardise first.

    Attributes:
        delta: Deviation from the mean that is tolerated; half the shift one wants to see.
        threshold: Sum of deviations that is a drift. With unit-variance values, 0.25 and 25 mean some 10^5 values
            between false alarms, 33 values to see a shift of one standard deviation.
        minimum: Values before anything is said.
        forget: Factor on the sums with every value; 1 never forgets.
        direction: ``up``, ``down`` or ``both``.
    """

    delta: float = 0.25
    threshold: float = 25.0
    minimum: int = 30
    forget: float = 1.0
    direction: Literal["up", "down", "both"] = "both"

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and self.threshold > 0 and self.minimum >= 1 and 0 < self.forget <= 1):
            raise InputError(
                f"page-hinkley: delta {self.delta} >= 0, threshold {self.threshold} > 0, minimum {self.minimum} >= 1 "
                f"and forget {self.forget} in (0, 1] must hold"
            )
        if self.direction not in ("up", "down", "both"):
            raise InputError(f"page-hinkley: direction {self.direction!r}, expected up, down or both")


class PageHinkley(Detector):
    """Cumulative deviation from the running mean, upwards and downwards (Page 1954; Hinkley 1971).

    >>> detector = PageHinkley(PageHinkleyConfig(threshold=5.0, minimum=5))
    >>> states = [detector.update(x) for x in [0.0] * 20 + [2.0] * 6]
    >>> states.index(DriftState.DRIFT), detector.onset
    (23, 4)
    """

    name = "page-hinkley"
    _FIELDS = ("_n", "_mean", "_up", "_down", "_lowest", "_highest", "_since_low", "_since_high")

    def __init__(self, config: PageHinkleyConfig | None = None) -> None:
        super().__init__()
        self.config = config or PageHinkleyConfig()
        self._delta, self._threshold = self.config.delta, self.config.threshold
        self._forget, self._minimum = self.config.forget, self.config.minimum
        self._sees_up = self.config.direction != "down"
        self._sees_down = self.config.direction != "up"
        self.reset()

    @property
    def ready(self) -> bool:
        """Whether ``minimum`` values were seen since the last start."""
        return self._n >= self._minimum

    @property
    def statistic(self) -> float:
        """The larger of the two sums, to be compared with the threshold."""
        return max(
            self._up - self._lowest if self._sees_up else 0.0, self._highest - self._down if self._sees_down else 0.0
        )

    def reset(self) -> None:
        """Forget mean and sums."""
        self._n = self._since_low = self._since_high = 0
        self._mean = self._up = self._down = self._lowest = self._highest = 0.0

    def _step(self, x: float) -> DriftState:
        self._n = n = self._n + 1
        self._mean = mean = self._mean + (x - self._mean) / n
        deviation = x - mean
        self._up = up = self._forget * self._up + deviation - self._delta
        self._down = down = self._forget * self._down + deviation + self._delta
        if up < self._lowest or n == 1:
            self._lowest = up
            self._since_low = n
        if down > self._highest or n == 1:
            self._highest = down
            self._since_high = n
        if n < self._minimum:
            return LEARNING
        if self._sees_up and up - self._lowest > self._threshold:
            self.onset = n - self._since_low
        elif self._sees_down and self._highest - down > self._threshold:
            self.onset = n - self._since_high
        else:
            return STABLE
        self.reset()
        return DRIFT
