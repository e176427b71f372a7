"""Real cuts of a real process on ext4: the image below the file system is copied while the process stands still.

strace stops the process after its system calls; the image is copied there, the process goes on. Every copy is what a
disk would hold had the power gone at that moment; it is mounted, which replays the journal, checked, and lived on. On
the second disk (``cached``) whatever the file system wrote without asking for a flush is lost too.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from worlds.ext4 import Ext4, NoMountError
from worlds.lives import Device
from worlds.promises import SCENES, BrokenPromiseError, Left, check_lives_on
from worlds.zygote import CALLS, Call, NoStraceError, Zygote

from kasmina_edge.errors import KasminaError

STOPS = tuple(name for name in CALLS if name != "openat")  # a file that was only opened is on no disk yet
SCENE = SCENES["update"]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@dataclass
class Cut:
    """One copy of the image: after which call, and what had been told by then."""

    disk: Ext4
    call: Call
    told: list[str]

    @property
    def where(self) -> str:
        return f"cut after {self.call.name} {self.call.number}: {self.call.text[:120]}"


class Cutting:
    """Lives on ext4, and the copies that were made of them."""

    def __init__(self, zygote: Zygote, folder: Path, *, cached: bool = False) -> None:
        self.zygote, self.folder = zygote, folder
        self.pristine = Ext4(folder, "pristine", cached=cached)
        try:
            self.pristine.make()
            with self.pristine.mounted() as mount:
                SCENE.prepare(mount / "data")
        except NoMountError as exc:
            pytest.skip(f"NOT TESTED: no power was cut on a real file system, because {exc}")

    def cuts(
        self, of: Ext4, life: str, *, every: int = 1, first: int = 0, disk: str = "Disk", options: str = ""
    ) -> list[Cut]:
        """Live on ``of`` once, and copy its image after every ``every``-th call."""
        made: list[Cut] = []
        seen = 0

        def at_stop(call: Call, told: list[str]) -> None:
            nonlocal seen
            seen += 1
            if (seen - 1 - first) % every == 0:
                made.append(Cut(of.copy(f"{of.name}-{len(made)}"), call, told))

        inject = (f"{','.join(STOPS)}:signal=STOP:when=1+",)
        with of.mounted(options) as mount:
            try:
                end = self.zygote.live(mount / "data", life, inject=inject, calls=STOPS, disk=disk, at_stop=at_stop)
            except NoStraceError as exc:
                pytest.skip(f"NOT TESTED: no process was stopped at its system calls, because {exc}")
            made.append(Cut(of.copy(f"{of.name}-end"), Call("exit", 1, ""), end.told))
        assert end.status == 0, end.told
        return made

    def update(self, **how: object) -> list[Cut]:
        """The cuts of a whole update on a device of its own."""
        return self.cuts(self.pristine.copy("one"), "update", **how)  # type: ignore[arg-type]


def check(cut: Cut, *, starts: int = 0) -> None:
    """Mount what a cut left, and hold it against the promises; the copy is gone afterwards.

    Raises:
        BrokenPromiseError: It names the call.
    """
    try:
        with cut.disk.mounted() as mount:
            try:
                left = Left(cut.told, Device(mount / "data"), starts=starts)
                SCENE.check(left)
                check_lives_on(left)
            except (BrokenPromiseError, KasminaError) as exc:
                raise BrokenPromiseError(f"{cut.where}: {exc}") from exc
    except NoMountError as exc:
        raise BrokenPromiseError(f"{cut.where}: the file system is lost: {exc}") from exc
    finally:
        cut.disk.remove()


def check_all(cuts: list[Cut]) -> int:
    for cut in cuts:
        check(cut)
    return len(cuts)


@pytest.mark.parametrize("cached", [False, True], ids=["disk", "disk-with-a-cache"])
def test_cuts_of_a_real_process_on_ext4(zygote: Zygote, memory: Path, cached: bool) -> None:
    cuts = Cutting(zygote, memory, cached=cached).update(every=40 if cached else 13)
    assert check_all(cuts) >= (7 if cached else 18)
    assert cuts[-1].told[-1] == "audit again"


@pytest.mark.soak
@pytest.mark.parametrize("cached", [False, True], ids=["disk", "disk-with-a-cache"])
def test_a_cut_after_every_call_of_a_real_process_on_ext4(zygote: Zygote, memory: Path, cached: bool) -> None:
    assert check_all(Cutting(zygote, memory, cached=cached).update()) >= 200


# ------------------------------------------------------------------------------------------ the second cut


def cut_twice(cutting: Cutting, first_every: int, second_every: int) -> int:
    """Cut the update, then the start after it; how many pairs there were."""
    done = 0
    for first in cutting.update(every=first_every, first=first_every // 2):
        for second in cutting.cuts(first.disk, "start", every=second_every):
            second.told = first.told
            check(second, starts=1)
            done += 1
        first.disk.remove()
    return done


def test_a_second_cut_while_the_device_recovers_on_ext4(zygote: Zygote, memory: Path) -> None:
    assert cut_twice(Cutting(zygote, memory), 60, 5) >= 12


@pytest.mark.soak
def test_many_second_cuts_on_ext4(zygote: Zygote, memory: Path) -> None:
    assert cut_twice(Cutting(zygote, memory), 10, 2) >= 100


# ------------------------------------------------------------------------------------------ negative controls


@pytest.mark.parametrize(
    ("control", "how"),
    [
        ("update", {"disk": "NoFsync"}),
        ("update", {"disk": "NoFolderFsync"}),
        ("hasty", {}),
    ],
    ids=["no fsync", "no fsync of the folder", "success told before the commit"],
)
def test_without_the_discipline_a_real_cut_breaks_a_promise(
    zygote: Zygote, memory: Path, control: str, how: dict[str, str]
) -> None:
    cutting = Cutting(zygote, memory)
    cuts = cutting.cuts(cutting.pristine.copy("one"), control, **how)  # type: ignore[arg-type]
    random.Random(control).shuffle(cuts)  # a broken promise stands in many places: any order finds one soon
    with pytest.raises(BrokenPromiseError):
        check_all(cuts)


def test_a_file_system_that_asks_the_disk_for_no_flush_breaks_a_promise(zygote: Zygote, memory: Path) -> None:
    """The control of the disk with a cache: mounted without barriers, flushed bytes stay in the cache and are lost."""
    cutting = Cutting(zygote, memory, cached=True)
    cuts = cutting.update(every=10, options="nobarrier")
    with pytest.raises(BrokenPromiseError):
        check_all(cuts[::-1])


def test_nothing_stays_mounted_when_a_test_fails(memory: Path) -> None:
    disk = Ext4(memory, "failing")
    try:
        disk.make()
        with pytest.raises(ZeroDivisionError), disk.mounted() as mount:
            assert str(mount) in Path("/proc/mounts").read_text()
            raise ZeroDivisionError
    except NoMountError as exc:
        pytest.skip(f"NOT TESTED: {exc}")
    assert str(memory) not in Path("/proc/mounts").read_text()
    backing = [p.read_text() for p in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not [b for b in backing if str(memory) in b]


def test_a_machine_without_the_rights_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(NoMountError, match="mount"):
        (Path(folder) / "x.img").write_bytes(b"no file system")
        with Ext4(Path(folder), "x").mounted():
            pass
