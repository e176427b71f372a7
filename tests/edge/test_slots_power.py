"""The power goes after every single disk operation: a bootable slot is always there, and success is never a lie."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from worlds.bundles import make_bundle, make_graft
from worlds.disks import LOSSES, Lose, PowerCut, PowerDisk, QuickDisk

from kasmina_edge.bundle import Bundle, read_folder, write_folder
from kasmina_edge.errors import KasminaError
from kasmina_edge.slots import BootRecord, Slot, SlotStore
from kasmina_edge.storage import remove_tree, use_disk


def light(version: str, release: int, **kind: Any) -> Bundle:
    """One engine, no probes, a bit of metadata: few files, so that few operations are needed."""
    made = make_bundle(version=version, release=release, probes=0, engines=("litert",), **kind)
    return Bundle(made.manifest, made.files, {"1.root.json": b"{}" * 40})


HOST = light("1.0.0", 1)
GOOD = light("1.1.0", 2, seed=1, grafts=(make_graft(),), parent=HOST)
BAD = light("1.2.0", 3, seed=2, corrupt=True, grafts=(make_graft(),), parent=HOST)
NEXT = light("2.0.0", 9, seed=9)
REASON = "reference probes 12.0 %, plan asks 95 %"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a file system in memory where there is one: thousands of small files, and no disk to wear."""
    base = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=base if os.access(base, os.W_OK) else None) as folder:
        yield Path(folder)


Steps = Callable[[SlotStore], Iterator[str]]


def digest(bundle: Bundle) -> str:
    return bundle.manifest.content_digest()


def store_at(folder: Path) -> SlotStore:
    return SlotStore(folder, clock=lambda: 1.0, lock_wait_s=0.0)


def with_host(folder: Path) -> None:
    """A device that runs the host, confirmed."""
    store = store_at(folder)
    store.recover()
    store.begin_trial(store.install(HOST, engine="litert"))
    store.confirm()


def grow(store: SlotStore) -> Iterator[str]:
    """An update that is good, and one that does harm; each step is told when its call has returned."""
    slot = store.install(GOOD, engine="litert")
    yield "installed"
    store.begin_trial(slot)
    yield "trial"
    store.go_live()
    yield "live"
    store.confirm()
    yield "confirmed"
    slot = store.install(BAD, engine="litert")
    yield "installed again"
    store.begin_trial(slot, tries=2)
    yield "trial again"
    store.roll_back(REASON)
    yield "rolled back"


def begin(store: SlotStore) -> Iterator[str]:
    """The first bundle of a new device."""
    slot = store.install(HOST, engine="litert")
    yield "installed"
    store.begin_trial(slot)
    yield "trial"
    store.confirm()
    yield "confirmed"


def recover(store: SlotStore) -> Iterator[str]:
    """An agent's start."""
    store.recover()
    yield "recovered"


def interrupted(folder: Path) -> None:
    """A trial without tries left, an installation that stopped, a slot that was not removed, torn temporaries."""
    with_host(folder)
    store = store_at(folder)
    store.begin_trial(store.install(BAD, engine="litert"))
    write_folder(GOOD, folder / "slots/.incoming-77", engine="litert")
    write_folder(GOOD, folder / "slots/.old-b-77", engine="litert")
    (folder / ".boot-0.77-1.tmp").write_bytes(b"torn")


@dataclass
class Left:
    """What one cut left: how far the calls had returned, and the record that a new process reads."""

    told: list[str]
    store: SlotStore
    record: BootRecord


class BrokenPromiseError(AssertionError):
    """A promise that the slots did not keep."""


def check_bootable(left: Left, *, may_be_empty: bool) -> None:
    """What holds after every cut, whatever was going on."""
    record = left.record
    if record.active is None and not may_be_empty:
        raise BrokenPromiseError("no active slot")
    for slot in (record.active, record.trial, record.previous):
        if slot is not None:
            try:
                left.store.bundle(slot)
            except KasminaError as exc:
                raise BrokenPromiseError(f"the record names slot {slot}, and {exc.message}") from exc


def active_digest(store: SlotStore, record: BootRecord) -> str | None:
    return digest(store.bundle(record.active)) if record.active else None


def check_growth(left: Left) -> None:
    """`grow`: nothing that was told is untrue on the disk, and nothing later is there yet."""
    check_bootable(left, may_be_empty=False)
    told, record = set(left.told), left.record
    now = active_digest(left.store, record)
    if "confirmed" in told and now != digest(GOOD):
        raise BrokenPromiseError("confirmed was told, and the graft is not active")
    if "live" not in told and now != digest(HOST):
        raise BrokenPromiseError("another bundle than the host is active before confirm was called")
    if now not in (digest(HOST), digest(GOOD)):
        raise BrokenPromiseError("the harmful bundle is active")
    if {"trial", "trial again"} & told and not {"live", "rolled back"} & told and record.trial is None:
        raise BrokenPromiseError("trial was told, and the record does not say so")
    if "rolled back" in told:
        if record.last_failure is None or record.last_failure.reason != REASON:
            raise BrokenPromiseError("the reason of the roll-back is lost")
        if left.store.quarantined(digest(BAD)) != REASON:
            raise BrokenPromiseError("the quarantine is lost")
        if record.trial is not None:
            raise BrokenPromiseError("rolled back was told, and the trial goes on")
    if record.trial is not None and digest(left.store.bundle(record.trial)) not in (digest(GOOD), digest(BAD)):
        raise BrokenPromiseError("something else is on trial")


def check_beginning(left: Left) -> None:
    check_bootable(left, may_be_empty="confirmed" not in left.told)


def check_recovery(left: Left) -> None:
    check_bootable(left, may_be_empty=False)
    if active_digest(left.store, left.record) != digest(HOST):
        raise BrokenPromiseError("the active bundle changed")
    if "recovered" in left.told and (left.record.trial is not None or left.store.quarantined(digest(BAD)) is None):
        raise BrokenPromiseError("recovered was told, and the trial goes on")


def check_lives_on(left: Left, folder: Path) -> None:
    """After a start, no leftovers; and a whole update works on what the cut left."""
    store = left.store
    record = store.recover()
    names = {p.name for p in (folder / "slots").iterdir()} - {"a.lock", "b.lock", "install.lock"}
    if not names <= {"a", "b"} or list(folder.glob(".*.tmp")):
        raise BrokenPromiseError(f"leftovers: {sorted(names)} {list(folder.glob('.*.tmp'))}")
    if record.trial is not None:
        record = store.confirm()
    before = record.active
    slot = store.install(NEXT, engine="litert")
    if slot == before:
        raise BrokenPromiseError("the active slot was overwritten")
    store.begin_trial(slot)
    store.confirm()


def cut(
    folder: Path,
    device: Path,
    steps: Steps,
    after: int | None,
    lose: Lose,
    make: Callable[[Path], SlotStore] = store_at,
    kind: type[PowerDisk] = PowerDisk,
) -> tuple[Left | None, PowerDisk]:
    """Run ``steps`` on a copy of ``device`` until the power goes, and open it again; None when it did not go."""
    data, attic = folder / "data", folder / "attic"
    attic.mkdir(parents=True)
    shutil.copytree(device, data)
    disk = kind(attic, after, lose, seed=after or 0)
    told: list[str] = []
    try:
        with use_disk(disk):
            for word in steps(make(data)):
                told.append(word)
    except PowerCut:
        store = store_at(data)
        return Left(told, store, store.record()), disk
    return None, disk


def nothing(folder: Path) -> None:
    folder.mkdir()


SCENES: dict[str, tuple[Callable[[Path], None], Steps, Callable[[Left], None]]] = {
    "grow": (with_host, grow, check_growth),
    "begin": (nothing, begin, check_beginning),
    "recover": (interrupted, recover, check_recovery),
}


def cut_everywhere(
    folder: Path,
    scene: str,
    lose: Lose,
    *,
    make: Callable[[Path], SlotStore] = store_at,
    kind: type[PowerDisk] = PowerDisk,
) -> int:
    """Cut after every single operation of a scene; how many cuts there were.

    Raises:
        BrokenPromiseError: A promise was not kept; the message names the operation.
    """
    prepare, steps, check = SCENES[scene]
    device = folder / "device"
    with use_disk(QuickDisk()):
        prepare(device)
    _, whole = cut(folder / "whole", device, steps, None, lose, make, kind)
    count = len(whole.operations)
    for after in range(1, count + 1):
        one = folder / "one"
        with use_disk(QuickDisk()):
            try:
                left, _ = cut(one, device, steps, after, lose, make, kind)
                assert left is not None
                check(left)
                check_lives_on(left, one / "data")
            except (BrokenPromiseError, KasminaError) as exc:
                raise BrokenPromiseError(
                    f"cut after operation {after} of {count} ({whole.operations[after - 1]}): {exc}"
                ) from exc
        shutil.rmtree(one)
    return count


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("lose", LOSSES)
def test_every_cut_leaves_a_bootable_slot_and_no_false_success(memory: Path, scene: str, lose: Lose) -> None:
    assert cut_everywhere(memory, scene, lose) >= 20


class InPlace(SlotStore):
    """Negative control: writes into the slot instead of renaming a whole folder into place."""

    def _put_into(self, slot: Slot, incoming: Path) -> None:
        whole = read_folder(incoming)
        remove_tree(self.folder(slot))
        write_folder(whole, self.folder(slot))
        remove_tree(incoming)


class Forgetting(SlotStore):
    """Negative control: does not take the slot out of the records before it is replaced."""

    def _is_released(self, slot: Slot) -> bool:
        return True


class Lazy(PowerDisk):
    """Negative control: a program that never calls fsync."""

    def fsync(self, fd: int) -> None:
        self._need_power()


@pytest.mark.parametrize("variant", [InPlace, Forgetting])
def test_without_the_discipline_a_killed_process_breaks_a_promise(memory: Path, variant: type[SlotStore]) -> None:
    with pytest.raises(BrokenPromiseError, match="the record names slot a"):
        cut_everywhere(
            memory, "grow", "nothing", make=lambda folder: variant(folder, clock=lambda: 1.0, lock_wait_s=0.0)
        )


@pytest.mark.parametrize("lose", ["everything", "contents", "some"])
def test_without_fsync_a_power_cut_breaks_a_promise(memory: Path, lose: Lose) -> None:
    with pytest.raises(BrokenPromiseError):
        cut_everywhere(memory, "grow", lose, kind=Lazy)


def test_without_fsync_a_killed_process_breaks_nothing(memory: Path) -> None:
    assert cut_everywhere(memory, "recover", "nothing", kind=Lazy) > 5
