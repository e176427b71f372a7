"""Durable writes and locks: the one place that knows how bytes reach the disk.

A file is written beside its place, flushed, renamed over it, and the folder is flushed; after a power cut a reader sees
the old bytes or the new ones, never a mixture (``rename(2)``, ``fsync(2)``). Every call that changes the disk goes
through one `Disk`, so that a test can fill it or cut its power after any single operation.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from kasmina_edge.errors import LockedError, StorageError

_LOCK_POLL_S = 0.01


class Disk:
    """The system calls that change a disk or ask for its space, one method each."""

    def open(self, path: Path, flags: int, mode: int) -> int:
        """``open(2)`` of a file to write, which may create it."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """``write(2)``: how many bytes were taken, which may be fewer than given."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """``fsync(2)`` of a file or folder."""
        os.fsync(fd)

    def truncate(self, fd: int, length: int) -> None:
        """``ftruncate(2)``."""
        os.ftruncate(fd, length)

    def rename(self, source: Path, target: Path) -> None:
        """``rename(2)``: replaces ``target``."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """``unlink(2)``."""
        os.unlink(path)

    def mkdir(self, path: Path, mode: int) -> None:
        """``mkdir(2)``."""
        os.mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        """``rmdir(2)`` of an empty folder."""
        os.rmdir(path)

    def free_bytes(self, folder: Path) -> int:
        """What ordinary processes may still write to the file system of ``folder``."""
        return shutil.disk_usage(folder).free

    def free_files(self, folder: Path) -> int | None:
        """How many more files and folders fit; None where the file system has no fixed number of them."""
        info = os.statvfs(folder)
        return info.f_favail if info.f_files else None


_disk: ContextVar[Disk] = ContextVar("kasmina_disk", default=Disk())  # noqa: B039 - it has no state


@contextmanager
def use_disk(disk: Disk) -> Iterator[None]:
    """Send this context's disk changes to ``disk`` for the length of the block (other threads keep their own)."""
    token = _disk.set(disk)
    try:
        yield
    finally:
        _disk.reset(token)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut.

    Raises:
        StorageError: The folder cannot be opened or flushed.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _disk.get().fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc


def write_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data`` so that a power cut leaves the old file or the new one.

    Args:
        path: Target; its folder must exist.
        data: The whole content.
        mode: Permission bits of the new file.

    Raises:
        StorageError: Disk full, read-only, or failing. The old file is untouched; only when the folder's flush failed,
            the new one is there already and a power cut may still take it back: write it again to be sure.
    """
    disk = _disk.get()
    if not path.name:
        raise as_storage_error(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            _write_all(disk, fd, data)
            disk.fsync(fd)
        finally:
            os.close(fd)
        disk.rename(temporary, path)
    except OSError as exc:
        with suppress(OSError):
            disk.unlink(temporary)
        raise as_storage_error(exc, path) from exc
    sync_folder(path.parent)


def append_durable(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Add ``data`` to the end of ``path`` (made if missing) and flush it; a power cut may leave a part of it.

    Raises:
        StorageError: Disk full, read-only, or failing; a part that was added is cut off again where the disk allows.
    """
    disk = _disk.get()
    try:
        fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
        try:
            before = os.fstat(fd).st_size
            try:
                _write_all(disk, fd, data)
                disk.fsync(fd)
            except OSError:
                with suppress(OSError):
                    disk.truncate(fd, before)
                raise
        finally:
            os.close(fd)
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    if before == 0:
        sync_folder(path.parent)


def rename_durable(source: Path, target: Path) -> None:
    """Rename inside one folder, and flush the folder.

    Raises:
        StorageError: The disk refused; a folder cannot replace one that is not empty.
    """
    try:
        _disk.get().rename(source, target)
    except OSError as exc:
        raise as_storage_error(exc, target) from exc
    sync_folder(target.parent)


def remove_file(path: Path) -> None:
    """Remove one file; a missing one is fine.

    Raises:
        StorageError: The disk refused.
    """
    try:
        _disk.get().unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise as_storage_error(exc, path) from exc


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it, deepest first; links are removed, not followed; a missing folder is fine.

    Raises:
        StorageError: The disk refused; a part may be gone.
    """
    disk = _disk.get()
    try:
        for current, folders, files in os.walk(folder, topdown=False):
            for name in files:
                disk.unlink(Path(current, name))
            for name in folders:
                path = Path(current, name)
                if path.is_symlink():
                    disk.unlink(path)
                else:
                    disk.rmdir(path)
        if folder.is_dir():
            disk.rmdir(folder)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc


def remove_temporaries(path: Path) -> None:
    """Remove what interrupted `write_durable` calls left beside ``path``; the caller holds the lock that guards it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        remove_file(leftover)


def make_private_folder(folder: Path) -> Path:
    """Create ``folder`` (0700) with its parents, each flushed; existing folders keep their mode.

    Raises:
        StorageError: The disk refused, or a file stands in the way.
    """
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for path in reversed(missing):
        try:
            _disk.get().mkdir(path, 0o700)
        except FileExistsError:
            continue
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        sync_folder(path.parent)
    if not folder.is_dir():
        raise StorageError(f"{folder}: a file stands where a folder is needed", "Move the file away, then try again.")
    return folder


def require_free_space(folder: Path, needed_bytes: int, needed_files: int = 0) -> None:
    """Refuse early when the disk cannot hold what is coming.

    Raises:
        StorageError: Fewer than ``needed_bytes`` are free, or fewer than ``needed_files`` files can still be made; the
            message carries both numbers.
    """
    disk = _disk.get()
    try:
        free, files = disk.free_bytes(folder), disk.free_files(folder)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc
    if free < needed_bytes:
        raise StorageError(f"{folder}: {needed_bytes} bytes are needed and {free} are free")
    if files is not None and files < needed_files:
        raise StorageError(
            f"{folder}: {needed_files} files are needed and {files} can be made",
            "Remove files from that disk (it has bytes, and no inodes left), then try again.",
        )


class SpaceReserve:
    """A file that only takes room, so that a small decision can be written on a disk that somebody else filled.

    Args:
        path: The file; its content means nothing.
        size_bytes: How much room it keeps.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes

    def keep(self) -> None:
        """Make the file unless it is there; a disk that has no room for it now is no error."""
        if not self.path.exists():
            with suppress(StorageError):
                write_durable(self.path, bytes(self._size_bytes))

    def write(self, path: Path, data: bytes) -> None:
        """`write_durable`, giving up the reserve when the disk is full.

        Raises:
            StorageError: As `write_durable`, where the reserve was gone or did not help.
        """
        try:
            write_durable(path, data)
        except StorageError as exc:
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self.path.exists():
                raise
            remove_file(self.path)
            write_durable(path, data)


@contextmanager
def hold_lock(path: Path, *, shared: bool = False, wait: bool = False, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock on ``path`` (made if missing) for the length of the block.

    Args:
        path: The lock file; its content means nothing.
        shared: Several holders at once (readers) instead of one.
        wait: Block until the lock is free instead of refusing.
        wait_s: Without ``wait``: try for so long before refusing, in seconds.

    Raises:
        LockedError: Somebody else holds it and the wait is over.
    """
    with open_lock(path, shared=shared, wait=wait, wait_s=wait_s):
        yield


class open_lock:  # noqa: N801 - reads as a verb, like open()
    """A held lock as an object, for owners that outlive one block; see `hold_lock`."""

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = False, wait_s: float = 0.0) -> None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd = -1
        try:
            self._fd = _open_lock_file(path)
            if wait:
                fcntl.flock(self._fd, kind)
            else:
                self._try_for(kind, wait_s)
        except BlockingIOError as exc:
            self.close()
            waited = f" (waited {wait_s:g} s)" if wait_s else ""
            raise LockedError(f"{path}: another process holds this lock{waited}") from exc
        except OSError as exc:
            self.close()
            raise as_storage_error(exc, path) from exc

    def _try_for(self, kind: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_POLL_S)

    def close(self) -> None:
        """Give the lock back; calling it twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> open_lock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _open_lock_file(path: Path) -> int:
    """A disk that became read-only still lets its readers hold their locks, as long as the file is there."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise


def as_storage_error(exc: OSError, path: Path) -> StorageError:
    """The typed form of an operating-system refusal, with the path and the reason."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: no space left on the disk")
    if exc.errno == errno.EROFS:
        return StorageError(f"{path}: the disk is read-only")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return StorageError(f"{path}: permission denied")
    return StorageError(f"{path}: {exc.strerror or exc}")


def _write_all(disk: Disk, fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[disk.write(fd, view) :]
