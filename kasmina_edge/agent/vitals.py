"""What the health socket tells of a running agent: values that the loop leaves behind, read by another thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from kasmina_edge import __version__
from kasmina_edge.agent.heart import Heart

FORMAT = 1


class Vitals:
    """The last known state of one agent.

    Args:
        device: Its id.
        heart: Says whether the loop gets on.
        timer: Monotonic seconds.
    """

    def __init__(self, device: str, heart: Heart, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._heart = heart
        self._timer = timer
        self._began = timer()
        self._device = device
        self.phase = "starting"
        self._known: dict[str, Any] = {
            "active": None,
            "alerts": [],
            "boot": None,
            "broker": None,
            "engine": None,
            "last_check_age_s": None,
            "outbox": None,
            "process": None,
            "trial": None,
            "update": None,
        }
        self._checked_at: float | None = None

    def tell(self, **known: Any) -> None:
        """Replace some of what is known; a value is never changed in place, so that readers need no lock."""
        self._known = {**self._known, **known}

    def checked(self) -> None:
        """The agent asked for updates just now."""
        self._checked_at = self._timer()

    def answer(self) -> dict[str, Any]:
        """The health socket's object; ``status`` is ok, starting, braked, stopping or stuck.

        It speaks of the agent alone: alerts stand beside it, because no restart cures a hot board or a forged update.
        """
        known = self._known
        problems: list[str] = []
        silence_s = self._heart.silence_s()
        status = self.phase
        if self._heart.stuck:
            status = "stuck"
            problems = [f"the loop is silent for {silence_s:.0f} s in step {self._heart.step!r}"]
        return {
            **known,
            "device": self._device,
            "format": FORMAT,
            "last_check_age_s": None if self._checked_at is None else round(self._timer() - self._checked_at, 1),
            "pid": os.getpid(),
            "problems": problems,
            "status": status,
            "step": self._heart.step,
            "step_age_s": round(silence_s, 2),
            "uptime_s": round(self._timer() - self._began, 1),
            "version": __version__,
        }
