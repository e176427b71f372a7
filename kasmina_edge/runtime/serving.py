"""One loaded bundle that answers frames: converters, engine, lock, state, and the slot it keeps from being replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines import open_engine
from kasmina_edge.engines.choice import AUTO
from kasmina_edge.engines.postprocessing import BoxReader, Detection
from kasmina_edge.engines.tensors import InputConverter, OutputConverter
from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.runtime.batches import SIZE, Batches, batches_of
from kasmina_edge.runtime.guarding import guard_of
from kasmina_edge.runtime.result import Array, Result
from kasmina_edge.storage import open_lock

SlotName = Literal["a", "b", "-"]
_ARRAY = np.ndarray


@dataclass(frozen=True)
class Loading:
    """How bundles are loaded here, now and at every swap.

    Attributes:
        profile: The hardware target.
        require_accelerator: Refuse to fall back to the CPU.
        engine: The one engine to use; "" takes the profile's order, "auto" measures.
        verdicts: Folder where "auto" keeps what it measured.
    """

    profile: HardwareProfile
    require_accelerator: bool = False
    engine: str = ""
    verdicts: Path | None = None


class Serving:
    """A bundle that is loaded and warm.

    ``guard`` is held for the length of one inference and while the bundle is retired: who holds it and sees ``busy``
    false has a bundle that stays whole until it lets go. A thread that holds it already may take it again (a signal
    handler that interrupts an inference would wait for ever otherwise) and sees ``busy`` then.

    Args:
        bundle: Files that were checked.
        how: The hardware target, or everything about loading.
        slot: Where it lies; "-" for a bare bundle.
        trial: Whether it is on trial.
        lock: Keeps the slot from being replaced; closed by `retire`.

    Attributes:
        busy: An inference is going on, or the bundle is retired.
        classifies: Its first output holds the scores of classes.
        reads: Label, score or guard look into its outputs, now or later: they are kept from the app's hands.
        input_guard: Tells frames that look wrong; None where the bundle carries none.
        stateful: Whether an answer depends on those before it.
        raw_dtype: Of the first output, in the model's own numbers.
        model_data: The model file's bytes, of a model with state or seed sites: for a twin, and for taps.
        fresh: The next answer begins from the beginning; always False for a model without state.
        answer: One inference, to be called holding ``guard``. Raises `InputError` when the frame is not what the
            manifest says, `EngineError` when the engine failed or answered NaN.

    Raises:
        EngineError: This machine cannot run it, or its outputs are not numbers.
        BundleError: Model and manifest disagree.
    """

    def __init__(
        self,
        bundle: Bundle,
        how: HardwareProfile | Loading,
        *,
        slot: SlotName = "-",
        trial: bool = False,
        lock: open_lock | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        self.id = manifest.id
        self.digest = manifest.digest()
        self.slot: SlotName = slot
        self.trial = trial
        self.guard = threading.RLock()
        self.busy = self.retired = False
        self._preparing = threading.RLock()
        self._batches: Batches | Literal[False] | None = None  # None: nobody asked yet; False: not worth it
        self._how = how if isinstance(how, Loading) else Loading(how)
        self.engine = open_engine(
            bundle,
            self._how.profile,
            require_accelerator=self._how.require_accelerator,
            engine=self._how.engine,
            verdicts=self._how.verdicts,
        )
        try:
            self._prepare(bundle)
        except BaseException:
            self.engine.close()
            raise
        self._lock = lock  # last: until here the caller owns it

    def _prepare(self, bundle: Bundle) -> None:
        manifest, model = self.manifest, self.engine.model
        self.classifies = manifest.head == "classification"
        self.reads = manifest.head != "other" or manifest.guard is not None
        self.input_guard = guard_of(bundle, model)
        self._shared = {e.path: bundle.read(e) for e in ((manifest.guard.file,) if manifest.guard else ())}
        pairs = list(zip(model.app_inputs, manifest.inputs, strict=True))
        self._spare = [InputConverter(tensor, manifest.preprocessing, io) for tensor, io in pairs]
        targets = self.engine.input_buffers() or [np.empty(t.shape, t.dtype) for t in model.app_inputs]
        self._converters = [
            InputConverter(tensor, manifest.preprocessing, io, target)
            for (tensor, io), target in zip(pairs, targets, strict=True)
        ]
        self._names = {io.name for io in manifest.inputs}
        self._ready = [converter.target for converter in self._converters]
        self._outputs = [
            (io.name, OutputConverter(tensor, io, copies=self.reads))
            for tensor, io in zip(model.app_outputs, manifest.outputs, strict=True)
        ]
        first = model.app_outputs[0]
        self.raw_dtype = np.dtype(first.dtype)
        post = manifest.postprocessing
        self._boxes = BoxReader(post, list(zip(manifest.outputs, model.app_outputs, strict=True))) if post else None
        looked_at = model.app_outputs if post else model.app_outputs[: self.classifies]
        self._may_be_nan = any(np.dtype(output.dtype).kind == "f" for output in looked_at)
        self.labels = manifest.labels
        self.classes = len(post.labels) if post else int(np.prod(manifest.outputs[0].shape))
        names = tuple(self.labels[i] if i < len(self.labels) else str(i) for i in range(self.classes))
        self.label_names = names
        self.stateful = self.fresh = model.stateful
        self.model_data = bundle.read(model.file) if self.stateful or model.sites else b""
        self.engine.run({t.name: np.zeros(t.shape, t.dtype) for t in model.app_inputs})  # the first run allocates
        if self.stateful:
            self.engine.reset()
        self.answer: Callable[[object], Result] = self._hot_path()

    def twin(self) -> Serving:
        """The same bundle loaded once more, with state of its own; for models with state only."""
        assert self.stateful
        how = replace(self._how, engine=self.engine.name) if self._how.engine == AUTO else self._how
        files = {self.engine.model.file.path: self.model_data, **self._shared}
        return Serving(Bundle(self.manifest, files), how, slot=self.slot, trial=self.trial)

    def check(self, x: object) -> list[Array]:
        """The frame as checked arrays of the model's shapes, in the order of the manifest's inputs.

        Raises:
            InputError: As `InputConverter.check`; or names differ from the manifest's.
        """
        return [converter.check(part) for converter, part in zip(self._spare, self._parts(x), strict=True)]

    def check_many(self, xs: Sequence[object] | Array) -> list[list[Array]]:
        """`check` of every frame; an array of frames is looked at as a whole.

        Raises:
            InputError: As `check`; the message says which frame.
        """
        if isinstance(xs, np.ndarray) and len(self._spare) == 1:
            rows = self._spare[0].check_rows(xs)
            if rows is not None:
                return [[row] for row in rows]
            if self._spare[0].is_one_frame(xs.shape):
                raise InputError(
                    f"{self.id}: a batch is expected, got one frame of shape {xs.shape}",
                    "Pass a list of frames or an array with one more axis in front; `infer` takes a single frame.",
                )
        checked = []
        for i, x in enumerate(xs):
            try:
                checked.append(self.check(x))
            except InputError as exc:
                raise InputError(f"frame {i} of the batch: {exc.message}", exc.next_step) from exc
        return checked

    def _hot_path(self) -> Callable[[object], Result]:
        """`answer`, with everything it needs bound: an attribute less here is a share of a small model's time.

        Bound as defaults, which lie side by side: behind a large network all of this has left the processor's cache.
        """
        check, ready, failure = self.check, self._ready, self.engine.failure
        run, converters = self.engine.hot_path(), self._converters
        load = converters[0].load if len(converters) == 1 else None
        target = converters[0].target
        whole, shape = converters[0].whole if load is not None else None, target.shape
        refuse_nan, stateful = self._refuse_nan if self._may_be_nan else None, self.stateful

        def answer(
            x: Any, self: Serving = self, clock: Callable[[], int] = perf_counter_ns, target: Array = target,
            whole: Any = whole, shape: tuple[int, ...] = shape, load: Any = load, run: Any = run,
            ready: list[Array] = ready, stateful: bool = stateful, refuse_nan: Any = refuse_nan,
        ) -> Result:  # fmt: skip
            started = clock()
            if type(x) is _ARRAY and load is not None:
                if x.dtype is whole and x.shape == shape:
                    target[...] = x  # what `load` does
                else:
                    load(x)
            else:
                for converter, part in zip(converters, check(x), strict=True):
                    converter.store(part)
            try:
                raws = run(ready)
            except Exception as exc:
                raise failure(exc) from exc
            ended = clock()
            fresh = False
            if stateful:
                fresh, self.fresh = self.fresh, False
            if refuse_nan is not None:
                refuse_nan(raws)
            return Result(raws, ended - started, ended, self, fresh)

        timer_ns = self.engine.timer_ns
        if timer_ns is perf_counter_ns:
            return answer

        def counted(x: object) -> Result:
            started = timer_ns()
            result = answer(x)
            result.latency_ns = timer_ns() - started
            return result

        return counted

    def answer_many(self, frames: Sequence[list[Array]]) -> list[Result]:
        """As `answer`, for frames that `check` returned, one after another or many a call."""
        answers: list[Result] = []
        while self._batches and len(frames) - len(answers) >= SIZE:
            answers += self._answer_together(frames[len(answers) : len(answers) + SIZE])
        for frame in frames[len(answers) :]:
            answers.append(self._answer_checked(frame))
        return answers

    def prepare_batches(self, frames: int = SIZE) -> None:
        """Load the model a second time for many frames a call, if so many are ever asked for and it is worth it.

        Costs the first caller with `SIZE` frames or more some 10 to 40 milliseconds a bundle, and nobody else.
        """
        if frames < SIZE or self._batches is not None or self.stateful:
            return
        with self._preparing:
            if self._batches is None:
                found = batches_of(self.engine, self.manifest, self._time_one)
                with self.guard:
                    if not self.retired:
                        self._batches, found = found or False, None
                if found:
                    found.engine.close()

    @property
    def batches(self) -> bool:
        """Whether batches were asked for here, and found worth it."""
        return bool(self._batches)

    def _answer_checked(self, frame: list[Array]) -> Result:
        if len(frame) == 1:
            return self.answer(frame[0])
        return self.answer({converter.name: part for converter, part in zip(self._converters, frame, strict=True)})

    def _answer_together(self, frames: Sequence[list[Array]]) -> list[Result]:
        assert self._batches
        timer_ns = self.engine.timer_ns
        started = timer_ns()
        try:
            rows = self._batches.run(frames)
        except Exception as exc:
            raise self._batches.engine.failure(exc) from exc
        share = (timer_ns() - started) // len(frames)
        ended = perf_counter_ns()
        for raws in rows if self._may_be_nan else ():
            self._refuse_nan(raws)
        return [Result(raws, share, ended, self, False) for raws in rows]

    def _time_one(self) -> None:
        with self.guard:
            if not self.busy:
                self.engine.hot_path()(self._ready)

    def reset(self) -> bool:
        """State back to its beginning; waits for the inference that is running. Nothing happens without state.

        Returns:
            False when this bundle was retired meanwhile.

        Raises:
            EngineError: The engine failed, or this thread is in the middle of an inference.
        """
        with self.guard:
            if self.retired:
                return False
            if self.busy:
                raise self.in_the_middle()
            if self.stateful:
                self.engine.reset()
                self.fresh = True
            return True

    def top(self, raw: Array) -> tuple[int, float] | None:
        """The top class of a first output and its share under softmax; None when the head is not a classification."""
        return self._outputs[0][1].top(raw) if self.classifies else None

    def boxes(self, raws: list[Array]) -> tuple[Detection, ...] | None:
        """The objects that all outputs together speak of; None when the head is not a detection."""
        return self._boxes(raws) if self._boxes is not None else None

    def frame_of(self, x: object) -> Array | None:
        """The single input of a frame that was answered, in the app's units; None when there are several.

        This and `model_inputs` are for the recorder's thread alone.
        """
        parts = self._parts(x)
        return self._spare[0].restore(self._spare[0].check(parts[0])) if len(parts) == 1 else None

    def model_inputs(self, x: object) -> list[Array]:
        """A frame that was answered, once more in the model's numbers; the arrays belong to the caller."""
        return [converter.convert(part).copy() for converter, part in zip(self._spare, self.check(x), strict=True)]

    def retire(self) -> None:
        """Free the engine and let go of the slot; waits for the inference that is running."""
        with self.guard:
            self.busy = self.retired = True
            self.answer = _retired
            self.model_data = b""
            self._converters, self._ready = [], []  # views of the engine's memory; results may keep this object alive
        self.engine.close()
        if self._batches:
            self._batches.engine.close()
        if self._lock is not None:
            self._lock.close()

    def in_the_middle(self) -> EngineError:
        """What a thread is told that asks while it is in the middle of an answer, in a signal handler say."""
        return EngineError(
            f"{self.id}: asked in the middle of an inference of the same thread",
            "Set a flag in the signal handler and infer in the loop; `close` may be called anywhere.",
        )

    def forked(self) -> None:
        """In a forked child: nobody holds the locks any more, and the slot is the parent's to keep."""
        cut_short = self.busy and not self.retired
        self.guard, self._preparing = threading.RLock(), threading.RLock()
        self.busy = self.retired
        if self._lock is not None:
            self._lock.close()
        if self._how.profile.threads > 1:
            self._batches, self.answer = False, _forked
        elif cut_short and self.stateful:
            self.engine.reset()
            self.fresh = True

    def _parts(self, x: object) -> list[object]:
        if not isinstance(x, Mapping):
            if len(self._spare) == 1:
                return [x]
            raise InputError(f"{self.id}: takes {len(self._names)} inputs; pass a dict of {sorted(self._names)}")
        if x.keys() != self._names:
            raise InputError(f"{self.id}: expected inputs {sorted(self._names)}, got {sorted(map(str, x))}")
        return [x[converter.name] for converter in self._spare]

    def real(self, raws: list[Array]) -> dict[str, Array]:
        """Outputs of the model as arrays by the manifest's names."""
        if len(raws) == 1:
            key, converter = self._outputs[0]
            return {key: converter.convert(raws[0])}
        return {key: converter.convert(raw) for (key, converter), raw in zip(self._outputs, raws, strict=True)}

    def _refuse_nan(self, raws: list[Array]) -> None:
        for raw in raws if self._boxes is not None else raws[:1]:
            highest = raw.item(raw.argmax())  # the first NaN, if there is one
            if highest == highest:
                continue
            raise EngineError(f"{self.id}: {self.engine.runs_on} answered NaN", "Roll back to the previous bundle.")


def _forked(x: object) -> Result:
    raise EngineError("the engine's threads stayed in the parent process", "Open a runtime in the child.")


def _retired(x: object) -> Result:
    raise EngineError("this bundle is retired", "Ask the runtime, which has another one.")
