"""Merged score moments: right for ordinary numbers, and never an error for any that the contract accepts."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kasmina_edge.contracts.record import Summary
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.live_scores import merge

HUGE = sys.float_info.max
FINITE = st.floats(allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-1e6, 1e6)


def summary(count: int, mean: float, variance: float, low: float, high: float) -> Summary | None:
    """One that the contract accepts, or None."""
    low, mean, high = sorted((low, mean, high))
    try:
        return Summary.parse({"count": count, "mean": mean, "variance": variance, "minimum": low, "maximum": high})
    except InputError:
        return None


ANY = st.builds(summary, st.integers(0, 2**53), FINITE, st.floats(0, HUGE), FINITE, FINITE)


@given(st.lists(ANY, max_size=12))
@example([summary(2**53, HUGE, HUGE, HUGE, HUGE), summary(2**53, -HUGE, HUGE, -HUGE, -HUGE)])
@example([summary(2**53, 1e308, 0.0, 1e308, 1e308)] * 12)
@example([summary(1, 1e200, 0.0, 1e200, 1e200), summary(2**53, -5e-324, 5e-324, -1.0, 1.0)])
def test_whatever_the_contract_accepts_is_merged_into_what_it_accepts(found: list[Summary | None]) -> None:
    parts = [part for part in found if part is not None]
    merged = merge(parts)
    assert Summary.from_bytes(merged.to_bytes()) == merged
    assert all(map(math.isfinite, (merged.mean, merged.variance, merged.minimum, merged.maximum)))
    assert merged.count == min(2**53, sum(p.count for p in parts))
    assert merged.minimum <= merged.mean <= merged.maximum


@given(st.lists(st.lists(ORDINARY, min_size=1, max_size=20), min_size=1, max_size=8))
def test_the_moments_are_those_of_the_union(windows: list[list[float]]) -> None:
    parts = [
        Summary(count=len(w), mean=float(np.mean(w)), variance=float(np.var(w)), minimum=min(w), maximum=max(w))
        for w in windows
    ]
    merged, union = merge(parts), np.concatenate(windows)
    assert merged.count == len(union)
    assert merged.mean == pytest.approx(union.mean(), rel=1e-9, abs=1e-6)
    assert merged.variance == pytest.approx(union.var(), rel=1e-6, abs=1e-6)
    assert (merged.minimum, merged.maximum) == (union.min(), union.max())
