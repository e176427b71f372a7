"""What waits in memory for a shared flush: many small appends, one transaction; half a second at most, and bounded.

Threads that need their entry on the disk flush for everybody (group commit); otherwise a thread of its own does, as
long as there is something to do.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable

from kasmina_edge.errors import KasminaError
from kasmina_edge.telemetry.blocks import BLOCK_RECORDS, Waiting

log = logging.getLogger(__name__)

FULL_ENTRIES = 4 * BLOCK_RECORDS
FULL_BYTES = 4 * 1024 * 1024
"""When so much waits, it is written at once; the appender that finds twice as much waits for the disk."""
IDLE_S = 5.0
PAUSE_S = 1.0
"""Between tries while the disk refuses."""


class Pending:
    """An entry and, once it is on the disk, its id."""

    __slots__ = ("entry", "id")

    def __init__(self, entry: Waiting) -> None:
        self.entry = entry
        self.id = 0


class WriteBuffer:
    """Entries in order, and the thread that writes them.

    Args:
        write: Stores entries and sets each ``id``; it stores all, or raises and stores none.
        flush_s: Longest wait of an entry, in seconds.
        after_fork: Called in a forked child, which starts with nothing waiting: it belongs to the parent.
    """

    def __init__(
        self, write: Callable[[list[Pending]], None], *, flush_s: float, after_fork: Callable[[], None]
    ) -> None:
        self._write, self._flush_s, self._after_fork_of_owner = write, flush_s, after_fork
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._entries: list[Pending] = []
        self._bytes = 0
        self._taken = (0, 0)  # entries and bytes that are being written
        self._oldest = 0.0
        self._thread: threading.Thread | None = None
        self._closing = False
        _buffers.add(self)

    def add(self, entry: Waiting) -> None:
        """Let an entry wait; blocks for the disk only when twice what is written at once is waiting already.

        Raises:
            KasminaError: That much waits and cannot be written; the entry was not taken.
        """
        size = len(entry.payload)
        with self._changed:
            waiting = len(self._entries)
            if waiting + self._taken[0] < 2 * FULL_ENTRIES and self._bytes + self._taken[1] + size < 2 * FULL_BYTES:
                self._entries.append(Pending(entry))
                self._bytes += size
                if waiting == 0:
                    self._oldest = time.monotonic()
                    self._wake()
                elif waiting + 1 == FULL_ENTRIES or self._bytes - size < FULL_BYTES <= self._bytes:
                    self._changed.notify_all()
                return
        self.add_and_flush(entry)

    def add_and_flush(self, entry: Waiting) -> int:
        """Write an entry with all that waits before it; its id.

        Raises:
            KasminaError: It could not be written and was not taken; what waited still waits.
        """
        pending = Pending(entry)
        with self._changed:
            self._entries.append(pending)
            self._bytes += len(entry.payload)
        try:
            self.flush()
        except BaseException:
            with self._changed:
                if pending in self._entries:
                    self._entries.remove(pending)
                    self._bytes -= len(entry.payload)
            if not pending.id:
                raise
        return pending.id

    def flush(self) -> None:
        """Write all that waits now.

        Raises:
            KasminaError: As the write says; everything waits on.
        """
        if not self._entries and not self._writing.locked():
            return
        with self._writing:
            with self._changed:
                taken, size = self._entries, self._bytes
                self._entries, self._bytes, self._taken = [], 0, (len(taken), size)
            if not taken:
                return
            try:
                self._write(taken)
            except BaseException:
                with self._changed:
                    self._entries[:0] = taken
                    self._bytes += size
                    self._taken = (0, 0)
                    self._oldest = time.monotonic() + PAUSE_S
                    if not self._closing:
                        self._wake()
                raise
            self._taken = (0, 0)

    def flush_if_possible(self) -> None:
        """Write all that waits; where the disk refuses, it waits on and this is silent: for those who only read."""
        with contextlib.suppress(KasminaError):
            self.flush()

    def close(self) -> None:
        """Write all that waits and end the thread; raises as `flush`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        try:
            self.flush()
        finally:
            self._closing = False

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kasmina-outbox", daemon=True)
            self._thread.start()
        else:
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self.flush()
            except KasminaError as exc:
                log.warning("outbox: %d entries wait: %s", len(self._entries), exc.message)
            except Exception:
                log.exception("outbox: a fault in Kasmina")

    def _wait_until_due(self) -> bool:
        """Whether to write; False ends the thread."""
        with self._changed:
            idle_until = time.monotonic() + IDLE_S
            while not self._closing:
                now = time.monotonic()
                if self._entries:
                    due = self._oldest + self._flush_s
                    full = len(self._entries) >= FULL_ENTRIES or self._bytes >= FULL_BYTES
                    if now >= due or (full and now >= self._oldest):
                        return True
                elif now >= idle_until:
                    break
                else:
                    due = idle_until
                self._changed.wait(due - now)
            self._thread = None
            return False

    def after_fork(self) -> None:
        """In the child of a fork: other threads' locks are gone with them, and what waits is the parent's to write."""
        self._changed, self._writing = threading.Condition(), threading.Lock()
        self._entries, self._bytes, self._taken = [], 0, (0, 0)
        self._thread, self._closing = None, False

    def tell_owner(self) -> None:
        """In the child of a fork, when no buffer has a lock of the parent's any more."""
        self._after_fork_of_owner()


_buffers: weakref.WeakSet[WriteBuffer] = weakref.WeakSet()


def _all_after_fork() -> None:
    buffers = list(_buffers)
    for buffer in buffers:
        buffer.after_fork()
    for buffer in buffers:
        try:
            buffer.tell_owner()
        except Exception:  # one that was never opened must not leave the others with the parent's files
            log.exception("outbox: a fault in Kasmina, in a forked child")


def _all_at_exit() -> None:
    for buffer in list(_buffers):
        try:
            buffer.flush()
        except KasminaError as exc:
            log.warning("outbox: lost at exit: %s", exc.message)


os.register_at_fork(after_in_child=_all_after_fork)
atexit.register(_all_at_exit)
