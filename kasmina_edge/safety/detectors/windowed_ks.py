"""Windowed Kolmogorov-Smirnov: the distribution of a recent window against that of a reference window."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors.detector import DRIFT, LEARNING, STABLE, Detector, DriftState, finites, whole

_LEAST_REGIME = 8


@dataclass(frozen=True)
class WindowedKsConfig:
    """How long the two windows of `WindowedKs` are.

    Attributes:
        alpha: Chance that one comparison of two windows of the same distribution is called a drift (Kolmogorov's
            asymptotic law, which is on the safe side for short windows). Comparisons go on for ever: choose it small.
        reference: Values of the reference window, the first ones seen.
        recent: Values of the recent window.
        every: Values between two comparisons.
    """

    alpha: float = 1e-6
    reference: int = 256
    recent: int = 128
    every: int = 16

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.reference >= 8 and self.recent >= 8 and self.every >= 1):
            raise InputError(
                f"windowed ks: alpha {self.alpha} in (0, 1), reference {self.reference} >= 8, "
                f"recent {self.recent} >= 8 and every {self.every} >= 1 must hold"
            )

    @property
    def critical(self) -> float:
        """Distance of the two distribution functions above which it is a drift.

        >>> round(WindowedKsConfig(alpha=0.05, reference=100, recent=100).critical, 3)
        0.192
        """
        return kolmogorov_quantile(self.alpha) * math.sqrt(1.0 / self.reference + 1.0 / self.recent)


class WindowedKs(Detector):
    """Two-sample Kolmogorov-Smirnov distance between a fixed reference window and the recent one.

    The recent window is kept as counts between the sorted reference values, with places of their own for values equal
    to one of them, so that the distance is exact for discrete values too. A value costs one binary search. After a
    drift the recent window becomes the reference.
    """

    name = "windowed-ks"
    _FIELDS = ("_learned", "_recent", "_tick")

    def __init__(self, config: WindowedKsConfig | None = None) -> None:
        super().__init__()
        self.config = config or WindowedKsConfig()
        self._line = self.config.critical
        self._every = self.config.every
        self._size = self.config.recent
        self.reset()

    @property
    def ready(self) -> bool:
        """Whether both windows are full."""
        return len(self._recent) == self._size

    @property
    def distance(self) -> float | None:
        """Largest distance of the two distribution functions, 0 to 1; None until both windows are full."""
        return self._distance() if self.ready else None

    def reset(self) -> None:
        """Empty both windows."""
        self._learned: list[float] = []
        self._recent: deque[float] = deque()
        self._tick = 0
        self._points: list[float] = []

    def _step(self, x: float) -> DriftState:
        if not self._points:
            self._learned.append(x)
            if len(self._learned) >= self.config.reference:
                self._refer(self._learned)
            return LEARNING
        recent, counts = self._recent, self._counts
        recent.append(x)
        counts[self._place(x)] += 1
        if len(recent) <= self._size:
            if len(recent) < self._size:
                return LEARNING
        else:
            counts[self._place(recent.popleft())] -= 1
        self._tick += 1
        if self._tick < self._every:
            return STABLE
        self._tick = 0
        if self._distance() <= self._line:
            return STABLE
        self.onset = self._newest_regime()
        self._learned = list(recent)
        self._recent = deque()
        self._points = []
        if len(self._learned) >= self.config.reference:
            self._refer(self._learned[-self.config.reference :])
        return DRIFT

    def _newest_regime(self) -> int:
        """How many of the recent values are from after the change: where level or spread of their ranks parts best."""
        ranks = [self._place(x) / (2.0 * len(self._points)) - 0.5 for x in self._recent]
        best, found = 0.0, self._size
        for values, variance in ((ranks, 1.0 / 12.0), ([abs(r) - 0.25 for r in ranks], 1.0 / 48.0)):
            total = 0.0
            for count, value in enumerate(reversed(values), start=1):
                total += value
                clear = total * total / (variance * count)
                if count >= _LEAST_REGIME and clear > best:
                    best, found = clear, count
        return found

    def _place(self, x: float) -> int:
        """Twice the number of distinct reference values below ``x``, plus 1 when one equals it."""
        points = self._points
        i = bisect_left(points, x)
        return 2 * i + 1 if i < len(points) and points[i] == x else 2 * i

    def _refer(self, values: list[float]) -> None:
        import numpy as np

        self._learned = values
        self._points = sorted(set(values))
        self._counts = array("q", bytes(8 * (2 * len(self._points) + 1)))
        self._seen = np.frombuffer(self._counts, dtype=np.int64)
        places = np.bincount([self._place(v) for v in values], minlength=len(self._seen))
        self._below = np.cumsum(places) * self._size

    def _distance(self) -> float:
        import numpy as np

        gap = np.cumsum(self._seen) * len(self._learned) - self._below
        return max(int(gap.max()), -int(gap.min())) / (len(self._learned) * self._size)

    def to_state(self) -> dict[str, Any]:
        """As of the base class."""
        return {**super().to_state(), "_learned": list(self._learned), "_recent": list(self._recent)}

    def _load(self, state: Mapping[str, Any]) -> None:
        learned, recent = finites(state["_learned"]), finites(state["_recent"])
        tick = whole(state["_tick"])
        if len(learned) > self.config.reference or len(recent) > self._size or tick >= self._every:
            raise ValueError(f"{len(learned)} and {len(recent)} values, tick {tick}: longer than the windows here")
        if recent and len(learned) < self.config.reference:
            raise ValueError(f"{len(recent)} recent values, {len(learned)} of {self.config.reference} to refer to")
        for name in ("count", "ignored", "drifts", "onset"):
            setattr(self, name, whole(state[name]))
        self.reset()
        self._learned, self._tick = learned, tick
        if len(learned) == self.config.reference:
            self._refer(learned)
        self._recent = deque(recent)
        for x in recent:
            self._counts[self._place(x)] += 1


@lru_cache(maxsize=16)
def kolmogorov_quantile(alpha: float) -> float:
    """The value that Kolmogorov's distribution exceeds with probability ``alpha`` (Kolmogorov 1933; Smirnov 1948).

    Raises:
        InputError: ``alpha`` outside (0, 1).

    >>> round(kolmogorov_quantile(0.05), 3), round(kolmogorov_quantile(1e-6), 3)
    (1.358, 2.693)
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha {alpha}: expected a probability within 0 and 1")
    low, high = 0.2, 10.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _kolmogorov_tail(middle) > alpha else (low, middle)
    return high


def _kolmogorov_tail(value: float) -> float:
    return 2.0 * math.fsum((-1) ** (k - 1) * math.exp(-2.0 * k * k * value * value) for k in range(1, 60))
