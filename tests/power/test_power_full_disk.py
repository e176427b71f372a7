"""Real disks that are full, have no inodes left, or were remounted read-only: a device on them serves and decides."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from worlds.bundles import digits
from worlds.ext4 import Ext4, NoMountError
from worlds.lives import BAD, GOOD, NEXT, REASON, Device, digest, store_at, with_bad_live, with_host
from worlds.promises import Left, check_lives_on, check_update

from kasmina_edge.agent.spool import Spool
from kasmina_edge.errors import LockedError, StorageError
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import RESERVE_FILE, SlotStore
from kasmina_edge.storage import Disk, hold_lock, open_lock, use_disk, write_durable
from kasmina_edge.telemetry.outbox import open_outbox


@pytest.fixture
def disk(memory: Path) -> Iterator[Path]:
    """A mounted ext4 of a few MB."""
    made = Ext4(memory, "disk")
    with ExitStack() as held:
        try:
            made.make()
            mount = held.enter_context(made.mounted())
        except NoMountError as exc:
            pytest.skip(f"NOT TESTED: no real full or read-only disk, because {exc}")
        with use_disk(Disk()):
            yield mount


def fill(mount: Path) -> None:
    """Take every byte and leave none."""
    with (mount / "ballast").open("wb", buffering=0) as stream:
        size = 1 << 16
        while size:
            try:
                stream.write(bytes(size))
                os.fsync(stream.fileno())
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                size //= 2
    for i in range(64):  # and what is left of the last blocks
        try:
            write_durable(mount / f"ballast-{i}", bytes(4096))
        except StorageError:
            return


def remount(mount: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(mount)], check=True, capture_output=True)


def test_a_full_disk_still_lets_a_harmful_update_be_taken_back(disk: Path) -> None:
    with_bad_live(disk / "data")
    fill(disk)
    device = Device(disk / "data", outbox=None)
    with pytest.raises(StorageError, match="no space left"):
        write_durable(disk / "data/other", bytes(4096))
    device.store.roll_back(REASON)
    check_update(Left(["trial again", "live again", "rolled back"], Device(disk / "data", outbox=None)))
    assert not (disk / "data" / RESERVE_FILE).exists()
    with pytest.raises(StorageError, match=r"bytes are needed and \d+ are free"):
        device.store.install(NEXT, engine="litert")
    (disk / "ballast").unlink()
    check_lives_on(Left([], device))
    assert (disk / "data" / RESERVE_FILE).exists()


def test_a_start_on_a_full_disk_counts_the_start_and_serves(disk: Path) -> None:
    with_bad_live(disk / "data")
    fill(disk)
    store = store_at(disk / "data")
    record = store.recover()
    assert (record.active, record.trial, record.tries_left, record.live) == ("a", "b", 1, False)
    assert store.recover().last_failure is not None  # and the second start ends the trial: no try is left
    assert store.quarantined(digest(BAD)) is not None


def test_without_the_reserve_a_start_on_a_full_disk_is_a_storage_error_and_still_serves(disk: Path) -> None:
    with_bad_live(disk / "data")
    (disk / "data" / RESERVE_FILE).unlink()
    fill(disk)
    store = store_at(disk / "data")
    with pytest.raises(StorageError, match="no space left") as told:
        store.recover()
    assert "Free space" in told.value.next_step
    assert store.record().active == "a" and store.active_bundle() is not None
    (disk / "ballast").unlink()
    assert store.recover().tries_left == 1


def test_a_disk_without_inodes(memory: Path) -> None:
    made = Ext4(memory, "inodes")
    try:
        made.make()
        with made.mounted() as mount:
            with_host(mount / "data")
            for i in range(2000):
                try:
                    (mount / f"ballast-{i}").touch()
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC
                    break
            store = store_at(mount / "data")
            with pytest.raises(StorageError, match=r"\d+ files are needed and 0 can be made"):
                store.install(GOOD, engine="litert")
            assert store.recover().active == "a"  # the reserve gives its inode as well
    except NoMountError as exc:
        pytest.skip(f"NOT TESTED: no disk without inodes, because {exc}")


def test_a_device_that_became_read_only_serves_and_says_why_it_decides_nothing(disk: Path) -> None:
    with_host(disk / "data")
    store_at(disk / "data").install(GOOD, engine="litert")
    with store_at(disk / "data").lock_slot("a"):  # the app's lock file is there
        pass
    remount(disk, "ro")
    try:
        store = SlotStore(disk / "data", lock_wait_s=0.0)
        assert store.record().active == "a" and store.active_bundle() is not None
        with store.lock_slot("a"), store.lock_slot("a"):
            pass
        for call in (store.recover, lambda: store.begin_trial("b"), lambda: store.install(NEXT, engine="litert")):
            with pytest.raises(StorageError, match="read-only"):
                call()
    finally:
        remount(disk, "rw")
    assert store.begin_trial("b").trial == "b"


def test_locks_hold_on_a_read_only_disk_and_need_their_file(disk: Path) -> None:
    open_lock(disk / "lock").close()
    remount(disk, "ro")
    try:
        with hold_lock(disk / "lock"), pytest.raises(LockedError):
            open_lock(disk / "lock", shared=True)
        with pytest.raises(StorageError, match="read-only"):
            open_lock(disk / "missing")
    finally:
        remount(disk, "rw")


@pytest.mark.parametrize("harm", ["full", "read-only"])
def test_an_app_answers_on_a_disk_that_takes_nothing_and_reports_once_it_does_again(disk: Path, harm: str) -> None:
    with_host(disk / "data")
    fill(disk) if harm == "full" else remount(disk, "ro")
    frame = digits()[0][0]
    with Runtime.open(disk / "data", profile="x86-cpu") as runtime:
        assert runtime.infer(frame).label is not None
        runtime.flush()
        assert runtime.infer(frame).label is not None
    (disk / "ballast").unlink() if harm == "full" else remount(disk, "rw")
    with Runtime.open(disk / "data", profile="x86-cpu") as runtime:
        runtime.infer(frame)
        assert runtime.flush()
    box = open_outbox(disk / "data")
    assert [entry.stream for entry in box.peek()] == ["stats"]
    box.close()


def test_an_outbox_in_memory_moves_to_the_disk_once_that_takes_it(disk: Path) -> None:
    with_host(disk / "data")
    remount(disk, "ro")
    spool = Spool(lambda: open_outbox(disk / "data"), lambda: 1.0)
    assert isinstance(spool.fault, StorageError) and disk not in spool.outbox.path.parents
    spool.outbox.append("event", b"one", priority=1)
    spool.outbox.append("stats", b"two")
    assert not spool.retry() and spool.outbox.size().entries == 2
    remount(disk, "rw")
    memory = spool.outbox.path.parent
    assert spool.retry() and spool.fault is None and not memory.exists()
    assert [(e.stream, e.payload) for e in spool.outbox.peek()] == [("event", b"one"), ("stats", b"two")]
    spool.close()
