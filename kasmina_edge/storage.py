"""Durable writes and locks: the one place that knows how bytes reach the disk.

A file is written beside its place, flushed, renamed over it, and the folder is flushed; after a power cut a reader sees
the old bytes or the new ones, never a mixture (``rename(2)``, ``fsync(2)``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kasmina_edge.errors import LockedError, StorageError


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut.

    Raises:
        StorageError: The folder cannot be opened or flushed.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
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
        StorageError: Disk full, read-only, or failing; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(fd, "wb", closefd=False) as stream:
                stream.write(data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise as_storage_error(exc, path) from exc
    sync_folder(path.parent)


def make_private_folder(folder: Path) -> Path:
    """Create ``folder`` (0700) with its parents; existing folders keep their mode."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc
    return folder


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse early when the disk cannot hold what is coming.

    Raises:
        StorageError: Fewer than ``needed_bytes`` are free; the message carries both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(f"{folder}: {needed_bytes} bytes are needed and {free} are free")


@contextmanager
def hold_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock on ``path`` (made if missing) for the length of the block.

    Args:
        path: The lock file; its content means nothing.
        shared: Several holders at once (readers) instead of one.
        wait: Block until the lock is free instead of refusing.

    Raises:
        LockedError: Somebody else holds it and ``wait`` is false.
    """
    with open_lock(path, shared=shared, wait=wait):
        yield


class open_lock:  # noqa: N801 - reads as a verb, like open()
    """A held lock as an object, for owners that outlive one block; see `hold_lock`."""

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = False) -> None:
        flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        try:
            fcntl.flock(self._fd, flags)
        except OSError as exc:
            os.close(self._fd)
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockedError(f"{path}: another process holds this lock") from exc
            raise as_storage_error(exc, path) from exc

    def close(self) -> None:
        """Give the lock back; calling it twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> open_lock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def as_storage_error(exc: OSError, path: Path) -> StorageError:
    """The typed form of an operating-system refusal, with the path and the reason."""
    if exc.errno == errno.ENOSPC:
        return StorageError(f"{path}: no space left on the disk")
    if exc.errno == errno.EROFS:
        return StorageError(f"{path}: the disk is read-only")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return StorageError(f"{path}: permission denied")
    return StorageError(f"{path}: {exc.strerror or exc}")
