"""Following a data folder's boot record: which slot an app serves, noticed between frames, loaded beside the frames."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from kasmina_edge.errors import BundleError, KasminaError, LockedError
from kasmina_edge.runtime.serving import Loading, Serving
from kasmina_edge.slots import RECORD_FILES, BootRecord, SlotStore

log = logging.getLogger(__name__)

IDLE_LOOK_S = 0.25
LOCK_WAIT_S = 2.0
_ATTEMPTS = 5
Signature = tuple[tuple[int, int] | None, ...]


def open_serving(store: SlotStore, how: Loading, *, wait_s: float = 0.0) -> tuple[Serving, BootRecord]:
    """Load the slot that the boot record says apps run, under a shared lock that keeps it from being replaced.

    Args:
        store: The data folder's slots.
        how: The hardware target, and what else there is to loading.
        wait_s: Wait so long for a slot that is being replaced.

    Raises:
        BundleError: Nothing is committed, or the slot is damaged.
        LockedError: The slot is being replaced right now.
        EngineError: This machine cannot run the bundle.
    """
    for _ in range(_ATTEMPTS):
        record = store.record()
        slot = record.serving
        if slot is None:
            raise BundleError(
                f"{store.folder('a').parent.parent}: no bundle is committed here",
                "Deploy one with `kasmina-edge deploy`.",
            )
        lock = store.lock_slot(slot, wait_s=wait_s)
        try:
            again = store.record()
            if again.serving == slot:
                bundle = store.bundle(slot)
                return Serving(bundle, how, slot=slot, trial=again.trial == slot, lock=lock), again
        except BaseException:
            lock.close()
            raise
        lock.close()
    raise LockedError(f"{store.folder('a').parent}: the boot record changed {_ATTEMPTS} times while it was read")


class Follower:
    """Watches the boot record and hands over what apps are to run.

    `look` is for the hot path: two ``stat`` calls, and a wake-up when something changed. The thread loads; it also
    looks by itself every quarter second, so that an app that stopped inferring lets go of an old slot.

    Args:
        data_folder: Where ``boot-0`` and ``boot-1`` lie.
        store: The same folder's slots.
        how: How to load.
        current: What is served now.
        hand_over: Takes a loaded bundle (a swap), or the present one with another ``trial`` flag.
        seen: Signature of the records that ``current`` was chosen by.
    """

    def __init__(
        self,
        data_folder: Path,
        store: SlotStore,
        how: Loading,
        *,
        current: Callable[[], Serving],
        hand_over: Callable[[Serving, bool], None],
        seen: Signature,
    ) -> None:
        self._paths = [str(data_folder / name) for name in RECORD_FILES]
        self._store, self._how = store, how
        self._current, self._hand_over = current, hand_over
        self._seen = seen
        self._following = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self.last_error: KasminaError | None = None
        self._thread = threading.Thread(target=self._run, name="kasmina-follow", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether the thread was ever started."""
        return self._thread.ident is not None

    def look(self) -> None:
        """Wake the loading thread when the record files changed; never blocks."""
        if signature(self._paths) != self._seen:
            self._wake.set()

    def follow(self) -> None:
        """Serve what the record says now; returns when that is done or has failed (see ``last_error``).

        A bundle that does not load leaves the present one in service, and is not tried again before the record changes.
        A slot that is being replaced is tried again at the next look.
        """
        with self._following:
            now = signature(self._paths)
            if now == self._seen:
                return
            try:
                self._follow()
            except LockedError as exc:
                self.last_error = exc
                return
            except KasminaError as exc:
                self.last_error = exc
                log.warning("the present bundle stays in service: %s", exc.message)
            except Exception as exc:  # a fault of ours must not end the thread: the app would never follow again
                self.last_error = BundleError(f"{self._store.folder('a').parent}: swap failed ({exc!r})")
                log.exception("the present bundle stays in service")
            else:
                self.last_error = None
            self._seen = now

    def close(self) -> None:
        """Stop watching; waits for a load that is going on."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _follow(self) -> None:
        record = self._store.record()
        current = self._current()
        if record.serving == current.slot:  # our lock has kept its content
            trial = record.trial == current.slot
            if trial != current.trial:
                self._hand_over(current, trial)
            return
        serving, _ = open_serving(self._store, self._how)
        try:
            self._hand_over(serving, serving.trial)
        except BaseException:  # it never came into service
            serving.retire()
            raise

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(IDLE_LOOK_S)
            self._wake.clear()
            if not self._closing:
                self.follow()


def signature(paths: list[str]) -> Signature:
    """Inode and time of each record file; a durable replacement changes at least one of them."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            info = os.stat(path)
            found.append((info.st_ino, info.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def record_paths(data_folder: Path) -> list[str]:
    """Where the two copies of the boot record lie."""
    return [str(data_folder / name) for name in RECORD_FILES]
