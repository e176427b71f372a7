"""Formulas of seed telemetry: hand-worked values, bounds for any input, and what is not measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kasmina_edge.telemetry.site_measures import (
    KEPT_CONTRIBUTIONS,
    SiteMeasures,
    contribution,
    interface_drift,
    participation,
    utilization,
    weights_in_use,
)

arrays = hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e3, 1e3, width=32))
shares = st.none() | st.floats(0, 1)


@settings(max_examples=50)
@given(arrays, arrays)
def test_drift_is_bounded_symmetric_and_zero_for_itself(a: np.ndarray, b: np.ndarray) -> None:
    drift = interface_drift(a, b)
    assert drift == interface_drift(b, a)
    if a.any() and b.any() and drift is not None:
        assert 0.0 <= drift <= 2.0
    if a.any():
        assert interface_drift(a, a) == 0.0


def test_drift_by_hand() -> None:
    a = np.array([3.0, 4.0])
    assert interface_drift(a, np.array([4.0, 3.0])) == pytest.approx(1 - 24 / 25)
    assert interface_drift(a, -2 * a) == pytest.approx(2.0)
    assert interface_drift(a, np.ones(3)) is None
    assert interface_drift(a, np.zeros(2)) is None and interface_drift(np.zeros(2), np.zeros(2)) is None
    assert interface_drift(a, np.array([np.nan, 1.0])) is None
    assert interface_drift(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) is None


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(-100, 100)), st.floats(0.001, 1000))
def test_participation_is_a_share_and_knows_no_scale(weights: np.ndarray, scale: float) -> None:
    found = participation(weights)
    assert found == 0.0 or 1 / 12 - 1e-9 <= found <= 1.0
    if np.abs(weights).max() > 1e-3:
        assert participation(weights * scale) == pytest.approx(found, rel=1e-6)


def test_weights_by_hand() -> None:
    assert participation(np.full((3, 3), -2.0)) == pytest.approx(1.0)
    assert participation(np.array([[5.0, 0.0], [0.0, 0.0]])) == 0.25
    assert participation(np.array([[0.3]])) == pytest.approx(0.3) and participation(np.array([[7.0]])) == 1.0
    assert weights_in_use([np.ones((2, 2)), np.zeros((2, 2))]) == 0.0  # a chain is as good as its weakest link
    assert weights_in_use([]) is None


@settings(max_examples=50)
@given(arrays, arrays, st.booleans())
def test_contribution_is_a_share(a: np.ndarray, b: np.ndarray, classifies: bool) -> None:
    share = contribution(a, b, classifies=classifies)
    assert share is not None and 0.0 <= share <= 1.0
    assert share == contribution(b, a, classifies=classifies)
    assert contribution(a, a, classifies=classifies) == 0.0


def test_contribution_by_hand() -> None:
    sure, other = np.array([0.0, 50.0]), np.array([50.0, 0.0])
    assert contribution(sure, other, classifies=True) == pytest.approx(1.0)
    assert contribution(np.array([0.0, 0.0]), np.log([1.0, 3.0]), classifies=True) == pytest.approx(0.25)
    assert contribution(np.array([3.0, 4.0]), np.array([0.0, 0.0]), classifies=False) == 1.0
    assert contribution(np.array([np.nan]), np.array([1.0]), classifies=True) is None


@given(shares, shares, shares)
def test_utilization_is_the_mean_of_what_is_known(a: float | None, b: float | None, c: float | None) -> None:
    known = [x for x in (a, b, c) if x is not None]
    found = utilization(a, b, c)
    assert found is None if not known else found == pytest.approx(sum(known) / len(known))


def grafted() -> SiteMeasures:
    return SiteMeasures([np.full((2, 2), 0.5), np.array([[1.0, 0.0]])])


def test_a_site_by_hand() -> None:
    measures = grafted()
    entry, added = np.array([[[1.0, 0.0], [3.0, 0.0]]]), np.array([[[0.0, 1.0], [0.0, 1.0]]])
    measures.add(entry, entry + added, added)
    measures.contributed(0.2)
    measures.contributed(None)
    found = measures.take()
    assert measures.weights_l1 == 3.0 and found.looks == 1
    assert found.activation_variance == pytest.approx((1.0 + 0.0) / 2)
    assert found.interface_drift == pytest.approx(1 - 10 / (math.sqrt(10) * math.sqrt(12)))
    assert found.mean_output == 0.5 and found.contribution == 0.2
    assert found.utilization == pytest.approx((0.5 + 0.5 / (0.5 + 1.0) + 0.2) / 3)


def test_taking_begins_anew_and_contributions_stay_until_newer_ones_come() -> None:
    measures = grafted()
    one = np.ones((1, 2, 2))
    measures.add(one, one, np.zeros_like(one))
    for _ in range(KEPT_CONTRIBUTIONS):
        measures.contributed(1.0)
    measures.take()
    idle = measures.take()
    assert (idle.looks, idle.activation_variance, idle.interface_drift, idle.mean_output) == (0, None, None, None)
    assert idle.contribution == 1.0
    for _ in range(KEPT_CONTRIBUTIONS):
        measures.contributed(0.0)
    assert measures.take().contribution == 0.0


def test_a_bare_site_and_one_that_was_never_looked_at() -> None:
    bare = SiteMeasures()
    one = np.arange(4.0).reshape(1, 2, 2)
    bare.add(one, one, None)
    found = bare.take()
    assert bare.weights_l1 is None and found.interface_drift == 0.0 and found.activation_variance == 1.0
    assert (found.mean_output, found.contribution, found.utilization) == (None, None, None)
    never = grafted().take()
    assert (never.looks, never.utilization) == (0, None)


def test_frames_that_are_not_finite_are_left_out() -> None:
    measures = grafted()
    bad = np.array([[[np.nan, 1.0]]])
    measures.add(bad, bad, bad)
    measures.add_answer(np.array([[np.inf]]))
    assert measures.take().looks == 0


def test_the_whole_model_by_hand() -> None:
    whole = SiteMeasures()
    whole.add_answer(np.array([[2.0, 0.0]]))
    whole.add_answer(np.array([[4.0, 0.0]]), np.array([[0.0, 4.0]]))
    found = whole.take()
    assert (found.looks, found.activation_variance, found.interface_drift, found.mean_output) == (2, 0.5, 1.0, 4.0)
