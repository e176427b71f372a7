"""ADWIN: a window as long as its mean stands still, in an exponential histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors.detector import DRIFT, LEARNING, STABLE, Detector, DriftState, finites, whole


@dataclass(frozen=True)
class AdwinConfig:
    """How sure `Adwin` must be.

    Attributes:
        delta: Chance of a false cut; the bound holds for values whose spread is about 1, so standardise first.
        every: Values between two looks for a cut; a look costs what some 30 values cost.
        buckets: Buckets of one size before two are joined; more is finer and slower.
        shortest: Values that either side of a cut must have.
        longest: Values after which the oldest bucket is let go: memory and time stay bounded, 5 log2(longest) buckets.
    """

    delta: float = 0.002
    every: int = 32
    buckets: int = 5
    shortest: int = 5
    longest: int = 1 << 16

    def __post_init__(self) -> None:
        if not (0 < self.delta < 1 and self.every >= 1 and self.buckets >= 2 and self.shortest >= 1):
            raise InputError(
                f"adwin: delta {self.delta} in (0, 1), every {self.every} >= 1, buckets {self.buckets} >= 2 and "
                f"shortest {self.shortest} >= 1 must hold"
            )
        if self.longest < 64:
            raise InputError(f"adwin: longest {self.longest}, expected at least 64")


class Adwin(Detector):
    """Window of adaptive length in an exponential histogram (Bifet and Gavalda 2007, "ADWIN2").

    Each row ``i`` holds buckets of ``2**i`` values as (sum, sum of squared deviations). A cut between two buckets is
    taken where the means differ by more than the paper's bound (section 3.1, normal approximation); the older side is
    dropped bucket by bucket until no cut is left, and what remains is the new regime.

    >>> detector = Adwin()
    >>> [n for n, x in enumerate([0.0, 1.0] * 200 + [3.0, 4.0] * 50) if detector.update(x) is DriftState.DRIFT]
    [415, 447]
    """

    name = "adwin"
    _FIELDS = ("_n", "_sum", "_squares", "_tick", "_rows")

    def __init__(self, config: AdwinConfig | None = None) -> None:
        super().__init__()
        self.config = config or AdwinConfig()
        self._limit, self._every = 2 * self.config.buckets, self.config.every
        self._least = 2 * self.config.shortest
        self._tick = 0
        self.reset()

    @property
    def ready(self) -> bool:
        """Whether a cut would leave enough on both sides."""
        return self._n >= self._least

    @property
    def width(self) -> int:
        """Values in the window."""
        return self._n

    @property
    def mean(self) -> float:
        """Mean of the window; 0 when it is empty."""
        return self._sum / self._n if self._n else 0.0

    def reset(self) -> None:
        """Empty the window."""
        self._n = 0
        self._sum = self._squares = 0.0
        self._rows: list[list[float]] = [[]]

    def _step(self, x: float) -> DriftState:
        n = self._n
        if n:
            apart = x - self._sum / n
            self._squares += n * apart * apart / (n + 1)
        self._n = n + 1
        self._sum += x
        row = self._rows[0]
        row.append(x)
        row.append(0.0)
        if len(row) > self._limit:
            self._join()
        self._tick += 1
        if self._tick < self._every:
            return STABLE if n >= self._least else LEARNING
        self._tick = 0
        return self._look()

    def _join(self) -> None:
        """Join the two oldest buckets of every row that is over full; a row is (sum, squares, sum, squares, ...)."""
        rows, limit, size = self._rows, self._limit, 1.0
        for i in range(len(rows)):
            row = rows[i]
            if len(row) <= limit:
                return
            sum_1, squares_1, sum_2, squares_2 = row[:4]
            del row[:4]
            if i + 1 == len(rows):
                rows.append([])
            upper = rows[i + 1]
            upper.append(sum_1 + sum_2)
            apart = sum_1 - sum_2
            upper.append(squares_1 + squares_2 + apart * apart / (2.0 * size))
            size += size

    def _look(self) -> DriftState:
        """Cut as long as there is a cut."""
        if not self.ready:
            return LEARNING
        while self._n > self.config.longest:
            self._drop()
        n_1 = self._cut()
        if not n_1:
            return STABLE
        self.onset = n_1
        while n_1:
            self._drop()
            n_1 = self._cut()
        return DRIFT

    def _cut(self) -> int:
        """Values on the newer side of the clearest cut, 0 when no two sides differ."""
        n, total, shortest = self._n, self._sum, self.config.shortest
        if n < self._least:
            return 0
        log_term = math.log(2.0 * math.log(n) / self.config.delta)
        spread = 2.0 * max(self._squares, 0.0) / n * log_term
        slack = 2.0 / 3.0 * log_term
        n_0, sum_0 = 0, 0.0
        most = n - shortest
        size = 1 << len(self._rows)
        sqrt, margin = math.sqrt, shortest - 1
        found, clearest = 0, 1.0
        for row in reversed(self._rows):
            size >>= 1
            for bucket in row[::2]:
                n_0 += size
                sum_0 += bucket
                if n_0 < shortest:
                    continue
                if n_0 > most:
                    return found
                n_1 = n - n_0
                apart = sum_0 / n_0 - (total - sum_0) / n_1
                m = 1.0 / (n_0 - margin) + 1.0 / (n_1 - margin)
                square = apart * apart
                if square > spread * m:
                    clear = sqrt(square) / (sqrt(spread * m) + slack * m)
                    if clear > clearest:
                        found, clearest = n_1, clear
        return found

    def _drop(self) -> None:
        """Let the oldest bucket go."""
        rows = self._rows
        size = 1 << (len(rows) - 1)
        oldest = rows[-1]
        bucket, squares = oldest[:2]
        del oldest[:2]
        while len(rows) > 1 and not rows[-1]:
            rows.pop()
        self._n -= size
        self._sum -= bucket
        if self._n > 0:
            apart = bucket / size - self._sum / self._n
            self._squares -= squares + size * self._n * apart * apart / (size + self._n)
        else:
            self.reset()

    def to_state(self) -> dict[str, Any]:
        """As of the base class."""
        return {**super().to_state(), "_rows": [list(row) for row in self._rows]}

    def _load(self, state: Mapping[str, Any]) -> None:
        rows = [finites(row) for row in state["_rows"]]
        n = sum((len(row) // 2) << i for i, row in enumerate(rows))
        if not rows or n != state["_n"] or any(len(row) % 2 or len(row) > self._limit for row in rows):
            raise ValueError(f"{n} values in its buckets and {state['_n']} in its count")
        if not 0 <= whole(state["_tick"]) < self._every:
            raise ValueError(f"tick {state['_tick']} of {self._every}")
        super()._load({**state, "_rows": rows})
