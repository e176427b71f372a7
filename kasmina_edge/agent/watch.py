"""The device's own watch: drift of its quantities, its rules of alert, its clock and its audit log, in one place.

`DeviceWatch` holds values from `kasmina_edge.safety` and does their I/O: it steps them with what the agent sees,
writes what changed to the log, the audit log and the outbox (stream ``alert``, before statistics), and keeps what is
remembered in ``watch.json`` so that a restart neither forgets an alert nor raises it twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.record import AcceleratorReport, DeviceAlert, TelemetryRecord
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.logs import current_trace
from kasmina_edge.safety.alert_book import AlertBook, AlertEvent, rules_from_settings
from kasmina_edge.safety.audit import Head, verify
from kasmina_edge.safety.drift_watch import DriftChange, DriftWatch, label_entropy
from kasmina_edge.safety.security import Breach, ClockReading, breach_of, breach_of_audit, breach_of_file, clock_jump
from kasmina_edge.settings import Settings
from kasmina_edge.storage import write_durable

log = logging.getLogger(__name__)

STREAM = "alert"
PRIORITY = 2
FORMAT = 1
SAVE_EVERY_S = 900.0
MOST_SOURCES = 8
CLOCK_WAS_SET_S = 1_700_000_000.0
MAX_STATE_BYTES = 4 * 1024 * 1024


class DeviceWatch:
    """One device's watch; used by the agent's loop alone.

    Args:
        path: Where it remembers, ``<data>/watch.json``.
        device: Its id.
        life: The data folder's life.
        settings: Holds the section ``alerts.``.
        send: Keeps one message of a stream with a priority: `Outbox.append`.
        note: Writes the audit log.
        clock: Wall clock, seconds since 1970 UTC.
        running: A clock that only runs, also while the machine sleeps.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        life: str,
        settings: Settings,
        *,
        send: Callable[[str, bytes, int], object],
        note: Callable[..., object],
        clock: Callable[[], float] = time.time,
        running: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._path, self._device, self._life = path, device, life
        self._send, self._note, self._clock, self._running = send, note, clock, running
        self._jump_s = float(settings["alerts.clock_jump_s"])
        self._book = AlertBook(rules=rules_from_settings(settings))
        self._digest = ""
        self._watches: dict[str, DriftWatch] = {}
        self._saved_watches: dict[str, Any] = {}
        self._fallen_back: float | None = None
        self._fall_cause = ""
        self._reading = self._read_clocks()
        self._saved_at = self._running()
        self.boot = 0
        self._load()

    @property
    def worst(self) -> int:
        """0 nothing stands, 1 a warning, 2 a critical alert: `SafetyScores.alert`."""
        return self._book.worst

    @property
    def standing(self) -> list[dict[str, Any]]:
        """What stands now, for the health socket."""
        return [
            {
                "rule": kind,
                "severity": self._book.severity(kind),
                "text": known.message,
                "since_s": known.since_s,
            }
            for kind, known in self._book.standing.items()
        ]

    @property
    def drifted(self) -> dict[str, float]:
        """Quantities adrift with the time it began, over all sources."""
        found: dict[str, float] = {}
        for watch in self._watches.values():
            for name, since_s in watch.drifted.items():
                found[name] = min(since_s, found.get(name, since_s))
        return found

    def check_audit(self, path: Path, anchor: Head | None) -> None:
        """At start: hold the audit log against its head and against what the floor file remembers."""
        breach = breach_of_audit(verify(path, remembered=anchor), anchor)
        if breach is not None:
            self._breach(breach)

    def refused(self, error: KasminaError) -> None:
        """An update or a plan was refused: told where it looks like an attack."""
        self._breach(breach_of(error))

    def spoiled(self, error: KasminaError) -> None:
        """A file that was verified and installed is not what it was."""
        self._breach(breach_of_file(error))

    def measured(self, values: Mapping[str, float | None], detail: str = "") -> None:
        """Feed the rules.

        Args:
            values: By kind of `alert_book.DEFAULT_RULES`, None where not measured.
            detail: Added to what is told.
        """
        now_s = self._clock()
        for kind, value in values.items():
            self._book, event = self._book.feed(kind, value, now_s, detail=detail)
            self._tell(event)

    def look(self) -> None:
        """Now and then: the clocks, what stands though nothing new was heard of it, what has been quiet, and saving."""
        before, self._reading = self._reading, self._read_clocks()
        if (
            min(before.wall_s, self._reading.wall_s) >= CLOCK_WAS_SET_S
        ):  # the first good time after a start is no attack
            self._breach(clock_jump(before, self._reading, self._jump_s))
        if self._watches:
            self._quantities_changed()
        self.measured({"accelerator": self._fallen_back}, detail=self._fall_cause)
        self._book, events = self._book.settle(self._clock())
        for event in events:
            self._tell(event)
        if self._running() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def observe(self, records: Sequence[TelemetryRecord], active: BundleManifest | None) -> list[DriftChange]:
        """Feed the drift watch with windows of the active bundle, one watch for each app process.

        Args:
            records: As they pass by, oldest first.
            active: What is committed here; its domains are home.
        """
        if active is None:
            return []
        digest = active.digest()
        if self._digest != digest:
            self._digest, self._watches = digest, {}
        found: list[DriftChange] = []
        for record in records:
            if record.bundle != digest:
                continue
            if record.accelerator is not None:
                self._fallen_back, self._fall_cause = fallen_back(record.accelerator), record.accelerator.cause
                self.measured({"accelerator": self._fallen_back}, detail=self._fall_cause)
            if not record.sampled:
                continue
            found += self._watch_of(record.source, active).update_all(quantities(record), record.started_s)
        if found:
            for change in found:
                log.warning(
                    "%s %s since %.0f: level %.4g, nearest %s", change.quantity, change.kind, change.since_s,
                    change.level, change.home or "nothing", extra={"device": self._device},
                )  # fmt: skip
            self._quantities_changed()
        return found

    def save(self) -> None:
        """Remember on disk; a disk that refuses is logged."""
        self._saved_at = self._running()
        watches = {source: watch.to_state() for source, watch in self._watches.items()}
        state = {"format": FORMAT, "book": self._book.to_state(), "watches": {**self._saved_watches, **watches}}
        try:
            write_durable(self._path, json.dumps(state, separators=(",", ":")).encode())
        except KasminaError as exc:
            log.warning("watch: not saved: %s", exc.message)

    def _watch_of(self, source: str, active: BundleManifest) -> DriftWatch:
        watch = self._watches.get(source)
        if watch is None:
            while len(self._watches) >= MOST_SOURCES:
                del self._watches[next(iter(self._watches))]
            watch = self._watches[source] = DriftWatch(active.domains)
            saved = self._saved_watches.pop(source, None)
            try:
                if saved is not None:
                    watch.load_state(saved)
            except InputError as exc:
                log.warning("watch: %s", exc.message)
        return watch

    def _quantities_changed(self) -> None:
        adrift = self.drifted
        self.measured({"quantity_drift": float(len(adrift))}, detail=", ".join(sorted(adrift)))

    def _breach(self, breach: Breach | None) -> None:
        if breach is not None:
            self._book, event = self._book.occurred(breach.kind, breach.message, self._clock())
            self._tell(event)

    def _tell(self, event: AlertEvent | None) -> None:
        if event is None:
            return
        level = logging.INFO if event.state == "cleared" else logging.WARNING
        log.log(level, "alert %s %s: %s", event.kind, event.state, event.message, extra={"device": self._device})
        trace = current_trace()
        alert = DeviceAlert(
            device=self._device,
            life=self._life,
            boot=self.boot,
            sequence=event.sequence,
            at_s=event.at_s,
            kind=event.kind,
            state=event.state,
            severity=event.severity,
            message=event.message,
            value=event.value,
            limit=event.limit,
            trace_id=trace.trace_id if trace else None,
        )
        try:
            self._send(STREAM, alert.to_bytes(), PRIORITY)
        except KasminaError as exc:
            log.warning("alert %s not kept: %s", event.kind, exc.message)
        self._note(f"alert_{event.state}", kind=event.kind, severity=event.severity, message=event.message)
        self.save()

    def _read_clocks(self) -> ClockReading:
        return ClockReading(self._clock(), self._running())

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
            if len(data) > MAX_STATE_BYTES:
                raise InputError(f"{len(data)} bytes, at most {MAX_STATE_BYTES} are read")
            state = json.loads(data)
            if not isinstance(state, dict) or state.get("format") != FORMAT:
                raise InputError("not a saved watch of this format")
            self._book = self._book.with_state(state["book"])
            self._saved_watches = {str(k): dict(v) for k, v in state["watches"].items()}
        except FileNotFoundError:
            return
        except (OSError, KasminaError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            log.warning("%s: begins anew (%s)", self._path, exc)


def fallen_back(report: AcceleratorReport) -> float:
    """1 while the CPU answers for the accelerator, 0 when it is back; what was the last where both happened."""
    fell = any(count for kind, count in report.events.items() if kind != "back")
    if report.events.get("back") and not fell:
        return 0.0
    return 1.0 if not report.events.get("back") else float("CPU" in report.runs_on)


def quantities(record: TelemetryRecord) -> dict[str, float]:
    """What one window says of the watched quantities; what it did not measure is left out."""
    found = dict(record.features or {})
    if record.labels:
        found["label_entropy"] = label_entropy(record.labels)
    if record.drift is not None:
        found["drift"] = record.drift
    return found
