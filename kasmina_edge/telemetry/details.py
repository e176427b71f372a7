"""The slow-changing part of telemetry: sketches, hardware, seed sites, the accelerator - with one record in many.

A window's record is small and written every few seconds; what is here would make it several times as large. It comes
with the first record, then once a period, and whenever the bundle changes. Sketches hold everything since they were
sent last, so their counts add up to all frames whatever the period is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from kasmina_edge.contracts.record import AcceleratorReport, HardwareContext, SeedTelemetry
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.sketch import LogHistogram, bucket_value

PERIOD_S = 60.0


@runtime_checkable
class SiteSource(Protocol):
    """Where seed figures come from; `kasmina_edge.telemetry.taps.SiteTaps` is one."""

    def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
        """The whole model, then its sites, since the last take; the window's median latency is given."""

    def hardware(self) -> HardwareContext | None:
        """The hardware as last read."""


@runtime_checkable
class EnergySource(Protocol):
    """Who knows the energy; `kasmina_edge.telemetry.energy.EnergyAccount` is one."""

    def take(self, inferences: int, busy_s: float) -> tuple[float, str] | None:
        """Microjoules an inference since the last take and where they come from; None: not measured."""


class Details:
    """Gathers until a record is due to carry it. Not safe for several threads: the collector's lock guards it.

    Args:
        period_s: Seconds between records with details; 0: every record has them.

    Raises:
        InputError: ``period_s`` is negative or not a number.

    Attributes:
        source: Where seed figures come from; None: not measured.
    """

    def __init__(self, period_s: float = PERIOD_S) -> None:
        if not period_s >= 0.0:
            raise InputError(f"collector: details every {period_s} s: expected 0 or more")
        self._period_s = period_s
        self._sent_s: float | None = None
        self._latency, self._score = LogHistogram(), LogHistogram()
        self._events: defaultdict[str, int] = defaultdict(int)
        self._cause = self._runs_on = ""
        self.source: SiteSource | None = None

    def add(self, latency: Mapping[int, int], score: Mapping[int, int]) -> None:
        """Take a window's buckets in."""
        for sketch, counts in ((self._latency, latency), (self._score, score)):
            for index, count in counts.items():
                sketch.counts[index] += count

    def accelerator(self, runs_on: str, kind: str, cause: str) -> None:
        """Take one event of the accelerator in."""
        self._runs_on, self._cause = runs_on[:64], cause[:200]
        self._events[kind[:32]] += 1

    def is_due(self, now_s: float) -> bool:
        """Whether the record that is made now carries the details; a clock that was set back makes it so."""
        return self._sent_s is None or not 0.0 <= now_s - self._sent_s < self._period_s

    def spent(self) -> tuple[int, float]:
        """Inferences since the last take, and the seconds that they took, to the sketch's one per cent."""
        counts = self._latency.counts
        return sum(counts.values()), sum(bucket_value(index) * count for index, count in counts.items()) / 1e6

    def take(self, now_s: float) -> tuple[dict[str, Any], SiteSource | None]:
        """The fields of the record, less what the source has to say, and the source; begin anew."""
        self._sent_s = now_s
        fields: dict[str, Any] = {}
        for name, sketch in (("latency_sketch", self._latency), ("score_sketch", self._score)):
            if any(sketch.counts.values()):
                fields[name] = sketch.encode()
        if self._events:
            fields["accelerator"] = AcceleratorReport(
                runs_on=self._runs_on, events=dict(self._events), cause=self._cause
            )
        self._latency, self._score = LogHistogram(), LogHistogram()
        self._events.clear()
        return fields, self.source


def short(value: float, digits: int = 7) -> float:
    """The value in so many significant digits: more of them would be written, sent and stored, and say nothing."""
    return float(f"{value:.{digits}g}")


def with_latency(hardware: HardwareContext | None, latency_us: Mapping[str, float] | None) -> HardwareContext | None:
    """The hardware context with the window's latencies in it; None where nothing at all was measured."""
    if not latency_us:
        return hardware
    p50, p99 = (short(latency_us[name], 5) for name in ("p50", "p99"))
    if hardware is None:
        return HardwareContext(latency_us=p50, latency_p99_us=p99)
    return hardware.model_copy(update={"latency_us": p50, "latency_p99_us": p99})


def with_energy(hardware: HardwareContext | None, energy: tuple[float, str] | None) -> HardwareContext | None:
    """The hardware context with the energy of an inference in it."""
    if energy is None:
        return hardware
    update = {"energy_uj": short(energy[0], 5), "energy_how": energy[1][:120]}
    return (hardware or HardwareContext()).model_copy(update=update)
