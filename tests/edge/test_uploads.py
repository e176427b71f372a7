"""Captures on their way: few wait in the outbox, what can never fit is set aside, and erasures come first."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from worlds.telemetry import BUNDLE, Clock, make_frame, make_plan

from kasmina_edge.agent.uploads import MOST_IN_OUTBOX, RETRY_S, CaptureUploads
from kasmina_edge.contracts.change_plan import CaptureBudget, Erasure
from kasmina_edge.errors import StorageError
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.safety.encryption import public_hex
from kasmina_edge.telemetry.capture import CaptureStore, read_header
from kasmina_edge.telemetry.outbox import Outbox

BOX = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PEN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BUDGET = CaptureBudget(max_frames=500, max_bytes=10**8)


class Way:
    """A capture folder, an outbox and what brings captures from one to the other."""

    def __init__(self, folder: Path, *, outbox_bytes: int = 16 << 20, frames: int = 0) -> None:
        self.folder, self.now, self.beats = folder, 0.0, 0
        self.plan = make_plan(public_hex(BOX), capture=BUDGET)
        self.outbox = Outbox(folder / "outbox.db", max_bytes=outbox_bytes, clock=Clock())
        self.uploads = self.make(outbox_bytes)
        for i in range(frames):
            assert self.store().keep(make_frame(i), bundle=BUNDLE)

    def make(self, outbox_bytes: int = 16 << 20) -> CaptureUploads:
        audit = AuditLog(self.folder / "audit.log")
        return CaptureUploads(self.store, PEN, audit.append, self.beat, outbox_bytes, timer=lambda: self.now)

    def store(self) -> CaptureStore:
        return CaptureStore(self.folder / "capture", self.plan, "cam-1", Clock())

    def beat(self) -> None:
        self.beats += 1

    def waiting(self) -> list[int]:
        return [read_header(e.payload).sequence for e in self.outbox.newer(-1, 500, stream="capture")]

    def send(self, count: int) -> None:
        self.outbox.acknowledge([e.id for e in self.outbox.peek(count, 1 << 30, stream="capture")])


def test_few_wait_in_the_outbox_and_none_is_dropped(tmp_path: Path) -> None:
    way = Way(tmp_path, frames=MOST_IN_OUTBOX + 9)
    way.uploads.queue(way.outbox)
    assert way.waiting() == list(range(MOST_IN_OUTBOX)) and way.beats >= MOST_IN_OUTBOX
    way.uploads.queue(way.outbox)
    assert len(way.waiting()) == MOST_IN_OUTBOX
    way.send(4)
    way.uploads.queue(way.outbox)
    assert way.waiting() == list(range(4, MOST_IN_OUTBOX + 4))
    again = way.make()  # an agent that starts anew counts what an earlier one left
    again.queue(way.outbox)
    assert len(way.waiting()) == MOST_IN_OUTBOX and len(way.store().pending()) == 5
    way.send(MOST_IN_OUTBOX)
    again.queue(way.outbox)
    assert len(way.waiting()) == 5 and way.store().pending() == [] and way.outbox.dropped() == 0


def test_few_bytes_of_a_small_outbox_are_captures(tmp_path: Path) -> None:
    way = Way(tmp_path, outbox_bytes=20_000, frames=9)
    way.outbox.append("stats", b"{}")
    for _ in range(20):
        way.uploads.queue(way.outbox)
        assert sum(len(e.payload) for e in way.outbox.newer(-1, 500, stream="capture")) < 8_000
        way.send(1)
    assert way.store().pending() == [] and way.outbox.dropped() == 0


def test_what_can_never_fit_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    way = Way(tmp_path, outbox_bytes=4_000)
    assert way.store().keep(make_frame().repeat(8, axis=0), bundle=BUNDLE)
    assert way.store().keep(make_frame(), bundle=BUNDLE)
    way.uploads.queue(way.outbox)
    assert way.waiting() == [1] and way.store().pending() == []
    assert (tmp_path / "capture/000000000000.sealed.bad").exists()


def test_nothing_leaves_while_an_erasure_cannot_be_carried_out(tmp_path: Path) -> None:
    way = Way(tmp_path, frames=2)
    ledger = tmp_path / "capture/ledger.json"
    whole = ledger.read_bytes()
    ledger.write_bytes(bytes(100))
    way.plan = make_plan(public_hex(BOX), serial=2, capture=BUDGET, erasures=(Erasure(id="r", to_s=1.0),))
    with pytest.raises(StorageError, match=r"ledger\.json"):
        way.uploads.erase(way.outbox)
    for way.now in (0.1, RETRY_S - 0.1):
        way.uploads.erase(way.outbox)  # told once, not with every round
        way.uploads.queue(way.outbox)
    assert way.waiting() == [] and way.store().pending() == [0, 1]
    way.now = RETRY_S
    with pytest.raises(StorageError):
        way.uploads.erase(way.outbox)
    ledger.write_bytes(whole)
    way.now = 2 * RETRY_S
    way.uploads.erase(way.outbox)
    way.uploads.queue(way.outbox)
    assert way.waiting() == [0, 1] and way.store().erasures_due() == []
