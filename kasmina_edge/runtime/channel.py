"""One sequence of frames: what answers it, its state, and the ways to ask. `Runtime` is one, a `Stream` another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kasmina_edge.errors import EngineError
from kasmina_edge.runtime.asynchronous import AsyncLane
from kasmina_edge.runtime.recorder import Recorder
from kasmina_edge.runtime.result import Array, Result
from kasmina_edge.runtime.serving import Serving

ATTEND_INTERVAL_NS = 10_000_000
"""Looking at a frame costs about as much as a small network: an app at thousands of frames a second gets 100 looks."""
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
                if not serving.retired:
                    result = serving.answer(x)
                    if result.ended_ns < self._attend_at:
                        put = self._put
                        put(result.latency_ns)
                        put(result.raw_outputs[0])
                    else:
                        self._attend(result, x)
                    return result
            self._refuse_if_closed(serving)

    def infer_batch(self, xs: Sequence[Any] | Array) -> list[Result]:
        """Answer several frames with one bundle: no swap and no other thread comes between them.

        All frames are checked before the first is inferred. Small models whose file allows it are run many frames a
        call where that was measured to be faster (see `Serving.prepare_batches`); their answers agree with those of
        `infer` within the self-test's tolerance, and ``latency_us`` is the frame's share. Other models answer frame by
        frame, those with state in the order of ``xs``. Threads that infer meanwhile wait for the whole batch.

        Args:
            xs: Frames, each as for `infer`; may be an array with one more axis in front.

        Raises:
            InputError: A frame that `infer` would refuse (the message says which); nothing was inferred.
            EngineError: As `infer`.
        """
        while True:
            serving = self._serving
            checked = serving.check_many(xs)
            serving.prepare_batches(len(checked))
            with serving.guard:
                if not serving.retired:
                    answers = serving.answer_many(checked)
                    for x, result in zip(xs, answers, strict=True):
                        if result.ended_ns < self._attend_at:
                            self._put(result.latency_ns)
                            self._put(result.raw_outputs[0])
                        else:
                            self._attend(result, x)
                    return answers
            self._refuse_if_closed(serving)

    async def infer_async(self, x: Any) -> Result:
        """`infer` for asyncio: the event loop goes on while a thread of the runtime answers.

        At most 8 frames are with that thread; further callers wait for their turn in order. A task that is cancelled
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

    def _lane(self) -> AsyncLane:
        raise NotImplementedError

    def _record(self, recorder: Recorder | None, look: Callable[[], None] | None) -> None:
        """From here on, tell ``recorder`` of every answer, and ``look`` around now and then."""
        self._recorder, self._look = recorder, look
        self._answered: list[Any] = []  # latency and first output in turns: nothing here is the garbage collector's
        self._put: Callable[[Any], None] = self._answered.append if recorder is not None else _nowhere
        self._attended_ns = 0
        self._attend_at = 0 if recorder is not None or look is not None else _NEVER

    def _attend(self, result: Result, x: Any) -> None:
        """What is not done for every frame; holding the guard, at most every `ATTEND_INTERVAL_NS`."""
        self._hand_in()
        self._attended_ns = result.ended_ns
        self._attend_at = result.ended_ns + ATTEND_INTERVAL_NS
        if self._recorder is not None:
            self._recorder.attend(result, x)
        if self._look is not None:
            self._look()

    def _hand_in(self) -> None:
        """Give the recorder what was answered since the last time; holding the guard."""
        answered = self._answered
        if answered and self._recorder is not None:
            self._answered = []
            self._put = self._answered.append
            self._recorder.take(self._serving, answered, self._attended_ns)

    def _collect(self, *, wait: bool) -> None:
        """`_hand_in` for who does not hold the guard; without ``wait``, only if nobody infers now."""
        while True:
            serving = self._serving
            if not serving.guard.acquire(blocking=wait):
                return
            try:
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

    def __init__(self, serving: Serving, *, owned: bool, lane: Callable[[], AsyncLane]) -> None:
        super().__init__(serving)
        self._owned, self._runtimes_lane = owned, lane
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

    def close(self) -> None:
        """Let go of the state; calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True
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
