"""The agent's watch: what it sees goes to the outbox, the audit log and the log once, and a restart forgets nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds.bundles import make_bundle
from worlds.disks import FullDisk
from worlds.telemetry import Clock, make_record

from kasmina_edge.agent.watch import PRIORITY, SAVE_EVERY_S, STREAM, DeviceWatch, fallen_back, quantities
from kasmina_edge.contracts.record import AcceleratorReport, DeviceAlert, TelemetryRecord
from kasmina_edge.errors import BundleError, LinkError, StorageError, TrustError
from kasmina_edge.logs import publication_trace, tracing
from kasmina_edge.safety.audit import AuditLog, head_path
from kasmina_edge.settings import Settings
from kasmina_edge.storage import use_disk

MANIFEST = make_bundle().manifest
LEARN = 256


class Desk:
    """A watch with its neighbours: an outbox that is a list, an audit log that is a list, two clocks moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "watch.json"
        self.clock, self.running = Clock(), Clock(1000.0)
        self.sent: list[tuple[str, int, DeviceAlert]] = []
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.refuses = False
        self.watch = self.restart()

    def restart(self) -> DeviceWatch:
        self.watch = DeviceWatch(
            self.path, "cam-1", "l1", Settings.read(None, environ={}), send=self.send,
            note=lambda event, **fields: self.noted.append((event, fields)), clock=self.clock, running=self.running,
        )  # fmt: skip
        return self.watch

    def send(self, stream: str, payload: bytes, priority: int) -> None:
        if self.refuses:
            raise StorageError("outbox.db: no space left on the disk")
        self.sent.append((stream, priority, DeviceAlert.from_bytes(payload)))

    def pass_s(self, seconds: float, *, set_clock_s: float = 0.0) -> None:
        self.clock.now += seconds + set_clock_s
        self.running.now += seconds

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(alert.kind, alert.state) for _, _, alert in self.sent]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_alert_goes_to_the_outbox_the_audit_log_and_the_health_socket(desk: Desk) -> None:
    for _ in range(3):
        desk.watch.measured({"disk": 10.0, "temperature": None}, detail="data folder")
    ((stream, priority, alert),) = desk.sent
    assert (stream, priority) == (STREAM, PRIORITY) and alert.life == "l1"
    assert (alert.kind, alert.value, alert.limit, alert.severity) == ("disk", 10.0, 64.0, "critical")
    ((event, fields),) = desk.noted
    assert event == "alert_raised" and fields["kind"] == "disk" and fields["severity"] == "critical"
    assert fields["message"] == "free space of the data folder, MB: 10, below 64; data folder" == alert.message
    assert [(s["rule"], s["severity"]) for s in desk.watch.standing] == [("disk", "critical")] and desk.watch.worst == 2


def test_a_restart_neither_forgets_nor_repeats(desk: Desk) -> None:
    for _ in range(3):
        desk.watch.measured({"disk": 10.0})
    desk.restart()
    for _ in range(5):
        desk.watch.measured({"disk": 10.0})
    assert desk.told == [("disk", "raised")] and desk.watch.worst == 2
    for _ in range(3):
        desk.watch.measured({"disk": 500.0})
    assert desk.told == [("disk", "raised"), ("disk", "cleared")]
    assert [alert.sequence for _, _, alert in desk.sent] == [1, 2]


def test_refusals_that_look_like_attacks_are_told_with_their_trace(desk: Desk) -> None:
    with tracing(publication_trace("ab" * 32, 3)) as trace:
        desk.watch.refused(TrustError("0 of 1 valid signatures", breach="signature"))
    desk.watch.refused(LinkError("gone"))
    desk.watch.refused(TrustError("outside the plan"))
    desk.watch.spoiled(BundleError("slots/a/model.tflite: sha256 differs"))
    assert desk.told == [("bad_signature", "raised"), ("tamper", "raised")]
    assert desk.sent[0][2].trace_id == trace.trace_id and desk.sent[1][2].trace_id is None


def test_a_clock_that_is_set_is_told_and_the_first_good_time_is_not(desk: Desk) -> None:
    desk.pass_s(60.0)
    desk.watch.look()
    assert desk.told == []
    desk.pass_s(60.0, set_clock_s=-7200.0)
    desk.watch.look()
    assert desk.told == [("clock_jump", "raised")]
    assert "back by 7200 s within 60 s" in desk.sent[0][2].message
    desk.clock.now = 5000.0  # a device without a battery
    early = Desk(desk.path.parent / "early")
    early.clock.now = 5000.0
    early.restart()
    early.pass_s(10.0, set_clock_s=1.8e9)
    early.watch.look()
    assert early.told == []


def test_an_audit_log_that_was_cut_is_told_at_the_start(desk: Desk, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", clock=desk.clock)
    entries = [log.append("committed", release=i) for i in range(3)]
    desk.watch.check_audit(tmp_path / "audit.log", entries[-1].head)
    assert desk.told == []
    (tmp_path / "audit.log").unlink()
    head_path(tmp_path / "audit.log").unlink()
    desk.watch.check_audit(tmp_path / "audit.log", entries[-1].head)
    assert desk.told == [("audit_regress", "raised")] and "the floor knows entry 3" in desk.sent[0][2].message


def records(levels: np.ndarray, *, start: int = 0, **changes: Any) -> list[TelemetryRecord]:
    return [
        make_record(
            i, bundle=MANIFEST.digest(), started_s=2.0 * i,
            features={"score": float(x), "input_mean": 0.5}, labels={"a": 3, "b": 1}, drift=0.2, **changes,
        )
        for i, x in enumerate(levels, start)
    ]  # fmt: skip


def test_a_quantity_that_drifts_is_told_with_its_name_and_its_beginning(desk: Desk) -> None:
    rng = np.random.default_rng(1)
    quiet = 0.9 + 0.02 * rng.normal(size=LEARN + 400)
    assert desk.watch.observe(records(quiet), MANIFEST) == []
    low = 0.7 + 0.02 * rng.normal(size=100)
    found = desk.watch.observe(records(low, start=len(quiet)), MANIFEST)
    assert [(c.quantity, c.kind) for c in found] == [("score", "drifted")]
    assert abs(desk.watch.drifted["score"] - 2.0 * len(quiet)) <= 2.0 * 32
    assert desk.told == [("quantity_drift", "raised")] and "score" in desk.sent[0][2].message


def test_the_drift_watch_survives_a_restart_and_begins_anew_with_another_bundle(desk: Desk) -> None:
    rng = np.random.default_rng(2)
    desk.watch.observe(records(0.9 + 0.02 * rng.normal(size=LEARN + 100)), MANIFEST)
    desk.watch.save()
    desk.restart()
    found = desk.watch.observe(records(0.5 + 0.02 * rng.normal(size=60), start=LEARN + 100), MANIFEST)
    assert [(c.quantity, c.kind) for c in found] == [("score", "drifted")], "what was learned was not lost"
    other = make_bundle(version="9.9.9", seed=9).manifest
    assert desk.watch.observe(records(np.full(5, 0.9)), other) == [] and desk.watch.drifted == {}


def test_windows_of_other_bundles_and_of_nothing_are_left_out(desk: Desk) -> None:
    many = records(np.full(LEARN + 50, 0.9))
    assert desk.watch.observe([r.model_copy(update={"bundle": "x"}) for r in many], MANIFEST) == []
    assert desk.watch.observe([r.model_copy(update={"sampled": 0}) for r in many], MANIFEST) == []
    assert desk.watch.observe(many, None) == []
    desk.watch.save()
    assert json.loads(desk.path.read_bytes())["watches"] == {}


def test_what_a_window_says() -> None:
    (record,) = records(np.array([0.9]))
    assert quantities(record) == pytest.approx(
        {"score": 0.9, "input_mean": 0.5, "label_entropy": 0.8113, "drift": 0.2}, abs=1e-4
    )
    assert quantities(make_record()) == {}


@pytest.mark.parametrize(
    "spoilt", [b"", b"{", b"[]", b'{"format":1}', b'{"format":2,"book":{},"watches":{}}', b"[" * 9999]
)
def test_a_damaged_memory_begins_anew(desk: Desk, spoilt: bytes) -> None:
    desk.path.write_bytes(spoilt)
    desk.restart()
    for _ in range(3):
        desk.watch.measured({"disk": 10.0})
    assert desk.told == [("disk", "raised")]


def test_a_disk_that_refuses_stops_nothing(desk: Desk) -> None:
    desk.refuses = True
    with use_disk(FullDisk(0)):
        for _ in range(3):
            desk.watch.measured({"disk": 0.0})
        desk.pass_s(SAVE_EVERY_S + 1)
        desk.watch.look()
    assert desk.watch.worst == 2 and desk.sent == [] and desk.noted


def accelerated(sequence: int, runs_on: str, **events: int) -> TelemetryRecord:
    report = AcceleratorReport(runs_on=runs_on, events=events, cause="no answer within 50 ms")
    return make_record(sequence, bundle=MANIFEST.digest(), sampled=0, accelerator=report)


def test_a_fall_back_to_the_cpu_is_told_once_with_its_cause_and_is_over_when_it_is_back(desk: Desk) -> None:
    desk.watch.observe([accelerated(1, "LiteRT CPU", hang=1)], MANIFEST)
    assert desk.told == [("accelerator", "raised")] and "no answer within 50 ms" in desk.sent[0][2].message
    desk.watch.observe([accelerated(2, "Edge TPU", hang=3, back=3)], MANIFEST)
    for _ in range(3):
        desk.watch.look()
    assert desk.told[1:] == [("accelerator", "cleared")]


def test_a_fall_within_the_cool_down_is_told_when_that_is_over_though_nothing_new_was_heard(desk: Desk) -> None:
    desk.watch.observe(
        [accelerated(1, "LiteRT CPU", hang=1), *(accelerated(i, "Edge TPU", back=1) for i in (2, 3, 4))], MANIFEST
    )
    desk.watch.observe([accelerated(5, "LiteRT CPU", gone=1)], MANIFEST)
    assert [state for _, state in desk.told] == ["raised", "cleared"], "held back by the cool-down"
    for _ in range(70):
        desk.pass_s(10.0)
        desk.watch.look()
    assert [state for _, state in desk.told] == ["raised", "cleared", "raised"]


@pytest.mark.parametrize(
    ("report", "fallen"),
    [
        ({"events": {"hang": 1}, "runs_on": "LiteRT CPU"}, 1.0),
        ({"events": {"back": 1}, "runs_on": "LiteRT CPU"}, 0.0),
        ({"events": {"back": 1, "slow": 1}, "runs_on": "Edge TPU"}, 0.0),
        ({"events": {"back": 1, "slow": 1}, "runs_on": "LiteRT CPU (coral: late)"}, 1.0),
    ],
)
def test_who_answers_follows_from_the_report(report: dict[str, Any], fallen: float) -> None:
    assert fallen_back(AcceleratorReport(**report)) == fallen
