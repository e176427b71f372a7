"""The agent's outbox: the sealed one of its data folder, or one in memory for as long as that cannot be opened."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kasmina_edge.errors import KasminaError
from kasmina_edge.telemetry.outbox import Outbox

log = logging.getLogger(__name__)

MEMORY_FOLDERS = tuple(Path(p) for p in (*os.environ.get("RUNTIME_DIRECTORY", "").split(":"), "/dev/shm") if p)  # noqa: S108
MEMORY_OUTBOX_BYTES = 1024 * 1024
_PAGE = 64


class Spool:
    """Gives an outbox whatever the disk or the key say: a device that can be reached can be repaired.

    What the sealed outbox holds stays where it is; what was kept in memory meanwhile moves there once it opens again.

    Args:
        opened: Opens the sealed outbox.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        KasminaError: That of the sealed one, where this machine has no file system in memory.

    Attributes:
        outbox: The one in use.
        fault: Why it is in memory; None when it is the sealed one.
    """

    def __init__(self, opened: Callable[[], Outbox], clock: Callable[[], float]) -> None:
        self._opened = opened
        self.fault: KasminaError | None = None
        try:
            self.outbox = opened()
        except KasminaError as exc:
            memory = next((f for f in MEMORY_FOLDERS if f.is_dir() and os.access(f, os.W_OK)), None)
            if memory is None:
                raise
            log.error("outbox: %s; what happens from now on is kept in memory only", exc.message)
            folder = Path(tempfile.mkdtemp(prefix="kasmina-", dir=memory))
            self.outbox, self.fault = Outbox(folder / "outbox.db", max_bytes=MEMORY_OUTBOX_BYTES, clock=clock), exc

    def retry(self) -> bool:
        """Try the sealed outbox again; whether it is in use from now on.

        Raises:
            KasminaError: It opens, and then refuses what waits in memory, which stays there.
        """
        if self.fault is None:
            return False
        try:
            sealed = self._opened()
        except KasminaError:
            return False
        while waiting := self.outbox.peek(_PAGE):
            for entry in waiting:
                sealed.append(entry.stream, entry.payload, priority=entry.priority)
            self.outbox.acknowledge(entry.id for entry in waiting)
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

    def _leave_memory(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.outbox.path.parent, ignore_errors=True)
