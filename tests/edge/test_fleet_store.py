"""The controller's memory: counted once, in order, over restarts; views and what a late will may not do."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from worlds.telemetry import BUNDLE, NOW, Clock, make_frame, make_plan, make_record

from kasmina_edge.contracts.change_plan import Erasure
from kasmina_edge.contracts.record import DeviceState, Reported
from kasmina_edge.errors import InputError, StorageError, TrustError
from kasmina_edge.fleet.ledger import KEPT_HEADS, KEPT_LIVES
from kasmina_edge.fleet.store import (
    KEPT_WINDOWS,
    MAX_CAPTURE_BYTES,
    MAX_EVENTS,
    FleetStore,
    accepts_reported,
    accepts_state,
)
from kasmina_edge.safety.alerts import AlertLimits
from kasmina_edge.safety.encryption import public_hex
from kasmina_edge.telemetry.capture import CaptureStore

PEN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def make_store(folder: Path, clock: Clock | None = None, **changes: Any) -> FleetStore:
    return FleetStore(folder / "fleet.db", clock=clock or Clock(), **changes)


def make_reported(sequence: int = 0, **changes: Any) -> Reported:
    fields: dict[str, Any] = {"device": "cam-1", "boot": 1, "sequence": sequence, "at_s": NOW}
    return Reported(**{**fields, **changes})


def state(online: bool, boot: int, at_s: float | None = None) -> DeviceState:
    return DeviceState(device="cam-1", online=online, boot=boot, at_s=at_s)


def test_telemetry_comes_back_and_survives_a_restart(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    records = [make_record(i, drift=0.1 * i) for i in range(130)]
    assert store.record_telemetry(records[:60]) == 60
    assert store.record_telemetry(records[60:]) == 70
    store.close()
    again = make_store(tmp_path)
    assert again.telemetry("cam-1") == records
    assert again.telemetry("cam-1", records[100].started_s) == records[100:]
    assert again.telemetry("cam-2") == []
    (view,) = again.devices()
    assert view.latest == records[-1] and len(view.windows) == KEPT_WINDOWS and view.drift == records[-1].drift


def test_repeated_telemetry_counts_once(tmp_path: Path) -> None:
    """A lost PUBACK: the publisher sends again, in another batch."""
    store = make_store(tmp_path)
    records = [make_record(i) for i in range(30)]
    assert store.record_telemetry(records[:20]) == 20
    assert store.record_telemetry(records[10:]) == 10
    assert store.record_telemetry(records) == 0
    assert store.telemetry("cam-1") == records


def test_an_app_that_starts_again_is_not_a_repetition(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.record_telemetry([make_record(0)]) == 1
    assert store.record_telemetry([make_record(0, started_s=NOW + 60.0)]) == 1
    assert store.record_telemetry([make_record(0, source="app-2")]) == 1


def test_one_message_may_speak_of_several_devices(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    records = [make_record(i, device=f"cam-{i % 3}") for i in range(9)]
    random.Random(0).shuffle(records)
    assert store.record_telemetry(records) == 9
    assert [v.device for v in store.devices()] == ["cam-0", "cam-1", "cam-2"]
    assert len(store.telemetry("cam-2")) == 3


def test_old_telemetry_is_removed(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, clock, keep_telemetry_s=100.0)
    store.record_telemetry([make_record(0)])
    clock.now += 101.0
    store.record_telemetry([make_record(1)])
    assert [r.sequence for r in store.telemetry("cam-1")] == [1]


def test_a_late_will_does_not_overrule(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.set_state(state(True, boot=2, at_s=NOW))
    assert not store.set_state(state(False, boot=1, at_s=NOW - 50))  # the will of the life before
    assert store.devices()[0].online is True
    assert store.set_state(state(True, boot=2, at_s=NOW + 30))  # reconnected
    assert not store.set_state(state(False, boot=2, at_s=NOW))  # the will of the connection before
    assert store.devices()[0].online is True
    assert store.set_state(state(False, boot=2, at_s=NOW + 30))
    assert store.devices()[0].online is False
    assert store.set_state(state(True, boot=3))
    assert (store.devices()[0].online, store.devices()[0].boot) == (True, 3)


boots = st.builds(state, st.booleans(), st.integers(0, 4), st.none() | st.floats(0, 5))


@given(st.lists(boots, min_size=1, max_size=20))
def test_the_boot_never_goes_back_but_for_a_later_birth(messages: list[DeviceState]) -> None:
    known: DeviceState | None = None
    for message in messages:
        if accepts_state(known, message):
            if known is not None and message.boot < known.boot:
                assert message.online and message.at_s is not None and known.at_s is not None
                assert message.at_s > known.at_s
            known = message
    assert known is not None


def test_reports_are_ordered_by_boot_and_sequence(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.set_reported(make_reported(5, status="committed"))
    assert not store.set_reported(make_reported(4, status="trial"))
    assert not store.set_reported(make_reported(5, status="trial"))  # retained, heard again
    assert store.set_reported(make_reported(0, boot=2, status="idle"))
    (view,) = store.devices()
    assert view.reported is not None and (view.reported.boot, view.reported.status) == (2, "idle")


def test_a_known_accuracy_is_found_by_digest_or_by_name(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.record_telemetry([make_record(0)])
    assert store.devices()[0].expected_accuracy is None
    store.set_expected_accuracy("digits 1.0.0", 0.95)
    store.set_reported(make_reported(name="digits", version="1.0.0", release=1, digest=BUNDLE))
    assert store.devices()[0].expected_accuracy == 0.95
    store.set_expected_accuracy(BUNDLE, 0.97)
    assert store.devices()[0].expected_accuracy == 0.97
    with pytest.raises(InputError, match="expected 0 to 1"):
        store.set_expected_accuracy(BUNDLE, 97.0)


def test_views_carry_the_alerts_that_stand(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, clock, limits=AlertLimits(silent_s=30.0))
    store.set_expected_accuracy(BUNDLE, 0.97)
    store.record_telemetry([make_record(i, drift=5.0, check_frames=8, check_correct=2) for i in range(4)])
    (view,) = store.devices()
    assert {a.kind for a in view.alerts} == {"drift", "accuracy"}
    assert view.check_accuracy == 0.25 and view.checks == (32, 8)
    clock.now += 31.0
    assert {a.kind for a in store.devices()[0].alerts} == {"drift", "accuracy", "silent"}


def head(letter: str, seq: int) -> dict[str, Any]:
    return {"audit_seq": seq, "audit_hash": letter * 64, "life": "l1"}


def kinds(store: FleetStore) -> set[str]:
    return {a.kind for view in store.devices() for a in view.held}


def claim(life: str, seq: int) -> bytes:
    audit = {"seq": seq, "hash": "c" * 64, "prev": "0" * 64}
    return json.dumps({"device": "cam-1", "event": "x", "life": life, "audit": audit}).encode()


@pytest.mark.parametrize(
    "claims",
    [
        [claim(f"fake{i}", 1) for i in range(KEPT_LIVES + 2)],
        [claim("l1", 10**6 + 2 * i) for i in range(KEPT_HEADS + 9)],
    ],
    ids=["made-up lives", "high numbers"],
)
def test_events_push_out_no_head_that_was_reported(tmp_path: Path, claims: list[bytes]) -> None:
    store = make_store(tmp_path)
    assert store.set_reported(make_reported(1, **head("a", 500)))
    for payload in claims:
        store.add_event("cam-1", payload)
    store.acknowledge("cam-1", ["new_life"])
    assert store.set_reported(make_reported(2, boot=2, **head("b", 4)))
    assert "audit_regress" in kinds(store)
    with store._file.read() as db:
        (rows,) = db.execute("SELECT count(*) FROM audit_head").fetchone()
    assert rows <= KEPT_HEADS + 1


def test_a_device_with_too_many_lives_is_told_and_its_first_head_stays(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.set_reported(make_reported(1, **head("a", 500)))
    for i in range(KEPT_LIVES - 1):
        store.set_reported(make_reported(1, **{**head("c", 1), "life": f"fake{i}"}))
    assert kinds(store) == {"new_life"}
    store.set_reported(make_reported(1, **{**head("c", 1), "life": "one-more"}))
    assert kinds(store) == {"new_life", "audit_regress"}
    store.set_reported(make_reported(2, **head("b", 4)))
    told = [a.message for view in store.devices() for a in view.held if a.kind == "audit_regress"]
    assert "more than 16 lives" in told[0] and "(2 times)" in told[0]


def test_the_last_report_is_held_against_the_next_also_without_its_head(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.set_reported(make_reported(1, **head("a", 500)))
    with store._file.write() as db:
        db.execute("DELETE FROM audit_head")
    store.set_reported(make_reported(2, **head("b", 4)))
    assert kinds(store) == {"audit_regress"}


def test_a_device_whose_folder_was_put_back_is_shown_as_it_is_and_accused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    late = make_reported(1, boot=2, at_s=NOW, name="digits", version="0.9.0", **head("a", 5))
    store.set_reported(late)
    store.set_state(state(True, boot=5, at_s=NOW + 50))
    store.set_reported(make_reported(3, boot=5, at_s=NOW + 50, name="digits", version="1.0.0", **head("b", 9)))
    assert not store.set_reported(late), "late, by the device's clock"
    assert not store.set_reported(make_reported(1, boot=2, at_s=NOW + 99, **head("a", 5))), "what was said before"
    assert not store.set_reported(make_reported(1, boot=2, at_s=NOW + 99, **head("d", 11))), "no regress: merely late"
    assert not store.set_state(state(False, boot=1, at_s=NOW + 99)) and not kinds(store)
    assert store.set_state(state(True, boot=1, at_s=NOW + 99))
    assert store.set_reported(make_reported(0, boot=1, at_s=NOW + 99, name="digits", version="1.1.0", **head("d", 4)))
    (view,) = store.devices()
    assert view.reported is not None and (view.reported.version, view.boot, view.online) == ("1.1.0", 1, True)
    assert kinds(store) == {"audit_regress"}
    assert store.set_state(state(False, boot=1, at_s=NOW + 99)), "and its will counts"


def test_an_acknowledged_regress_lets_the_order_go_once(tmp_path: Path) -> None:
    """A restored device without a clock cannot show that it is newer: an operator says so."""
    store = make_store(tmp_path)
    store.set_state(state(True, boot=5, at_s=NOW))
    store.set_reported(make_reported(3, boot=5, **head("b", 9)))
    again, earlier = make_reported(0, boot=1, at_s=9.0, **head("d", 4)), state(True, boot=1, at_s=9.0)
    assert not store.set_reported(again) and not store.set_state(earlier)
    store.set_reported(make_reported(4, boot=5, **head("e", 9)))
    assert store.acknowledge("cam-1") == ("audit_regress",)
    assert not store.set_state(state(False, boot=1, at_s=9.0)), "never a will"
    assert store.set_reported(again) and store.set_state(earlier)
    assert not store.set_reported(make_reported(9, boot=0, **head("d", 4)))
    (view,) = store.devices()
    assert view.boot == 1 and view.reported == again


def make_capture(folder: Path, device: str = "cam-1", count: int = 1) -> list[bytes]:
    store = CaptureStore(folder, make_plan(public_hex(X25519PrivateKey.generate())), device, Clock())
    for i in range(count):
        store.keep(make_frame(i), bundle=BUNDLE)
    return [store.upload(item, PEN) for item in store.pending()]


def test_captures_are_kept_once_and_replays_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    one, two = make_capture(tmp_path / "a", count=2)
    assert store.add_capture("cam-1", two) and store.add_capture("cam-1", one)
    assert not store.add_capture("cam-1", one)  # delivered twice
    (other,) = make_capture(tmp_path / "b")  # another frame under the same sequence
    with pytest.raises(TrustError, match="holds another frame already"):
        store.add_capture("cam-1", other)
    with pytest.raises(TrustError, match="sent by cam-2 in the name of cam-1"):
        store.add_capture("cam-2", one)
    with pytest.raises(TrustError):
        store.add_capture("cam-1", b"garbage")
    assert [(c.device, c.sequence, c.payload) for c in store.captures("cam-1")] == [
        ("cam-1", 0, one),
        ("cam-1", 1, two),
    ]
    assert store.captures("cam-2") == [] and len(store.captures()) == 2


def test_signatures_can_be_checked_on_arrival(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (payload,) = make_capture(tmp_path / "a")
    with pytest.raises(TrustError, match="signature"):
        store.add_capture("cam-1", payload, device_public_hex=public_hex(Ed25519PrivateKey.generate()))
    assert store.add_capture("cam-1", payload, device_public_hex=public_hex(PEN))


def test_a_store_that_knows_the_keys_takes_nothing_unsigned_and_of_nobody(tmp_path: Path) -> None:
    keys = {"cam-1": public_hex(PEN), "cam-2": public_hex(Ed25519PrivateKey.generate())}
    store = make_store(tmp_path, key_of=keys.get)
    assert store.add_capture("cam-1", make_capture(tmp_path / "a")[0])
    with pytest.raises(TrustError, match="signature"):
        store.add_capture("cam-2", make_capture(tmp_path / "b", "cam-2")[0])
    with pytest.raises(TrustError, match="no such device is enrolled"):
        store.add_capture("cam-3", make_capture(tmp_path / "c", "cam-3")[0])


def test_captures_of_a_device_are_bounded_in_bytes(tmp_path: Path) -> None:
    one, two = make_capture(tmp_path / "a", count=2)
    store = make_store(tmp_path, max_capture_bytes=len(one) + len(two) - 1)
    assert store.add_capture("cam-1", one)
    with pytest.raises(InputError, match=f"1 captured frames of {len(one)} bytes are held"):
        store.add_capture("cam-1", two)
    assert MAX_CAPTURE_BYTES >= 1024 * 256 * 1024
    roomy = make_store(tmp_path)
    assert roomy.add_capture("cam-1", two)


@pytest.mark.parametrize("running", [True, False])
def test_erased_captures_are_overwritten(tmp_path: Path, running: bool) -> None:
    """Also in the write-ahead log, and while another process has the file open."""
    store, other = make_store(tmp_path), make_store(tmp_path)
    payloads = make_capture(tmp_path / "a", count=3)
    for payload in payloads:
        other.add_capture("cam-1", payload)
    found = [p[200:400] in q.read_bytes() for p in payloads for q in tmp_path.glob("fleet.db*")]
    assert any(found), "they were there"
    if not running:
        other.close()
    assert len(store.erase_captures(Erasure(id="r", to_s=9e9))) == 3
    raw = [q.read_bytes() for q in tmp_path.glob("fleet.db*")]
    assert not any(p[200:400] in part for p in payloads for part in raw)


def test_a_capture_that_comes_during_an_erasure_does_not_stay(tmp_path: Path) -> None:
    """The demand is written down between the question whether one covers the frame and its insertion."""
    demands: list[Erasure] = []
    other = make_store(tmp_path, is_erased=lambda device, at_s: bool(demands))
    erased: list[object] = []

    def erase() -> None:
        erased.extend(other.erase_captures(demands[0]))

    eraser = threading.Thread(target=erase)

    def asked(device: str, at_s: float) -> bool:
        demands.append(Erasure(id="r", to_s=9e9))
        eraser.start()
        eraser.join(0.2)
        return False

    store = make_store(tmp_path, is_erased=asked)
    assert store.add_capture("cam-1", make_capture(tmp_path / "a")[0])
    eraser.join()
    assert erased == [("cam-1", 0)] and other.captures() == []


def test_an_erasure_that_cannot_be_noted_removes_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.add_capture("cam-1", make_capture(tmp_path / "a")[0])

    def refuse(gone: Sequence[tuple[str, int]]) -> None:
        raise StorageError(f"no space to write down {gone}")

    with pytest.raises(StorageError, match="cam-1"):
        store.erase_captures(Erasure(id="r", to_s=9e9), refuse)
    assert len(store.captures()) == 1


def test_events_are_bounded(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for i in range(5):
        store.add_event("cam-1", b"%d" % i)
    assert [e.payload for e in store.events("cam-1", 3)] == [b"2", b"3", b"4"]
    with store._file.write() as db:
        rows = [("cam-1", 0.0, b"x")] * MAX_EVENTS
        db.executemany("INSERT INTO event (device, received_s, payload) VALUES (?, ?, ?)", rows)
    store.add_event("cam-1", b"last")
    events = store.events("cam-1", 10**6)
    assert len(events) == MAX_EVENTS and events[-1].payload == b"last"


def test_a_device_can_be_forgotten(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (payload,) = make_capture(tmp_path / "a")
    for device in ("cam-1", "cam-2"):
        store.record_telemetry([make_record(0, device=device)])
    store.add_capture("cam-1", payload)
    store.add_event("cam-1", b"{}")
    store.set_state(state(True, boot=50))
    store.forget("cam-1")
    assert [v.device for v in store.devices()] == ["cam-2"]
    assert (store.telemetry("cam-1"), store.captures("cam-1"), store.events("cam-1")) == ([], [], [])
    assert store.set_state(state(True, boot=1))  # enrolled anew, its boots count from the start


def test_threads_and_several_stores_on_one_file(tmp_path: Path) -> None:
    stores = [make_store(tmp_path), make_store(tmp_path)]

    def work(number: int) -> None:
        for i in range(20):
            stores[number % 2].record_telemetry([make_record(i, device=f"cam-{number}")])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(stores[0].telemetry(f"cam-{n}")) for n in range(4)] == [20] * 4


def test_a_damaged_store_is_told_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_bytes(b"not a database at all" * 400)
    with pytest.raises(StorageError, match="not a database"):
        make_store(tmp_path)
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize("column", ["state", "reported", "latest", "windows"])
@pytest.mark.parametrize("value", [b"{", "text", '[["b",1,null,1e999,0]]', "[[1,2]]", "[[" * 60_000, b"\xff"])
def test_a_bad_row_costs_only_its_part_of_one_device(tmp_path: Path, column: str, value: object) -> None:
    store = make_store(tmp_path)
    for device in ("cam-1", "cam-2"):
        store.record_telemetry([make_record(0, device=device, drift=0.5)])
        store.set_reported(make_reported(0, device=device))
        store.set_state(DeviceState(device=device, online=True, boot=1))
    before = store.devices()
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute(f"UPDATE device SET {column} = ? WHERE device = 'cam-1'", (value,))
    db.close()
    bad, good = store.devices()
    assert good == before[1] and bad.device == "cam-1"
    lost = {"state": bad.online, "reported": bad.reported, "latest": bad.latest, "windows": bad.windows or None}
    assert [name for name, part in lost.items() if part is None] == [column]
    store.record_telemetry([make_record(1)])  # what comes next mends it
    assert store.set_reported(make_reported(1)) and store.set_state(state(False, boot=1))
    mended = store.devices()[0]
    assert None not in (mended.online, mended.reported, mended.latest) and mended.windows


def test_a_bad_batch_costs_only_its_records(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.record_telemetry([make_record(0)])
    store.record_telemetry([make_record(1)])
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute("UPDATE telemetry SET body = ? WHERE id = 1", (b"nothing",))
    db.close()
    assert [r.sequence for r in store.telemetry("cam-1")] == [1]


def test_more_right_answers_than_frames_do_not_stop_the_list(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.set_expected_accuracy(BUNDLE, 0.9)
    store.record_telemetry([make_record(0, check_frames=20, check_correct=2**53)])
    (view,) = store.devices()
    assert view.checks == (20, 20)


def test_a_restored_device_is_heard_though_its_boots_begin_again(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.set_state(DeviceState(device="cam-1", online=False, boot=9, at_s=NOW, life="first"))
    assert store.set_reported(make_reported(4, boot=9, life="first"))
    assert store.set_state(DeviceState(device="cam-1", online=True, boot=1, life="second"))
    assert store.set_reported(make_reported(0, boot=1, life="second", status="committed"))
    (view,) = store.devices()
    assert view.online is True and view.boot == 1 and view.reported is not None
    assert view.reported.life == "second" and view.reported.status == "committed"
    for life in ("second", ""):  # the same life, or one that is not known: boots compare
        assert not store.set_state(DeviceState(device="cam-1", online=False, boot=0, life=life))
        assert not store.set_reported(make_reported(9, boot=0, life=life))
    old = make_reported(0, boot=9)
    assert not accepts_reported(old, make_reported(0, boot=1, life="second"))
    assert not accepts_state(state(True, boot=9), DeviceState(device="cam-1", online=False, boot=1, life="second"))


def test_an_unknown_life_is_not_written() -> None:
    for known, unknown in (
        (make_reported(life="a1"), make_reported()),
        (DeviceState(device="cam-1", online=True, boot=1, life="a1"), state(True, boot=1)),
    ):
        assert b"life" not in unknown.to_bytes() and type(known).from_bytes(known.to_bytes()) == known
        with pytest.raises(InputError, match="life"):
            type(known).from_bytes(known.to_bytes().replace(b'"a1"', b'"a 1"'))
