"""What goes into a network in one window: how much of it, and how far it is from what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import DomainStatistics
from kasmina_edge.safety.drift import drift_score, features, smallest_window
from kasmina_trainer.telemetry.records import Window


class InputWindow:
    """Counts and drift features since the last `take`; not safe for several threads.

    Args:
        domains: What inputs are expected.
        now_s: When it begins, seconds since 1970 UTC.

    Attributes:
        frames: Rows that passed.
    """

    def __init__(self, domains: Sequence[DomainStatistics], now_s: float) -> None:
        self._domains = tuple(domains)
        self._start(now_s)

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Take rows in that are looked at; those with a value that is not finite are left out."""
        for row in rows:
            if row.size and np.isfinite(row).all():
                self._sampled += 1
                for name, value in features(row).items():
                    self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self, now_s: float) -> Window:
        """What passed, and begin anew."""
        drift, domain = None, None
        if self._sampled >= smallest_window(self._domains):  # fewer rows cannot tell
            drift, domain = drift_score(self._means(), self._sampled, self._domains)
        found = Window(
            started_s=self._started_s,
            duration_s=max(0.0, now_s - self._started_s),
            frames=self.frames,
            sampled=self._sampled,
            features=self._means() if self._sampled else None,
            drift=drift,
            domain=domain,
        )
        self._start(now_s)
        return found

    def _means(self) -> dict[str, float]:
        return {name: total / self._sampled for name, total in self._sums.items()}

    def _start(self, now_s: float) -> None:
        self._started_s, self.frames, self._sampled = now_s, 0, 0
        self._sums: dict[str, float] = {}
