"""Which frames a device keeps by itself: three small reservoirs a window, in memory until the window ends.

A uniform share of everything, a share of what the network was unsure of, and a share of what came while drift stood;
each is an Algorithm R reservoir (Vitter 1985, ACM TOMS 11:37), so every frame of its kind has the same chance, however
many there are. Nothing touches the disk before a window ends, and then only what was picked, sealed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from kasmina_edge.contracts.change_plan import CaptureSampling

Frame = npt.NDArray[Any]
MAX_HELD_BYTES = 8 * 1024 * 1024
"""Most bytes of frames that a window holds in memory; its reservoirs are made smaller for large frames."""


@dataclass(frozen=True)
class Picked:
    """A frame that was picked, when it was seen (wall clock), and why: ``share``, ``low-score``, ``drift``."""

    frame: Frame
    at_s: float
    reasons: tuple[str, ...]


@dataclass
class _Reservoir:
    size: int
    seen: int = 0
    held: list[int] = field(default_factory=list)

    def offer(self, number: int, rng: random.Random) -> bool:
        """Algorithm R: whether frame ``number`` is in the reservoir now."""
        self.seen += 1
        if len(self.held) < self.size:
            self.held.append(number)
            return True
        place = rng.randrange(self.seen)
        if place >= self.size:
            return False
        self.held[place] = number
        return True


class CaptureSampler:
    """Picks frames window by window; one thread at a time.

    Args:
        sampling: The change plan's rule.
        rng: Draws; seed it, and the same frames are picked.
        max_held_bytes: Bound on the frames held in memory.

    >>> import numpy as np
    >>> sampler = CaptureSampler(CaptureSampling(window_s=10, frames=1), random.Random(0))
    >>> for second in range(10):
    ...     sampler.offer(np.full(1, second), score=0.9, drifted=False, at_s=float(second))
    >>> sampler.take(9.0), [picked.reasons for picked in sampler.take(10.0)]
    ([], [('share',)])
    """

    def __init__(self, sampling: CaptureSampling, rng: random.Random, *, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._rule, self._rng, self._max_held_bytes = sampling, rng, max_held_bytes
        self._began_s: float | None = None
        self._frames: dict[int, tuple[Frame, float]] = {}
        self._number = 0
        self._begin()

    def offer(self, frame: Frame, *, score: float | None, drifted: bool, at_s: float) -> None:
        """Look at one frame.

        Args:
            frame: The checked input; it is kept as it is, so the caller must not change it afterwards.
            score: Top score, 0 to 1; None when the network has none.
            drifted: Whether drift stands at or above its alarm line now.
            at_s: Wall clock, seconds since 1970 UTC.
        """
        if self._began_s is None:
            self._began_s = at_s
            room = self._max_held_bytes // max(1, len(self._reservoirs) * frame.nbytes)
            for reservoir in self._reservoirs.values():
                reservoir.size = min(reservoir.size, room)
        number, self._number = self._number, self._number + 1
        rule = self._rule
        kinds = ["share"]
        if rule.low_score is not None and score is not None and score < rule.low_score:
            kinds.append("low-score")
        if drifted:
            kinds.append("drift")
        if self._held_bytes + frame.nbytes > self._max_held_bytes:
            return
        taken = [self._reservoirs[kind].offer(number, self._rng) for kind in kinds]  # each must see it
        if any(taken):
            self._frames[number] = (frame, at_s)
            self._forget()

    def take(self, now_s: float) -> list[Picked]:
        """What the window picked, once it is over, oldest first; the next window begins with the next frame."""
        if self._began_s is None or 0.0 <= now_s - self._began_s < self._rule.window_s:
            return []
        reasons: dict[int, list[str]] = {}
        for kind, reservoir in self._reservoirs.items():
            for number in reservoir.held:
                reasons.setdefault(number, []).append(kind)
        picked = [Picked(*self._frames[number], tuple(why)) for number, why in sorted(reasons.items())]
        self._begin()
        return picked

    @property
    def _held_bytes(self) -> int:
        return sum(frame.nbytes for frame, _ in self._frames.values())

    def _begin(self) -> None:
        rule = self._rule
        sizes = {"share": rule.frames, "low-score": rule.low_score_frames, "drift": rule.drift_frames}
        self._reservoirs = {kind: _Reservoir(size) for kind, size in sizes.items()}
        self._frames.clear()
        self._number = 0
        self._began_s = None

    def _forget(self) -> None:
        """Let go of frames that no reservoir holds any more."""
        held = {number for reservoir in self._reservoirs.values() for number in reservoir.held}
        for number in self._frames.keys() - held:
            del self._frames[number]
