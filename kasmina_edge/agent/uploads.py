"""What the agent does with captures: erases what it must not keep, and hands the rest to the outbox a few at a time.

A capture is safest in its own folder, where nothing pushes it out. So the outbox holds few of them, and only while they
leave; what can never fit is set aside.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.erasure import STREAM, Note, carry_out
from kasmina_edge.telemetry.outbox import Outbox

log = logging.getLogger(__name__)

MOST_IN_OUTBOX = 16
SHARE_OF_OUTBOX = 0.25
RETRY_S = 60.0


class CaptureUploads:
    """One device's captures on their way; used by the agent's loop alone.

    Args:
        store: The captures under the plan of the moment.
        signing_key: The device's.
        prove: Writes the audit log, and raises where it cannot.
        beat: The loop's sign of life.
        outbox_bytes: Bound of the outbox.
        timer: Monotonic seconds.
    """

    def __init__(
        self,
        store: Callable[[], CaptureStore],
        signing_key: Ed25519PrivateKey,
        prove: Note,
        beat: Callable[[], object],
        outbox_bytes: int,
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._signing_key, self._prove, self._beat = store, signing_key, prove, beat
        self._room = SHARE_OF_OUTBOX * outbox_bytes
        self._timer = timer
        self._erase_at = self._queue_at = -math.inf
        self._outbox: Outbox | None = None
        self._queued: deque[tuple[int, int]] = deque()  # id and bytes of what may still be in the outbox

    def erase(self, outbox: Outbox) -> None:
        """Carry out what the plan demands; after a failure again in `RETRY_S`, and nothing is queued until it is done.

        Raises:
            KasminaError: It could not be carried out.
        """
        if self._timer() < self._erase_at:
            return
        self._erase_at = self._timer() + RETRY_S
        carry_out(self._store(), outbox, self._prove, self._beat)
        self._erase_at = -math.inf

    def queue(self, outbox: Outbox) -> None:
        """Sign what apps captured and hand it to the outbox, as far as that has room; what is unfit is set aside.

        Raises:
            KasminaError: The disk refused; tried again in `RETRY_S`.
        """
        if self._erase_at > -math.inf or self._timer() < self._queue_at:
            return
        self._queue_at = self._timer() + RETRY_S
        store = self._store()
        for item in store.pending():
            if not self._has_room(outbox):
                break
            self._beat()
            try:
                sealed = store.upload(item, self._signing_key)
            except KasminaError as exc:
                _set_aside(store, item, exc)
                continue
            try:
                entry = outbox.append(STREAM, sealed)
            except InputError as exc:  # larger than the whole outbox
                _set_aside(store, item, exc)
                continue
            self._queued.append((entry, len(sealed)))
            store.forget(item)
        self._queue_at = -math.inf

    def _has_room(self, outbox: Outbox) -> bool:
        """Whether few enough captures wait; they leave in the order of their ids."""
        if outbox is not self._outbox:
            waiting = outbox.newer(-1, MOST_IN_OUTBOX, stream=STREAM)
            self._outbox, self._queued = outbox, deque((entry.id, len(entry.payload)) for entry in waiting)
        if self._is_full():
            oldest = outbox.newer(self._queued[0][0] - 1, 1, stream=STREAM)
            while self._queued and (not oldest or self._queued[0][0] < oldest[0].id):
                self._queued.popleft()
        return not self._is_full()

    def _is_full(self) -> bool:
        if not self._queued:
            return False
        return len(self._queued) >= MOST_IN_OUTBOX or sum(size for _, size in self._queued) >= self._room


def _set_aside(store: CaptureStore, item: int, why: KasminaError) -> None:
    log.warning("capture %d set aside: %s", item, why.message)
    store.set_aside(item)
