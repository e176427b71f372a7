"""The health gate: real probes on real engines, and judges that are pure down to the boundary."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.bundles import make_bundle, make_graft, make_profile

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.manifest import FileEntry, ReferenceProbes
from kasmina_edge.contracts.record import Summary
from kasmina_edge.engines import open_engine
from kasmina_edge.errors import BundleError, InputError, PlanError
from kasmina_edge.health import judge_latency, judge_live, judge_probes, load_probes, probe

HOST = make_bundle()
GRAFTS = (make_graft(),)
GOOD = make_bundle(version="1.1.0", release=2, seed=1, grafts=GRAFTS, parent=HOST)
BAD = make_bundle(version="1.2.0", release=3, corrupt=True, grafts=GRAFTS, parent=HOST)


def limits(**changes: Any) -> HealthLimits:
    return HealthLimits.parse({"probes": "ab" * 32, "minimum_accuracy": 0.95, **changes})


def answers(right: int, count: int = 200) -> npt.NDArray[np.bool_]:
    return np.arange(count) < right


def summary(mean: float, count: int = 40, variance: float = 0.01) -> Summary:
    return Summary(count=count, mean=mean, variance=variance, minimum=0.0, maximum=1.0)


def asked(bundle: Bundle, engine: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Which probes a bundle answers rightly on a real engine, and with which scores."""
    inputs, labels = load_probes(bundle)
    with open_engine(bundle, make_profile(engines=(engine,))) as loaded:
        said = probe(loaded, bundle, inputs)
    return said.labels == labels, said.scores


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_the_gate_lets_a_good_graft_pass_and_stops_a_harmful_one(engine: str) -> None:
    host, scores = asked(HOST, engine)
    assert host.all() and scores.shape == (200,) and ((scores > 0.1) & (scores <= 1)).all()
    good, _ = asked(GOOD, engine)
    verdict = judge_probes(host, good, limits())
    assert verdict.ok and verdict.numbers["trial_accuracy"] == good.mean()
    bad, _ = asked(BAD, engine)
    verdict = judge_probes(host, bad, limits())
    assert not verdict.ok and verdict.reason.endswith(" %, plan asks 95 %")
    assert verdict.numbers["active_accuracy"] == 1.0 and verdict.numbers["lost"] > 150


def test_probes_are_the_same_for_host_and_graft_and_are_held_against_the_plan() -> None:
    assert HOST.manifest.probes is not None
    wanted = HOST.manifest.probes.file.sha256
    for bundle in (HOST, GOOD, BAD):
        inputs, labels = load_probes(bundle, expected_sha256=wanted)
        assert inputs.shape == (200, 16, 16, 1) and labels.shape == (200,)
    with pytest.raises(PlanError, match=f"reference probes {wanted[:12]}, the change plan asks for abababababab"):
        load_probes(GOOD, expected_sha256="ab" * 32)


def with_probes(samples: int | None = None, **arrays: npt.NDArray[Any]) -> Bundle:
    """The host with another probes file."""
    data = pack_arrays(arrays)
    entry = ReferenceProbes(file=FileEntry.of("probes.npz", data), samples=samples or len(arrays["labels"]))
    return replace(HOST, manifest=HOST.manifest.model_copy(update={"probes": entry}), files={"probes.npz": data})


INPUTS, LABELS = load_probes(HOST)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": INPUTS[:199], "labels": LABELS[:199]}, "199 probes, the health gate asks for 200"),
        ({"inputs": INPUTS[..., 0], "labels": LABELS}, r"inputs are float32 \(200, 16, 16\), expected float32"),
        ({"inputs": INPUTS.astype(np.float64), "labels": LABELS}, "inputs are float64"),
        ({"inputs": INPUTS, "labels": LABELS.astype(np.int32)}, "labels are int32"),
        ({"inputs": INPUTS, "labels": LABELS[:199]}, r"labels are int64 \(199,\), expected int64 \(200,\)"),
        ({"inputs": INPUTS, "labels": LABELS + 1}, "labels run from 1 to 10, the output has 10 classes"),
        ({"inputs": INPUTS, "labels": LABELS - 1}, "labels run from -1 to 8"),
        ({"inputs": INPUTS * np.float32(np.nan), "labels": LABELS}, "not finite"),
        ({"inputs": INPUTS, "labels": LABELS, "more": LABELS}, "got inputs, labels, more"),
    ],
)
def test_probes_that_prove_nothing_are_refused(arrays: dict[str, npt.NDArray[Any]], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_probes(with_probes(**arrays))


def test_probes_that_are_missing_damaged_or_miscounted_are_refused() -> None:
    with pytest.raises(BundleError, match="has no reference probes"):
        load_probes(make_bundle(probes=0))
    with pytest.raises(BundleError, match="200 probes, the manifest says 300"):
        load_probes(with_probes(300, inputs=INPUTS, labels=LABELS))
    with pytest.raises(BundleError, match="sha256"):
        load_probes(replace(HOST, files={**HOST.files, "probes.npz": HOST.files["probes.npz"][:-1] + b"!"}))
    with pytest.raises(BundleError, match="not in this copy"):
        load_probes(replace(HOST, files={}))
    assert len(load_probes(with_probes(inputs=INPUTS[:10], labels=LABELS[:10]), minimum=10)[1]) == 10


@pytest.mark.parametrize(("right", "ok"), [(190, True), (189, False), (200, True), (0, False)])
def test_the_minimum_accuracy_is_met_exactly_or_not(right: int, ok: bool) -> None:
    verdict = judge_probes(None, answers(right), limits())
    assert verdict.ok is ok
    assert verdict.reason == f"reference probes {right / 2:.1f} %" + ("" if ok else ", plan asks 95 %")
    assert verdict.numbers == {"probes": 200.0, "trial_accuracy": right / 200}


def test_the_words_of_a_refusal() -> None:
    assert judge_probes(None, answers(122), limits()).reason == "reference probes 61.0 %, plan asks 95 %"
    verdict = judge_probes(answers(200), answers(195), limits())
    assert verdict.reason == (
        "reference probes 97.5 %, 2.50 points below the active bundle (5 answers lost, 0 won), plan allows 2"
    )


def test_a_value_below_the_limit_never_reads_as_if_it_were_on_it() -> None:
    assert judge_probes(None, answers(9499, 10_000), limits()).reason == "reference probes 94.9 %, plan asks 95 %"


@pytest.mark.parametrize(("lost", "ok"), [(4, True), (5, False)])
def test_the_paired_loss_is_judged_at_its_limit(lost: int, ok: bool) -> None:
    assert judge_probes(answers(200), answers(200 - lost), limits()).ok is ok


def test_answers_won_make_up_for_answers_lost() -> None:
    active, trial = answers(196), np.roll(answers(196), 4)
    verdict = judge_probes(active, trial, limits(maximum_loss=0.0))
    assert verdict.ok and (verdict.numbers["lost"], verdict.numbers["won"], verdict.numbers["loss"]) == (4, 4, 0)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_the_verdict_is_the_arithmetic_of_whole_answers(
    pairs: list[tuple[bool, bool]], minimum: int, loss: int
) -> None:
    active, trial = np.array(pairs, dtype=bool).T
    verdict = judge_probes(active, trial, limits(minimum_accuracy=minimum / 100, maximum_loss=loss / 100))
    right, fell = int(trial.sum()), int(active.sum()) - int(trial.sum())
    assert verdict.ok == (100 * right >= minimum * len(pairs) and 100 * fell <= loss * len(pairs))
    assert judge_probes(active, active, limits(minimum_accuracy=0.0, maximum_loss=0.0)).ok
    if verdict.ok:  # one answer more never turns a pass into a failure
        better = trial.copy()
        better[np.argmin(better)] = True
        assert judge_probes(active, better, limits(minimum_accuracy=minimum / 100, maximum_loss=loss / 100)).ok


def test_answers_that_are_not_paired_are_a_wrong_call() -> None:
    with pytest.raises(InputError, match=r"not paired: \(199,\) active, \(200,\) trial"):
        judge_probes(answers(10, 199), answers(10), limits())
    with pytest.raises(InputError, match="expected"):
        judge_probes(None, answers(0, 0), limits())


@pytest.mark.parametrize(("trial", "ok"), [(0.9, True), (0.7, True), (0.699, False), (0.99, True)])
def test_the_score_drop_is_judged_at_its_limit(trial: float, ok: bool) -> None:
    verdict = judge_live(summary(0.9), summary(trial), limits())
    assert verdict.ok is ok
    assert verdict.reason.startswith(f"mean live score {trial:.3f} against 0.900 of the active bundle")
    assert verdict.numbers["drop"] == pytest.approx(0.9 - trial) and verdict.numbers["slack"] == 0
    if not ok:
        assert verdict.reason.endswith("plan allows a drop of 0.200")


@pytest.mark.parametrize(
    ("active", "trial"), [(None, summary(0.1)), (summary(0.9), None), (summary(0, 0), summary(0.1)), (None, None)]
)
def test_with_nothing_to_compare_the_probes_alone_decide(active: Summary | None, trial: Summary | None) -> None:
    verdict = judge_live(active, trial, limits())
    assert verdict.ok and "the probes alone decide" in verdict.reason


def test_a_plan_may_skip_the_comparison() -> None:
    assert judge_live(summary(0.9), summary(0.0), limits(live_frames=0)).ok


def test_one_odd_frame_condemns_nothing_and_few_clear_ones_do() -> None:
    assert judge_live(summary(0.9), summary(0.5, count=1, variance=0.0), limits()).ok
    verdict = judge_live(summary(0.9), summary(0.4, count=30), limits())
    assert not verdict.ok and "chance explains" in verdict.reason and "(30 frames)" in verdict.reason
    assert judge_live(summary(0.9), summary(0.65, count=3, variance=0.04), limits()).ok


scores = st.floats(0, 1)


@given(scores, scores, st.integers(1, 100), st.integers(1, 100), st.floats(0, 0.25))
def test_the_live_judge_is_monotone_and_never_condemns_the_better(
    active: float, trial: float, na: int, nt: int, variance: float
) -> None:
    verdict = judge_live(summary(active, na, variance), summary(trial, nt, variance), limits())
    if trial >= active - 0.2:
        assert verdict.ok
    if not verdict.ok:
        assert not judge_live(summary(active, na, variance), summary(trial / 2, nt, variance), limits()).ok
    if min(na, nt) >= 40:
        assert verdict.ok == (active - trial <= 0.2 + 1e-9)


@pytest.mark.parametrize(
    ("p50_us", "maximum_us", "ok", "reason"),
    [
        (500.0, 500.0, True, "median latency 500 us"),
        (500.5, 500.0, False, "median latency 500.5 us, plan allows 500 us"),
        (25.0, None, True, "median latency 25 us"),
        (math.nan, None, False, "median latency nan us is not a measurement"),
        (math.inf, 500.0, False, "median latency inf us is not a measurement"),
    ],
)
def test_latency_against_the_plans_ceiling(p50_us: float, maximum_us: float | None, ok: bool, reason: str) -> None:
    verdict = judge_latency(p50_us, maximum_us)
    assert (verdict.ok, verdict.reason) == (ok, reason)
