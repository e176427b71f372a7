"""Activation ranges as data: what calibration showed, and which range is made of it.

A host is calibrated with head-room and its ranges are snapped to scales that survive a round trip through a file, so
that the file itself is the record of them. What is grown on it may then keep the host's ranges (pinned): every bias and
scale of the host stays the same bytes, and the update is the graft alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError, KasminaError

Array = npt.NDArray[Any]
Range = tuple[float, float]
Ranges = Mapping[str, Range]

HEADROOM = 0.3
"""Share by which a host's activation ranges are widened, so that growth fits inside them."""

STRAINS = (3.0, 0.3)
"""Partly pinned versions: a pinned range is given up where `Observed.strain` is larger than this."""

_MANTISSA_BITS = 10
_SMALLEST_SCALE = 2.0**-24
_STEPS = 255
_LOW, _HIGH = -128, 127
_BINS = 2048
_BLOCK_BYTES = 8 << 20
_KEPT_BYTES = 256 << 20
_SHRINKS = tuple(1.0 - 0.05 * i for i in range(11))


@dataclass(frozen=True)
class Observed:
    """What calibration frames showed of one tensor: its extremes and the distribution between them.

    Attributes:
        low: Smallest value.
        high: Largest value.
        shares: Share of the values in each of 2048 equal bins from ``low`` to ``high``.
    """

    low: float
    high: float
    shares: Array

    def clipping_error(self, allowed: Range) -> float:
        """Mean square of what a range cuts off."""
        width = (self.high - self.low) / len(self.shares)
        centres = self.low + (np.arange(len(self.shares)) + 0.5) * width
        cut = centres - np.clip(centres, *allowed)
        return float((self.shares * cut * cut).sum())

    def strain(self, allowed: Range) -> float:
        """Clipping error in units of the range's own rounding error (step squared over 12); 0 when the values fit."""
        step = (allowed[1] - allowed[0]) / _STEPS
        return self.clipping_error(allowed) / (step * step / 12)

    def tight(self) -> Range:
        """The range, of eleven shrunk ones, with the smallest sum of clipping and rounding error."""

        def error(shrink: float) -> float:
            step = (self.high - self.low) * shrink / _STEPS
            return self.clipping_error((self.low * shrink, self.high * shrink)) + step * step / 12

        best = min(_SHRINKS, key=error)
        return self.low * best, self.high * best


def observe(passes: Callable[[], Iterator[Mapping[str, Array]]]) -> dict[str, Observed]:
    """Distribution of every tensor over the calibration frames.

    Args:
        passes: Gives the tensors of every frame by name, e.g. ``lambda: watch(model, frames, names)``; called again
            where they are too many to be kept.

    Raises:
        KasminaError: A tensor held a value that is not finite.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    kept: list[dict[str, Array]] | None = []
    kept_bytes = 0
    for values in _blocks(passes()):
        for name, value in values.items():
            low[name] = float(np.minimum(low.get(name, math.inf), value.min()))  # unlike min, it keeps a NaN
            high[name] = float(np.maximum(high.get(name, -math.inf), value.max()))
            kept_bytes += value.nbytes
        if kept is not None:
            kept.append(values)
        if kept_bytes > _KEPT_BYTES:
            kept = None
    for name in low:
        if not (math.isfinite(low[name]) and math.isfinite(high[name])):
            raise KasminaError(
                f"tensor {name}: values from {low[name]} to {high[name]}; int8 needs finite ones",
                "Look for a diverged training run or frames that hold NaN.",
            )
    counts = {name: np.zeros(_BINS, np.int64) for name in low}
    for values in _blocks(passes()) if kept is None else kept:
        for name, value in values.items():
            width = high[name] - low[name]
            places = value - low[name]
            places *= _BINS / width if width > _SMALLEST_SCALE else 0.0
            rows = places.astype(np.intp)
            np.minimum(rows, _BINS - 1, out=rows)
            counts[name] += np.bincount(rows, minlength=_BINS)
    return {name: Observed(low[name], high[name], n / n.sum()) for name, n in counts.items()}


def _blocks(frames: Iterator[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    """Several frames' values at a time, each tensor's in one row: numpy is asked less often."""
    held: dict[str, list[Array]] = {}
    held_bytes = 0
    for values in frames:
        for name, value in values.items():
            held.setdefault(name, []).append(value.ravel())
            held_bytes += value.nbytes
        if held_bytes >= _BLOCK_BYTES:
            yield {name: np.concatenate(rows) for name, rows in held.items()}
            held, held_bytes = {}, 0
    if held:
        yield {name: np.concatenate(rows) for name, rows in held.items()}


def free_ranges(
    observed: Mapping[str, Observed], *, headroom: float, border: Sequence[str] = (), whole: bool = False
) -> dict[str, Range]:
    """Ranges that owe nothing to a parent, snapped.

    Args:
        observed: What the calibration frames showed.
        headroom: Share by which each range is widened, the border's excepted.
        border: Inputs and outputs of the network; they keep all that was seen.
        whole: Let every tensor keep all that was seen, instead of its `Observed.tight` range.
    """
    ends = {n: (o.low, o.high) if whole or n in border else o.tight() for n, o in observed.items()}
    return snapped(with_headroom(ends, headroom, keep=border))


def with_headroom(ranges: Ranges, share: float, *, keep: Sequence[str] = ()) -> dict[str, Range]:
    """Ranges widened by ``share`` of each end; those in ``keep`` as they are.

    >>> with_headroom({"a": (-1.0, 4.0)}, 0.25)
    {'a': (-1.25, 5.0)}
    """
    if share < 0:
        raise InputError(f"head-room: expected 0 or more, got {share}")
    return {n: r if n in keep else (r[0] * (1 + share), r[1] * (1 + share)) for n, r in ranges.items()}


def snap(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of a range, scale rounded up to ten significant bits.

    All products of such a scale with whole numbers up to 255 are exact in float32, so `range_of` gives a range that
    every quantizer turns back into this very scale and zero point.

    >>> snap(0.0, 1.0)
    (0.003925323486328125, -128)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    mantissa, exponent = math.frexp(max((high - low) / _STEPS, _SMALLEST_SCALE))
    scale = math.ldexp(math.ceil(math.ldexp(mantissa, _MANTISSA_BITS)), exponent - _MANTISSA_BITS)
    zero = min(_HIGH, max(_LOW, round(_LOW - low / scale)))
    return scale, zero


def range_of(scale: float, zero_point: int) -> Range:
    """The range that int8 covers with this scale and zero point.

    >>> range_of(0.5, -128)
    (0.0, 127.5)
    """
    return (_LOW - zero_point) * scale, (_HIGH - zero_point) * scale


def snapped(ranges: Ranges) -> dict[str, Range]:
    """Every range as `snap` represents it."""
    return {name: range_of(*snap(*found)) for name, found in ranges.items()}


def pinned(
    free: Ranges, host: Ranges, observed: Mapping[str, Observed], *, most_strain: float = math.inf
) -> dict[str, Range]:
    """Free ranges with the host's put in their places.

    Args:
        free: Ranges of every tensor, snapped.
        host: Ranges of the tensors that the host has too, under the names of ``free``.
        observed: What the calibration frames showed.
        most_strain: Leave a tensor free where the host's range cuts off more than this, in `Observed.strain`.
    """
    return {
        name: host[name] if name in host and observed[name].strain(host[name]) <= most_strain else own
        for name, own in free.items()
    }
