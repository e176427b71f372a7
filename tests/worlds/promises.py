"""What holds after any cut of the lives of `worlds.lives`.

`Left` is what a new process finds; a check raises `BrokenPromiseError` for the first thing that was told and is not so,
or for a device that would not boot. A scene is a device to begin with, a life, and its check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worlds.lives import (
    BAD,
    GOOD,
    HOST,
    NEXT,
    REASON,
    TOLD_QUARANTINE,
    Device,
    Life,
    begin,
    decide,
    digest,
    go_back,
    grow,
    interrupted,
    listen,
    nothing,
    refuse,
    start,
    update,
    with_bad_live,
    with_both,
    with_good_installed,
    with_host,
    with_plan,
    with_rotten_active,
)
from worlds.telemetry import Clock

from kasmina_edge.errors import KasminaError
from kasmina_edge.safety.audit import tail, verify
from kasmina_edge.slots import BootRecord
from kasmina_edge.telemetry.outbox import Outbox


class BrokenPromiseError(AssertionError):
    """A promise that the device did not keep."""


@dataclass
class Left:
    """What a cut left: the words that were told, and the device that a new process finds.

    Attributes:
        starts: How many agent starts were begun after the life that told; an interrupted trial may be over then.
        refused: Steps were refused and done again, so that a trial that was told may have been a write in doubt.
    """

    told: list[str]
    device: Device
    starts: int = 0
    refused: bool = False
    record: BootRecord = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.record = self.device.store.record()
        except KasminaError as exc:
            raise BrokenPromiseError(f"no boot record: {exc.message}") from exc


Check = Callable[[Left], None]


def promise(kept: bool, words: str) -> None:
    if not kept:
        raise BrokenPromiseError(words)


def check_bootable(left: Left) -> None:
    """What holds after every cut, whatever was going on: whatever the record names is whole, and the log verifies."""
    for slot in (left.record.active, left.record.trial, left.record.previous):
        if slot is not None:
            try:
                left.device.store.bundle(slot)
            except KasminaError as exc:
                raise BrokenPromiseError(f"the record names slot {slot}, and {exc.message}") from exc
    try:
        report = verify(left.device.folder / "audit.log")
    except KasminaError as exc:
        raise BrokenPromiseError(f"audit log: {exc.message}") from exc
    promise(report.ok, f"audit log: {report.reason}")


def check_beginning(left: Left) -> None:
    check_bootable(left)
    promise(left.record.active is not None or "committed" not in left.told, "committed was told, and no slot is active")


def check_update(left: Left) -> None:
    """`grow`, `decide`, `refuse` and `update`: what was told is on the disk, and nothing later is there yet."""
    check_bootable(left)
    told, record, store = set(left.told), left.record, left.device.store
    promise(record.active is not None, "no active slot")
    assert record.active is not None
    now = digest(store.bundle(record.active))
    promise(now in (digest(HOST), digest(GOOD)), "the harmful bundle is active")
    promise("committed" not in told or now == digest(GOOD), "committed was told, and the graft is not active")
    promise("live" in told or now == digest(HOST), "another bundle than the host is active before confirm was called")
    open_trial = ("trial" in told and "live" not in told) or ("trial again" in told and "rolled back" not in told)
    if open_trial and not left.starts and not left.refused:
        waits = record.trial is not None or "live again" in told or store.quarantined(digest(BAD)) is not None
        promise(waits, "trial was told, and the record does not say so")
    if record.trial is not None:
        on_trial = digest(store.bundle(record.trial))
        promise(on_trial in (digest(GOOD), digest(BAD)), "something else is on trial")
        may_wait = record.tries_left > 0 or record.last_failure is not None or bool(left.starts)
        promise(may_wait, "a trial without a try and without a failure")
    if "rolled back" in told:
        reason = record.last_failure.reason if record.last_failure else "none"
        promise(reason == REASON, f"the reason of the roll-back is lost: {reason}")
        promise(store.quarantined(digest(BAD)) == REASON, "the quarantine is lost")
        promise(record.trial is None, "rolled back was told, and the trial goes on")
    if "quarantined" in told:
        promise(store.quarantined(TOLD_QUARANTINE) is not None, "quarantined was told, and it is not")


def check_whole_device(left: Left) -> None:
    """`update`: also the floor, the log's entries, the outbox and the captured frame."""
    check_update(left)
    told, device = set(left.told), left.device
    assert left.record.active is not None
    active = device.store.bundle(left.record.active).manifest
    floor = device.trust.floor(active.name)
    promise(floor <= active.release, f"the floor is {floor}, above the active release {active.release}")
    promise("committed" not in told or floor == 2, f"committed was told, and the floor is {floor}")
    events = [e.event for e in tail(device.folder / "audit.log", 99)]
    for word, event in (("audit", "before"), ("committed", "committed"), ("rolled back", "rolled_back"),
                        ("audit again", "after")):  # fmt: skip
        promise(word not in told or event in events, f"{word} was told, and the log lacks {event}")
    if "kept" in told:
        try:
            kept = device.capture.pending()
            promise(bool(kept) and (left.refused or kept == [0]), "the captured frame is lost")
            device.capture.payload(kept[-1])
        except KasminaError as exc:
            raise BrokenPromiseError(f"the captured frame: {exc.message}") from exc
    if device.has_outbox:
        outbox = Outbox(device.folder / "outbox.db", clock=Clock())
        there = [e.payload for e in outbox.peek(99)]
        outbox.close()
        promise("sent" not in told or b"first" in there, "sent was told, and the outbox lacks it")
        promise("sent again" not in told or b"second" in there, "sent again was told, and the outbox lacks it")
        promise(outbox.damaged() == 0, "the outbox was damaged")


def check_recovery(left: Left) -> None:
    """`start` on an interrupted device: the host stays, and the trial is over once that was told."""
    check_bootable(left)
    assert left.record.active is not None
    promise(digest(left.device.store.bundle(left.record.active)) == digest(HOST), "the active bundle changed")
    if "started" in left.told:
        promise(left.record.trial is None, "started was told, and the trial goes on")
        promise(left.device.store.quarantined(digest(BAD)) is not None, "the trial ended without a quarantine")


def check_repair(left: Left) -> None:
    """`start` with a rotten active slot: the whole previous one is not touched, and serves once the start was told."""
    store, record = left.device.store, left.record
    promise(digest(store.bundle("a")) == digest(HOST), "the whole slot was touched")
    if "started" in left.told:
        promise(record.active == "a" and record.previous is None, "started was told, and the rotten slot is active")
        promise(record.last_failure is not None, "the reason for leaving the slot is lost")


def check_return(left: Left) -> None:
    """`go_back`: the host or the graft, as told."""
    check_bootable(left)
    store, record = left.device.store, left.record
    assert record.active is not None
    wanted = ("a",) if "returned" in left.told else ("a", "b")
    promise(record.active in wanted, f"told {left.told}, and slot {record.active} is active")
    promise(digest(store.bundle("a")) == digest(HOST) and digest(store.bundle("b")) == digest(GOOD), "a slot changed")
    quarantined = store.quarantined(TOLD_QUARANTINE) is not None
    promise("released" not in left.told or not quarantined, "released was told, and it is quarantined")
    promise("returned" in left.told or quarantined, "released before it was asked for")


def check_trust(left: Left) -> None:
    """`listen`: a plan is one that was accepted, or none; what only rises did not fall."""
    check_bootable(left)
    trust, told = left.device.trust, set(left.told)
    plan = trust.plan()
    promise(plan is None or plan.serial in (1, 2), "a plan that nobody accepted")
    if "plan" in told:
        promise(plan is None or plan.serial == 2, "plan was told, and an older one is in force")
        promise("floor" in told or plan is not None, "plan was told, and none is in force")
    promise("withdrawn" not in told or plan is None, "withdrawn was told, and the plan is in force")
    promise(trust.floor("digits") >= (5 if "floor" in told else 1), "the floor fell")


def check_lives_on(left: Left, *, update: bool = True) -> None:
    """After a start: no leftovers, floor and log in step with the active slot; with ``update``, a whole one works."""
    device, folder = left.device, left.device.folder
    record = device.start()
    names = {p.name for p in (folder / "slots").iterdir()} - {"a.lock", "b.lock", "install.lock"}
    torn = [p for where in (folder, folder / "hosts", folder / "trust") for p in where.glob(".*.tmp")]
    torn = [p for p in torn if not p.name.startswith(".audit")]  # the log removes its own with the next entry
    promise(names <= {"a", "b"} and not torn, f"leftovers: {sorted(names)} {torn}")
    if record.trial is not None:
        promise(not record.live and record.tries_left > 0, "a trial came back live, or without a try")
        manifest = device.store.manifest(record.trial)
        assert manifest is not None
        device.installer.commit(manifest)
        record = device.store.record()
    if record.active is not None:
        active = device.store.bundle(record.active).manifest
        promise(device.trust.floor(active.name) >= active.release, "the floor was not raised at the start")
    if update:
        slot = device.store.install(NEXT, engine="litert")
        promise(slot != record.active, "the active slot was overwritten")
        device.store.begin_trial(slot)
        device.installer.commit(NEXT.manifest)
        device.send(b"goes on")
    report = verify(folder / "audit.log")
    promise(report.ok, f"audit log after the next entry: {report.reason}")


@dataclass(frozen=True)
class Scene:
    """A device to begin with, what happens on it, and what must hold after a cut."""

    prepare: Callable[[Path], None]
    life: Life
    check: Check


SCENES = {
    "grow": Scene(with_host, grow, check_update),
    "begin": Scene(nothing, begin, check_beginning),
    "start": Scene(interrupted, start, check_recovery),
    "decide": Scene(with_good_installed, decide, check_update),
    "refuse": Scene(with_bad_live, refuse, check_update),
    "go back": Scene(with_both, go_back, check_return),
    "repair": Scene(with_rotten_active, start, check_repair),
    "listen": Scene(with_plan, listen, check_trust),
    "update": Scene(with_host, update, check_whole_device),
}
