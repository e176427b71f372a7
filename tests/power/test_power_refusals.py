"""Disks that refuse, fill up, become read-only or take less than they are given, at every single operation.

After every one: only our errors got out, the promises of `worlds.promises` hold, and once the disk is well again the
device lives on. Real disks that are full or read-only are in test_power_full_disk.py.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds.disks import BrokenDisk, FullDisk, QuickDisk, ShortDisk, TightDisk
from worlds.lives import BAD, GOOD, REASON, Device, digest, run, store_at, with_bad_live, with_host
from worlds.promises import SCENES, BrokenPromiseError, Left, check_lives_on, check_update

from kasmina_edge.errors import BundleError, KasminaError, StorageError
from kasmina_edge.storage import Disk, SpaceReserve, require_free_space, use_disk

CODES = (errno.EIO, errno.ENOSPC, errno.EROFS)


@pytest.fixture(autouse=True)
def no_real_flush() -> Iterator[None]:
    with use_disk(QuickDisk()):
        yield


def refuse_everywhere(memory: Path, scene: str, make: Callable[[int], Disk], count: int, every: int = 1) -> int:
    """Live ``scene`` on a disk made for each number up to ``count``, and hold what is left against the promises.

    Raises:
        BrokenPromiseError: It names the number.
    """
    device = memory / "device"
    if not device.exists():
        SCENES[scene].prepare(device)
    done = 0
    for at in range(1, count + 1, every):
        one = memory / "one"
        shutil.copytree(device, one)
        told: list[str] = []
        try:
            with use_disk(make(at)):
                run(SCENES[scene].life(Device(one, outbox=None)), told.append)
        except KasminaError:  # nothing but our errors gets out
            pass
        try:
            left = Left(told, Device(one, outbox=None))
            SCENES[scene].check(left)
            check_lives_on(left)
        except (BrokenPromiseError, KasminaError) as exc:
            raise BrokenPromiseError(f"{scene}, refused at {at}, told {told}: {exc}") from exc
        shutil.rmtree(one)
        done += 1
    return done


def count_of(memory: Path, scene: str, disk: BrokenDisk | ShortDisk) -> int:
    SCENES[scene].prepare(memory / "device")
    shutil.copytree(memory / "device", memory / "whole")
    with use_disk(disk):
        run(SCENES[scene].life(Device(memory / "whole", outbox=None)), lambda word: None)
    return disk.count


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_every_refused_operation_of_an_agent(memory: Path, code: int, for_good: bool) -> None:
    """Every twelfth in the quick form; the others are in the slow one."""
    count = count_of(memory, "update", BrokenDisk(0))
    done = refuse_everywhere(memory, "update", lambda at: BrokenDisk(at, code, for_good=for_good), count, every=12)
    assert count >= 180 and done >= 15


@pytest.mark.soak
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("scene", ["update", "grow", "begin", "start", "decide", "refuse"])
def test_every_refused_operation(memory: Path, scene: str, code: int, for_good: bool) -> None:
    count = count_of(memory, scene, BrokenDisk(0))
    assert refuse_everywhere(memory, scene, lambda at: BrokenDisk(at, code, for_good=for_good), count) == count


def test_every_short_write(memory: Path) -> None:
    count = count_of(memory, "grow", ShortDisk(-1))
    assert refuse_everywhere(memory, "grow", ShortDisk, count) == count >= 15


class Careless(Disk):
    """Negative control: takes a part of a write and says that it took all, as a program without the loop would."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        super().write(fd, data[: max(1, len(data) // 2)])
        return len(data)


def test_a_short_write_that_nobody_notices_is_found(memory: Path) -> None:
    with pytest.raises(BrokenPromiseError):
        refuse_everywhere(memory, "decide", lambda at: Careless(), 1)


@pytest.mark.parametrize("free_bytes", [0, 1, 600, 5000, 20_000, 40_000])
def test_a_disk_that_fills_up_during_an_update(memory: Path, free_bytes: int) -> None:
    assert refuse_everywhere(memory, "update", lambda at: FullDisk(free_bytes), 1) == 1


# ------------------------------------------------------------------------------------------ a decision done again


def test_a_commit_whose_flush_was_refused_is_committed_by_doing_it_again(memory: Path) -> None:
    """The agent tries again a second later; before, the second call found nothing on trial and never ended."""
    SCENES["decide"].prepare(memory / "device")
    for at in range(1, 40):
        one = memory / "one"
        shutil.copytree(memory / "device", one)
        device = Device(one, outbox=None)
        device.store.begin_trial("b", tries=2)
        device.installer.go_live()
        disk = BrokenDisk(at)
        with use_disk(disk):
            try:
                device.installer.commit(GOOD.manifest)
                refused = False
            except StorageError:
                refused = True
        if refused:
            device.installer.commit(GOOD.manifest)
        assert device.store.record().active == "b" and device.trust.floor("digits") == 2
        shutil.rmtree(one)
        if disk.count < at:
            return
    raise AssertionError("the commit never came to its end")


def test_a_roll_back_whose_flush_was_refused_is_taken_back_by_doing_it_again(memory: Path) -> None:
    with_bad_live(memory / "device")
    for at in range(1, 40):
        one = memory / "one"
        shutil.copytree(memory / "device", one)
        device = Device(one, outbox=None)
        disk = BrokenDisk(at)
        with use_disk(disk):
            try:
                device.installer.take_back(BAD.manifest, REASON)
                refused = False
            except StorageError:
                refused = True
        if refused:
            device.installer.take_back(BAD.manifest, REASON)
        check_update(Left(["trial again", "live again", "rolled back"], device))
        shutil.rmtree(one)
        if disk.count < at:
            return
    raise AssertionError("the roll-back never came to its end")


def test_a_commit_of_something_else_is_still_refused(memory: Path) -> None:
    with_host(memory / "device")
    device = Device(memory / "device", outbox=None)
    with pytest.raises(KasminaError, match="no slot is on trial"):
        device.installer.commit(GOOD.manifest)


def test_a_roll_back_without_its_quarantine_takes_the_apps_off_and_is_finished_by_the_next_start(memory: Path) -> None:
    with_bad_live(memory / "device")
    device = Device(memory / "device", outbox=None)

    class NoQuarantine(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "quarantine.json":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rename(source, target)

    with use_disk(NoQuarantine()):
        for call in (lambda: device.store.roll_back(REASON), device.store.recover):
            with pytest.raises(StorageError, match=r"quarantine\.json"):
                call()
            record = device.store.record()
            assert (record.serving, record.trial, record.tries_left) == ("a", "b", 0)
            for refused in (device.store.go_live, device.store.confirm):
                with pytest.raises(KasminaError, match="slot b has failed its trial"):
                    refused()
    record = device.store.recover()
    assert record.trial is None and record.last_failure is not None and record.last_failure.reason == REASON
    assert device.store.quarantined(digest(BAD)) == REASON


def test_a_damaged_quarantine_does_not_keep_a_roll_back_from_ending(memory: Path) -> None:
    with_bad_live(memory / "device")
    device = Device(memory / "device", outbox=None)
    (memory / "device/quarantine.json").write_bytes(b"{")
    with pytest.raises(StorageError, match="damaged"):
        device.installer.take_back(BAD.manifest, REASON)
    device.installer.take_back(BAD.manifest, REASON)
    record = device.store.record()
    assert record.trial is None and record.last_failure is not None and record.last_failure.reason == REASON


# ------------------------------------------------------------------------------------------ room


def test_room_is_asked_for_before_a_download_with_both_numbers(memory: Path) -> None:
    with_host(memory / "device")
    device = Device(memory / "device", outbox=None)
    model = GOOD.manifest.models[0]
    device.installer.require_room(GOOD.manifest, model)
    with (
        use_disk(TightDisk(5000)),
        pytest.raises(StorageError, match=r"slots: \d{5,} bytes are needed and 5000 are free"),
    ):
        device.installer.require_room(GOOD.manifest, model)
    with pytest.raises(BundleError, match="no model"):
        device.store.require_room(GOOD.manifest, engine="onnxruntime")


def test_what_is_asked_for_before_a_download_is_enough_for_the_installation(memory: Path) -> None:
    """The number is no guess: with that many bytes an installation ends, whatever the blocks round up to."""
    with_host(memory / "device")
    store = store_at(memory / "device")
    with use_disk(TightDisk(0)), pytest.raises(StorageError) as told:
        store.require_room(GOOD.manifest, engine="litert")
    needed = int(told.value.message.split(": ")[1].split()[0])
    written = sum(len(data) for data in GOOD.files.values()) + len(GOOD.manifest.to_bytes())
    assert written < needed < written + 128 * 1024
    with use_disk(FullDisk(needed)):
        store.install(GOOD, engine="litert")
        store.begin_trial("b")
        store.confirm()


class FewFiles(Disk):
    """Says that few more files can be made."""

    def __init__(self, files: int | None) -> None:
        self._files = files

    def free_files(self, folder: Path) -> int | None:
        return self._files


def test_too_few_inodes_are_told_with_both_numbers_before_anything_is_written(memory: Path) -> None:
    with_host(memory / "device")
    store = store_at(memory / "device")
    with use_disk(FewFiles(3)), pytest.raises(StorageError, match=r"slots: \d+ files are needed and 3 can be made"):
        store.install(GOOD, engine="litert")
    assert not list((memory / "device/slots").glob(".incoming*")) and store.manifest("b") is None
    with use_disk(FewFiles(None)):  # btrfs, network file systems: no such number
        assert store.install(GOOD, engine="litert") == "b"
    with use_disk(FewFiles(5)):
        require_free_space(memory, 1, 5)


def test_a_reserve_makes_room_for_a_decision_once(memory: Path) -> None:
    reserve = SpaceReserve(memory / "reserve", 4096)
    with use_disk(FullDisk(0)):
        reserve.keep()
        assert not reserve.path.exists()
        with pytest.raises(StorageError, match="no space left"):
            reserve.write(memory / "x", b"decision")
    reserve.keep()
    assert reserve.path.stat().st_size == 4096
    reserve.keep()

    class UntilGivenUp(FullDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return super().write(fd, data) if reserve.path.exists() else os.write(fd, data)

    with use_disk(UntilGivenUp(0)):
        reserve.write(memory / "x", b"decision")
    assert (memory / "x").read_bytes() == b"decision" and not reserve.path.exists()
    reserve.keep()
    with use_disk(BrokenDisk(1)), pytest.raises(StorageError):
        reserve.write(memory / "x", b"other")
    assert reserve.path.exists()  # a disk that is broken, and not full, gives nothing up
