"""What the controller holds against a device: alerts, and an audit log that goes back, forks, or falls silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from worlds.brokers import SUBJECTS, wait_for
from worlds.telemetry import Clock

from kasmina_edge.contracts.record import DeviceAlert, Reported
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError
from kasmina_edge.fleet.intake import Intake
from kasmina_edge.fleet.ledger import KEPT_HEADS, KEPT_LIVES, MAX_KINDS
from kasmina_edge.fleet.monitor import fleet_alerts
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.safety.audit import AuditEntry, AuditLog

TOPICS = Topics(site="lab")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture
def store(path: Path) -> FleetStore:
    return FleetStore(path, clock=Clock())


def alert(sequence: int, **changes: Any) -> DeviceAlert:
    fields = {
        "device": "cam-1",
        "boot": 1,
        "sequence": sequence,
        "at_s": 5.0,
        "kind": "disk",
        "state": "raised",
        "life": "l1",
    }
    return DeviceAlert.parse({**fields, "message": "free space, MB: 10, below 64", **changes})


def report(sequence: int, audit: tuple[int, str] | None, **changes: Any) -> Reported:
    seq, digest = audit or (None, None)
    fields = {"device": "cam-1", "boot": 1, "sequence": sequence, "at_s": 0.0, "life": "l1"}
    return Reported.parse({**fields, "audit_seq": seq, "audit_hash": digest, **changes})


def held(store: FleetStore, device: str = "cam-1") -> dict[str, str]:
    return {a.kind: a.message for view in store.devices() if view.device == device for a in view.held}


def digest(letter: str) -> str:
    return letter * 64


def test_a_device_alert_is_shown_and_cleared_by_the_device(store: FleetStore) -> None:
    assert store.add_alert(alert(1, value=10.0, limit=64.0, severity="critical"))
    (shown,) = fleet_alerts(store.devices(), now=Clock()())
    assert (shown.kind, shown.severity, shown.value, shown.limit) == ("disk", "critical", 10.0, 64.0)
    assert not store.add_alert(alert(1)), "at least once: the same again is no news"
    assert store.add_alert(alert(2, state="cleared")) and held(store) == {}
    assert not store.add_alert(alert(1)), "and an old one does not raise it again"
    assert store.add_alert(alert(1, boot=2)), "a watch that lost its memory begins its count anew with another boot"


def test_security_alerts_stand_until_somebody_looked(path: Path, store: FleetStore) -> None:
    store.add_alert(alert(1, kind="replay", message="timestamp 3, seen 5", severity="warning"))
    store.add_alert(alert(2, kind="replay", state="cleared", message="all is well"))
    store.add_alert(alert(3, kind="replay", message="something harmless"))
    store.close()
    again = FleetStore(path, clock=Clock())
    (shown,) = fleet_alerts(again.devices(), now=Clock()())
    assert shown.severity == "critical" and shown.message == "timestamp 3, seen 5 (2 times)", (
        "not what the device says of it"
    )
    assert again.acknowledge("cam-1", ["tamper"]) == () and again.acknowledge("cam-1") == ("replay",)
    assert held(again) == {} and again.acknowledge("cam-1") == ()
    again.add_alert(alert(4, kind="replay", message="timestamp 4, seen 5"))
    assert "timestamp 4" in held(again)["replay"]


def test_a_device_cannot_fill_the_store_with_kinds(store: FleetStore) -> None:
    for i in range(MAX_KINDS):
        store.add_alert(alert(i, kind=f"kind_{i}"))
    with pytest.raises(InputError, match=f"{MAX_KINDS} kinds"):
        store.add_alert(alert(99, kind="one_more"))
    store.set_reported(report(1, (5, digest("a"))))
    store.set_reported(report(2, (4, digest("b"))))
    assert "audit_regress" in held(store), "what the controller found has its place in any case"


def test_a_log_that_grows_is_in_order(store: FleetStore) -> None:
    for i, letter in enumerate("abcdef"):
        assert store.set_reported(report(i, (10 + i, digest(letter))))
    assert store.set_reported(report(9, (15, digest("f"))))
    assert held(store) == {}


@pytest.mark.parametrize(
    ("news", "words"),
    [
        (report(2, (11, digest("c"))), "the log ends at entry 11, entry 12 bbbbbbbbbbbb was told before"),
        (report(2, (12, digest("c"))), "entry 12 was bbbbbbbbbbbb and is now cccccccccccc"),
        (report(1, (3, digest("c")), boot=2), "the log ends at entry 3"),
        (report(2, None), "stopped saying where its audit log stands; entry 12"),
    ],
)
def test_a_log_that_goes_back_or_forks_is_told_and_never_lost(
    path: Path, store: FleetStore, news: Reported, words: str
) -> None:
    store.set_reported(report(0, (10, digest("a"))))
    store.set_reported(report(1, (12, digest("b"))))
    assert store.set_reported(news)
    store.set_reported(report(3, (20, digest("d")), boot=3))
    store.close()
    again = FleetStore(path, clock=Clock())
    assert words in held(again)["audit_regress"]
    (shown,) = [a for a in fleet_alerts(again.devices(), now=Clock()()) if a.kind == "audit_regress"]
    assert shown.severity == "critical"


def test_a_late_report_accuses_nobody(store: FleetStore) -> None:
    store.set_reported(report(5, (12, digest("b"))))
    assert not store.set_reported(report(4, (11, digest("a")))), "the broker delivered an old one again"
    assert held(store) == {}


def test_after_an_acknowledgement_the_log_that_is_there_counts(store: FleetStore) -> None:
    store.set_reported(report(1, (12, digest("b"))))
    store.set_reported(report(2, (3, digest("c"))))
    assert store.acknowledge("cam-1") == ("audit_regress",)
    store.set_reported(report(3, (4, digest("d"))))
    assert held(store) == {}
    store.set_reported(report(4, (3, digest("c"))))
    assert "audit_regress" in held(store)


def test_another_life_is_told_and_begins_its_own_log(store: FleetStore) -> None:
    store.set_reported(report(1, (12, digest("b"))))
    store.set_reported(report(0, (1, digest("c")), life="l2"))
    assert set(held(store)) == {"new_life"} and "life l1 at boot 1 is now l2" in held(store)["new_life"]
    assert {a.severity for view in store.devices() for a in view.held} == {"warning"}


def events_of(folder: Path, count: int) -> list[AuditEntry]:
    folder.mkdir(exist_ok=True)
    log = AuditLog(folder / "audit.log", clock=lambda: 1.0)
    return [log.append("committed", release=i) for i in range(count)]


def event(entry: AuditEntry, life: str = "l1") -> bytes:
    told = {"seq": entry.seq, "hash": entry.hash, "prev": entry.prev}
    return json.dumps({"device": "cam-1", "event": entry.event, "life": life, "audit": told}).encode()


def test_events_late_twice_and_with_gaps_are_in_order(tmp_path: Path, store: FleetStore) -> None:
    entries = events_of(tmp_path, 6)
    for i in (3, 0, 5, 4, 0, 3):
        store.add_event("cam-1", event(entries[i]))
    store.set_reported(report(1, (entries[4].seq, entries[4].hash)))
    assert held(store) == {}, "a report made before an event that came first is no regress"


def test_a_rewrite_that_is_longer_than_the_log_was_shows_in_the_events(tmp_path: Path, store: FleetStore) -> None:
    """Only the newest head would not show it: the forged log has more entries than the honest one."""
    honest, forged = events_of(tmp_path / "honest", 4), events_of(tmp_path / "forged", 3)
    log = AuditLog(tmp_path / "forged" / "audit.log", clock=lambda: 2.0)
    forged += [log.append("nothing_happened") for _ in range(4)]
    for entry in honest:
        store.add_event("cam-1", event(entry))
    store.add_event("cam-1", event(forged[4]))
    assert "entry 5 follows" in held(store)["audit_regress"]


@pytest.mark.parametrize(
    "payload",
    [b"[]", b"{}", b'{"audit":{}}', b'{"audit":{"seq":0,"hash":"x","prev":"y"}}', b'{"audit":[1]}', b"[" * 50_000],
)
def test_events_without_a_sound_head_are_kept_and_say_nothing(store: FleetStore, payload: bytes) -> None:
    store.add_event("cam-1", payload)
    assert store.events("cam-1")[0].payload == payload and held(store) == {}


def test_heads_and_lives_are_bounded(store: FleetStore) -> None:
    for i in range(KEPT_HEADS + 20):
        store.set_reported(report(i, (i + 1, f"{i:064x}")))
    for i in range(KEPT_LIVES + 5):
        store.set_reported(report(i, (1, digest("a")), life=f"life{i}", boot=1))
    with store._file.read() as db:
        (lives,) = db.execute("SELECT count(DISTINCT life) FROM audit_head").fetchone()
        (heads,) = db.execute("SELECT max(n) FROM (SELECT count(*) AS n FROM audit_head GROUP BY life)").fetchone()
    assert lives <= KEPT_LIVES and heads <= KEPT_HEADS


def test_a_store_of_the_release_before_gets_its_tables(path: Path) -> None:
    first = FleetStore(path, clock=Clock())
    with first._file.write() as db:
        for table in ("device_alert", "audit_head"):
            db.execute(f"DROP TABLE {table}")
    first.close()
    second = FleetStore(path, clock=Clock())
    assert second.add_alert(alert(1)) and held(second)


def test_forgetting_a_device_forgets_what_was_held(store: FleetStore) -> None:
    store.add_alert(alert(1))
    store.set_reported(report(1, (5, digest("a"))))
    store.forget("cam-1")
    store.set_reported(report(1, (1, digest("b"))))
    assert held(store) == {}


def test_alerts_come_in_over_the_topic_and_a_device_speaks_for_itself(path: Path) -> None:
    store = FleetStore(path, clock=Clock())
    with SUBJECTS["memory"]() as memory:
        controller = memory.client("controller")
        intake = Intake(controller, TOPICS, store)
        intake.subscribe()
        controller.connect(5.0)
        cam = memory.connected("cam-1")
        cam.publish(TOPICS.telemetry("cam-1", "alert"), alert(1, device="cam-2").to_bytes())
        cam.publish(TOPICS.telemetry("cam-1", "alert"), b"{")
        cam.publish(TOPICS.telemetry("cam-1", "alert"), alert(2).to_bytes())
        wait_for(lambda: held(store), "the alert")
        assert intake.dropped == {"InputError": 2} and held(store, "cam-2") == {}
        controller.close()
