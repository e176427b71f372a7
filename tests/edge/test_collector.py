"""The collector against numpy: quantiles, moments, labels, drift; what was not measured is None."""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.telemetry import NOW, Clock, make_frame

from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.safety.drift import domain_statistics, features
from kasmina_edge.telemetry.seed_telemetry import Collector
from kasmina_edge.telemetry.sketch import LogHistogram, Moments, bucket_of, bucket_value

FRAMES = np.random.default_rng(0).random((300, 16, 16, 1)).astype(np.float32)
DOMAIN = domain_statistics("clean", FRAMES, None, 60, seed=0)


def make_collector(emitted: list[TelemetryRecord], clock: Clock, **changes: Any) -> Collector:
    arguments: dict[str, Any] = {
        "device": "cam-1", "bundle": "d" * 64, "release": 3, "slot": "a", "trial": False, "source": "app-7", "boot": 5,
        "domains": (), "labels": ("zero", "one", "two"), "clock": clock, "emit": emitted.append,
    }  # fmt: skip
    return Collector(**{**arguments, **changes})


def test_a_window_equals_numpy() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock, window_frames=200, sample_every=3, domains=(DOMAIN,), window_s=1e9)
    rng = np.random.default_rng(1)
    latency, score, label = rng.lognormal(3.2, 0.6, 200), rng.random(200), rng.integers(0, 4, 200)
    for i in range(200):
        clock.now = NOW + 0.01 * i
        collector.observe(FRAMES[i], float(latency[i]), float(score[i]), int(label[i]))
    (record,) = out
    looked = np.arange(0, 200, 3)
    means = FRAMES[looked].mean(axis=(1, 2, 3), dtype=np.float64)
    assert (record.frames, record.sampled, record.sequence, record.started_s) == (200, len(looked), 0, NOW)
    assert record.duration_s == pytest.approx(1.99)
    assert record.input is not None and record.score is not None and record.latency_us is not None
    assert record.input.mean == pytest.approx(means.mean(), rel=1e-5)
    assert record.input.variance == pytest.approx(means.var(), rel=1e-3)
    assert (record.input.minimum, record.input.maximum) == pytest.approx((means.min(), means.max()), rel=1e-5)
    assert record.score.mean == pytest.approx(score[looked].mean())
    assert record.score.variance == pytest.approx(score[looked].var())
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        exact = np.quantile(latency, share, method="inverted_cdf")
        assert record.latency_us[name] == pytest.approx(exact, rel=0.0101)
    assert record.latency_us["max"] == pytest.approx(latency.max(), rel=1e-6)
    counts = np.bincount(label, minlength=4).tolist()
    assert record.labels == {"zero": counts[0], "one": counts[1], "two": counts[2], "3": counts[3]}
    assert record.features is not None
    assert record.features["roughness"] == pytest.approx(
        np.mean([features(FRAMES[i])["roughness"] for i in looked]), rel=1e-6
    )
    assert record.drift is not None and record.drift < 1.0 and record.drift_domain == "clean"


def test_what_was_not_measured_is_none() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock())
    collector.observe(None, math.nan, None, None)
    collector.flush()
    (record,) = out
    assert (record.frames, record.sampled) == (1, 0)
    nothing = (record.input, record.score, record.features, record.latency_us, record.labels, record.drift)
    assert nothing == (None,) * 6 and record.drift_domain is None


def test_scores_may_be_missing_while_inputs_are_measured() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), sample_every=1, domains=(DOMAIN,))
    for i in range(20):
        collector.observe(FRAMES[i], 30.0, 0.9 if i % 2 else None, None)
    collector.flush()
    assert out[0].score is not None and out[0].score.count == 10 and out[0].sampled == 20
    assert out[0].drift is not None and out[0].labels is None


def test_frames_that_are_not_finite_are_counted_and_not_sampled() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), sample_every=1)
    collector.observe(np.full((4, 4), np.nan, np.float32), 10.0, 0.5, 0)
    collector.observe(make_frame(), 10.0, 0.5, 0)
    collector.flush()
    assert (out[0].frames, out[0].sampled) == (2, 1)


def test_windows_end_by_frames_and_by_time() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock, window_frames=10, window_s=2.0)
    for _ in range(25):
        collector.observe(make_frame(), 20.0, 0.5, 1)
    assert [r.frames for r in out] == [10, 10]
    clock.now += 2.0
    collector.observe(make_frame(), 20.0, 0.5, 1)
    assert [r.frames for r in out] == [10, 10, 6] and out[2].duration_s == 2.0
    assert [r.sequence for r in out] == [0, 1, 2] and collector.next_sequence == 3
    collector.flush()
    assert len(out) == 3  # an empty window gives no record


def test_a_stopped_camera_does_not_keep_its_window() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock, window_s=2.0)
    collector.observe(make_frame(), 20.0, 0.5, 1)
    collector.flush_if_due()
    assert out == []
    clock.now += 2.5
    collector.flush_if_due()
    assert out[0].frames == 1 and out[0].duration_s == 2.5


def test_a_clock_that_is_set_back_ends_the_window() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock)
    collector.observe(make_frame(), 20.0, 0.5, 1)
    clock.now -= 3600.0
    collector.observe(make_frame(), 20.0, 0.5, 1)
    assert out[0].frames == 2 and out[0].duration_s == 0.0


def test_check_frames_are_counted_apart() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock())
    for correct in (True, True, False):
        collector.check(correct)
    collector.flush()
    assert (out[0].check_frames, out[0].check_correct, out[0].frames) == (3, 2, 0)


def test_a_swap_ends_the_window_and_counts_on() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), first_sequence=7)
    collector.observe(make_frame(), 20.0, 0.5, 1)
    collector.switch(bundle="e" * 64, release=4, slot="b", trial=True, domains=(DOMAIN,), labels=("a", "b"))
    collector.observe(make_frame(), 20.0, 0.5, 1)
    collector.flush()
    old, new = out
    assert (old.bundle, old.release, old.slot, old.trial, old.sequence) == ("d" * 64, 3, "a", False, 7)
    assert (new.bundle, new.release, new.slot, new.trial, new.sequence) == ("e" * 64, 4, "b", True, 8)
    assert (old.labels, new.labels) == ({"one": 1}, {"b": 1})


def test_drift_waits_for_enough_frames_and_then_rises() -> None:
    """Slow cameras: windows too small for the threshold are joined with earlier ones."""
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), window_frames=4, sample_every=1, domains=(DOMAIN,))
    for i in range(80):
        collector.observe(FRAMES[i] if i < 40 else FRAMES[i] * np.float32(0.5), 20.0, None, None)
    drifts = [r.drift for r in out]
    assert drifts[:3] == [None] * 3  # 12 frames; the domain's thresholds hold from 15 on
    assert all(d is not None and d < 1.0 for d in drifts[3:10])
    assert all(d is not None and d > 1.0 for d in drifts[13:])


def test_a_lost_record_is_counted_in_the_next() -> None:
    out: list[TelemetryRecord] = []

    def emit(record: TelemetryRecord) -> None:
        if record.sequence == 0:
            raise StorageError("outbox: no space left on the disk")
        out.append(record)

    collector = make_collector([], Clock(), emit=emit)
    for _ in range(2):
        collector.observe(make_frame(), 20.0, 0.5, 1)
        collector.flush()
    assert (out[0].sequence, out[0].dropped_records) == (1, 1)


def test_threads_lose_nothing() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), window_frames=37, sample_every=5)
    frame = make_frame()

    def work() -> None:
        for _ in range(500):
            collector.observe(frame, 20.0, 0.5, 1)
            collector.check(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collector.flush()
    assert sum(r.frames for r in out) == 2000 and sum(r.check_correct for r in out) == 2000
    assert sum((r.labels or {}).get("one", 0) for r in out) == 2000
    assert sorted(r.sequence for r in out) == list(range(len(out)))


@pytest.mark.parametrize(
    "wrong", [{"window_frames": 0}, {"sample_every": 0}, {"window_s": 0.0}, {"window_s": math.nan}]
)
def test_windows_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="collector"):
        make_collector([], Clock(), **wrong)


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=200), st.floats(0, 1))
def test_histogram_quantiles_are_within_one_percent(values: list[float], share: float) -> None:
    sketch = LogHistogram()
    for value in values:
        sketch.add(value)
    found = sketch.quantile(share)
    rank = max(1, math.ceil(share * len(values) - 1e-9))
    assert found == pytest.approx(sorted(values)[rank - 1], rel=0.0101)


@given(st.lists(st.floats(1e-3, 1e9), max_size=60), st.lists(st.floats(1e-3, 1e9), max_size=60))
def test_histograms_merge_by_addition(left: list[float], right: list[float]) -> None:
    a, b, both = LogHistogram(), LogHistogram(), LogHistogram()
    for sketch, values in ((a, left), (b, right), (both, left + right)):
        for value in values:
            sketch.add(value)
    assert a.merge(b).counts == both.counts == b.merge(a).counts
    assert a.count == len(left)  # the parts are not changed


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_moments_equal_numpy_and_merge(left: list[float], right: list[float]) -> None:
    a, b = Moments(), Moments()
    for moments, values in ((a, left), (b, right)):
        for value in values:
            moments.add(value)
    summary = a.merge(b).summary()
    if not left + right:
        assert summary is None
        return
    values = np.array(left + right)
    assert summary is not None and summary.count == len(values)
    scale = max(1.0, float(np.abs(values).max()))
    assert summary.mean == pytest.approx(values.mean(), abs=1e-9 * scale)
    assert summary.variance == pytest.approx(values.var(), abs=1e-9 * scale**2)
    assert (summary.minimum, summary.maximum) == (values.min(), values.max())


def test_histograms_refuse_nonsense() -> None:
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="not positive and finite"):
            LogHistogram().add(value)
    with pytest.raises(InputError, match="quantile"):
        LogHistogram().quantile(1.5)
    assert LogHistogram().quantile(0.5) is None
    assert bucket_value(bucket_of(1.0)) == pytest.approx(1.0, rel=0.0101)


@pytest.mark.slow  # a timing: for a quiet machine
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer (coverage) slows every line down")
def test_cost_of_an_unsampled_frame() -> None:
    collector = make_collector([], time.time, window_frames=10**9, window_s=1e9, sample_every=10**9)  # type: ignore[arg-type]
    frame = make_frame()
    costs = []
    for _ in range(60):
        began = time.thread_time()
        for _ in range(500):
            collector.observe(frame, 25.0, 0.9, 1)
        costs.append((time.thread_time() - began) / 500)
    assert min(costs) * 1e6 <= 2.0


def test_names_that_no_record_can_carry_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"collector\.device"):
        make_collector([], Clock(), device="Camera 1")


def test_frames_that_come_every_other_time_are_looked_at() -> None:
    """A caller that hands over few frames itself must not fall between the sampled ones."""
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), sample_every=2)
    for i in range(20):
        collector.observe(make_frame() if i % 2 else None, 20.0, 0.5, 1)
    collector.flush()
    assert (out[0].frames, out[0].sampled) == (20, 10)


def test_two_threads_that_end_a_window_give_one_record() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock())
    collector.observe(make_frame(), 20.0, 0.5, 1)
    window = collector._window
    assert window is not None
    collector._finish(window, NOW)
    collector._finish(window, NOW)
    assert [r.sequence for r in out] == [0] and collector.next_sequence == 1
