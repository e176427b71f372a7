"""One loaded bundle that answers frames: converters, engine, lock, and the slot it keeps from being replaced."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines import open_engine
from kasmina_edge.engines.tensors import InputConverter, OutputConverter
from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.storage import open_lock

SlotName = Literal["a", "b", "-"]
Array = npt.NDArray[Any]
_ARRAY = np.ndarray


class Result:
    """What the bundle answered to one frame.

    The top class is looked for when it is first asked for: an app that reads ``outputs`` alone does not wait for it.

    Attributes:
        outputs: float32 arrays by the manifest's output names; they belong to the caller.
        latency_us: Quantizing, invoking and de-quantizing, microseconds of wall time.
        raw: The first output in the model's own numbers.
    """

    __slots__ = ("_serving", "_top", "latency_us", "outputs", "raw")

    def __init__(self, outputs: dict[str, Array], latency_us: float, serving: Serving, raw: Array) -> None:
        self.outputs = outputs
        self.latency_us = latency_us
        self._serving = serving
        self.raw = raw
        self._top: tuple[int, float] | None = None

    @property
    def bundle(self) -> str:
        """``NAME VERSION`` of the bundle that answered."""
        return self._serving.id

    @property
    def label(self) -> str | None:
        """The top class's name; None when the head is not a classification."""
        index = self.label_index
        return None if index is None else self._serving.label_names[index]

    @property
    def label_index(self) -> int | None:
        """The top class; None when the head is not a classification."""
        top = self._top or self._find_top()
        return top[0] if top is not None else None

    @property
    def score(self) -> float | None:
        """The top class's share under softmax, 0 to 1; None when the head is not a classification."""
        top = self._top or self._find_top()
        return top[1] if top is not None else None

    def _find_top(self) -> tuple[int, float] | None:
        self._top = self._serving.top(self.raw)
        return self._top

    def __repr__(self) -> str:
        return (
            f"Result(bundle={self.bundle!r}, label={self.label!r}, label_index={self.label_index!r}, "
            f"score={self.score!r}, latency_us={self.latency_us!r}, outputs={self.outputs!r})"
        )


class Serving:
    """A bundle that is loaded and warm.

    ``guard`` is held for the length of one inference and while the bundle is retired: who holds it and sees ``retired``
    false has a bundle that stays whole until it lets go.

    Args:
        bundle: Files that were checked.
        profile: The hardware target.
        slot: Where it lies; "-" for a bare bundle.
        trial: Whether it is on trial.
        lock: Keeps the slot from being replaced; closed by `retire`.
        require_accelerator: Refuse to fall back to the CPU.

    Raises:
        EngineError: This machine cannot run it, or its outputs are not numbers.
        BundleError: Model and manifest disagree.
    """

    def __init__(
        self,
        bundle: Bundle,
        profile: HardwareProfile,
        *,
        slot: SlotName = "-",
        trial: bool = False,
        lock: open_lock | None = None,
        require_accelerator: bool = False,
    ) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        self.id = manifest.id
        self.digest = manifest.digest()
        self.slot: SlotName = slot
        self.trial = trial
        self.guard = threading.Lock()
        self.retired = False
        self.engine = open_engine(bundle, profile, require_accelerator=require_accelerator)
        model = self.engine.model
        self._converters = [
            InputConverter(tensor, manifest.preprocessing, io)
            for tensor, io in zip(model.inputs, manifest.inputs, strict=True)
        ]
        self._names = {io.name for io in manifest.inputs}
        self._only = self._converters[0] if len(self._converters) == 1 else None
        self._outputs = [
            (io.name, OutputConverter(tensor, io)) for tensor, io in zip(model.outputs, manifest.outputs, strict=True)
        ]
        self._only_output = self._outputs[0] if len(self._outputs) == 1 else None
        self._run = self.engine.hot_path()
        self.classifies = manifest.head == "classification"
        self._may_be_nan = self.classifies and model.outputs[0].dtype == "float32"
        self.labels = manifest.outputs[0].labels
        self.classes = int(np.prod(manifest.outputs[0].shape))
        self.label_names = tuple(self.labels[i] if i < len(self.labels) else str(i) for i in range(self.classes))
        self.engine.run({t.name: np.zeros(t.shape, t.dtype) for t in model.inputs})  # the first run allocates
        self._lock = lock  # last: until here the caller owns it

    def check(self, x: object) -> list[Array]:
        """The frame as checked float32 arrays in the order of the manifest's inputs.

        Raises:
            InputError: As `InputConverter.check`; or names differ from the manifest's.
        """
        if self._only is not None and not isinstance(x, Mapping):
            return [self._only.check(x)]
        if not isinstance(x, Mapping):
            raise InputError(f"{self.id}: takes {len(self._names)} inputs; pass a dict of {sorted(self._names)}")
        if x.keys() != self._names:
            raise InputError(f"{self.id}: expected inputs {sorted(self._names)}, got {sorted(map(str, x))}")
        return [converter.check(x[converter.name]) for converter in self._converters]

    def answer(self, x: object) -> tuple[Result, Array | None, int]:
        """One inference; call it holding ``guard``.

        Returns:
            The result, the checked frame when there is a single input, and `perf_counter_ns` at the end.

        Raises:
            InputError: The frame is not what the manifest says.
            EngineError: The engine failed, or answered NaN.
        """
        only = self._only
        if only is not None and type(x) is _ARRAY:
            floats = only.check(x)
            frame: Array | None = floats
            started = perf_counter_ns()
            converted: list[Array] = [only.convert(floats)]
        else:
            frames = self.check(x)
            frame = frames[0] if only is not None else None
            started = perf_counter_ns()
            converted = [c.convert(f) for c, f in zip(self._converters, frames, strict=True)]
        try:
            answers = self._run(converted)
        except Exception as exc:
            raise self.engine.failure(exc) from exc
        if self._only_output is not None:
            key, converter = self._only_output
            first = converter.convert(answers[0])
            outputs = {key: first}
        else:
            outputs = {key: c.convert(raw) for (key, c), raw in zip(self._outputs, answers, strict=True)}
            first = outputs[self._outputs[0][0]]
        ended = perf_counter_ns()
        latency_us = (ended - started) / 1000.0
        if self._may_be_nan:
            highest = first.item(first.argmax())  # the first NaN, if there is one
            if highest != highest:
                raise EngineError(f"{self.id}: {self.engine.runs_on} answered NaN", "Roll back to the previous bundle.")
        return Result(outputs, latency_us, self, answers[0]), frame, ended

    def top(self, raw: Array) -> tuple[int, float] | None:
        """The top class of a first output and its share under softmax; None when the head is not a classification."""
        return self._outputs[0][1].top(raw) if self.classifies else None

    def retire(self) -> None:
        """Free the engine and let go of the slot; waits for the inference that is running."""
        with self.guard:
            self.retired = True
        self.engine.close()
        if self._lock is not None:
            self._lock.close()
