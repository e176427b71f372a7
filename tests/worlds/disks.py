"""Disks that fail, behind the seam of `kasmina_edge.storage.use_disk`: they lose power, fill up, refuse, or take less.

`PowerDisk` works on a real folder and keeps a model of what a disk has promised: bytes are safe after fsync of their
file, names after fsync of their folder. When operation number ``cut_after`` is done the power is gone: nothing works
any more, and what was not promised is lost as ``lose`` says. It can also refuse one operation first: what an fsync that
failed should have flushed is then lost as well.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.storage import Disk

Lose = Literal["nothing", "everything", "contents", "some"]
LOSSES: tuple[Lose, ...] = ("nothing", "everything", "contents", "some")


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it and clean up."""


@dataclass
class _Change:
    path: Path
    folder: int  # inode of the folder whose names changed
    undo: Callable[[], None]


class PowerDisk(Disk):
    """Counts every operation and cuts the power after one of them.

    Args:
        attic: An empty folder on the same file system, outside the tested one: what may have to come back.
        cut_after: Number of the last operation that happens, from 1; None never cuts.
        lose: ``nothing``: the process was killed. ``everything``: all that was not flushed is gone. ``contents``: names
            were kept and unflushed bytes lost. ``some``: names are lost from a random moment on, bytes at random.
        seed: For ``some``.
        refuse_at: Number of the one operation that fails with ``code``, from 1; it is no operation that happened.
        code: What it says.
    """

    def __init__(
        self,
        attic: Path,
        cut_after: int | None = None,
        lose: Lose = "nothing",
        seed: int = 0,
        *,
        refuse_at: int | None = None,
        code: int = errno.EIO,
    ) -> None:
        self._refuse_at, self._code = refuse_at, code
        self.operations: list[str] = []
        self._attic = attic
        self._cut_after = cut_after
        self._lose = lose
        self._rng = random.Random(seed)
        self._changes: list[_Change] = []
        self._files: dict[int, tuple[Path, int]] = {}  # inode -> a second name in the attic, and its flushed length
        self._reborn: dict[int, int] = {}  # inode of a folder that came back -> the one it had
        self._spares = 0
        self._dead = False

    def open(self, path: Path, flags: int, mode: int) -> int:
        self._need_power()
        is_new = not path.exists()
        fd = super().open(path, flags, mode)
        info = os.fstat(fd)
        if is_new:
            self._note(path, lambda: path.unlink(missing_ok=True))
        if info.st_ino not in self._files:
            name = self._spare()
            os.link(path, name)
            self._files[info.st_ino] = (name, info.st_size)
        try:
            self._done(f"open {path.name}")
        except PowerCut:
            os.close(fd)
            raise
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._need_power()
        first = self.operations[-1:] != ["write a half"]
        taken = super().write(fd, data[: max(1, len(data) // 2)] if first else data)  # write(2) may take less
        self._done("write a half" if first else "write the rest")
        return taken

    def fsync(self, fd: int) -> None:
        self._need_power()
        info = os.fstat(fd)
        if self._is_folder(fd):
            self._changes = [c for c in self._changes if c.folder != info.st_ino]
        elif info.st_ino in self._files:
            self._files[info.st_ino] = (self._files[info.st_ino][0], info.st_size)
        self._done("fsync")

    def truncate(self, fd: int, length: int) -> None:
        self._need_power()
        super().truncate(fd, length)
        inode = os.fstat(fd).st_ino
        if inode in self._files:  # the bytes may be gone already, and need not be
            self._files[inode] = (self._files[inode][0], min(length, self._files[inode][1]))
        self._done("truncate")

    def rename(self, source: Path, target: Path) -> None:
        self._need_power()
        assert source.parent == target.parent
        kept = self._keep(target) if target.is_file() else None
        super().rename(source, target)

        def undo() -> None:
            os.rename(target, source)
            if kept is not None:
                os.rename(kept, target)

        self._note(target, undo)
        self._done(f"rename {source.name} {target.name}")

    def unlink(self, path: Path) -> None:
        self._need_power()
        kept = self._keep(path)
        super().unlink(path)
        self._note(path, lambda: os.rename(kept, path))
        self._done(f"unlink {path.name}")

    def mkdir(self, path: Path, mode: int) -> None:
        self._need_power()
        super().mkdir(path, mode)
        self._note(path, lambda: shutil.rmtree(path))
        self._done(f"mkdir {path.name}")

    def rmdir(self, path: Path) -> None:
        self._need_power()
        inode = path.stat().st_ino
        super().rmdir(path)

        def undo() -> None:
            path.mkdir(0o700)
            self._reborn[path.stat().st_ino] = inode

        self._note(path, undo)
        self._done(f"rmdir {path.name}")

    @staticmethod
    def _is_folder(fd: int) -> bool:
        return stat.S_ISDIR(os.fstat(fd).st_mode)

    def power_off(self) -> None:
        """Cut the power now, between two operations; a second time changes nothing."""
        if not self._dead:
            self._dead = True
            self._lose_promises()

    def unflushed(self) -> list[str]:
        """Names and files that a power cut now could still take."""
        files = [str(n) for n, flushed in self._files.values() if n.stat().st_size != flushed and n.stat().st_nlink > 1]
        return [c.path.name for c in self._changes] + files

    def _need_power(self) -> None:
        if self._dead:
            raise PowerCut
        if self._refuse_at == len(self.operations) + 1:
            self._refuse_at = None
            raise OSError(self._code, os.strerror(self._code))

    def _done(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) == self._cut_after:
            self.power_off()
            raise PowerCut(f"after operation {self._cut_after}, {operation}")

    def _lose_promises(self) -> None:
        if self._lose == "nothing":
            return
        for name, flushed in self._files.values():
            size = name.stat().st_size
            os.truncate(name, self._rng.randint(flushed, size) if self._lose == "some" and size > flushed else flushed)
        if self._lose == "contents":
            return
        lost = self._changes
        if self._lose == "some":
            lost = lost[self._rng.randint(0, len(lost)) :]
        for change in reversed(lost):
            if change.path.parent.is_dir():  # a folder that is durably gone took its names along
                inode = change.path.parent.stat().st_ino
                if self._reborn.get(inode, inode) == change.folder:  # and is not another one of the same name
                    change.undo()

    def _note(self, path: Path, undo: Callable[[], None]) -> None:
        self._changes.append(_Change(path, path.parent.stat().st_ino, undo))

    def _keep(self, path: Path) -> Path:
        """A second name for a file, under which it outlives its first."""
        name = self._spare()
        os.link(path, name)
        return name

    def _spare(self) -> Path:
        self._spares += 1
        return self._attic / str(self._spares)


class FullDisk(Disk):
    """Takes ``free_bytes`` more and then says ENOSPC, after a part of the write that no longer fits."""

    def __init__(self, free_bytes: int) -> None:
        self._free = free_bytes

    def write(self, fd: int, data: bytes | memoryview) -> int:
        fits = min(self._free, len(data))
        if fits == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._free -= fits
        return super().write(fd, data[:fits])


class TightDisk(Disk):
    """Says that ``free_bytes`` are free, and takes whatever it is given."""

    def __init__(self, free_bytes: int) -> None:
        self._free = free_bytes

    def free_bytes(self, folder: Path) -> int:
        return self._free


class BrokenDisk(Disk):
    """Refuses its ``at``-th operation with ``code`` (from 1; EIO by default) and takes all others.

    With ``for_good`` it refuses all that follow as well, as a disk that was remounted read-only or died.
    """

    def __init__(self, at: int, code: int = errno.EIO, *, for_good: bool = False) -> None:
        self.count = 0
        self._at = at
        self._code = code
        self._for_good = for_good

    def _next(self) -> None:
        self.count += 1
        if self.count == self._at or (self._for_good and self.count > self._at > 0):
            raise OSError(self._code, os.strerror(self._code))

    def open(self, path: Path, flags: int, mode: int) -> int:
        self._next()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._next()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._next()

    def truncate(self, fd: int, length: int) -> None:
        self._next()
        super().truncate(fd, length)

    def rename(self, source: Path, target: Path) -> None:
        self._next()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._next()
        super().unlink(path)

    def mkdir(self, path: Path, mode: int) -> None:
        self._next()
        super().mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        self._next()
        super().rmdir(path)


class ShortDisk(Disk):
    """Takes one byte of its ``at``-th write (from 1; of every write with 0): ``write(2)`` may always do so."""

    def __init__(self, at: int = 0) -> None:
        self.count = 0
        self._at = at

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self.count += 1
        return super().write(fd, data[:1] if self._at in (0, self.count) else data)

    def fsync(self, fd: int) -> None:
        pass


class NoFsync(Disk):
    """Negative control: a program that never calls fsync."""

    def fsync(self, fd: int) -> None:
        pass


class NoFolderFsync(Disk):
    """Negative control: a program that flushes its files and forgets the folders."""

    def fsync(self, fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            super().fsync(fd)


class QuickDisk(Disk):
    """Skips fsync, for tests that prepare a state and cut no power."""

    def fsync(self, fd: int) -> None:
        pass
