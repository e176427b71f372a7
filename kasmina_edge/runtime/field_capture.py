"""What the change plan has a device keep by itself: frames that the recorder looked at, picked window by window."""

from __future__ import annotations

import random
from collections.abc import Callable

from kasmina_edge.contracts.change_plan import CaptureSampling
from kasmina_edge.errors import InputError
from kasmina_edge.runtime.result import Array
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.sampling import CaptureSampler

StoreOf = Callable[[str], CaptureStore | None]


class FieldCapture:
    """Picks for one runtime; one thread at a time.

    A window's picks wait in memory and are kept under the bundle that met them. They are let go of when the plan's
    sampling changes or ends, and each is kept under the plan of that moment: what it does not allow any more is not
    kept.

    Args:
        store_of: The store under the verified plan for a bundle's name; None without one.
        rng: Draws.
    """

    def __init__(self, store_of: StoreOf, rng: random.Random) -> None:
        self._store_of, self._rng = store_of, rng
        self._bundle = self._name = ""
        self._store: CaptureStore | None = None
        self._sampling: CaptureSampling | None = None
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
        picks = self._sampler.take(now_s) if self._sampler is not None else []
        if not picks or not self._follow_plan():
            return 0
        assert self._store is not None
        kept = 0
        for picked in picks:
            try:
                kept += self._store.keep(picked.frame, bundle=self._bundle, at_s=picked.at_s) is not None
            except InputError:
                continue  # too large to be sent
        return kept

    def _attend(self, serving: Serving, at_s: float) -> None:
        """Follow the bundle and the plan; the last window of the bundle before ends here."""
        name = serving.manifest.name
        if serving.digest != self._bundle:
            if name == self._name:
                self.due(at_s + 1e12)
            self._bundle, self._name, self._sampling, self._sampler = serving.digest, name, None, None
        self._follow_plan()

    def _follow_plan(self) -> bool:
        """Read which plan is in force; whether it samples as the one before did."""
        self._store = self._store_of(self._name)
        sampling = self._store.sampling if self._store is not None else None
        if sampling != self._sampling:
            self._sampling = sampling
            self._sampler = None if sampling is None else CaptureSampler(sampling, self._rng)
            return False
        return sampling is not None
