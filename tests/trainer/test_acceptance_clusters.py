"""Groups, classes and costs in the gate: each with a control that it can say no."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_trainer.acceptance import FEWEST_GROUPS, AcceptanceLimits, judge, measure_acceptance

RIGHT, WRONG = np.ones(120, bool), np.zeros(120, bool)


@dataclass(frozen=True)
class Price:
    """Before and after."""

    latency_ms: tuple[float, float] = (1.0, 1.2)
    peak_bytes: tuple[int, int] = (1000, 1200)
    energy_uj: tuple[float, float] | None = (5.0, 6.0)
    band: float | None = 0.1


def test_rows_of_one_patient_count_as_one():
    """12 patients of 10 rows; the gain of a patient is all or nothing: whole groups spread more than rows do."""
    patients = np.repeat(np.arange(12), 10)
    before, after = WRONG, np.repeat(np.arange(12) < 7, 10)
    alone = judge(RIGHT, RIGHT, before, after)
    grouped = judge(RIGHT, RIGHT, before, after, clusters=(None, patients))
    assert alone.target_after == grouped.target_after
    assert grouped.gain_high - grouped.gain_low > 2 * (alone.gain_high - alone.gain_low)
    singles = judge(RIGHT, RIGHT, before, after, clusters=(None, np.arange(120)))
    assert singles.gain_low == pytest.approx(alone.gain_low, abs=0.02)


def test_the_bound_of_groups_holds_about_as_often_as_it_claims():
    """Twelve patients, each with a gain of its own around 0.3: bounds over rows would fail far more often."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(12), 10)
    held = by_rows = 0
    truth = 0.31  # mean of the clipped normal is 0.308
    for repeat in range(200):
        share = np.clip(rng.normal(0.3, 0.25, 12), 0, 1)
        after = rng.random(120) < share[patients]
        limits = AcceptanceLimits(resamples=400)
        by_group = judge(RIGHT, RIGHT, WRONG, after, clusters=(None, patients), seed=repeat, limits=limits)
        held += by_group.gain_low <= truth
        by_rows += judge(RIGHT, RIGHT, WRONG, after, seed=repeat, limits=limits).gain_low <= truth
    assert held / 200 >= 0.88
    assert by_rows < held


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ((None, np.zeros(120, int)), f"target: 1 groups among the held-out rows, at least {FEWEST_GROUPS}"),
        ((np.arange(120) % 7, None), "clean: 7 groups among the held-out rows, at least 8"),
        ((np.arange(119), None), r"clean: groups of shape \(119,\), expected \(120,\)"),
    ],
)
def test_too_few_groups_are_refused(clusters: tuple[np.ndarray | None, np.ndarray | None], message: str):
    with pytest.raises(InputError, match=message):
        judge(RIGHT, RIGHT, WRONG, RIGHT, clusters=clusters)


def test_the_class_that_loses_most_is_found():
    classes = np.arange(120) % 4
    after = RIGHT & ~((classes == 2) & (np.arange(120) % 8 == 2))
    verdict = judge(RIGHT, after, WRONG, RIGHT, classes=classes, limits=AcceptanceLimits(maximum_clean_loss=0.5))
    assert verdict.accepted and verdict.worst_class_loss_high is not None and verdict.worst_class_loss_high > 0.4
    strict = AcceptanceLimits(maximum_clean_loss=0.5, maximum_class_loss=0.3)
    refused = judge(RIGHT, after, WRONG, RIGHT, classes=classes, limits=strict)
    assert len(refused.reasons) == 1 and refused.reasons[0].startswith(
        "clean accuracy lost of class 2: upper 95 % bound"
    )
    assert judge(RIGHT, RIGHT, WRONG, RIGHT, classes=classes, limits=strict).accepted
    assert not judge(RIGHT, RIGHT, WRONG, RIGHT, limits=strict).accepted, "not measured is not accepted"


def test_classes_come_from_the_labels():
    x, y = np.zeros((100, 2), np.float32), np.arange(100) % 10
    bad = np.where(y == 3, 4, y)
    verdict = measure_acceptance(lambda _: y, lambda _: bad, (x, y), (x, y))
    assert verdict.worst_class_loss_high == 1.0


def test_bounds_of_rows_do_not_depend_on_classes_or_costs():
    rng = np.random.default_rng(3)
    before, after = rng.random(120) < 0.4, rng.random(120) < 0.7
    plain = judge(before, after, before, after, seed=5)
    more = judge(before, after, before, after, seed=5, classes=np.arange(120) % 3, costs=Price())
    assert plain == more.model_copy(update={"worst_class_loss_high": None})
    assert "worst_class_loss_high" not in plain.model_dump(exclude_defaults=True)
    assert isinstance(plain, Acceptance)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"maximum_latency_ms": 1.0}, "latency: 1.2 ms, at most 1 ms is accepted"),
        ({"maximum_latency_ms": 1.1}, ""),  # 1.2 less its band of 10 % is 1.08: nothing is decided on that
        ({"maximum_peak_bytes": 1199}, "peak memory: 1200 bytes, at most 1199 bytes is accepted"),
        ({"maximum_peak_bytes": 1200}, ""),
        ({"maximum_energy_uj": 5.0}, "energy: 6 uJ, at most 5 uJ is accepted"),
        ({"maximum_energy_uj": 5.5}, ""),
    ],
)
def test_costs_are_judged_outside_their_band(limits: dict[str, float], reason: str):
    verdict = judge(RIGHT, RIGHT, WRONG, RIGHT, limits=AcceptanceLimits(**limits), costs=Price())  # type: ignore[arg-type]
    assert verdict.reasons == ((reason,) if reason else ())


def test_what_was_not_measured_is_not_accepted():
    limits = AcceptanceLimits(maximum_energy_uj=5.0, maximum_latency_ms=2.0)
    verdict = judge(RIGHT, RIGHT, WRONG, RIGHT, limits=limits, costs=Price(energy_uj=None))
    assert verdict.reasons == ("energy: not measured, at most 5 uJ is accepted",)
    assert len(judge(RIGHT, RIGHT, WRONG, RIGHT, limits=limits).reasons) == 2
