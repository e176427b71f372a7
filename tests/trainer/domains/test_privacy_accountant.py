"""The price of Gaussian noise, held against dp-accounting 0.6.0 and against its own meaning.

The golden figures: `pip install dp-accounting==0.6.0`, then
``PLDAccountant(value_discretization_interval=1e-4)`` composed with ``SelfComposedDpEvent(GaussianDpEvent(sigma), n)``,
its ``get_epsilon(1e-5)`` and ``get_delta(1.0)``; and
``GaussianPrivacyLoss.from_privacy_guarantee(DifferentialPrivacyParameters(epsilon, delta)).standard_deviation``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.multimodal.privacy_accountant import (
    Budget,
    composed,
    delta_of,
    epsilon_of,
    most_area,
    most_hits,
)

MUS = st.floats(0.01, 8)
EPSILONS = st.floats(0.01, 20)


@pytest.mark.parametrize(
    ("sigma", "times", "epsilon", "delta"),
    [
        (1, 1, 4.37717810002493, 0.12693673750666398), (2, 1, 1.993091407908809, 0.0068295949831150725),
        (0.5, 1, 9.99725615024243, 0.5098616600548227), (5, 25, 4.37717810002493, 0.12693673750666398),
        (10, 400, 9.99725615024243, 0.5098616600548227), (0.25, 1, 24.38161088385738, 0.9267112812558627),
    ],
)  # fmt: skip
def test_epsilon_and_delta_are_those_of_dp_accounting(sigma: float, times: int, epsilon: float, delta: float) -> None:
    mu = composed([1 / sigma] * times)
    assert epsilon_of(mu, 1e-5) == pytest.approx(epsilon, abs=2e-8 * epsilon)
    assert epsilon_of(mu, 1e-5) <= epsilon, "theirs is an upper bound, ours is exact"
    assert delta_of(mu, 1.0) == pytest.approx(delta, rel=1e-10)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [(1, 1e-5, 3.730631664679545), (2, 1e-5, 1.9938124775113506), (4, 1e-5, 1.081161878198777),
     (0.5, 1e-6, 8.057618494235985), (8, 1e-5, 0.6002290725849286)],
)  # fmt: skip
def test_the_least_noise_is_that_of_dp_accounting(epsilon: float, delta: float, sigma: float) -> None:
    assert sigma * (1 - 1e-7) < Budget(epsilon, delta).noise(1.0) <= sigma, "theirs stops a little above the least"
    assert Budget(epsilon, delta).noise(3.0) == pytest.approx(3 * Budget(epsilon, delta).noise(1.0))


def test_the_analytic_mechanism_needs_less_noise_than_the_classic_one() -> None:
    """sqrt(2 ln(1.25/delta)) / epsilon holds only up to epsilon 1, and is too much there (Balle and Wang 2018)."""
    assert Budget(0.9).noise(1.0) < math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.9


@given(mu=MUS, epsilon=EPSILONS, more=st.floats(1.01, 3))
def test_more_noise_or_more_epsilon_means_less_delta(mu: float, epsilon: float, more: float) -> None:
    assert delta_of(mu / more, epsilon) <= delta_of(mu, epsilon)
    assert delta_of(mu, epsilon * more) <= delta_of(mu, epsilon)
    assert epsilon_of(mu / more, 1e-5) <= epsilon_of(mu, 1e-5)


@given(epsilon=EPSILONS, delta=st.floats(1e-9, 0.1))
def test_a_budget_is_kept_and_used_up(epsilon: float, delta: float) -> None:
    mu = Budget(epsilon, delta).mu
    assert delta_of(mu, epsilon) <= delta < delta_of(mu * (1 + 1e-6), epsilon)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-6)


@given(mu=MUS, epsilon=st.floats(0, 6), limit=st.floats(-12, 12))
def test_no_set_of_outcomes_breaks_the_definition(mu: float, epsilon: float, limit: float) -> None:
    """P(x > t) with the pair <= e^epsilon P(x > t) without it + delta, for two unit normals apart by mu."""

    def above(t: float) -> float:
        return math.erfc(t / math.sqrt(2)) / 2

    assert above(limit - mu) <= math.exp(epsilon) * above(limit) + delta_of(mu, epsilon) + 1e-12


@given(mu=MUS, false_alarms=st.floats(0.001, 0.5), epsilon=st.floats(0, 6))
def test_the_bound_on_attacks_is_within_that_of_epsilon_and_delta(
    mu: float, false_alarms: float, epsilon: float
) -> None:
    hits = most_hits(mu, false_alarms)
    assert false_alarms < hits <= math.exp(epsilon) * false_alarms + delta_of(mu, epsilon) + 1e-9


def test_the_bounds_are_those_of_two_normals() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.9, size=200_000), rng.normal(size=200_000)
    assert (members > others).mean() == pytest.approx(most_area(0.9), abs=0.005)
    assert (members > np.quantile(others, 0.99)).mean() == pytest.approx(most_hits(0.9, 0.01), abs=0.005)
    assert most_hits(0.9, 0.0) == 0
    assert most_hits(0.9, 1.0) == 1


def test_two_releases_cost_more_than_one_and_less_than_their_sum() -> None:
    one, two = epsilon_of(0.5, 1e-5), epsilon_of(composed([0.5, 0.5]), 1e-5)
    assert one < two < 2 * one


def test_nothing_released_costs_nothing() -> None:
    assert composed([]) == delta_of(0.0, 0.0) == epsilon_of(0.0, 1e-5) == 0
    assert epsilon_of(50.0, 1e-5) == math.inf


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (101, 1e-5), (1, 0), (1, 1), (math.nan, 1e-5), (1, 1e-13)])
def test_a_budget_that_means_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(InputError, match="privacy budget"):
        Budget(epsilon, delta)


@pytest.mark.parametrize("call", [
    lambda: Budget(1).noise(0), lambda: Budget(1).noise(math.inf), lambda: delta_of(-1, 1),
    lambda: delta_of(1, math.nan), lambda: epsilon_of(math.nan, 1e-5), lambda: epsilon_of(1, 2),
    lambda: most_hits(1, 2),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(call: object) -> None:
    with pytest.raises(InputError, match="expected"):
        call()  # type: ignore[operator]
