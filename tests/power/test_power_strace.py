"""Real processes, killed or refused by strace at every system call that changes their data folder.

The calls are counted by name, since strace's ``when=`` counts so; every kill is asserted to have happened, and a run
that is to be killed one call after the last ends by itself, so that no call is missed. SIGKILL loses nothing that was
not flushed: that is for test_power_ext4.py. What it finds is a wrong order, and everything that SQLite does, which does
not go through the seam of the model.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds.disks import QuickDisk
from worlds.lives import Device
from worlds.promises import SCENES, BrokenPromiseError, Left, check_lives_on
from worlds.zygote import CALLS, Call, End, NoStraceError, Zygote, changing

from kasmina_edge.errors import KasminaError
from kasmina_edge.storage import use_disk

KILLED, REFUSED = -9, 3
ERRORS = ("EIO", "ENOSPC", "EROFS")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


class Killing:
    """One scene's lives on copies of one prepared device."""

    def __init__(self, zygote: Zygote, memory: Path, scene: str, life: str = "") -> None:
        self.zygote, self.scene, self.life = zygote, SCENES[scene], life or scene
        self.device, self.one = memory / "device", memory / "one"
        with use_disk(QuickDisk()):
            self.scene.prepare(self.device)
        try:
            whole = self.run(())
        except NoStraceError as exc:
            pytest.skip(f"NOT TESTED: no process was killed at its system calls, because {exc}")
        assert whole.status == 0, whole.told
        self.total = Counter(c.name for c in whole.calls)
        self.calls = changing(whole.calls, self.one)

    def run(self, inject: tuple[str, ...], calls: tuple[str, ...] = CALLS) -> End:
        shutil.rmtree(self.one, ignore_errors=True)
        shutil.copytree(self.device, self.one)
        return self.zygote.live(self.one, self.life, inject=inject, calls=calls)

    def check(self, told: list[str], where: str) -> None:
        with use_disk(QuickDisk()):
            try:
                left = Left(told, Device(self.one))
                self.scene.check(left)
                check_lives_on(left)
            except (BrokenPromiseError, KasminaError) as exc:
                raise BrokenPromiseError(f"{where}: {exc}") from exc

    def kill(self, call: Call) -> None:
        """Kill at one call.

        Raises:
            BrokenPromiseError: A promise was not kept.
        """
        end = self.run((f"{call.name}:signal=KILL:when={call.number}",), (call.name,))
        assert end.status == KILLED, (call, end)
        self.check(end.told, f"killed at {call.name} {call.number}: {call.text}")

    def refuse(self, call: Call, error: str) -> None:
        """Let one call fail: the life ends with one of our errors, or copes.

        Raises:
            BrokenPromiseError: A promise was not kept.
        """
        end = self.run((f"{call.name}:error={error}:when={call.number}",), (call.name,))
        assert end.status in (0, REFUSED), (call, error, end)
        self.check(end.told, f"{error} at {call.name} {call.number}: {call.text}")

    def sample(self, per_name: int) -> list[Call]:
        """The first and the last call of every name, and others between them."""
        rng = random.Random(self.life)
        chosen: list[Call] = []
        for name in sorted({c.name for c in self.calls}):
            mine = [c for c in self.calls if c.name == name]
            between = rng.sample(mine[1:-1], min(per_name, len(mine)) - 2) if len(mine) > 2 < per_name else []
            chosen += {*mine[:1], *between, *mine[-1:]}
        return sorted(chosen, key=lambda c: (c.name, c.number))


def test_a_process_killed_at_its_system_calls_keeps_its_promises(zygote: Zygote, memory: Path) -> None:
    killing = Killing(zygote, memory, "update")
    names = {c.name for c in killing.calls}
    assert {"write", "pwrite64", "fsync", "rename", "unlink", "mkdir", "rmdir", "openat"} <= names
    assert len(killing.calls) >= 200
    for call in killing.sample(per_name=4):
        killing.kill(call)


@pytest.mark.soak
@pytest.mark.parametrize("scene", ["update", "start", "begin", "refuse"])
def test_a_process_killed_at_every_system_call_keeps_its_promises(zygote: Zygote, memory: Path, scene: str) -> None:
    killing = Killing(zygote, memory, scene)
    for call in killing.calls:
        killing.kill(call)


def test_no_call_is_missed(zygote: Zygote, memory: Path) -> None:
    """A kill one call after the last of a name does not happen; one at the last does."""
    killing = Killing(zygote, memory, "start")
    for name, count in sorted(killing.total.items()):
        beyond = killing.run((f"{name}:signal=KILL:when={count + 1}",), (name,))
        assert (beyond.status, beyond.told) == (0, ["started"]), name
        assert killing.run((f"{name}:signal=KILL:when={count}",), (name,)).status == KILLED, name


def test_a_process_whose_calls_are_refused_keeps_its_promises(zygote: Zygote, memory: Path) -> None:
    killing = Killing(zygote, memory, "update")
    for i, call in enumerate(killing.sample(per_name=3)):
        killing.refuse(call, ERRORS[i % len(ERRORS)])


@pytest.mark.soak
@pytest.mark.parametrize("error", ERRORS)
def test_a_process_refused_at_every_system_call_keeps_its_promises(zygote: Zygote, memory: Path, error: str) -> None:
    killing = Killing(zygote, memory, "update")
    for call in killing.calls:
        killing.refuse(call, error)


def test_success_told_before_the_commit_is_found_by_a_kill(zygote: Zygote, memory: Path) -> None:
    killing = Killing(zygote, memory, "update", life="hasty")
    records = [c for c in killing.calls if c.name == "rename" and "/boot-" in c.text]
    with pytest.raises(BrokenPromiseError, match="committed was told, and the graft is not active"):
        for call in records:
            killing.kill(call)
