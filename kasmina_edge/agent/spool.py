"""The agent's outbox: the sealed one of its data folder, or one in memory for as long as that cannot be opened."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kasmina_edge.errors import KasminaError
from kasmina_edge.storage import open_lock
from kasmina_edge.telemetry.outbox import Outbox

log = logging.getLogger(__name__)

MEMORY_FOLDERS = tuple(Path(p) for p in (*os.environ.get("RUNTIME_DIRECTORY", "").split(":"), "/dev/shm") if p)  # noqa: S108
MEMORY_OUTBOX_BYTES = 1024 * 1024
_PAGE = 64
_LOCK = "alive.lock"
_NAME = re.compile(r"kasmina-outbox-(\d{1,10})-\w+")


class Spool:
    """Gives an outbox whatever the disk or the key say: a device that can be reached can be repaired.

    What the sealed outbox holds stays where it is; what was kept in memory meanwhile moves there once it opens again.
    What killed processes left in memory is removed at the start.

    Args:
        opened: Opens the sealed outbox.
        clock: Wall clock, seconds since 1970 UTC.
        memory: Folders in memory, the first one that may be written is used.

    Raises:
        KasminaError: That of the sealed one, where this machine has no file system in memory.

    Attributes:
        outbox: The one in use.
        fault: Why it is in memory; None when it is the sealed one.
    """

    def __init__(
        self, opened: Callable[[], Outbox], clock: Callable[[], float], *, memory: Sequence[Path] = MEMORY_FOLDERS
    ) -> None:
        self._opened = opened
        self.fault: KasminaError | None = None
        sweep(memory)
        try:
            self.outbox = self._open()
        except KasminaError as exc:
            place = next((f for f in memory if f.is_dir() and os.access(f, os.W_OK)), None)
            if place is None:
                raise
            log.error("outbox: %s; what happens from now on is kept in memory only", exc.message)
            folder = Path(tempfile.mkdtemp(prefix=f"kasmina-outbox-{os.getpid()}-", dir=place))
            self._lock = open_lock(folder / _LOCK)
            self.outbox, self.fault = Outbox(folder / "outbox.db", max_bytes=MEMORY_OUTBOX_BYTES, clock=clock), exc

    def retry(self) -> bool:
        """Try the sealed outbox again; whether it is in use from now on.

        Raises:
            KasminaError: It opens, and then refuses what waits in memory, which stays there.
        """
        if self.fault is None:
            return False
        try:
            sealed = self._open()
        except KasminaError:
            return False
        try:
            while waiting := self.outbox.peek(_PAGE):
                for entry in waiting:
                    sealed.append(entry.stream, entry.payload, priority=entry.priority)
                self.outbox.acknowledge(entry.id for entry in waiting)
        except BaseException:
            sealed.close()
            raise
        self._leave_memory()
        self.outbox, self.fault = sealed, None
        log.info("outbox: on the disk again")
        return True

    def close(self) -> None:
        """Close the outbox; one in memory is gone then."""
        if self.fault is None:
            self.outbox.close()
        else:
            self._leave_memory()

    def _open(self) -> Outbox:
        """The sealed one, if something can be appended to it."""
        outbox = self._opened()
        try:
            outbox.check_writable()
        except BaseException:
            outbox.close()
            raise
        return outbox

    def _leave_memory(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.outbox.path.parent, ignore_errors=True)
        self._lock.close()


def sweep(folders: Iterable[Path]) -> list[Path]:
    """Remove what processes that were killed left in memory; a living one's (it holds its lock) stays.

    Returns:
        The removed folders.
    """
    removed = []
    for path in sorted(found for folder in folders for found in folder.glob("kasmina-outbox-*")):
        match = _NAME.fullmatch(path.name)
        if match is None or Path("/proc", match[1]).exists():
            continue
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid() or not (path / _LOCK).exists():
                continue
            lock = open_lock(path / _LOCK)
        except (KasminaError, OSError):
            continue
        shutil.rmtree(path, ignore_errors=True)
        lock.close()
        removed.append(path)
        log.info("outbox: removed %s, which process %s left in memory", path, match[1])
    return removed
