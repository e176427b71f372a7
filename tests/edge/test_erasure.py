"""Erasure: what a plan's demand covers is gone from folder and outbox, stays gone, and the audit log proves it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError
from worlds.disks import LOSSES, Lose, PowerCut, PowerDisk
from worlds.telemetry import BUNDLE, NOW, make_frame, make_plan

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.change_plan import CaptureBudget, Erasure
from kasmina_edge.safety.audit import AuditLog, verify
from kasmina_edge.safety.encryption import public_hex
from kasmina_edge.storage import use_disk
from kasmina_edge.telemetry.capture import MAX_ERASURES_KNOWN, CaptureStore
from kasmina_edge.telemetry.capture_ledger import MAX_SPANS_KNOWN
from kasmina_edge.telemetry.erasure import carry_out
from kasmina_edge.telemetry.outbox import Outbox

BOX = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PEN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BUDGET = CaptureBudget(max_frames=50, max_bytes=10**6)
DAY_S = 86_400.0


class Device:
    """A capture folder, an outbox and an audit log with one clock."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.folder = folder
        self.outbox = Outbox(folder / "outbox.db", clock=lambda: self.now)
        self.audit = AuditLog(folder / "audit.log", clock=lambda: self.now)

    def store(self, *erasures: Erasure, serial: int = 1, **budget: Any) -> CaptureStore:
        plan = make_plan(public_hex(BOX), serial=serial, erasures=erasures, capture=BUDGET.model_copy(update=budget))
        return CaptureStore(self.folder / "capture", plan, "cam-1", lambda: self.now)

    def keep(self, count: int) -> None:
        """One frame a second."""
        for i in range(count):
            assert self.store().keep(make_frame(i), bundle=BUNDLE)
            self.now += 1.0

    def upload(self, *items: int) -> None:
        for item in items:
            self.outbox.append("capture", self.store().upload(item, PEN))
            self.store().forget(item)

    def told(self) -> list[str]:
        return re.findall(r'"event":"(captures_[a-z]+)"', (self.folder / "audit.log").read_text())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_what_is_covered_is_gone_from_folder_and_outbox(device: Device) -> None:
    device.keep(6)
    device.upload(0, 3)
    device.outbox.append("stats", b"{}")
    items = {i: device.store().payload(i) for i in (1, 2, 4, 5)}
    demand = Erasure(id="req-1", from_s=1001.0, to_s=1004.0)
    store = device.store(demand, serial=2)
    assert store.erasures_due() == [demand]
    (erased,) = carry_out(store, device.outbox, device.audit.append)
    assert sorted(sequence for sequence, _ in erased.items) == [1, 2, 3]
    assert (1, sha256_hex(items[1])) in erased.items and (2, sha256_hex(items[2])) in erased.items
    assert store.pending() == [4, 5]
    left = device.outbox.newer(-1, stream="capture")
    assert len(left) == 1 and len(device.outbox.newer(-1, stream="stats")) == 1
    assert store.erasures_due() == [] and carry_out(store, device.outbox, device.audit.append) == []
    assert device.told() == ["captures_erased"] and verify(device.folder / "audit.log").ok
    assert erased.proof()["frames"] == 3 and erased.proof()["items_sha256"] in (device.folder / "audit.log").read_text()


def test_what_is_covered_never_comes_to_be(device: Device) -> None:
    """A frame of the covered time that waited in an app's memory is refused when it comes to be kept."""
    store = device.store(Erasure(id="req-1", to_s=2000.0))
    assert store.keep(make_frame(), bundle=BUNDLE, at_s=1999.0) is None and store.remaining()[0] == 50
    device.now = 2001.0
    assert store.keep(make_frame(), bundle=BUNDLE) is not None


def test_another_device_keeps_its_own(device: Device) -> None:
    device.keep(2)
    store = device.store(Erasure(id="req-1", device="cam-2", to_s=9e9))
    assert store.erasures_due() == [] and carry_out(store, device.outbox, device.audit.append) == []
    assert store.pending() == [0, 1] and store.keep(make_frame(), bundle=BUNDLE) is not None


def test_a_frame_that_nobody_can_read_is_erased_too(device: Device) -> None:
    device.keep(2)
    (device.folder / "capture/000000000000.sealed").write_bytes(b"spoiled")
    device.store().set_aside(0)
    device.outbox.append("capture", b"spoiled as well")
    (erased,) = carry_out(device.store(Erasure(id="r", to_s=500.0)), device.outbox, device.audit.append)
    assert [s for s, _ in erased.items] == [-1, 0] and device.store().pending() == [1]
    assert device.outbox.size().entries == 0


def test_an_erasure_that_finds_nothing_is_told_as_well(device: Device) -> None:
    (erased,) = carry_out(device.store(Erasure(id="r", to_s=500.0)), device.outbox, device.audit.append)
    assert erased.items == () and device.told() == ["captures_erased"]


def test_nothing_is_remembered_when_the_proof_was_not_written(device: Device) -> None:
    device.keep(1)

    def refuses(event: str, **fields: Any) -> None:
        raise OSError("the audit log refuses")

    store = device.store(Erasure(id="r", to_s=9e9))
    with pytest.raises(OSError, match="refuses"):
        carry_out(store, device.outbox, refuses)
    assert [e.id for e in store.erasures_due()] == ["r"]


def test_a_caller_with_an_older_plan_keeps_nothing_that_was_erased(device: Device) -> None:
    """An app that reads its plan late, or the window that it still holds, comes after the proof."""
    device.keep(1)
    older = device.store()
    demands = Erasure(id="r", from_s=900.0, to_s=1005.0), Erasure(id="s", from_s=1005.0, to_s=1010.0)
    carry_out(device.store(*demands, serial=2), device.outbox, device.audit.append)
    assert [older.keep(make_frame(), bundle=BUNDLE, at_s=t) for t in (900.0, 1004.9, 1009.9)] == [None] * 3
    assert older.keep(make_frame(), bundle=BUNDLE, at_s=1010.0) is not None  # the end is not covered
    assert older.pending() == [1]
    assert '"covered":[[900.0,1010.0]]' in (device.folder / "capture/ledger.json").read_text()


def test_many_demands_leave_a_short_ledger(device: Device) -> None:
    for i in range(MAX_SPANS_KNOWN + 3):
        device.store().erase(Erasure(id=f"r{i}", from_s=10.0 * i, to_s=10.0 * i + 1))
    newest = 10.0 * (MAX_SPANS_KNOWN + 2)
    store = device.store()
    assert store.keep(make_frame(), bundle=BUNDLE, at_s=newest) is None
    assert store.keep(make_frame(), bundle=BUNDLE, at_s=newest + 1) is not None
    assert len((device.folder / "capture/ledger.json").read_bytes()) < 32 * MAX_SPANS_KNOWN


def test_what_the_plan_still_demands_is_not_forgotten_to_be_done(device: Device) -> None:
    """However many came after it: else it would be carried out and told again and again."""
    store = device.store(Erasure(id="old", to_s=1.0))
    carry_out(store, device.outbox, device.audit.append)
    store.remember_erasures(f"r{i}" for i in range(MAX_ERASURES_KNOWN + 5))
    assert store.erasures_due() == []
    device.store().remember_erasures(f"s{i}" for i in range(MAX_ERASURES_KNOWN))
    assert [e.id for e in store.erasures_due()] == ["old"]  # of another plan meanwhile


def test_what_a_write_that_was_cut_off_left_is_erased_too(device: Device) -> None:
    device.keep(1)
    leftover = device.folder / "capture/.000000000001.sealed.abc.tmp"
    leftover.write_bytes(b"a sealed frame")
    carry_out(device.store(Erasure(id="r", to_s=9e9), serial=2), device.outbox, device.audit.append)
    assert not leftover.exists()


def test_a_loop_is_heard_while_it_erases(device: Device) -> None:
    device.keep(3)
    device.upload(0)
    beats: list[None] = []
    store = device.store(Erasure(id="r", to_s=9e9), serial=2)
    carry_out(store, device.outbox, device.audit.append, lambda: beats.append(None))
    assert len(beats) == 3  # two frames of the folder, one page of the outbox


def test_days_begin_when_the_clock_was_set(device: Device) -> None:
    """A device that starts in 1970 and hears the time later did not keep its frames for fifty years."""
    device.now = 10.0
    device.keep(3)
    limited = device.store(max_days=7)
    assert limited.spent() == (3, limited.spent()[1], None)  # type: ignore[index]
    device.now = NOW
    assert carry_out(limited, device.outbox, device.audit.append) == [] and limited.pending() == [0, 1, 2]
    device.now += 6.9 * DAY_S
    assert not limited.days_are_over()
    device.now += 0.2 * DAY_S
    assert len(carry_out(limited, device.outbox, device.audit.append)[0].items) == 3


def test_a_clock_that_was_ahead_extends_no_days(device: Device) -> None:
    device.now = 4e9
    limited = device.store(max_days=7)
    assert limited.keep(make_frame(), bundle=BUNDLE) is not None
    device.now = NOW
    assert not limited.days_are_over()
    device.now += 6 * DAY_S
    assert limited.keep(make_frame(1), bundle=BUNDLE) is not None
    device.now += 1.1 * DAY_S
    assert limited.days_are_over() and limited.keep(make_frame(2), bundle=BUNDLE) is None


def test_days_end_what_waits_in_the_outbox_too(device: Device) -> None:
    device.now = NOW
    device.keep(3)
    device.upload(0)
    device.outbox.append("stats", b"{}")
    limited = device.store(max_days=1)
    device.now += 1.1 * DAY_S
    (expired,) = carry_out(limited, device.outbox, device.audit.append)
    assert [s for s, _ in expired.items] == [0, 1, 2] and device.outbox.size().entries == 1
    assert carry_out(limited, device.outbox, device.audit.append) == []


def test_days_end_the_capture_and_what_still_waits(device: Device) -> None:
    device.now = NOW
    device.keep(3)
    device.now += 2 * DAY_S
    assert device.store().keep(make_frame(), bundle=BUNDLE)  # no limit without days
    limited = device.store(max_days=1.5)
    assert limited.keep(make_frame(), bundle=BUNDLE) is None and limited.remaining() == (0, 0)
    (expired,) = carry_out(limited, device.outbox, device.audit.append)
    assert len(expired.items) == 4 and limited.pending() == [] and device.told() == ["captures_expired"]
    assert carry_out(limited, device.outbox, device.audit.append) == []
    newer = device.store(max_days=1.5, serial=2)
    assert newer.keep(make_frame(), bundle=BUNDLE) is None  # the same budget is as old as it was
    fresh = device.store(max_days=1.5, serial=3, renewal=1)
    assert fresh.keep(make_frame(), bundle=BUNDLE) is not None and not fresh.days_are_over()


@pytest.mark.parametrize("lose", LOSSES)
def test_a_power_cut_at_any_moment_leaves_nothing_that_was_told_to_be_erased(tmp_path: Path, lose: Lose) -> None:
    """And the other way round: what is remembered as erased is gone, whatever was cut."""
    cut, cuts = 0, 0
    while True:
        cut += 1
        case = tmp_path / f"{cut}"
        attic = tmp_path / f"attic-{cut}"
        attic.mkdir()
        device = Device(case)
        device.keep(3)
        demand = Erasure(id="r", from_s=1000.0, to_s=1002.0)
        finished = False
        try:
            with use_disk(PowerDisk(attic, cut_after=cut, lose=lose, seed=cut)):
                erased = device.store(demand).erase(demand)
                device.store(demand).remember_erasures(["r"])
                finished = True
        except PowerCut:
            cuts += 1
        after = device.store(demand)
        if not after.erasures_due():
            assert after.pending() == [2]
        after.erase(demand)
        assert after.pending() == [2]
        if finished:
            assert len(erased.items) == 2
            break
    assert cuts >= 6


def test_an_erasure_has_an_end_after_its_beginning() -> None:
    with pytest.raises(ValidationError, match="not before"):
        Erasure(id="r", from_s=5.0, to_s=5.0)
    covers = Erasure(id="r", from_s=5.0, to_s=6.0).covers
    assert [covers("cam-1", t) for t in (4.9, 5.0, 5.9, 6.0)] == [False, True, True, False]


def test_frames_are_not_told_in_the_proof(device: Device) -> None:
    device.keep(1)
    frame = make_frame(0)
    (erased,) = carry_out(device.store(Erasure(id="r", to_s=9e9)), device.outbox, device.audit.append)
    text = (device.folder / "audit.log").read_text()
    assert sha256_hex(np.ascontiguousarray(frame).tobytes()) not in text and len(erased.items) == 1
