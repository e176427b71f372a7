"""The power goes after every single disk operation: a bootable slot is always there, and success is never a lie.

The disk is a model (`worlds.disks.PowerDisk`) that loses exactly what was not flushed, four ways. Cuts come once, twice
(the second while the agent recovers), and after an operation that the disk refused. Points are found by counting.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds.disks import LOSSES, Lose, PowerCut, PowerDisk, QuickDisk
from worlds.lives import (
    BAD,
    Device,
    Life,
    Step,
    decide,
    digest,
    hasty,
    run,
    start,
    store_at,
    with_good_installed,
    with_host,
)
from worlds.promises import SCENES, BrokenPromiseError, Left, check_lives_on

from kasmina_edge.boot_record import BootRecord, decode_record
from kasmina_edge.bundle import read_folder, write_folder
from kasmina_edge.errors import KasminaError
from kasmina_edge.slots import RECORD_FILES, Slot, SlotStore
from kasmina_edge.storage import remove_tree, use_disk

pytestmark = pytest.mark.untraced
LOST: tuple[Lose, ...] = ("everything", "contents", "some")


@pytest.fixture(autouse=True)
def no_real_flush() -> Iterator[None]:
    """What prepares and checks a device cuts no power."""
    with use_disk(QuickDisk()):
        yield


def device_at(folder: Path, make: Callable[[Path], SlotStore] = store_at) -> Device:
    return Device(folder, make, outbox=None)  # SQLite does not write through the seam; it has real cuts


def cut(
    data: Path,
    attic: Path,
    life: Life,
    after: int | None,
    lose: Lose,
    *,
    make: Callable[[Path], SlotStore] = store_at,
    kind: type[PowerDisk] = PowerDisk,
    refuse_at: int | None = None,
) -> tuple[list[str], PowerDisk, bool]:
    """Live on ``data`` until the power goes, at the latest after the last word: what was told, the disk, and whether it
    went before.
    """
    attic.mkdir(parents=True)
    disk = kind(attic, after, lose, seed=after or 0, refuse_at=refuse_at)
    told: list[str] = []
    try:
        with use_disk(disk):
            run(life(device_at(data, make)), told.append, stubborn=refuse_at is not None)
    except PowerCut:
        return told, disk, True
    disk.power_off()
    return told, disk, False


def prepared(memory: Path, prepare: Callable[[Path], None]) -> Path:
    folder = memory / "device"
    prepare(folder)
    return folder


def settled(left: Left, check: Callable[[Left], None], where: str, *, update: bool = True) -> None:
    """The scene's promises, and that the device lives on, with another whole update or only with a start.

    Raises:
        BrokenPromiseError: It names the operation.
    """
    try:
        check(left)
        check_lives_on(left, update=update)
    except (BrokenPromiseError, KasminaError) as exc:
        raise BrokenPromiseError(f"{where}: {exc}") from exc


def cut_everywhere(
    memory: Path,
    scene: str,
    lose: Lose,
    *,
    make: Callable[[Path], SlotStore] = store_at,
    kind: type[PowerDisk] = PowerDisk,
    life: Life | None = None,
    every: int = 1,
    first: int = 1,
    updates: int = 1,
) -> int:
    """Cut after every (``every``-th) operation of a scene; how many cuts there were.

    After every one the device starts again; after each ``updates``-th it also takes another whole update.

    Raises:
        BrokenPromiseError: A promise was not kept; the message names the operation.
    """
    prepare, life, check = SCENES[scene].prepare, life or SCENES[scene].life, SCENES[scene].check
    device = prepared(memory, prepare)
    whole = memory / "whole"
    shutil.copytree(device, whole)
    told, disk, went = cut(whole, memory / "attic", life, None, lose, make=make, kind=kind)
    assert not went and told == [word for word, _ in life(device_at(whole, make))]
    settled(Left(told, device_at(whole)), check, "cut after the last word")
    count = len(disk.operations)
    done = 1
    for after in range(first, count + 1, every):
        one = memory / "one"
        shutil.copytree(device, one / "data")
        told, _, went = cut(one / "data", one / "attic", life, after, lose, make=make, kind=kind)
        assert went
        where = f"cut after operation {after} of {count} ({disk.operations[after - 1]})"
        settled(Left(told, device_at(one / "data")), check, where, update=done % updates == 0)
        shutil.rmtree(one)
        done += 1
    return done


@pytest.mark.parametrize("scene", [name for name in SCENES if name != "update"])
@pytest.mark.parametrize("lose", LOSSES)
def test_every_cut_leaves_a_bootable_slot_and_no_false_success(memory: Path, scene: str, lose: Lose) -> None:
    every = 1 if scene != "grow" else 2 if lose == "everything" else 3  # the slow form has them all
    assert cut_everywhere(memory, scene, lose, every=every, updates=4) >= 7


@pytest.mark.parametrize("lose", LOSSES)
def test_a_cut_of_all_that_an_agent_does(memory: Path, lose: Lose) -> None:
    """Every ninth point, from another one in each way to lose; all of them are in the slow form below."""
    assert cut_everywhere(memory, "update", lose, every=9, first=1 + 2 * LOSSES.index(lose), updates=3) >= 22


@pytest.mark.soak
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("lose", LOSSES)
def test_every_cut_of_all_that_an_agent_does(memory: Path, scene: str, lose: Lose) -> None:
    assert cut_everywhere(memory, scene, lose) >= {"update": 200, "grow": 120}.get(scene, 7)


# ------------------------------------------------------------------------------------------ the second cut


def cut_twice(
    memory: Path, scene: str, lose: Lose, *, firsts: int | None = None, one_second: bool = False, updates: int = 1
) -> int:
    """Cut a scene, then cut the agent's start after it; how many pairs there were.

    Args:
        firsts: How many points of the scene, drawn with a seed; None takes them all.
        one_second: One point of the start for each, drawn with a seed, instead of all.

    Raises:
        BrokenPromiseError: The message names both operations.
    """
    prepare, life, check = SCENES[scene].prepare, SCENES[scene].life, SCENES[scene].check
    device = prepared(memory, prepare)
    shutil.copytree(device, memory / "whole")
    count = len(cut(memory / "whole", memory / "attic", life, None, lose)[1].operations)
    rng = random.Random(f"{scene} {lose}")
    points = range(1, count + 1)
    done = 0
    for first in points if firsts is None else sorted(rng.sample(points, min(firsts, count))):
        one = memory / "one"
        shutil.copytree(device, one / "data")
        told, disk, _ = cut(one / "data", one / "attic", life, first, lose)
        shutil.copytree(one / "data", one / "whole")
        starts = len(cut(one / "whole", one / "attic of the start", start, None, lose)[1].operations)
        seconds = [rng.randint(1, starts)] if one_second else range(1, starts + 1)
        for second in seconds:
            two = memory / "two"
            shutil.copytree(one / "data", two / "data")
            _, again, went = cut(two / "data", two / "attic", start, second, lose)
            assert went
            where = (
                f"cut after operation {first} of {count} ({disk.operations[-1]}), then of the start after {second} of "
                f"{starts} ({again.operations[-1]})"
            )
            left = Left(told, device_at(two / "data"), starts=1)
            settled(left, check, where, update=done % updates == 0)
            shutil.rmtree(two)
            done += 1
        shutil.rmtree(one)
    return done


@pytest.mark.parametrize("scene", ["grow", "start", "decide", "refuse"])
@pytest.mark.parametrize("lose", LOST)
def test_a_second_cut_while_the_device_recovers(memory: Path, scene: str, lose: Lose) -> None:
    assert cut_twice(memory, scene, lose, firsts=15, one_second=True, updates=4) >= 15


@pytest.mark.soak
@pytest.mark.parametrize("scene", ["start", "decide", "refuse"])
@pytest.mark.parametrize("lose", LOST)
def test_every_pair_of_cuts(memory: Path, scene: str, lose: Lose) -> None:
    assert cut_twice(memory, scene, lose) >= 100


@pytest.mark.soak
@pytest.mark.parametrize("scene", ["grow", "update"])
@pytest.mark.parametrize("lose", LOST)
def test_every_second_cut_after_many_first_ones(memory: Path, scene: str, lose: Lose) -> None:
    assert cut_twice(memory, scene, lose, firsts=40) >= 300


# ------------------------------------------------------------------------------------------ a refusal, then a cut


def refuse_then_cut(
    memory: Path, scene: str, lose: Lose, *, sample: int | None, life: Life | None = None, updates: int = 1
) -> int:
    """Refuse one operation, let the step be done again as an agent does, and cut at any later point; how many pairs.

    What a refused fsync should have flushed is lost by the cut unless it was written again.
    """
    prepare, check = SCENES[scene].prepare, SCENES[scene].check
    life = life or SCENES[scene].life
    device = prepared(memory, prepare)
    shutil.copytree(device, memory / "whole")
    count = len(cut(memory / "whole", memory / "attic", life, None, lose)[1].operations)
    rng = random.Random(f"refuse {scene} {lose}")
    done = 0
    for refused in range(1, count + 1):
        one = memory / "one"
        shutil.copytree(device, one / "data")
        told, disk, _ = cut(one / "data", one / "attic", life, None, lose, refuse_at=refused)
        left = Left(told, device_at(one / "data"), refused=True)
        where = f"operation {refused} of {count} refused, then cut after the last word"
        settled(left, check, where, update=done % updates == 0)
        total = len(disk.operations)
        cuts = range(refused, total + 1)
        if sample is not None:
            cuts = sorted(rng.sample(cuts, min(sample, len(cuts))))  # type: ignore[assignment]
        for after in cuts:
            two = memory / "two"
            shutil.copytree(device, two / "data")
            told, again, went = cut(two / "data", two / "attic", life, after, lose, refuse_at=refused)
            if went:  # what cleans up takes another number of operations now and then
                where = f"operation {refused} of {count} refused, then cut after {after} ({again.operations[-1]})"
                left = Left(told, device_at(two / "data"), refused=True)
                settled(left, check, where, update=done % updates == 0)
                done += 1
            shutil.rmtree(two)
        shutil.rmtree(one)
    return done


@pytest.mark.parametrize("scene", ["decide", "refuse"])
@pytest.mark.parametrize("lose", ["everything"])
def test_a_decision_that_was_refused_half_way_is_made_whole_or_not_told(memory: Path, scene: str, lose: Lose) -> None:
    assert refuse_then_cut(memory, scene, lose, sample=1, updates=4) >= 20


@pytest.mark.soak
@pytest.mark.parametrize(("scene", "sample"), [("update", 1), ("decide", None), ("refuse", None)])
@pytest.mark.parametrize("lose", LOST)
def test_every_refusal_before_every_cut(memory: Path, scene: str, sample: int | None, lose: Lose) -> None:
    assert refuse_then_cut(memory, scene, lose, sample=sample) >= 100


def test_a_start_between_the_commit_and_the_floor_raises_the_floor(memory: Path) -> None:
    """The one pair of files that a commit changes: the boot record first, the floor second, never the other way."""
    device = prepared(memory, with_good_installed)
    between = 0
    for after in range(1, 40):
        one = memory / "one"
        shutil.copytree(device, one / "data")
        _, _, went = cut(one / "data", one / "attic", decide, after, "everything")
        left = device_at(one / "data")
        record = left.store.record()
        if record.active == "b" and left.trust.floor("digits") == 1:
            between += 1
            left.start()
            assert left.trust.floor("digits") == 2
        shutil.rmtree(one)
        if not went:
            break
    assert between >= 3


def test_no_copy_of_the_record_names_a_slot_that_was_replaced(memory: Path) -> None:
    """Neither copy, so that the other may rot: also when the flush that let go of the slot was refused before."""

    def install(device: Device) -> list[Step]:
        return [("installed", lambda: device.store.install(BAD, engine="litert"))]

    device = prepared(memory, SCENES["go back"].prepare)
    shutil.copytree(device, memory / "whole")
    count = len(cut(memory / "whole", memory / "attic", install, None, "everything")[1].operations)
    assert count > 50
    for refused in range(1, count + 1):
        one = memory / "one"
        shutil.copytree(device, one / "data")
        told, _, _ = cut(one / "data", one / "attic", install, None, "everything", refuse_at=refused)
        copies = [decode_record((one / "data" / name).read_bytes()) for name in RECORD_FILES]
        holds = digest(store_at(one / "data").bundle("a"))
        assert told == ["installed"] and holds == digest(BAD)
        assert all(copy is not None and not copy.names("a") for copy in copies), (refused, copies)
        shutil.rmtree(one)


# ------------------------------------------------------------------------------------------ negative controls


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


class Trusting(SlotStore):
    """Negative control: takes what it reads after a refused flush for durable."""

    def affirm(self) -> BootRecord:
        return self.record()


class Lazy(PowerDisk):
    """Negative control: a program that never calls fsync."""

    def fsync(self, fd: int) -> None:
        self._need_power()


class Folderless(PowerDisk):
    """Negative control: a program that flushes files and never a folder."""

    def fsync(self, fd: int) -> None:
        if self._is_folder(fd):
            self._need_power()
        else:
            super().fsync(fd)


@pytest.mark.parametrize("variant", [InPlace, Forgetting])
def test_without_the_discipline_a_killed_process_breaks_a_promise(memory: Path, variant: type[SlotStore]) -> None:
    with pytest.raises(BrokenPromiseError, match="the record names slot a"):
        cut_everywhere(
            memory,
            "grow",
            "nothing",
            make=lambda folder: variant(folder, clock=lambda: 1.0, lock_wait_s=0.0),
            every=2,
            first=60,  # the second installation, which replaces the host
        )


@pytest.mark.parametrize(
    ("kind", "lose"),
    [(Lazy, "everything"), (Lazy, "contents"), (Lazy, "some"), (Folderless, "everything"), (Folderless, "some")],
)  # where no name is lost ("contents"), folders need no flush
def test_without_fsync_a_power_cut_breaks_a_promise(memory: Path, kind: type[PowerDisk], lose: Lose) -> None:
    with pytest.raises(BrokenPromiseError):
        cut_everywhere(memory, "grow", lose, kind=kind)


def test_without_fsync_a_killed_process_breaks_nothing(memory: Path) -> None:
    assert cut_everywhere(memory, "start", "nothing", kind=Lazy) > 5


def test_success_told_before_the_commit_is_a_broken_promise(memory: Path) -> None:
    with pytest.raises(BrokenPromiseError, match="committed was told, and the graft is not active"):
        cut_everywhere(memory, "update", "everything", life=hasty, every=3)


def test_a_decision_taken_for_durable_after_a_refused_flush_breaks_a_promise(memory: Path) -> None:
    def life(device: Device) -> list[Step]:
        store = Trusting(device.folder, clock=lambda: 1.0, lock_wait_s=0.0)

        def commit() -> BootRecord:  # alone: what the installer writes next would flush the folder
            return store.confirm() if store.record().trial else store.affirm()

        return [*list(decide(device))[:2], ("committed", commit)]

    with pytest.raises(BrokenPromiseError, match="refused, then cut after the last word: committed was told"):
        refuse_then_cut(memory, "decide", "everything", sample=0, life=life)


def test_the_host_alone_is_whole(memory: Path) -> None:
    """The checks pass on a device that nothing was cut on: they do not fail for a reason of their own."""
    device = prepared(memory, with_host)
    settled(Left([], device_at(device)), SCENES["update"].check, "no cut")
