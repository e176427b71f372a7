"""The sign of life of the work loop: pets the service manager's watchdog, and says since when the loop is silent.

Only the loop beats, so that a loop that is stuck in a step stops petting, whatever other threads still do. A step that
may take long on purpose (judging a slow model) says so with `allow`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from kasmina_edge.service.notify import Notifier

USUAL_SILENCE_S = 60.0


class Heart:
    """One loop's.

    Args:
        notifier: Speaks to the service manager.
        timer: Monotonic seconds.
    """

    def __init__(self, notifier: Notifier, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._timer = timer
        self._beat_at = timer()
        self._usual_s = notifier.watchdog_s or USUAL_SILENCE_S
        self._allowed_s = self._usual_s
        self.step = "starting"

    def beat(self) -> None:
        """The loop came round, or its step got on."""
        self._beat_at = self._timer()
        self._notifier.pet()

    @contextlib.contextmanager
    def doing(self, step: str) -> Iterator[None]:
        """Name what the loop does now."""
        self.step = step
        yield
        self.step = "waiting"

    @contextlib.contextmanager
    def allow(self, seconds: float) -> Iterator[None]:
        """What is done in the block may be silent for ``seconds``."""
        self._beat_at = self._timer()
        self._allowed_s = max(seconds, self._usual_s)
        try:
            with self._notifier.allow(seconds):
                yield
        finally:
            self._beat_at = self._timer()
            self._allowed_s = self._usual_s

    def silence_s(self) -> float:
        """Seconds since the loop was heard; may be asked from any thread."""
        return self._timer() - self._beat_at

    @property
    def stuck(self) -> bool:
        """Whether the loop is silent for longer than its step may be."""
        return self.silence_s() > self._allowed_s


class BeatingStop(threading.Event):
    """The loop's stop event for a long step that looks at it often, as a download does: each look is a beat.

    Such a step ends by itself when nothing arrives, so that its looks are progress and no empty petting.
    """

    def __init__(self, stop: threading.Event, heart: Heart) -> None:
        super().__init__()
        self._outer = stop
        self._heart = heart

    def is_set(self) -> bool:
        """As the loop's own event."""
        self._heart.beat()
        return self._outer.is_set()
