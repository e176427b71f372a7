"""What happens to a device while it works: heat, neighbours, memory that is gone. Functions of virtual time and a seed.

An event is a description; `Event.begin` makes a course of it that is told how time goes on. Courses draw from a
generator of their own, in the order of time and of nothing else: two runs with one seed meet the same events, however
often they ask.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from kasmina_edge.errors import InputError


@dataclass(frozen=True)
class Effect:
    """What the device suffers now.

    Attributes:
        latency_factor: Every inference takes so many times as long; 1 or more.
        taken_bytes: RAM that others hold.
        causes: One phrase for each thing that is going on.
    """

    latency_factor: float = 1.0
    taken_bytes: int = 0
    causes: tuple[str, ...] = ()

    def __and__(self, other: Effect) -> Effect:
        """Both together."""
        return Effect(
            self.latency_factor * other.latency_factor,
            self.taken_bytes + other.taken_bytes,
            self.causes + other.causes,
        )


class Course(ABC):
    """One event as it unfolds; time only goes forward."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def step(self, now_s: float, busy_s: float = 0.0) -> Effect:
        """What is suffered at ``now_s``.

        Args:
            now_s: Seconds since the beginning, at least those of the call before.
            busy_s: How much of the time since then was spent computing.

        Raises:
            InputError: Time goes backward, or more was computed than time has passed.
        """
        passed = now_s - self._now_s
        if not passed >= 0.0:
            raise InputError(f"events: time goes from {self._now_s:g} s back to {now_s:g} s")
        if not 0.0 <= busy_s <= passed * (1 + 1e-9) + 1e-9:
            raise InputError(f"events: {busy_s:g} s were computed in {passed:g} s")
        self._now_s = now_s
        return self._step(now_s, passed, min(busy_s, passed))

    @abstractmethod
    def _step(self, now_s: float, passed_s: float, busy_s: float) -> Effect:
        """`step`, its arguments checked."""


class Event(ABC):
    """Something that may happen; a value."""

    @abstractmethod
    def begin(self, rng: random.Random) -> Course:
        """The event from time 0 on, everything random about it drawn from ``rng``."""


@dataclass(frozen=True)
class ThermalThrottling(Event):
    """A chip that heats up by its own work and slows its clock until it has cooled down.

    One thermal resistance and one time constant: dT/dt = (ambient + power x resistance - T) / time constant, solved
    exactly between two steps (Incropera, Fundamentals of Heat and Mass Transfer, lumped capacitance).

    Attributes:
        busy_w: Power while it computes; a slowed clock takes its share of what is above idle.
        idle_w: Power while it waits.
        resistance_k_per_w: Degrees above ambient for every watt, in the end.
        time_constant_s: After which 63 % of the way to that temperature is gone.
        trip_c: The temperature at which the clock is slowed.
        recover_c: The temperature at which it is restored; below ``trip_c``.
        clock_share: Of the slowed clock, above 0 and below 1.
        ambient_c: Around it, and its own at the beginning.
    """

    busy_w: float
    idle_w: float = 0.0
    resistance_k_per_w: float = 20.0
    time_constant_s: float = 60.0
    trip_c: float = 80.0
    recover_c: float = 75.0
    clock_share: float = 0.5
    ambient_c: float = 25.0

    def __post_init__(self) -> None:
        if not (0 < self.clock_share < 1 and self.recover_c < self.trip_c and self.time_constant_s > 0
                and self.resistance_k_per_w > 0 and 0 <= self.idle_w <= self.busy_w):  # fmt: skip
            raise InputError(
                f"thermal throttling: clock_share {self.clock_share:g} lies between 0 and 1, recover_c "
                f"{self.recover_c:g} below trip_c {self.trip_c:g}, idle_w {self.idle_w:g} at most busy_w "
                f"{self.busy_w:g}, time_constant_s and resistance_k_per_w above 0"
            )

    def begin(self, rng: random.Random) -> ThermalCourse:
        """Nothing about heat is random."""
        return ThermalCourse(self)


class ThermalCourse(Course):
    """A chip's temperature.

    Attributes:
        temperature_c: Now.
        slowed: Whether the clock is slowed.
    """

    def __init__(self, event: ThermalThrottling) -> None:
        super().__init__()
        self._event = event
        self.temperature_c = event.ambient_c
        self.slowed = False

    def _step(self, now_s: float, passed_s: float, busy_s: float) -> Effect:
        e = self._event
        if passed_s > 0:
            clock = e.clock_share if self.slowed else 1.0
            power = e.idle_w + (e.busy_w - e.idle_w) * clock * (busy_s / passed_s)
            goal = e.ambient_c + power * e.resistance_k_per_w
            self.temperature_c = goal + (self.temperature_c - goal) * math.exp(-passed_s / e.time_constant_s)
        if self.temperature_c >= e.trip_c:
            self.slowed = True
        elif self.temperature_c < e.recover_c:
            self.slowed = False
        if not self.slowed:
            return Effect()
        return Effect(1.0 / e.clock_share, 0, (f"throttled at {self.temperature_c:.0f} °C",))


@dataclass(frozen=True)
class _Recurring(Event):
    """Comes and goes: exponential pauses and lengths (an alternating renewal process)."""

    mean_pause_s: float
    mean_length_s: float

    def __post_init__(self) -> None:
        if not (self.mean_pause_s > 0 and self.mean_length_s > 0):
            raise InputError(
                f"{type(self).__name__}: mean_pause_s {self.mean_pause_s:g} and mean_length_s "
                f"{self.mean_length_s:g} are above 0"
            )

    def begin(self, rng: random.Random) -> Course:
        return _RecurringCourse(self, rng, self._effect())

    @abstractmethod
    def _effect(self) -> Effect:
        """While it is there."""


@dataclass(frozen=True)
class Contention(_Recurring):
    """Others that compute on the same cores.

    Attributes:
        share: Of the processor that they take, below 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise InputError(f"contention: share {self.share:g} lies between 0 and 1")

    def _effect(self) -> Effect:
        return Effect(1.0 / (1.0 - self.share), 0, (f"others take {self.share:.0%} of the processor",))


@dataclass(frozen=True)
class MemoryPressure(_Recurring):
    """Others that hold memory: a network that is loaded then may not fit.

    Attributes:
        taken_bytes: RAM they hold.
        latency_factor: What reclaiming pages costs whoever runs meanwhile; 1: nothing.
    """

    taken_bytes: int = 0
    latency_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taken_bytes < 0 or not self.latency_factor >= 1.0:
            raise InputError(
                f"memory pressure: taken_bytes {self.taken_bytes} is at least 0, latency_factor "
                f"{self.latency_factor:g} at least 1"
            )

    def _effect(self) -> Effect:
        return Effect(self.latency_factor, self.taken_bytes, (f"others hold {self.taken_bytes} bytes of RAM",))


class _RecurringCourse(Course):
    def __init__(self, event: _Recurring, rng: random.Random, effect: Effect) -> None:
        super().__init__()
        self._event, self._rng, self._effect = event, rng, effect
        self._there = False
        self._until_s = self._drawn(event.mean_pause_s)

    def _drawn(self, mean_s: float) -> float:
        return self._rng.expovariate(1.0 / mean_s)

    def _step(self, now_s: float, passed_s: float, busy_s: float) -> Effect:
        while self._until_s <= now_s:
            self._there = not self._there
            mean_s = self._event.mean_length_s if self._there else self._event.mean_pause_s
            self._until_s += self._drawn(mean_s)
        return self._effect if self._there else Effect()


class AllCourses(Course):
    """Several events at once; each has a generator of its own, so that one more changes nothing about the others."""

    def __init__(self, events: Sequence[Event], seed: int) -> None:
        super().__init__()
        self.courses = tuple(event.begin(random.Random(f"{seed}/{i}")) for i, event in enumerate(events))

    def _step(self, now_s: float, passed_s: float, busy_s: float) -> Effect:
        effect = Effect()
        for course in self.courses:
            effect = effect & course.step(now_s, busy_s)
        return effect
