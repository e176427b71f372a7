"""The gate: bounds that mean what they say, with controls on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.acceptance import AcceptanceLimits, judge, measure_acceptance


def rows(right: int, of: int) -> np.ndarray:
    return np.arange(of) < right


def test_a_clear_gain_without_loss_is_accepted():
    verdict = judge(rows(198, 200), rows(197, 200), rows(30, 150), rows(135, 150))
    assert verdict.accepted and verdict.reasons == ()
    assert verdict.gain_low < 0.7 < verdict.gain_high
    assert (verdict.clean_before, verdict.clean_after, verdict.samples) == (0.99, 0.985, 150)


def test_no_gain_is_refused():
    same = np.random.default_rng(0).random(300) < 0.5
    verdict = judge(rows(300, 300), rows(300, 300), same, same)
    assert not verdict.accepted
    assert verdict.reasons == ("gain: lower 95 % bound 0.000, more than 0.020 is asked for",)


def test_lost_clean_accuracy_is_refused_whatever_the_gain():
    verdict = judge(rows(200, 200), rows(126, 200), rows(30, 150), rows(150, 150))
    assert not verdict.accepted
    assert "clean accuracy lost" in verdict.reasons[0] and len(verdict.reasons) == 1
    assert verdict.clean_loss_high > 0.37


def test_a_gain_that_chance_explains_is_refused():
    before = rows(75, 150)
    after = rows(78, 150)
    verdict = judge(rows(200, 200), rows(200, 200), before, after)
    assert verdict.target_after > verdict.target_before and not verdict.accepted


def test_too_few_rows_prove_nothing():
    verdict = judge(rows(200, 200), rows(200, 200), rows(0, 30), rows(30, 30))
    assert verdict.reasons == ("held-out rows: 30, at least 50 are asked for",)
    assert judge(
        rows(200, 200), rows(200, 200), rows(0, 30), rows(30, 30), limits=AcceptanceLimits(minimum_samples=30)
    ).accepted


def test_the_measurement_is_paired():
    """The same marginal accuracies, once on the same rows and once on others: pairing narrows the bounds."""
    before = rows(100, 200)
    paired = judge(before, before, before, rows(120, 200))
    shuffled = judge(before, before, before, ~rows(80, 200))
    assert paired.target_after == shuffled.target_after == 0.6
    assert paired.gain_low > shuffled.gain_low and paired.gain_high < shuffled.gain_high


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_bounds_enclose_the_gain_and_depend_on_the_seed_alone(seed: int):
    rng = np.random.default_rng(seed)
    before, after = rng.random(120) < 0.4, rng.random(120) < 0.7
    verdict = judge(before, before, before, after, seed=seed)
    assert verdict.gain_low <= verdict.target_after - verdict.target_before <= verdict.gain_high
    assert verdict == judge(before, before, before, after, seed=seed)


def test_the_lower_bound_holds_about_as_often_as_it_claims():
    rng = np.random.default_rng(1)
    held = 0
    for repeat in range(300):
        before, after = rng.random(150) < 0.3, rng.random(150) < 0.5
        held += judge(before, before, before, after, seed=repeat).gain_low <= 0.2
    assert 0.90 <= held / 300 <= 0.99


def test_it_agrees_with_a_bootstrap_over_rows():
    rng = np.random.default_rng(2)
    before, after = rng.random(150) < 0.3, rng.random(150) < 0.5
    difference = after.astype(int) - before.astype(int)
    means = difference[rng.integers(0, 150, (4000, 150))].mean(1)
    verdict = judge(before, before, before, after, limits=AcceptanceLimits(resamples=4000))
    assert verdict.gain_low == pytest.approx(np.quantile(means, 0.05), abs=0.015)
    assert verdict.gain_high == pytest.approx(np.quantile(means, 0.95), abs=0.015)


def test_answers_come_from_functions():
    x, y = np.zeros((100, 2), np.float32), np.arange(100) % 10
    verdict = measure_acceptance(lambda _: np.zeros(100, np.int64), lambda _: y, (x, y), (x, y))
    assert verdict.accepted and verdict.target_before == 0.1 and verdict.target_after == 1.0


def test_malformed_measurements_are_refused():
    x, y = np.zeros((10, 2), np.float32), np.zeros(10, np.int64)
    with pytest.raises(InputError, match="10 inputs and 9 labels"):
        measure_acceptance(lambda _: y, lambda _: y, (x, y), (x, y[:9]))
    with pytest.raises(InputError, match=r"the network after gave answers of shape \(3,\)"):
        measure_acceptance(lambda _: y, lambda _: y[:3], (x, y), (x, y))
    with pytest.raises(InputError, match="both are needed"):
        judge(rows(1, 2), rows(1, 2), rows(0, 0), rows(0, 0))
    with pytest.raises(InputError, match="paired"):
        judge(rows(1, 2), rows(1, 3), rows(1, 2), rows(1, 2))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"maximum_clean_loss": float("nan")}, "maximum_clean_loss nan"),
        ({"minimum_gain": float("nan")}, "minimum_gain nan"),
        ({"maximum_class_loss": 2.0}, "maximum_class_loss 2.0, expected -1 to 1"),
        ({"maximum_latency_ms": float("nan")}, "maximum_latency_ms nan"),
        ({"maximum_energy_uj": -1.0}, "maximum_energy_uj -1.0, expected 0 or more"),
        ({"confidence": 1.5}, "confidence 1.5, expected 0.5 to 1"),
        ({"confidence": 0.05}, "confidence 0.05"),
        ({"resamples": 0}, "resamples 0, expected 1 or more"),
        ({"minimum_samples": -1}, "minimum_samples -1"),
    ],
)
def test_a_limit_that_lets_everything_through_is_refused(limits: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        AcceptanceLimits(**limits)  # type: ignore[arg-type]
