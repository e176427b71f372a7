"""The collector: what an app process sees, summed up window by window into telemetry records.

Every inference pays for a count, a latency bucket and a label; drift features are taken of sampled frames only. What
was not measured in a window is None in its record, never zero. What changes slowly comes with one record in many:
`kasmina_edge.telemetry.details`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import DomainStatistics
from kasmina_edge.contracts.record import SeedTelemetry, Summary, TelemetryRecord
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.safety.drift import FEATURES, drift_score, features, smallest_window
from kasmina_edge.telemetry.details import PERIOD_S, Details, EnergySource, SiteSource, short, with_energy, with_latency
from kasmina_edge.telemetry.sketch import BUCKET_OFFSET, LOG_SCALE, LogHistogram, Moments, bucket_of

__all__ = ["Collector", "SeedTelemetry", "Slot"]

log = logging.getLogger(__name__)

Slot = Literal["a", "b", "-"]
_log = math.log


@dataclass(frozen=True)
class _Subject:
    """What the windows are about; replaced as a whole when the runtime swaps bundles."""

    bundle: str
    release: int
    slot: Slot
    trial: bool
    domains: tuple[DomainStatistics, ...]
    labels: tuple[str, ...]
    simulated: str


class _Window:
    __slots__ = (
        "check_correct", "checks", "features", "frames", "labels", "latency", "sample_at", "scores", "slowest",
        "started_s",
    )  # fmt: skip

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.frames = 0
        self.sample_at = 0
        self.latency: defaultdict[int, int] = defaultdict(int)
        self.slowest = 0.0
        self.labels: defaultdict[int, int] = defaultdict(int)
        self.checks = 0
        self.check_correct = 0
        self.features: dict[str, Moments] = {}
        self.scores: defaultdict[int, int] = defaultdict(int)


class Collector:
    """Sums up inferences into `TelemetryRecord` values; safe for several threads.

    A window ends after ``window_frames`` inferences, or with the first inference after ``window_s`` seconds; call
    `flush_if_due` now and then so that a camera that stopped does not keep its last window to itself.

    Args:
        device: Device id.
        bundle: Digest of the bundle that answers.
        release: Its release number.
        slot: The slot it lies in, "-" for a bare bundle.
        trial: Whether it is on trial.
        source: Names this process on its device; with ``boot`` and the sequence it names a record.
        boot: The device's boot counter.
        domains: Reference statistics of the bundle; empty: drift is not measured.
        labels: Names of the classes by index; an index beyond them is recorded as its number.
        clock: Wall clock, seconds since 1970 UTC.
        emit: Takes each finished record, on the thread that finished the window. When it raises a `KasminaError`, the
            record is lost, logged, and counted in ``dropped_records`` of those that follow.
        window_frames: Inferences that end a window.
        window_s: Seconds that end a window.
        sample_every: Frames are looked at for drift features at least so many inferences apart, the first that a window
            is given included.
        first_sequence: Sequence number of the first record.
        simulated: Whose time is predicted for the latencies; "": they are real.
        details_s: Seconds between records that carry sketches, hardware and seed sites; 0: all of them do.
        energy: Asked for the energy of an inference by records with details, on the thread that finishes the window.

    Raises:
        InputError: A value that no record can carry, or a window that could never end.
    """

    def __init__(
        self,
        *,
        device: str,
        bundle: str,
        release: int,
        slot: Slot,
        trial: bool,
        source: str,
        boot: int,
        domains: Sequence[DomainStatistics],
        labels: Sequence[str],
        clock: Callable[[], float],
        emit: Callable[[TelemetryRecord], None],
        window_frames: int = 60,
        window_s: float = 2.0,
        sample_every: int = 2,
        first_sequence: int = 0,
        details_s: float = PERIOD_S,
        energy: EnergySource | None = None,
        simulated: str = "",
    ) -> None:
        if window_frames < 1 or sample_every < 1 or not window_s > 0:
            raise InputError(
                f"collector: window_frames {window_frames}, window_s {window_s} and sample_every {sample_every} "
                "must be positive"
            )
        TelemetryRecord.parse(  # what cannot be said in a record is refused now, not on the hot path
            {
                "device": device, "bundle": bundle, "release": release, "slot": slot, "trial": trial,
                "source": source, "boot": boot, "sequence": first_sequence, "started_s": 0.0, "duration_s": 0.0,
                "frames": 0, "sampled": 0,
            },
            where="collector",
        )  # fmt: skip
        self._device, self._source, self._boot = device, source, boot
        self._subject = _Subject(bundle, release, slot, trial, tuple(domains), tuple(labels), simulated)
        self._clock, self._emit = clock, emit
        self._window_frames, self._window_s, self._sample_every = window_frames, window_s, sample_every
        self._sequence = first_sequence
        self._lost = 0
        self._details = Details(details_s)
        self._energy = energy
        self._lock = threading.Lock()
        self._window: _Window | None = None
        self._recent: deque[tuple[int, dict[str, float]]] = deque(maxlen=64)  # sampled frames, feature sums

    def observe(
        self, frame: npt.NDArray[Any] | None, latency_us: float, score: float | None, label_index: int | None
    ) -> None:
        """Take one inference into account.

        Args:
            frame: The input as the app gave it; None when there is no single array to look at.
            latency_us: Wall time of the inference; a value that is not positive and finite is not counted.
            score: Top score, None when the model has none.
            label_index: Index of the top class, None when the model has none.
        """
        now = self._clock()
        with self._lock:
            window = self._window
            if window is None:
                window = self._window = _Window(now)
            sampled = frame is not None and window.frames >= window.sample_at
            if sampled:
                window.sample_at = window.frames + self._sample_every
            window.frames += 1
            if 0.0 < latency_us < math.inf:
                window.latency[int(_log(latency_us) * LOG_SCALE + BUCKET_OFFSET)] += 1
                if latency_us > window.slowest:
                    window.slowest = latency_us
            if label_index is not None:
                window.labels[label_index] += 1
            ends = window.frames >= self._window_frames or not 0.0 <= now - window.started_s < self._window_s
        if sampled:
            assert frame is not None
            self._sample(window, frame, score)
        if ends:
            self._finish(window, now)

    def observe_many(
        self, latencies_us: npt.NDArray[np.float64], label_indices: npt.NDArray[np.intp] | None, began_s: float
    ) -> None:
        """Take a run of inferences into account at once: as `observe` for each, where no frame is looked at.

        The caller sees to it that no window ends before the last of them.

        Args:
            latencies_us: Wall times, as of `observe`.  # (N,)
            label_indices: Top classes, or None when the model has none.  # (N,)
            began_s: When the first of them was, by the collector's clock; the clock itself tells of the last.
        """
        now = self._clock()
        good = latencies_us[(latencies_us > 0.0) & np.isfinite(latencies_us)]
        buckets = (np.log(good) * LOG_SCALE + BUCKET_OFFSET).astype(np.int64)
        with self._lock:
            window = self._window
            if window is None:
                window = self._window = _Window(began_s)
            window.frames += len(latencies_us)
            for index, count in zip(*np.unique(buckets, return_counts=True), strict=True):
                window.latency[int(index)] += int(count)
            window.slowest = max(window.slowest, float(good.max(initial=0.0)))
            if label_indices is not None:
                for index, count in zip(*np.unique(label_indices, return_counts=True), strict=True):
                    window.labels[int(index)] += int(count)
            ends = window.frames >= self._window_frames or not 0.0 <= now - window.started_s < self._window_s
        if ends:
            self._finish(window, now)

    def check(self, correct: bool) -> None:
        """Count one check frame: a known scene that went through the device's own sensor path."""
        now = self._clock()
        with self._lock:
            if self._window is None:
                self._window = _Window(now)
            self._window.checks += 1
            self._window.check_correct += bool(correct)

    def sites(self, source: SiteSource | None) -> None:
        """From here on, records with details carry the hardware and seed sites that ``source`` gives.

        It is asked outside of the collector's lock, on the thread that finishes the window. `switch` forgets it.
        """
        with self._lock:
            self._details.source = source

    def accelerator(self, runs_on: str, kind: str, cause: str) -> None:
        """Count an event of the accelerator; the next record with details carries it.

        Args:
            runs_on: Who answers from now on, as people read it.
            kind: What happened, e.g. ``hang`` or ``back``.
            cause: One sentence.
        """
        with self._lock:
            self._details.accelerator(runs_on, kind, cause)

    def flush(self, *, details: bool = False) -> None:
        """Finish the window now; a window that saw nothing gives no record.

        Args:
            details: Its record carries the details, due or not: for the last one before the process ends.
        """
        window = self._window
        if window is not None:
            self._finish(window, self._clock(), details=details)

    def flush_if_due(self) -> None:
        """Finish the window when its time is over; for a timer thread."""
        window, now = self._window, self._clock()
        if window is not None and not 0.0 <= now - window.started_s < self._window_s:
            self._finish(window, now)

    def switch(
        self,
        *,
        bundle: str,
        release: int,
        slot: Slot,
        trial: bool,
        domains: Sequence[DomainStatistics],
        labels: Sequence[str],
        simulated: str = "",
    ) -> None:
        """Finish the window of the old bundle, and count for another one from here on; arguments as of the class."""
        self.flush(details=True)
        with self._lock:
            self._subject = _Subject(bundle, release, slot, trial, tuple(domains), tuple(labels), simulated)
            self._recent.clear()
            self._details.source = None

    @property
    def next_sequence(self) -> int:
        """Sequence number that the next record will carry."""
        return self._sequence

    def _sample(self, window: _Window, frame: npt.NDArray[Any], score: float | None) -> None:
        found = features(frame, score)
        if not all(map(math.isfinite, found.values())):
            return
        with self._lock:
            moments = window.features
            for name, value in found.items():
                if name not in moments:
                    moments[name] = Moments()
                moments[name].add(value)
            if score is not None and score > 0.0:
                window.scores[max(0, bucket_of(score))] += 1

    def _finish(self, window: _Window, now: float, *, details: bool = False) -> None:
        fields: dict[str, Any] | None = None
        spent = 0, 0.0
        with self._lock:
            if self._window is not window:  # another thread finished it
                return
            self._window = None
            record = self._record(window, now)
            self._sequence += 1
            self._details.add(window.latency, window.scores)
            if details or self._details.is_due(now):
                spent = self._details.spent()
                fields, source = self._details.take(now)
        if fields is not None:
            record = _with_details(record, fields, source, self._energy, spent)
        try:
            self._emit(record)
        except KasminaError as exc:
            with self._lock:
                self._lost += 1
            log.warning("telemetry record %d was lost: %s", record.sequence, exc.message)

    def _record(self, window: _Window, now: float) -> TelemetryRecord:
        subject = self._subject
        inputs = window.features.get("input_mean")
        sampled = inputs.count if inputs else 0
        drift, domain = self._drift(window, sampled, subject.domains)
        score = window.features.get("score")
        return TelemetryRecord(
            device=self._device,
            bundle=subject.bundle,
            release=subject.release,
            slot=subject.slot,
            trial=subject.trial,
            source=self._source,
            boot=self._boot,
            sequence=self._sequence,
            started_s=round(window.started_s, 3),
            duration_s=round(max(0.0, now - window.started_s), 3),
            frames=window.frames,
            sampled=sampled,
            input=_short_summary(inputs),
            score=_short_summary(score),
            features={name: short(m.mean) for name, m in window.features.items()} if sampled else None,
            latency_us=_quantiles(window),
            labels=_label_names(window.labels, subject.labels) if window.labels else None,
            drift=None if drift is None else short(drift),
            drift_domain=domain,
            check_frames=window.checks,
            check_correct=window.check_correct,
            dropped_records=self._lost,
            simulated=subject.simulated[:64] or None,
        )

    def _drift(
        self, window: _Window, sampled: int, domains: tuple[DomainStatistics, ...]
    ) -> tuple[float | None, str | None]:
        """Drift of this window, joined with as many earlier ones as the domains' thresholds need."""
        if not sampled or not domains:
            return None, None
        whole = {name: m.mean * sampled for name, m in window.features.items() if m.count == sampled}
        self._recent.append((sampled, whole))
        needed = smallest_window(domains)
        count, sums = 0, dict.fromkeys(FEATURES, 0.0)
        names = set(FEATURES)
        for frames, part in reversed(self._recent):
            names &= part.keys()
            for name in part:
                sums[name] += part[name]
            count += frames
            if count >= needed:
                return drift_score({name: sums[name] / count for name in names}, count, domains)
        return None, None


def _with_details(
    record: TelemetryRecord,
    fields: dict[str, Any],
    source: SiteSource | None,
    energy: EnergySource | None,
    spent: tuple[int, float],
) -> TelemetryRecord:
    """The record with the slow-changing parts; a source that fails costs no record."""
    try:
        hardware = source.hardware() if source is not None else None
        seeds = tuple(source.take((record.latency_us or {}).get("p50"))) if source is not None else ()
    except Exception:  # a source is a plug-in
        log.exception("telemetry: seed figures were lost")
        hardware, seeds = None, ()
    try:
        hardware = with_energy(hardware, energy.take(*spent) if energy is not None else None)
    except Exception:  # as above
        log.exception("telemetry: the energy was lost")
    fields["hardware"] = with_latency(hardware, record.latency_us)
    fields["seeds"] = seeds or None
    return record.model_copy(update=fields)


def _quantiles(window: _Window) -> dict[str, float] | None:
    if not window.latency:
        return None
    sketch = LogHistogram(window.latency)
    found = {name: sketch.quantile(share) for name, share in (("p50", 0.5), ("p99", 0.99))}
    least = {n: min(v, window.slowest) for n, v in found.items() if v is not None}
    return {name: short(value) for name, value in {**least, "max": window.slowest}.items()}


def _short_summary(moments: Moments | None) -> Summary | None:
    """Moments in seven digits: what float32 frames can tell, and a third less on disk and on the wire."""
    summary = moments.summary() if moments is not None else None
    if summary is None:
        return None
    values = ("mean", "variance", "minimum", "maximum")
    return summary.model_copy(update={name: short(getattr(summary, name)) for name in values})


def _label_names(counts: dict[int, int], labels: tuple[str, ...]) -> dict[str, int]:
    return {labels[i] if 0 <= i < len(labels) else str(i): n for i, n in sorted(counts.items())}
