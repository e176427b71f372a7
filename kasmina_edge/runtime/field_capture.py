"""What the change plan has a device keep by itself: frames that the recorder looked at, picked window by window."""

from __future__ import annotations

import random
from collections.abc import Callable

from kasmina_edge.errors import InputError
from kasmina_edge.runtime.result import Array
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.sampling import CaptureSampler

StoreOf = Callable[[str], CaptureStore | None]


class FieldCapture:
    """Picks for one runtime; one thread at a time.

    A window's picks wait in memory, are kept under the bundle that met them, and are let go of when the bundle, the
    plan or its sampling changes: what a plan does not allow any more is not kept.

    Args:
        store_of: The store under the verified plan for a bundle's name; None without one.
        rng: Draws.
    """

    def __init__(self, store_of: StoreOf, rng: random.Random) -> None:
        self._store_of, self._rng = store_of, rng
        self._bundle = ""
        self._store: CaptureStore | None = None
        self._sampler: CaptureSampler | None = None

    def look(self, serving: Serving, frame: Array, *, score: float | None, drifted: bool, at_s: float) -> None:
        """Offer one frame that nobody changes any more; arguments as of `CaptureSampler.offer`.

        Raises:
            StorageError: The disk refused to keep what a window picked.
        """
        self._attend(serving, at_s)
        if self._sampler is not None:
            self._sampler.offer(frame, score=score, drifted=drifted, at_s=at_s)

    def due(self, now_s: float) -> int:
        """Keep what a window picked, if one is over; how many frames that were.

        Raises:
            StorageError: The disk refused; the frames that were left are let go of.
        """
        if self._sampler is None or self._store is None:
            return 0
        kept = 0
        for picked in self._sampler.take(now_s):
            try:
                kept += self._store.keep(picked.frame, bundle=self._bundle, at_s=picked.at_s) is not None
            except InputError:
                continue  # too large to be sent
        return kept

    def _attend(self, serving: Serving, at_s: float) -> None:
        """Follow the bundle and the plan; the last window of the ones before ends here."""
        store = self._store_of(serving.manifest.name)
        if store is self._store and serving.digest == self._bundle:
            return
        if store is self._store:
            self.due(at_s + 1e12)
        self._bundle, self._store = serving.digest, store
        sampling = store.sampling if store is not None else None
        self._sampler = None if sampling is None else CaptureSampler(sampling, self._rng)
