"""Energy of a piece of work, and of an inference: measured where the machine shows it, else by the profile.

It is always said which. A counter's difference is exact; a sensor's power is integrated over the samples that were
taken. Both take in everything that runs on the chip or the board meanwhile, so that a figure is an upper bound of one
program's share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.telemetry.energy_sources import EnergySource, Found, find_sources

MOST_W = 2000.0
"""More than a machine draws: a figure above it is a counter gone wrong."""
LIKELY_W = 300.0
"""A package at work: a counter that this would take round within the time may have gone round more than once."""
SAMPLE_S = 0.02
MAX_HOW = 120


@dataclass(frozen=True)
class Energy:
    """An amount and where it comes from.

    Attributes:
        joules: None where it was not measured.
        how: ``measured: rapl package-0, whole package, idle not subtracted``, ``profile NAME: ...``, or
            ``not measured: `` and the reason.
        seconds: Over what time.
    """

    joules: float | None
    how: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """All sources at one time.

    Attributes:
        at_s: Monotonic.
        values: One of each source; None where it could not be read.
    """

    at_s: float
    values: tuple[float | None, ...]


@dataclass
class EnergyRun:
    """What `EnergyMeter.measure` fills in when its block ends."""

    energy: Energy = field(default_factory=lambda: Energy(None, "not measured: the block has not ended"))


class EnergyMeter:
    """Reads this machine's energy.

    Args:
        root: Where ``sys`` lies.
        clock: Monotonic seconds.
        idle_power_w: What the same sources show of an idle machine; it is subtracted. None: nothing is.
        found: Sources to read instead of those below ``root``.

    >>> meter = EnergyMeter(Path("/nowhere"))
    >>> with meter.measure() as run:
    ...     total = sum(range(1000))
    >>> run.energy.joules, run.energy.how
    (None, 'not measured: no RAPL counter and no power sensor here')
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
        idle_power_w: float | None = None,
        found: Found | None = None,
    ) -> None:
        self._found = find_sources(root) if found is None else found
        self._clock, self._idle_w = clock, idle_power_w

    @property
    def sources(self) -> tuple[EnergySource, ...]:
        """What is read; empty where nothing can be."""
        return self._found.sources

    @property
    def why_not(self) -> str:
        """Why nothing is measured; empty where something is."""
        if self._found.sources:
            return ""
        if self._found.refused:
            first = self._found.refused[0]
            return f"{first.name}: {first.reason}"
        return "no RAPL counter and no power sensor here"

    def sample(self) -> Sample:
        """Read all sources now."""
        return Sample(self._clock(), tuple(source.read() for source in self._found.sources))

    def over(self, samples: Sequence[Sample]) -> Energy:
        """The energy from the first sample to the last."""
        if not self._found.sources:
            return Energy(None, f"not measured: {self.why_not}"[:MAX_HOW])
        return energy_between(samples, self._found, self._idle_w)

    @contextmanager
    def measure(self) -> Iterator[EnergyRun]:
        """Measure a block of work; `EnergyRun.energy` is there when it has ended.

        A sensor of power is sampled every 20 ms by a thread meanwhile; counters are read twice, and not in between.
        """
        run, samples = EnergyRun(), [self.sample()]
        ended = threading.Event()
        thread = None
        if any(source.unit == "uW" for source in self._found.sources):
            thread = threading.Thread(target=self._watch, args=(samples, ended), name="kasmina-energy", daemon=True)
            thread.start()
        try:
            yield run
        finally:
            ended.set()
            if thread is not None:
                thread.join()
            samples.append(self.sample())
            run.energy = self.over(samples)

    def _watch(self, samples: list[Sample], ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_S):
            samples.append(self.sample())


def energy_between(samples: Sequence[Sample], found: Found, idle_power_w: float | None = None) -> Energy:
    """Sum of what the sources counted or drew from the first sample to the last: a pure function.

    Args:
        samples: In the order of time, at least two.
        found: The sources, in the samples' order.
        idle_power_w: To subtract.
    """
    seconds = samples[-1].at_s - samples[0].at_s if samples else 0.0
    if len(samples) < 2 or seconds <= 0.0:
        return Energy(None, "not measured: no time between two readings", 0.0)
    total = 0.0
    for i, source in enumerate(found.sources):
        values = [(sample.at_s, sample.values[i]) for sample in samples]
        joules, why = _counted(values, source, seconds) if source.unit == "uJ" else _drawn(values)
        if joules is None:
            return Energy(None, f"not measured: {source.name} {why}"[:MAX_HOW], seconds)
        total += joules
    if total > MOST_W * seconds:
        why = f"{found.names} shows {total / seconds:.0f} W, more than {MOST_W:.0f} W"
        return Energy(None, f"not measured: {why}"[:MAX_HOW], seconds)
    idle = "idle not subtracted"
    if idle_power_w is not None:
        total = max(0.0, total - idle_power_w * seconds)
        idle = f"idle {idle_power_w:g} W subtracted"
    return Energy(total, f"measured: {found.names}, {found.scope}, {idle}"[:MAX_HOW], seconds)


def _counted(
    values: Sequence[tuple[float, float | None]], source: EnergySource, seconds: float
) -> tuple[float | None, str]:
    """A counter's difference, over the place where it begins anew."""
    before, after = values[0][1], values[-1][1]
    if before is None or after is None:
        return None, "could not be read"
    limit = source.range_uj
    if limit is not None and max(before, after) > limit:
        return None, f"shows more than its range of {limit} uJ"
    if limit is not None and seconds * LIKELY_W * 1e6 > limit:
        return None, f"may have begun anew more than once in {seconds:.0f} s"
    if after < before:
        if limit is None:
            return None, f"went back from {before:.0f} to {after:.0f} uJ"
        after += limit
    return (after - before) / 1e6, ""


def _drawn(values: Sequence[tuple[float, float | None]]) -> tuple[float | None, str]:
    """Power integrated by trapezoids over the samples that could be read."""
    known = [(at, value) for at, value in values if value is not None]
    if len(known) < 2:
        return None, "could not be read"
    joules = sum((b + a) / 2e6 * (t - s) for (s, a), (t, b) in pairwise(known))
    whole, covered = values[-1][0] - values[0][0], known[-1][0] - known[0][0]
    return (joules * whole / covered, "") if covered > 0 else (None, "could not be read")


def energy_by_profile(
    profile: HardwareProfile, *, seconds: float, macs: int | None = None, inferences: int = 1
) -> Energy:
    """The profile's estimate: energy a multiplication plus idle power, or its power while it works.

    Args:
        profile: The target.
        seconds: That the work took.
        macs: Multiply-accumulates of one inference; None: not known.
        inferences: How many.
    """
    pj, idle = profile.energy_pj_per_mac, profile.idle_power_w
    if pj is not None and macs is not None:
        joules = pj * 1e-12 * macs * inferences + (idle or 0.0) * seconds
        what = f"{pj:g} pJ a MAC" + (f" + idle {idle:g} W x time" if idle is not None else ", idle power unknown")
        return Energy(joules, f"profile {profile.name}: {what}"[:MAX_HOW], seconds)
    if profile.power_w is not None:
        how = f"profile {profile.name}: {profile.power_w:g} W x time"
        return Energy(profile.power_w * seconds, how[:MAX_HOW], seconds)
    return Energy(None, f"not measured: profile {profile.name} names neither power nor energy a MAC"[:MAX_HOW], seconds)


class EnergyAccount:
    """Energy an inference, from one look to the next: what telemetry asks once a period, never for a frame.

    Args:
        meter: Reads the machine.
        estimate: What is said of so many inferences in so many seconds where the machine shows nothing.
        real: Whether the work is done on this machine; where it is only simulated, its counters say nothing of it.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        estimate: Callable[[int, float], Energy | None] = lambda inferences, busy_s: None,
        *,
        real: Callable[[], bool] = lambda: True,
    ) -> None:
        self._meter, self._estimate, self._real = meter, estimate, real
        self._last = meter.sample()

    def take(self, inferences: int, busy_s: float) -> tuple[float, str] | None:
        """Microjoules an inference since the last take, and where they come from; None: not measured.

        Args:
            inferences: Since then.
            busy_s: Time that they took, all together.
        """
        before, self._last = self._last, self._meter.sample()
        if inferences < 1:
            return None
        energy: Energy | None = self._meter.over([before, self._last]) if self._real() else None
        if energy is None or energy.joules is None:
            energy = self._estimate(inferences, busy_s)
        if energy is None or energy.joules is None:
            return None
        return energy.joules * 1e6 / inferences, energy.how
