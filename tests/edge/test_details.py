"""The slow-changing part of telemetry: one record in many carries it, and its sketches still count every frame."""

from __future__ import annotations

import json
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from worlds.telemetry import NOW, Clock, make_frame

from kasmina_edge.contracts.record import AcceleratorReport, HardwareContext, SeedTelemetry, TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.seed_rows import merged_latency, merged_score
from kasmina_edge.telemetry.seed_telemetry import Collector
from kasmina_edge.telemetry.sketch import LogHistogram

FRAME = make_frame()


class Source:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []

    def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
        self.asked.append(latency_us)
        return [SeedTelemetry(looks=len(self.asked)), SeedTelemetry(site="s1", utilization=0.5)]

    def hardware(self) -> HardwareContext | None:
        return HardwareContext(temperature_c=50.0)


class Broken(Source):
    def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
        raise RuntimeError("a plug-in's fault")


def make_collector(emitted: list[TelemetryRecord], clock: Clock, **changes: Any) -> Collector:
    arguments: dict[str, Any] = {
        "device": "cam-1", "bundle": "d" * 64, "release": 3, "slot": "a", "trial": False, "source": "app-7", "boot": 5,
        "domains": (), "labels": (), "clock": clock, "emit": emitted.append, "window_frames": 20,
    }  # fmt: skip
    return Collector(**{**arguments, **changes})


def has_details(record: TelemetryRecord) -> bool:
    return record.latency_sketch is not None


def run(collector: Collector, clock: Clock, windows: int, latency_us: float = 25.0) -> None:
    for i in range(20 * windows):
        clock.now += 0.1
        collector.observe(FRAME, latency_us * 1.02 ** (i % 7), 0.8, None)


def test_the_first_record_one_a_period_and_the_last_of_a_bundle_carry_them() -> None:
    out: list[TelemetryRecord] = []
    clock, source = Clock(), Source()
    collector = make_collector(out, clock)
    collector.sites(source)
    run(collector, clock, 65)  # 130 s of windows of 2 s
    sent = [record for record in out if has_details(record)]
    gaps = np.diff([record.started_s + record.duration_s for record in sent])
    assert sent[0] is out[0] and len(sent) == 3 and gaps == pytest.approx([61.0, 61.0], abs=1.01)
    assert all((r.seeds is not None) == has_details(r) == (r.hardware is not None) for r in out)
    second = sent[1]
    assert second.seeds is not None and [row.site for row in second.seeds] == ["", "s1"]
    assert second.hardware is not None and second.hardware.temperature_c == 50.0
    assert second.hardware.latency_us is not None and second.latency_us is not None
    assert source.asked[1] == second.latency_us["p50"]
    collector.observe(FRAME, 30.0, 0.5, None)
    collector.switch(bundle="e" * 64, release=4, slot="b", trial=True, domains=(), labels=())
    assert has_details(out[-1]) and out[-1].bundle == "d" * 64 and len(source.asked) == 4
    clock.now += 100.0
    run(collector, clock, 1)
    assert has_details(out[-1]) and out[-1].seeds is None and len(source.asked) == 4  # another bundle, no taps yet
    assert out[-1].hardware is not None and out[-1].hardware.temperature_c is None


def test_sketches_count_every_frame_of_every_window_once() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock, sample_every=4)
    rng = np.random.default_rng(0)
    latencies, scores = rng.lognormal(3.0, 0.5, 2003), rng.random(2003)
    for latency, score in zip(latencies, scores, strict=True):
        clock.now += 0.1
        collector.observe(FRAME, float(latency), float(score), None)
    collector.flush(details=True)
    found = merged_latency(out)
    assert found.count == sum(record.frames for record in out) == 2003
    for share, value in ((0.5, found.p50), (0.99, found.p99)):
        assert value == pytest.approx(np.quantile(latencies, share, method="inverted_cdf"), rel=0.0101)
    assert merged_score(out).count == sum(record.sampled for record in out)
    assert merged_score(out).p50 == pytest.approx(0.5, abs=0.08)


def test_scores_of_nothing_and_latencies_of_nothing_are_in_no_sketch() -> None:
    out: list[TelemetryRecord] = []
    collector = make_collector(out, Clock(), sample_every=1)
    collector.observe(FRAME, float("nan"), 0.0, None)
    collector.flush()
    assert (out[0].latency_sketch, out[0].score_sketch, out[0].hardware, out[0].seeds) == (None,) * 4


def test_a_source_that_fails_costs_no_record(caplog: pytest.LogCaptureFixture) -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock)
    collector.sites(Broken())
    run(collector, clock, 1)
    assert out[0].frames == 20 and out[0].seeds is None and out[0].hardware is not None
    assert "seed figures were lost" in caplog.text


def test_the_accelerator_s_events_are_counted_and_sent_once() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock)
    for kind in ("hang", "hang", "back"):
        collector.accelerator("Edge TPU" if kind == "back" else "LiteRT CPU", kind, f"because of a {kind}")
    run(collector, clock, 31)
    assert out[0].accelerator == AcceleratorReport(
        runs_on="Edge TPU", events={"hang": 2, "back": 1}, cause="because of a back"
    )
    assert all(record.accelerator is None for record in out[1:])


def test_a_clock_that_is_set_back_makes_them_due() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock)
    run(collector, clock, 2)
    clock.now = NOW - 86_400.0
    run(collector, clock, 2)
    assert [has_details(record) for record in out[:4]] == [True, False, True, False]


def test_every_record_may_carry_them() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    run(make_collector(out, clock, details_s=0.0), clock, 3)
    assert len(out) == 3 and all(map(has_details, out))
    for period in (-1.0, float("nan")):
        with pytest.raises(InputError, match="details"):
            make_collector(out, clock, details_s=period)


def test_many_threads_lose_no_frame() -> None:
    out: list[TelemetryRecord] = []
    clock = Clock()
    collector = make_collector(out, clock, window_frames=37, details_s=0.0, sample_every=5)
    source = Source()

    def app(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i, latency in enumerate(rng.lognormal(3.0, 0.5, 1500)):
            collector.observe(FRAME, float(latency), 0.7, i % 3)
            if i % 250 == 0:
                collector.sites(source)
                collector.accelerator("CPU", "slow", "test")
                collector.flush()

    threads = [threading.Thread(target=app, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    collector.flush(details=True)
    everything = np.concatenate([np.random.default_rng(seed).lognormal(3.0, 0.5, 1500) for seed in range(6)])
    reference = LogHistogram()
    for latency in everything:
        reference.add(float(latency))
    found = merged_latency(out)
    assert found.count == sum(record.frames for record in out) == 9000
    assert (found.p50, found.p99) == (reference.quantile(0.5), reference.quantile(0.99))
    assert sum(r.accelerator.events["slow"] for r in out if r.accelerator is not None) == 36
    assert sorted(record.sequence for record in out) == list(range(len(out)))


def test_an_hour_of_details_costs_a_record_little() -> None:
    """In batches of 60 under zlib, as they are sent: what the details add to the average record."""

    def batch(records: list[TelemetryRecord]) -> float:
        parts = [records[i : i + 60] for i in range(0, len(records), 60)]
        return sum(len(zlib.compress(b"".join(r.to_bytes() for r in part))) for part in parts) / len(records)

    rng = np.random.default_rng(0)
    sizes = {}
    for period_s in (60.0, 0.0, 1e9):
        out: list[TelemetryRecord] = []
        clock = Clock()
        collector = make_collector(out, clock, details_s=period_s)
        for latency in np.random.default_rng(1).lognormal(3.3, 0.15, 20 * 300):
            clock.now += 0.1
            collector.sites(_random_source(rng))
            collector.observe(FRAME, float(latency), float(0.9 + 0.1 * rng.random()), None)
        sizes[period_s] = batch(out)
    assert sizes[60.0] - sizes[1e9] <= 20.0 < sizes[0.0] - sizes[1e9]
    assert json.loads(out[5].to_bytes()).keys().isdisjoint({"seeds", "hardware"})


def _random_source(rng: np.random.Generator) -> Source:
    class Random(Source):
        def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
            return [
                SeedTelemetry(
                    site=site,
                    looks=int(rng.integers(200, 240)),
                    activation_variance=float(f"{rng.random():.5g}"),
                    interface_drift=float(f"{rng.random():.5g}"),
                    weights_l1=55.67,
                    mean_output=float(f"{rng.random():.5g}"),
                    contribution=float(f"{rng.random():.5g}"),
                    utilization=float(f"{rng.random():.5g}"),
                    age_s=5.1,
                )
                for site in ("", "s1", "s2", "s3", "s4")
            ]

    return Random()
