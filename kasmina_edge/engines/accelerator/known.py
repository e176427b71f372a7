"""Frames with known answers for an accelerator, and how far two answers may lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.engines.hidden import HiddenTensors
from kasmina_edge.engines.selftest import vectors
from kasmina_edge.errors import EngineError

Array = npt.NDArray[Any]
Call = Callable[[list[Array]], list[Array]]
_TIMED = 4


@dataclass(frozen=True)
class KnownAnswers:
    """Self-test vectors with every tensor of the file, so that each of them can be asked alone and in any order.

    Attributes:
        frames: Inputs and outputs of each vector in the manifest's order, states and constants included.
        tolerance: The largest difference accepted: each side may differ from the known answer by its own self-test's
            tolerance, so from each other by the sum (quantized steps; units for float outputs).
        twin_ms: What the twin needed for one frame, the longest of a few.
    """

    frames: tuple[tuple[list[Array], list[Array]], ...]
    tolerance: float
    twin_ms: float


def known_answers(
    bundle: Bundle, model: ModelFile, twin_model: ModelFile, twin: Call, timer: Callable[[], float]
) -> KnownAnswers:
    """The vectors of ``model``, with the states that the twin goes through on the way.

    Args:
        bundle: Brings the vectors.
        model: The accelerator's entry in the manifest.
        twin_model: The twin's.
        twin: Takes and gives every tensor of the file.
        timer: Monotonic seconds.

    Raises:
        BundleError: The vectors are missing or do not fit the model.
        EngineError: The twin itself answers them wrongly, so that nothing could stand in for the accelerator.
    """
    tolerance = model.selftest.tolerance + twin_model.selftest.tolerance
    hidden = HiddenTensors.of(model)
    frames: list[tuple[list[Array], list[Array]]] = []
    times: list[float] = []
    asked: list[list[Array]] = []

    def watched(inputs: list[Array]) -> list[Array]:
        asked.append(list(inputs))
        began = timer()
        outputs = twin(inputs)
        times.append(timer() - began)
        return outputs

    app_outputs = [t.name for t in model.outputs]
    state_outputs = {pair.output for pair in model.states}
    for i, (frame, answer) in enumerate(zip(*vectors(bundle, model), strict=True)):
        inputs = [frame[t.name] for t in model.app_inputs]
        if hidden is None and i > _TIMED:
            frames.append((inputs, [answer[name] for name in app_outputs]))
            continue
        outputs: list[list[Array]] = []

        def kept(tensors: list[Array], to: list[list[Array]] = outputs) -> list[Array]:
            to.append(watched(tensors))
            return to[-1]

        (hidden.around(kept) if hidden is not None else kept)(inputs)
        expected = [
            own if name in state_outputs else answer[name] for name, own in zip(app_outputs, outputs[0], strict=True)
        ]
        off = difference(outputs[0], expected)
        if not off <= tolerance:
            raise EngineError(
                f"{bundle.id}: {twin_model.file.path} shall stand in for {model.file.path}, and differs from its "
                f"self-test vector {i} by {off:g}, {tolerance:g} is accepted"
            )
        frames.append((asked[-1], expected))
    return KnownAnswers(tuple(frames), tolerance, 1000.0 * max(times[1:] or times))


def difference(got: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest distance of two answers; infinite where one of them is no number."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
        if not gap <= worst:  # NaN is kept
            worst = math.inf if math.isnan(gap) else float(gap)
    return worst


def all_finite(answers: Sequence[Array]) -> bool:
    """Whether every value is a number; integers are.

    >>> all_finite([np.array([1.0, np.inf], np.float32)]), all_finite([np.array([3e38, 3e38], np.float32)])
    (False, True)
    """
    for array in answers:
        if array.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                total = float(array.sum())  # a sum is finite only if all its terms are
            if not math.isfinite(total) and not np.isfinite(array).all():
                return False
    return True
