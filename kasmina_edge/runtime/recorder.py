"""Telemetry of one app process: the hot path appends to a queue; a thread does the statistics and the disk.

The thread shares Python's global lock with the hot path, so it works on runs of frames with numpy instead of on single
frames. The hot path keeps numbers and arrays only: a container a frame, held until the thread came round, made the
garbage collector go through the whole heap of the app every other second.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kasmina_edge.contracts.record import MAX_COUNT, TelemetryRecord
from kasmina_edge.errors import KasminaError, StorageError
from kasmina_edge.runtime.result import Array, Result
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.details import EnergySource, SiteSource
from kasmina_edge.telemetry.outbox import Outbox, open_outbox
from kasmina_edge.telemetry.seed_telemetry import Collector

log = logging.getLogger(__name__)

STREAM = "stats"
QUEUE_EVENTS = 16_384
WAKE_EVENTS = 2_048
TICK_S = 0.1
QUEUE_OTHERS = 1_024
"""Most check frames, switches, accelerator events and flushes that wait."""
CLOCK_STEP_S = 0.001
"""Below that, two readings of the clocks differ by the time between them: no frame comes before its window began."""
CLOSE_WAIT_S = 5.0
OUTBOX_RETRY_S = 30.0
HELD_FRAMES = 32
LOOK_SHARE = 0.01
"""Looking at frames may take this share of a core: large frames are looked at less often."""
SHORTEST_WINDOW_S = 0.25
"""A window that is full ends no earlier than this: a record costs some hundred microseconds and a flush of the disk."""
Emit = Callable[[TelemetryRecord], None]


class Looks(Protocol):
    """Something that wants to see sampled frames, such as the taps at a bundle's seed sites.

    One that has the methods of `SiteSource` too is asked for what it measured whenever a record is due to carry it.
    """

    def look(self, model_inputs: list[Array]) -> None:
        """See one frame: the app inputs in the model's own numbers; the arrays may be kept."""

    def close(self) -> None:
        """The bundle is not served any more."""


Taps = Callable[[Serving], Looks | None]


class Picks(Protocol):
    """Something that picks sampled frames to be kept, as the change plan says."""

    def look(self, serving: Serving, frame: Array, *, score: float | None, drifted: bool, at_s: float) -> None:
        """See one frame; it may be held."""

    def due(self, now_s: float) -> int:
        """Keep what was picked, if it is time; how many frames that were."""


class _Run(NamedTuple):
    at_ns: int
    serving: Serving
    latencies_ns: Sequence[int]
    raws: bytes | bytearray


class _Look(NamedTuple):
    result: Result
    x: Any


class _Check(NamedTuple):
    at_s: float
    correct: bool


class _Accelerator(NamedTuple):
    at_s: float
    runs_on: str
    kind: str
    cause: str


class _Switch(NamedTuple):
    at_s: float
    serving: Serving
    trial: bool


class _Barrier(NamedTuple):
    at_s: float
    reached: threading.Event


_Other = _Check | _Accelerator | _Switch | _Barrier


class Recorder:
    """Collects for one runtime.

    Everything goes through one queue in order, so that a frame is counted for the bundle that answered it. The queue is
    bounded: frames and events that do not fit are left out of the statistics, and counted as dropped records. Where
    switches come faster than they are taken in, the last one counts, and what comes before it is left out.

    Args:
        serving: What answers at first.
        emit: Takes finished records on the recorder's thread; None: they go to the outbox of ``data_folder``.
        data_folder: The device's data folder, or None for a bare bundle.
        settings: ``device.id`` and the ``telemetry`` section.
        boot: The device's boot counter.
        clock: Wall clock, seconds since 1970 UTC.
        timer_ns: The monotonic clock of the results' times.
        capacity: Most frames that wait.
        shortest_window_s: A window ends with its ``telemetry.window_frames`` frames, but not before so many seconds.
        taps: Asked on the recorder's thread for every bundle that comes into service; what it gives sees the sampled
            frames of that bundle.
        picks: Sees the sampled frames of every bundle, and keeps some.
        collect: Called on the recorder's thread ten times a second; makes who holds answers back hand them in.
        energy: Asked for the energy of an inference, once in many records, on the recorder's thread.

    An outbox that cannot be opened (a full disk, a key that is gone) stops no app: its records are lost, counted in
    those that follow, and the outbox is tried again every `OUTBOX_RETRY_S` seconds.
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
        timer_ns: Callable[[], int] = time.perf_counter_ns,
        capacity: int = QUEUE_EVENTS,
        shortest_window_s: float = SHORTEST_WINDOW_S,
        taps: Taps | None = None,
        picks: Picks | None = None,
        collect: Callable[[], None] = lambda: None,
        energy: EnergySource | None = None,
    ) -> None:
        self._wall, self._timer_ns, self._capacity = clock, timer_ns, capacity
        self._wall_ahead_s = 0.0  # of the timer
        self._queue: deque[_Run | _Look | _Other] = deque()
        self._taken = self._done = 0  # frames in runs: put into the queue, and taken out of it
        self._held: deque[None] = deque()  # one entry a frame that waits to be looked at: appends and pops are atomic
        self._taking = threading.RLock()  # a signal handler may count a check frame while it is held
        self._others = 0
        self._missed: _Switch | None = None  # left out together with all that comes after it
        self._look_at_ns = self._look_every_ns = 0
        self._wake = threading.Event()
        self._closing = False
        self._left_out = 0
        self._event_at_s: float | None = None
        self._outbox: Outbox | None = None
        if emit is None:
            assert data_folder is not None
            self._open_outbox = partial(open_outbox, data_folder, settings, clock=clock)
            self._try_outbox_at = 0.0
            with suppress(KasminaError):  # told with the first record
                self._outbox = self._open_outbox()
        self._emit = emit or self._into_outbox
        self._taps, self._picks, self._collect = taps, picks, collect
        self._drifted = False
        self._tapped: Serving | None = None
        self._looks: Looks | None = None
        manifest = serving.manifest
        self._window_frames = int(settings["telemetry.window_frames"])
        self._window_s = float(settings["telemetry.window_s"])
        self._shortest_window_s = shortest_window_s
        self._window = (-1, 0, 0.0)  # the present record's sequence, frames in it, its first frame's time
        self._collector = Collector(
            device=settings["device.id"],
            bundle=serving.digest,
            release=manifest.release,
            slot=serving.slot,
            trial=serving.trial,
            source=f"app-{os.getpid()}-{int(self._clock() * 1000)}",
            boot=boot,
            domains=manifest.domains,
            labels=serving.labels,
            clock=self._now_s,
            emit=self._send,
            window_frames=_UNBOUNDED,
            window_s=self._window_s,
            sample_every=settings["telemetry.sample_every"],
            energy=energy,
            simulated=_simulated(serving),
        )
        self.listen(serving)
        self._thread = threading.Thread(target=self._run, args=(serving,), name="kasmina-telemetry", daemon=True)
        self._thread.start()

    def take(self, serving: Serving, latencies_ns: Sequence[int], raws: bytes | bytearray, at_ns: int) -> None:
        """Take inferences of one bundle into account, some 10 ms of them; never blocks, safe for several threads.

        Args:
            serving: Who answered.
            latencies_ns: Of each.
            raws: The first outputs of a classification, in the model's own numbers and in one piece; else nothing.
            at_ns: When that was.
        """
        frames = len(latencies_ns)
        with self._taking:
            if self._missed is not None or self._waiting() + frames > self._capacity:
                self._left_out += frames
                return
            self._taken += frames
            self._queue.append(_Run(at_ns, serving, latencies_ns, raws))
        if self._waiting() >= WAKE_EVENTS:
            self._wake.set()

    def attend(self, result: Result, x: object) -> None:
        """Take one inference into account, and have its frame looked at if it is time; never blocks.

        Args:
            result: What was answered.
            x: The frame as the app gave it; it is copied.
        """
        copy = None
        if self._missed is None and len(self._held) < HELD_FRAMES and result.ended_ns >= self._look_at_ns:
            with suppress(Exception):  # an object whose own conversion works but once: it was answered
                copy = {k: np.array(v) for k, v in x.items()} if isinstance(x, Mapping) else np.array(x)
        if copy is None:
            raw = result.raws[0].tobytes() if result.serving.classifies else b""
            self.take(result.serving, [result.latency_ns], raw, result.ended_ns)
            return
        self._look_at_ns = result.ended_ns + self._look_every_ns
        self._held.append(None)
        self._queue.append(_Look(result, copy))

    def check(self, correct: bool) -> None:
        """Count one check frame; never blocks."""
        self._put_other(_Check(self._clock(), correct))

    def switch(self, serving: Serving, *, trial: bool) -> None:
        """Count for another bundle, or for the same one in another role, from here on; never blocks."""
        event = _Switch(self._clock(), serving, trial)
        with self._taking:
            if self._missed is not None or self._others >= QUEUE_OTHERS:
                self._missed = event
                self._left_out += 1
                return
        self._put_other(event)

    def accelerator(self, runs_on: str, kind: str, cause: str) -> None:
        """Count an event of the accelerator; never blocks. Arguments as of `Collector.accelerator`."""
        self._put_other(_Accelerator(self._clock(), runs_on, kind, cause))

    def listen(self, serving: Serving) -> None:
        """Have the events of an accelerator's supervisor counted, where there is one."""
        engine: Any = serving.engine
        if hasattr(engine, "on_change"):
            engine.on_change = lambda event: self.accelerator(event.runs_on, event.kind, event.detail)

    def flush(self, wait_s: float = CLOSE_WAIT_S) -> bool:
        """Finish the window and hand over its record; whether that was done within ``wait_s`` seconds."""
        barrier = _Barrier(self._clock(), threading.Event())
        if not self._put_other(barrier):
            return False
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

    def _put_other(self, event: _Other) -> bool:
        """Put it into the queue if there is room, or count it; there always is for the last flush."""
        with self._taking:
            if (self._missed is not None or self._others >= QUEUE_OTHERS) and not self._closing:
                self._left_out += not isinstance(event, _Barrier)
                return False
            self._others += 1
            self._queue.append(event)
            return True

    def _catch_up(self) -> None:
        """The queue is empty: the last switch that found no room is taken in, and the next events are again."""
        with self._taking:
            missed, self._missed = self._missed, None
            if missed is not None:
                self._others += 1
                self._queue.append(missed)

    def _clock(self) -> float:
        """Wall clock; where it gives no number, as far ahead of the timer as it was when it last did."""
        return self._timer_ns() / 1e9 + self._clock_ahead()

    def _clock_ahead(self) -> float:
        """Seconds that the wall clock is ahead of the timer."""
        ahead_s = float(self._wall()) - self._timer_ns() / 1e9
        if math.isfinite(ahead_s) and abs(ahead_s - self._wall_ahead_s) > CLOCK_STEP_S:
            self._wall_ahead_s = ahead_s
        return self._wall_ahead_s

    def _now_s(self) -> float:
        """The collector's clock: the time of the event that is taken in, or now."""
        return self._clock() if self._event_at_s is None else self._event_at_s

    def _send(self, record: TelemetryRecord) -> None:
        """Hand a record over, with the frames left out so far counted as records of a whole window each."""
        lost = -(-self._left_out // self._window_frames)
        if lost:
            dropped = min(record.dropped_records + lost, MAX_COUNT)
            record = record.model_copy(update={"dropped_records": dropped})
        if record.drift is not None:
            self._drifted = record.drift >= 1.0
        self._emit(record)

    def _into_outbox(self, record: TelemetryRecord) -> None:
        """Keep a record; without key or disk frames are answered, records are lost and counted, and it is tried again.

        Raises:
            KasminaError: The outbox cannot be opened, or refuses.
        """
        if self._outbox is None:
            if time.monotonic() < self._try_outbox_at:
                raise StorageError("the outbox could not be opened a while ago")
            self._try_outbox_at = time.monotonic() + OUTBOX_RETRY_S
            self._outbox = self._open_outbox()
        self._outbox.append(STREAM, record.to_bytes(), durable=False)

    def _run(self, serving: Serving) -> None:
        self._tap(serving)
        del serving
        while True:
            self._wake.wait(TICK_S)
            self._wake.clear()
            closing = self._closing
            self._safely(self._collect)
            while self._queue:
                self._take_in(self._queue.popleft())
                if self._missed is not None and not self._queue:
                    self._catch_up()
            if closing:
                if self._looks is not None:
                    self._safely(self._looks.close)
                return
            self._safely(self._collector.flush_if_due)
            if self._picks is not None:
                self._safely(self._picks.due, self._clock())

    def _waiting(self) -> int:
        return self._taken - self._done

    def _take_in(self, event: _Run | _Look | _Other) -> None:
        offset_s = self._clock_ahead()
        if isinstance(event, _Run):
            self._done += len(event.latencies_ns)
            self._safely(self._observe_run, event, event.at_ns / 1e9 + offset_s)
        elif isinstance(event, _Look):
            self._held.pop()
            self._safely(self._observe_one, event, event.result.ended_ns / 1e9 + offset_s)
        else:
            with self._taking:
                self._others -= 1
            self._safely(self._take_in_other, event)

    def _safely(self, do: Callable[..., object], *arguments: Any) -> None:
        """Whatever a record's taker or a tap raises, the app goes on."""
        try:
            do(*arguments)
        except KasminaError as exc:
            log.warning("telemetry: %s", exc.message)
        except Exception:
            log.exception("telemetry: a record was lost")
        finally:
            self._event_at_s = None

    def _observe_one(self, event: _Look, at_s: float) -> None:
        """A frame that is looked at."""
        result = event.result
        self._event_at_s = at_s
        began_ns = self._timer_ns()
        frame = result.serving.frame_of(event.x)
        self._count(1, at_s)
        index = result.label_index if result.serving.classifies else None  # of a detector only some frames have one
        self._collector.observe(frame, result.latency_us, result.score, index)
        if self._full(at_s):
            self._collector.flush()
        self._look_every_ns = int((self._timer_ns() - began_ns) / LOOK_SHARE)
        if self._looks is not None:
            self._looks.look(result.serving.model_inputs(event.x))
        if self._picks is not None and frame is not None:
            self._picks.look(result.serving, frame, score=result.score, drifted=self._drifted, at_s=at_s)

    def _observe_run(self, run: _Run, at_s: float) -> None:
        """Frames of one bundle that nobody looks at, cut where windows end."""
        self._event_at_s = at_s
        latencies_us = np.array(run.latencies_ns) / 1000.0  # (N,)
        frames = len(latencies_us)
        tops = None
        if run.raws:
            numbers = np.frombuffer(run.raws, run.serving.raw_dtype).reshape(frames, -1)
            tops = numbers.argmax(axis=1)  # the first of equals, as Result.label
        begin = 0
        while begin < frames:
            end = min(begin + self._room(at_s), frames)
            self._count(end - begin, at_s)
            self._collector.observe_many(latencies_us[begin:end], None if tops is None else tops[begin:end], at_s)
            if self._full(at_s):
                self._collector.flush()
            begin = end

    def _room(self, at_s: float) -> int:
        """How many frames of this time go into the present window, the one that ends it included."""
        sequence, frames, began_s = self._window
        if self._collector.next_sequence != sequence:
            frames, began_s = 0, at_s
        if not 0.0 <= at_s - began_s < self._window_s:
            return 1
        if at_s - began_s < self._shortest_window_s:
            return _UNBOUNDED
        return max(1, self._window_frames - frames)

    def _count(self, frames: int, began_s: float) -> None:
        sequence, before, first_s = self._window
        if self._collector.next_sequence != sequence:
            sequence, before, first_s = self._collector.next_sequence, 0, began_s
        self._window = (sequence, before + frames, first_s)

    def _full(self, at_s: float) -> bool:
        _, frames, began_s = self._window
        return frames >= self._window_frames and not 0.0 <= at_s - began_s < self._shortest_window_s

    def _take_in_other(self, event: _Other) -> None:
        self._event_at_s = event.at_s
        if isinstance(event, _Check):
            self._collector.check(event.correct)
        elif isinstance(event, _Accelerator):
            self._collector.accelerator(event.runs_on, event.kind, event.cause)
        elif isinstance(event, _Switch):
            manifest = event.serving.manifest
            self._collector.switch(
                bundle=event.serving.digest,
                release=manifest.release,
                slot=event.serving.slot,
                trial=event.trial,
                domains=manifest.domains,
                labels=event.serving.labels,
                simulated=_simulated(event.serving),
            )
            self._tap(event.serving)
        else:
            try:
                self._collector.flush(details=self._closing)
                if self._outbox is not None:
                    self._outbox.flush()
            finally:
                event.reached.set()

    def _tap(self, serving: Serving) -> None:
        """Let the taps of this bundle look from here on; those that look into it already go on."""
        if serving is not self._tapped:
            before, self._looks, self._tapped = self._looks, None, serving
            if before is not None:
                self._safely(before.close)
            self._safely(self._open_taps, serving)
        if isinstance(self._looks, SiteSource):
            self._collector.sites(self._looks)

    def _open_taps(self, serving: Serving) -> None:
        if self._taps is not None:
            self._looks = self._taps(serving)


_UNBOUNDED = 2**62


def _simulated(serving: Serving) -> str:
    """What the engine says it is, where it takes a predicted time; empty where its latencies are real."""
    return serving.engine.runs_on if serving.engine.simulated else ""
