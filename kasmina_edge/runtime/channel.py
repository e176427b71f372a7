"""One sequence of frames: what answers it, its state, and the ways to ask. `Runtime` is one, a `Stream` another."""

from __future__ import annotations

import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np

from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.runtime.asynchronous import AsyncLane
from kasmina_edge.runtime.recorder import Recorder
from kasmina_edge.runtime.result import Array, Result
from kasmina_edge.runtime.serving import Serving

ATTEND_INTERVAL_NS = 10_000_000
"""Looking at a frame costs about as much as a small network: an app at thousands of frames a second gets 100 looks."""
BACK_TO_BACK_INTERVAL_NS = 50_000_000
"""Of an app that infers more than half of the time: it would be looked at in every seventh frame of 1.4 ms."""
_NEVER = 2**63
_nowhere: Callable[[Any], None] = deque[Any](maxlen=0).append


class Channel:
    """Answers frames one after another from the bundle in service; safe for several threads.

    A model with state sees the frames of all threads as one sequence: give each sequence a `Runtime.stream` of its own.
    """

    _what = "runtime"

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._closed = False
        self._ending: threading.Thread | None = None
        self._record(None, None)

    def infer(self, x: Any) -> Result:
        """Answer one frame.

        Args:
            x: float32 (or float64) array of the manifest's input shape, with or without the leading 1, in the
                manifest's valid range; or an array of the model's own integer type and shape (int8 or uint8 of a
                quantized model), which goes in as it is: no pre-processing, no quantization, every value allowed; or a
                dict of such arrays by input name. It is read before this returns, and never changed or kept.

        Raises:
            InputError: Another shape or dtype, NaN, or values outside the range; nothing was inferred.
            EngineError: The engine failed, or the runtime is closed.
        """
        while True:
            serving = self._serving
            with serving.guard:  # acquire and try would be faster, and an interrupt between the two would keep the lock
                if not serving.busy:
                    serving.busy = True
                    try:
                        result = serving.answer(x)
                        if result.ended_ns < self._attend_at:
                            self._put(result.latency_ns)
                            if serving.classifies:
                                self._keep(result.raws[0])
                        else:
                            self._attend(result, x)
                        return result
                    finally:
                        serving.busy = False
                if not serving.retired:
                    raise serving.in_the_middle()
            self._refuse_if_closed(serving)

    def infer_batch(self, xs: Sequence[Any] | Array) -> list[Result]:
        """Answer several frames with one bundle: no swap and no other thread comes between them.

        All frames are checked before the first is inferred. Small models whose file allows it are run many frames a
        call where that was measured to be faster (see `Serving.prepare_batches`); their answers agree with those of
        `infer` within the self-test's tolerance, and ``latency_us`` is the frame's share. Other models answer frame by
        frame, those with state in the order of ``xs``. Threads that infer meanwhile wait for the whole batch.

        Args:
            xs: Frames, each as for `infer`; may be an array with one more axis in front, or anything to iterate over.

        Raises:
            InputError: Not several frames, or a frame that `infer` would refuse (the message says which); nothing was
                inferred.
            EngineError: As `infer`.
        """
        frames = _frames_of(xs)
        while True:
            serving = self._serving
            checked = serving.check_many(frames)
            serving.prepare_batches(len(checked))
            with serving.guard:
                if not serving.busy:
                    serving.busy = True
                    try:
                        answers = serving.answer_many(checked)
                        for x, result in zip(frames, answers, strict=True):
                            if result.ended_ns < self._attend_at:
                                self._put(result.latency_ns)
                                if serving.classifies:
                                    self._keep(result.raws[0])
                            else:
                                self._attend(result, x)
                        return answers
                    finally:
                        serving.busy = False
                if not serving.retired:
                    raise serving.in_the_middle()
            self._refuse_if_closed(serving)

    async def infer_async(self, x: Any) -> Result:
        """`infer` for asyncio: the event loop goes on while a thread of the runtime answers.

        One frame is with that thread; further callers wait for their turn in order. A task that is cancelled
        before its frame's turn has no effect; after that its answer is dropped (and telemetry counts the frame). Do not
        change ``x`` before this returns.

        Raises:
            InputError: As `infer`.
            EngineError: As `infer`.
        """
        return await self._lane().run(self.infer, x)

    def reset(self) -> None:
        """State back to its beginning, between two frames; nothing happens to a model without state.

        Raises:
            EngineError: The runtime is closed, or the engine failed.
        """
        while True:
            serving = self._serving
            if serving.reset():
                return
            self._refuse_if_closed(serving)

    def close(self) -> None:
        """End it and free what it holds; calling it twice is harmless.

        Waits for the inference that is running. Called in the middle of an inference of the same thread (in a signal
        handler, or by who takes telemetry) it returns at once: the call that was interrupted is answered, later ones
        are an `EngineError`, and a thread frees the engine and writes out telemetry. `close` once more waits for that.
        """
        inside = self._inside(sys._getframe(1))
        if not self._closed:
            self._closed = True
            if not inside:
                self._end()
                return
            self._ending = threading.Thread(target=self._end, name="kasmina-close")
            self._ending.start()
        elif self._ending is not None and not inside:
            self._ending.join()

    def _end(self) -> None:
        raise NotImplementedError

    def _parts(self) -> list[object]:
        """Everything whose methods may hold a lock that closing needs."""
        raise NotImplementedError

    def _inside(self, frame: FrameType | None) -> bool:
        """Whether a call of one of the parts is among ``frame`` and its callers: it was interrupted there."""
        parts = {id(part) for part in self._parts()}
        while frame is not None:
            if id(frame.f_locals.get("self")) in parts and frame.f_code.co_name != "__exit__":
                return True
            frame = frame.f_back
        return False

    def _lane(self) -> AsyncLane:
        raise NotImplementedError

    def _record(self, recorder: Recorder | None, look: Callable[[], None] | None) -> None:
        """From here on, tell ``recorder`` of every answer, and ``look`` around now and then."""
        self._recorder, self._look = recorder, look
        self._begin_run()
        self._attended_ns = 0
        self._attend_at = 0 if recorder is not None or look is not None else _NEVER

    def _attend(self, result: Result, x: Any) -> None:
        """What is not done for every frame; holding the guard, at most every `ATTEND_INTERVAL_NS`."""
        busy = 2 * sum(self._latencies) > result.ended_ns - self._attended_ns
        self._hand_in()
        self._attended_ns = result.ended_ns
        self._attend_at = result.ended_ns + (BACK_TO_BACK_INTERVAL_NS if busy else ATTEND_INTERVAL_NS)
        if self._recorder is not None:
            self._recorder.attend(result, x)
        if self._look is not None:
            self._look()

    def _hand_in(self) -> None:
        """Give the recorder what was answered since the last time; holding the guard."""
        latencies, raws = self._latencies, self._raws
        if latencies and self._recorder is not None:
            self._begin_run()
            self._recorder.take(self._serving, latencies, raws, self._attended_ns)

    def _begin_run(self) -> None:
        """Latencies and first outputs go into two blocks of memory: objects that another thread frees would make every
        answer begin with memory that this core has never seen."""
        self._latencies, self._raws = array("q"), bytearray()
        told = self._recorder is not None
        self._put: Callable[[int], None] = self._latencies.append if told else _nowhere
        self._keep: Callable[[Any], None] = self._raws.extend if told else _nowhere

    def _collect(self, *, wait: bool) -> None:
        """`_hand_in` for who does not hold the guard; without ``wait``, only if nobody infers now."""
        while True:
            serving = self._serving
            if not serving.guard.acquire(blocking=wait):
                return
            try:
                if serving.busy and not serving.retired:  # this very thread is answering
                    return
                if serving is self._serving:
                    self._hand_in()
                    return
            finally:
                serving.guard.release()

    def _refuse_if_closed(self, serving: Serving) -> None:
        if self._closed:
            raise EngineError(f"{serving.id}: the {self._what} is closed", "Open it again.")


class Stream(Channel):
    """A sequence of frames with state of its own; make one with `Runtime.stream`, close it when the sequence is over.

    The bundle in service answers it, loaded once more where the model has state. A hot swap moves every stream to the
    new bundle between two frames; its state begins anew there (``Result.fresh_state``), because one model's state means
    nothing to another.
    """

    _what = "stream"

    def __init__(
        self, serving: Serving, *, owned: bool, lane: Callable[[], AsyncLane], parts: Callable[[], list[object]]
    ) -> None:
        super().__init__(serving)
        self._owned, self._runtimes_lane, self._runtimes_parts = owned, lane, parts
        self._on_close: Callable[[Stream], None] | None = None

    def infer(self, x: Any) -> Result:
        """See `Channel.infer`."""
        self._refuse_if_closed(self._serving)
        return super().infer(x)

    def infer_batch(self, xs: Sequence[Any] | Array) -> list[Result]:
        """See `Channel.infer_batch`."""
        self._refuse_if_closed(self._serving)
        return super().infer_batch(xs)

    def reset(self) -> None:
        """See `Channel.reset`."""
        self._refuse_if_closed(self._serving)
        super().reset()

    def _end(self) -> None:
        """Let go of the state."""
        if self._on_close is not None:
            self._on_close(self)
        if self._owned:
            self._serving.retire()
        self._collect(wait=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _lane(self) -> AsyncLane:
        return self._runtimes_lane()

    def _parts(self) -> list[object]:
        return [self, *self._runtimes_parts()]


def _frames_of(xs: Any) -> Sequence[Any] | Array:
    """What can be gone through more than once.

    Raises:
        InputError: Not several of anything.
    """
    if isinstance(xs, Mapping) or (isinstance(xs, np.ndarray) and not xs.ndim):
        raise InputError("a batch is expected, got one frame", "Pass a list of frames; `infer` takes a single one.")
    if isinstance(xs, list | tuple | np.ndarray):
        return xs
    try:
        return list(xs)
    except MemoryError:
        raise
    except Exception as exc:  # whatever the object's own iteration raises
        raise InputError(f"a batch of frames is expected, got {type(xs).__name__} ({exc})") from exc
