"""Constant-memory summaries of a stream of numbers that merge by addition: a log-histogram and running moments."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.record import MAX_COUNT, MAX_SKETCH_CHARACTERS, Summary
from kasmina_edge.errors import InputError

BUCKET_RATIO = 1.02
LOG_SCALE = 1.0 / math.log(BUCKET_RATIO)
BUCKET_OFFSET = 1024
"""Bucket of the value 1; everything from 1.6e-9 up has a bucket above 0."""
LAST_BUCKET = 65_535
_LARGEST_EXPONENT = math.log(sys.float_info.max)
SCHEME = 1
"""Of the bytes on the wire: buckets of ratio 1.02, the value 1 in bucket 1024."""


def bucket_of(value: float) -> int:
    """Index of the 2 % bucket that holds a positive, finite value."""
    return int(math.log(value) * LOG_SCALE + BUCKET_OFFSET)


def bucket_value(index: int) -> float:
    """Geometric middle of a bucket: within 1 % of everything in it; the largest float of buckets beyond all floats."""
    exponent = (index - BUCKET_OFFSET + 0.5) / LOG_SCALE
    return math.exp(exponent) if exponent < _LARGEST_EXPONENT else sys.float_info.max


class LogHistogram:
    """Counts in buckets of 2 % relative width: quantiles within 1 %, merged by adding integers.

    That the bucket's width bounds the relative error of every quantile, before and after merging, is the idea of
    DDSketch (Masson, Rim and Lee 2019, arXiv:1908.10693). Merging is associative and commutative, so a fleet can be
    summed in any order and by parts.

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

    def encode(self) -> str:
        """As a record carries it: the non-empty buckets alone, some 3 characters each.

        The scheme's byte, then for each bucket its distance from the one before and its count, both as unsigned LEB128,
        all in base64url without padding. Buckets beyond what the format can say are counted in its last one.
        """
        held: defaultdict[int, int] = defaultdict(int)
        for index, count in self.counts.items():
            if count > 0:
                held[min(max(index, 0), LAST_BUCKET)] += count
        data = bytearray((SCHEME,))
        before = 0
        for index in sorted(held):
            _put_varint(data, index - before)
            _put_varint(data, min(held[index], MAX_COUNT))
            before = index
        return base64.urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> LogHistogram:
        """The histogram that `encode` wrote.

        Raises:
            InputError: Another scheme, cut off, not in ascending order, or beyond the format's bounds.
        """
        if len(text) > MAX_SKETCH_CHARACTERS:
            raise InputError(f"sketch: {len(text)} characters, at most {MAX_SKETCH_CHARACTERS} are read")
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise InputError(f"sketch: not base64url ({exc})") from exc
        if data[:1] != bytes((SCHEME,)):
            raise InputError(f"sketch: scheme {data[0] if data else 'missing'}, this reader knows {SCHEME}")
        sketch, place, index = cls(), 1, 0
        while place < len(data):
            step, place = _take_varint(data, place)
            count, place = _take_varint(data, place)
            if count == 0 or (step == 0 and sketch.counts):
                raise InputError(f"sketch: bucket {index + step} with count {count} is empty or comes twice")
            index += step
            if index > LAST_BUCKET or count > MAX_COUNT:
                raise InputError(f"sketch: bucket {index}, count {count}: at most {LAST_BUCKET} and {MAX_COUNT}")
            sketch.counts[index] = count
        return sketch

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


def merge_sketches(parts: Iterable[LogHistogram]) -> LogHistogram:
    """The histogram of all streams together, e.g. of a whole fleet."""
    total = LogHistogram()
    for part in parts:
        for index, count in part.counts.items():
            total.counts[index] += count
    return total


def _put_varint(data: bytearray, value: int) -> None:
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)


def _take_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 63:
        if place >= len(data):
            raise InputError(f"sketch: cut off after {len(data)} bytes")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise InputError(f"sketch: a number at byte {place} is longer than 63 bits")


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


class VectorMoments:
    """Running mean and variance of each channel, a batch of rows at a time (Chan, Golub and LeVeque 1983, formula 2.1).

    >>> import numpy as np
    >>> moments = VectorMoments()
    >>> moments.add(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> moments.variance().tolist()
    [1.0, 0.0]
    """

    __slots__ = ("count", "mean", "squares")

    def __init__(self) -> None:
        self.count = 0
        self.mean: npt.NDArray[np.float64] = np.zeros(0)
        self.squares: npt.NDArray[np.float64] = np.zeros(0)

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Take finite rows in.  # (N, channels)

        Raises:
            InputError: Another number of channels than before.
        """
        if not len(rows):
            return
        part = VectorMoments()
        values = rows.astype(np.float64)
        part.count, part.mean = len(values), values.mean(axis=0)
        part.squares = np.square(values - part.mean).sum(axis=0)
        joined = self.merge(part)
        self.count, self.mean, self.squares = joined.count, joined.mean, joined.squares

    def merge(self, other: VectorMoments) -> VectorMoments:
        """The moments of both streams.

        Raises:
            InputError: They have another number of channels.
        """
        if not self.count or not other.count:
            return other if not self.count else self
        if self.mean.shape != other.mean.shape:
            raise InputError(f"moments of {self.mean.shape} channels do not merge with {other.mean.shape}")
        merged = VectorMoments()
        merged.count = self.count + other.count
        step = other.mean - self.mean
        merged.mean = self.mean + step * (other.count / merged.count)
        merged.squares = self.squares + other.squares + np.square(step) * (self.count * other.count / merged.count)
        return merged

    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance of each channel; empty when nothing was added.  # (channels,)"""
        return self.squares / self.count if self.count else self.squares
