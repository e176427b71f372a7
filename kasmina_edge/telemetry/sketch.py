"""Constant-memory summaries of a stream of numbers that merge by addition: a log-histogram and running moments."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from kasmina_edge.contracts.record import Summary
from kasmina_edge.errors import InputError

BUCKET_RATIO = 1.02
LOG_SCALE = 1.0 / math.log(BUCKET_RATIO)
BUCKET_OFFSET = 1024
"""Bucket of the value 1; everything from 1.6e-9 up has a bucket above 0."""


def bucket_of(value: float) -> int:
    """Index of the 2 % bucket that holds a positive, finite value."""
    return int(math.log(value) * LOG_SCALE + BUCKET_OFFSET)


def bucket_value(index: int) -> float:
    """Geometric middle of a bucket: within 1 % of everything in it."""
    return math.exp((index - BUCKET_OFFSET + 0.5) / LOG_SCALE)


class LogHistogram:
    """Counts in buckets of 2 % relative width: quantiles within 1 %, merged by adding integers.

    >>> sketch = LogHistogram()
    >>> for value in (10.0, 20.0, 30.0):
    ...     sketch.add(value)
    >>> abs(sketch.quantile(0.5) / 20.0 - 1.0) < 0.01
    True
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: defaultdict[int, int] = defaultdict(int, counts or {})

    def add(self, value: float) -> None:
        """Count one value; a value that is not positive and finite is refused.

        Raises:
            InputError: Such a value.
        """
        if not 0.0 < value < math.inf:
            raise InputError(f"log-histogram: {value} is not positive and finite")
        self.counts[max(0, bucket_of(value))] += 1

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self.counts.values())

    def merge(self, other: LogHistogram) -> LogHistogram:
        """The histogram of both streams."""
        merged = LogHistogram(self.counts)
        for index, count in other.counts.items():
            merged.counts[index] += count
        return merged

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` of all values do not exceed, within 1 %; None when nothing was added.

        Raises:
            InputError: ``share`` outside 0 to 1.
        """
        if not 0.0 <= share <= 1.0:
            raise InputError(f"quantile {share}: expected 0 to 1")
        total = self.count
        rank = max(1, math.ceil(share * total - 1e-9))
        for index in sorted(self.counts):
            rank -= self.counts[index]
            if rank <= 0:
                return bucket_value(index)
        return None


class Moments:
    """Running count, mean, variance, minimum and maximum (Welford 1962; merged as Chan, Golub and LeVeque 1983)."""

    __slots__ = ("count", "maximum", "mean", "minimum", "squares")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, value: float) -> None:
        """Take one finite value in."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value

    def merge(self, other: Moments) -> Moments:
        """The moments of both streams."""
        merged = Moments()
        merged.count = self.count + other.count
        if merged.count:
            step = other.mean - self.mean
            merged.mean = self.mean + step * other.count / merged.count
            merged.squares = self.squares + other.squares + step * step * self.count * other.count / merged.count
            merged.minimum = min(self.minimum, other.minimum)
            merged.maximum = max(self.maximum, other.maximum)
        return merged

    def summary(self) -> Summary | None:
        """As the contract carries it, with the population variance; None when nothing was added."""
        if not self.count:
            return None
        return Summary(
            count=self.count,
            mean=self.mean,
            variance=max(0.0, self.squares / self.count),
            minimum=self.minimum,
            maximum=self.maximum,
        )
