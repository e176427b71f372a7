"""Following a data folder's boot record: which slot an app serves, noticed between frames, loaded beside the frames."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kasmina_edge.contracts.manifest import BundleManifest, ModelIO
from kasmina_edge.errors import BundleError, KasminaError, LockedError, StorageError
from kasmina_edge.runtime.serving import Loading, Serving
from kasmina_edge.slots import RECORD_FILES, BootRecord, SlotStore

log = logging.getLogger(__name__)

IDLE_LOOK_S = 0.25
LOCK_WAIT_S = 2.0
RETRY_S = 1.0
MOST_RETRY_S = 60.0
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
        timer: Monotonic seconds, for the time between two tries.
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
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = [str(data_folder / name) for name in RECORD_FILES]
        self._store, self._how = store, how
        self._current, self._hand_over = current, hand_over
        self._seen, self._timer = seen, timer
        self._retry_at_s, self._retry_s = math.inf, RETRY_S
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

    def follow(self, *, now: bool = False) -> None:
        """Serve what the record says now; returns when that is done or has failed (see ``last_error``).

        A bundle that does not load leaves the present one in service. Where the reason may pass (the disk, memory, file
        descriptors) it is tried again after `RETRY_S`, then ever later up to `MOST_RETRY_S`; a bundle that is damaged,
        does not fit the app or this machine, when the record changes; a slot that is being replaced, at the next look.

        Args:
            now: Try what failed before once more, due or not.
        """
        with self._following:
            found = signature(self._paths)
            changed = found != self._seen
            again = self.last_error is not None if now else self._timer() >= self._retry_at_s
            if self._closing or not (changed or again):
                return
            if changed:
                self._retry_s = RETRY_S
            self._retry_at_s = math.inf
            try:
                self._follow()
            except LockedError as exc:
                self.last_error = exc
                return
            except KasminaError as exc:
                self.last_error = exc
                log.warning("the present bundle stays in service: %s", exc.message)
                if _may_pass(exc):
                    self._try_later()
            except Exception as exc:  # a fault of ours must not end the thread: the app would never follow again
                self.last_error = BundleError(f"{self._store.folder('a').parent}: swap failed ({exc!r})")
                log.exception("the present bundle stays in service")
                self._try_later()
            else:
                self.last_error = None
            self._seen = found

    def _try_later(self) -> None:
        self._retry_at_s = self._timer() + self._retry_s
        self._retry_s = min(2.0 * self._retry_s, MOST_RETRY_S)

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
            require_fit(current.manifest, serving.manifest)
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


def _may_pass(exc: BaseException) -> bool:
    """Whether the same bundle may load later: the disk, memory or descriptors failed, here or in what caused it."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, StorageError | MemoryError):
            return True
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def require_fit(present: BundleManifest, offered: BundleManifest) -> None:
    """Refuse to follow to a bundle that the app which opened ``present`` could not feed or read.

    Raises:
        BundleError: Another name, or other inputs, outputs (labels aside) or head.
    """
    for what, ours, theirs in (
        ("name", present.name, offered.name),
        ("head", present.head, offered.head),
        ("inputs", _layout(present.inputs), _layout(offered.inputs)),
        ("outputs", _layout(present.outputs), _layout(offered.outputs)),
    ):
        if ours != theirs:
            raise BundleError(
                f"{offered.id}: its {what} is {theirs}, this app opened {present.id} with {ours}",
                "Open the data folder again to serve it; until then the present bundle stays in service.",
            )


def _layout(sides: Sequence[ModelIO]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(side.name, tuple(side.shape), side.dtype) for side in sides]


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
