"""Telemetry of one app process: the hot path appends to a queue; a thread does the statistics and the disk."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import KasminaError
from kasmina_edge.runtime.serving import Array, Result, Serving
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.seed_telemetry import Collector

log = logging.getLogger(__name__)

STREAM = "stats"
QUEUE_EVENTS = 16_384
WAKE_EVENTS = 2_048
TICK_S = 0.1
CLOSE_WAIT_S = 5.0
HELD_FRAMES = 32
SAMPLE_INTERVAL_NS = 10_000_000
"""Looking at a frame costs about as much as a small network: an app at thousands of frames a second gets 100 looks."""
SHORTEST_WINDOW_S = 0.25
"""A window that is full ends no earlier than this: a record costs some hundred microseconds and a flush of the disk."""
Emit = Callable[[TelemetryRecord], None]


class _Frame(NamedTuple):
    at_s: float
    serving: Serving
    raw: Array | None
    latency_us: float
    frame: Array | None


class _Check(NamedTuple):
    at_s: float
    correct: bool


class _Switch(NamedTuple):
    at_s: float
    serving: Serving
    trial: bool


class _Barrier(NamedTuple):
    at_s: float
    reached: threading.Event


class Recorder:
    """Collects for one runtime.

    Everything goes through one queue in order, so that a frame is counted for the bundle that answered it. The queue is
    bounded: frames that do not fit are left out of the statistics, and counted as dropped records.

    Args:
        serving: What answers at first.
        emit: Takes finished records on the recorder's thread; None: they go to the outbox of ``data_folder``.
        data_folder: The device's data folder, or None for a bare bundle.
        settings: ``device.id`` and the ``telemetry`` section.
        boot: The device's boot counter.
        clock: Wall clock, seconds since 1970 UTC.
        capacity: Most events that wait.
        shortest_window_s: A window ends with its ``telemetry.window_frames`` frames, but not before so many seconds.

    Raises:
        StorageError: The outbox cannot be opened.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        emit: Emit | None,
        data_folder: Path | None,
        settings: Settings,
        boot: int,
        clock: Callable[[], float],
        capacity: int = QUEUE_EVENTS,
        shortest_window_s: float = SHORTEST_WINDOW_S,
    ) -> None:
        self._clock, self._capacity = clock, capacity
        self._queue: deque[_Frame | _Check | _Switch | _Barrier] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._sample_at_ns = 0
        self._copied = self._released = 0  # frames, by the hot path and by the thread
        self._left_out = 0
        self._event_at_s: float | None = None
        self._outbox: Outbox | None = None
        if emit is None:
            assert data_folder is not None
            outbox = self._outbox = Outbox(data_folder / "outbox.db", clock=clock)

            def emit(record: TelemetryRecord) -> None:
                outbox.append(STREAM, record.to_bytes())

        self._emit = emit
        manifest = serving.manifest
        self._window_frames = int(settings["telemetry.window_frames"])
        self._shortest_window_s = shortest_window_s
        self._window = (-1, 0, 0.0)  # the present record's sequence, frames in it, its first frame's time
        self._collector = Collector(
            device=settings["device.id"],
            bundle=serving.digest,
            release=manifest.release,
            slot=serving.slot,
            trial=serving.trial,
            source=f"app-{os.getpid()}-{int(clock() * 1000)}",
            boot=boot,
            domains=manifest.domains,
            labels=serving.labels,
            clock=self._now_s,
            emit=self._send,
            window_frames=_UNBOUNDED,
            window_s=settings["telemetry.window_s"],
            sample_every=settings["telemetry.sample_every"],
        )
        self._thread = threading.Thread(target=self._run, name="kasmina-telemetry", daemon=True)
        self._thread.start()

    def observe(self, serving: Serving, result: Result, frame: Array | None, now_ns: int) -> None:
        """Take one inference into account; one thread at a time, never blocks.

        Args:
            serving: Who answered.
            result: What was answered; of its outputs only those of a classification are kept, and not for long.
            frame: The checked input; None when there are several. It is copied when it is to be looked at.
            now_ns: Monotonic nanoseconds; frames are looked at every `SAMPLE_INTERVAL_NS` at most.
        """
        if now_ns < self._sample_at_ns or frame is None or self._copied - self._released >= HELD_FRAMES:
            frame = None
        else:
            self._sample_at_ns = now_ns + SAMPLE_INTERVAL_NS
            self._copied += 1
            frame = frame.copy()
        waiting = len(self._queue)
        if waiting < self._capacity:
            raw = result.raw if serving.classifies else None
            self._queue.append(_new(_Frame, (self._clock(), serving, raw, result.latency_us, frame)))
            if waiting == WAKE_EVENTS:
                self._wake.set()
        else:
            self._left_out += 1
            self._copied -= frame is not None

    def check(self, correct: bool) -> None:
        """Count one check frame."""
        self._queue.append(_Check(self._clock(), correct))

    def switch(self, serving: Serving, *, trial: bool) -> None:
        """Count for another bundle, or for the same one in another role, from here on; never blocks."""
        self._queue.append(_Switch(self._clock(), serving, trial))

    def flush(self, wait_s: float = CLOSE_WAIT_S) -> bool:
        """Finish the window and hand over its record; whether that was done within ``wait_s`` seconds."""
        barrier = _Barrier(self._clock(), threading.Event())
        self._queue.append(barrier)
        self._wake.set()
        return barrier.reached.wait(wait_s)

    def close(self) -> None:
        """Flush, end the thread, close the outbox; gives up after `CLOSE_WAIT_S` seconds."""
        self._closing = True
        if not self.flush():
            log.warning("telemetry was not written out within %g s", CLOSE_WAIT_S)
            return
        self._thread.join(CLOSE_WAIT_S)
        if self._outbox is not None:
            self._outbox.close()

    def _now_s(self) -> float:
        """The collector's clock: the time of the event that is taken in, or now."""
        return self._clock() if self._event_at_s is None else self._event_at_s

    def _send(self, record: TelemetryRecord) -> None:
        """Hand a record over, with the frames left out so far counted as records of a whole window each."""
        lost = -(-self._left_out // self._window_frames)
        self._emit(record.model_copy(update={"dropped_records": record.dropped_records + lost}) if lost else record)

    def _run(self) -> None:
        while True:
            self._wake.wait(TICK_S)
            self._wake.clear()
            closing = self._closing
            try:
                while self._queue:
                    self._take_in(self._queue.popleft())
                if closing:
                    return
                self._collector.flush_if_due()
            except KasminaError as exc:
                log.warning("telemetry: %s", exc.message)
            except Exception:  # whatever a record's taker raises, the app goes on
                log.exception("telemetry: a record was lost")

    def _observe(self, event: _Frame) -> None:
        top = event.serving.top(event.raw) if event.raw is not None else None
        index, score = top if top is not None else (None, None)
        self._collector.observe(event.frame, event.latency_us, score, index)
        sequence, frames, began_s = self._window
        if self._collector.next_sequence != sequence:
            sequence, frames, began_s = self._collector.next_sequence, 0, event.at_s
        self._window = (sequence, frames + 1, began_s)
        if frames + 1 >= self._window_frames and not 0.0 <= event.at_s - began_s < self._shortest_window_s:
            self._collector.flush()

    def _take_in(self, event: _Frame | _Check | _Switch | _Barrier) -> None:
        self._event_at_s = event.at_s
        try:
            if isinstance(event, _Frame):
                self._released += event.frame is not None
                self._observe(event)
            elif isinstance(event, _Check):
                self._collector.check(event.correct)
            elif isinstance(event, _Switch):
                manifest = event.serving.manifest
                self._collector.switch(
                    bundle=event.serving.digest,
                    release=manifest.release,
                    slot=event.serving.slot,
                    trial=event.trial,
                    domains=manifest.domains,
                    labels=event.serving.labels,
                )
            else:
                try:
                    self._collector.flush()
                finally:
                    event.reached.set()
        finally:
            self._event_at_s = None


_UNBOUNDED = 2**62
_new = tuple.__new__  # what a NamedTuple's class does, less a call
