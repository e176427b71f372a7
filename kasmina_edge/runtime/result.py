"""What a bundle answered to one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from kasmina_edge.engines.postprocessing import Detection
    from kasmina_edge.runtime.serving import Serving

Array = npt.NDArray[Any]


class Result:
    """What the bundle answered to one frame.

    Outputs are de-quantized, and the top class is looked for, when they are first asked for: an app that reads the
    label alone does not wait for the rest. Everything here belongs to the caller; nothing is overwritten later.

    Attributes:
        fresh_state: The model has state, and this answer was the first since it was opened, reset or swapped in: what
            earlier frames left behind is not in it. Always False for a model without state.
        raws: What telemetry, label and score are worked out from; `raw_outputs` is the app's own.
        ended_ns: When it was there, by `time.perf_counter_ns`; ``latency_ns`` after it was begun, where the
            engine's clock is this one.
        serving: What answered.
    """

    __slots__ = ("_found", "_given", "_outputs", "_top", "ended_ns", "fresh_state", "latency_ns", "raws", "serving")

    def __init__(self, raws: list[Array], latency_ns: int, ended_ns: int, serving: Serving, fresh_state: bool) -> None:
        self.raws = raws
        self.latency_ns = latency_ns
        self.ended_ns = ended_ns
        self.serving = serving
        self.fresh_state = fresh_state
        self._outputs: dict[str, Array] | None = None
        self._given: list[Array] | None = None
        self._top: tuple[int, float] | None = None

    _found: tuple[Detection, ...] | None  # set when first asked for: most apps classify, and do not wait for it

    @property
    def latency_us(self) -> float:
        """Checking, quantizing and invoking, microseconds of wall time."""
        return self.latency_ns / 1000.0

    @property
    def outputs(self) -> dict[str, Array]:
        """Arrays by the manifest's output names: float32, or the type that the manifest gives an output."""
        found = self._outputs
        if found is None:
            found = self._outputs = self.serving.real(self.raws)
        return found

    @property
    def raw(self) -> Array:
        """The first output in the model's own numbers."""
        given = self._given
        if given is None:
            raws = self.raws
            if len(raws) > 1:
                return self.raw_outputs[0]
            given = self._given = [raws[0].copy()] if self.serving.reads else raws
        return given[0]

    @property
    def raw_outputs(self) -> list[Array]:
        """Every output in the model's own numbers, in the manifest's order."""
        given = self._given
        if given is None:
            given = [raw.copy() for raw in self.raws] if self.serving.reads else self.raws
            self._given = given
        return given

    @property
    def bundle(self) -> str:
        """``NAME VERSION`` of the bundle that answered."""
        return self.serving.id

    @property
    def detections(self) -> tuple[Detection, ...] | None:
        """Objects with label, score and box, the best first, by the manifest's post-processing.

        None when the head is not a detection. Boxes are in shares of the input; `Detection.pixels` gives the app's.

        Raises:
            EngineError: A box's offsets are not numbers.
        """
        try:
            return self._found
        except AttributeError:
            found = self._found = self.serving.boxes(self.raws)
            return found

    @property
    def label(self) -> str | None:
        """Name of the top class, of a detector the best box's; None without box, or when the head is another."""
        index = self.label_index
        return None if index is None else self.serving.label_names[index]

    @property
    def label_index(self) -> int | None:
        """The top class, of a detector the best box's; None without box, or when the head is another."""
        top = self._top or self._find_top()
        return top[0] if top is not None else None

    @property
    def score(self) -> float | None:
        """The top class's share under softmax, of a detector the best box's score, 0 to 1; None as `label`."""
        top = self._top or self._find_top()
        return top[1] if top is not None else None

    @property
    def input_score(self) -> float | None:
        """How far the frame is from those the network was made for, by the bundle's guard: 1 is usual; None without."""
        guard = self.serving.input_guard
        return None if guard is None else guard.score(self.raws)

    @property
    def alarm(self) -> bool | None:
        """Whether `input_score` is above the guard's threshold, or no number; None where the bundle has no guard."""
        guard = self.serving.input_guard
        return None if guard is None else not guard.score(self.raws) <= guard.check.threshold

    def _find_top(self) -> tuple[int, float] | None:
        if self.serving.classifies:
            self._top = self.serving.top(self.raws[0])
        elif self.detections:
            self._top = self.detections[0].label_index, self.detections[0].score
        return self._top

    def __repr__(self) -> str:
        return (
            f"Result(bundle={self.bundle!r}, label={self.label!r}, label_index={self.label_index!r}, "
            f"score={self.score!r}, latency_us={self.latency_us!r}, fresh_state={self.fresh_state!r}, "
            f"outputs={self.outputs!r}" + (")" if self.detections is None else f", detections={self.detections!r})")
        )
