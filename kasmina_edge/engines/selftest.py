"""A bundle's self-test: the vectors it brings for a model file, run on a loaded engine and timed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile, ModelTensor
from kasmina_edge.engines.engine import Engine
from kasmina_edge.errors import BundleError

Array = npt.NDArray[Any]
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True)
class SelfTestResult:
    """How an engine did on the bundle's self-test vectors.

    Attributes:
        samples: Vectors tried.
        passed: Vectors whose every output lies within the manifest's tolerance.
        worst: Largest difference seen, in quantized steps (integer outputs) or units (float outputs).
        p50_us: Median time of one run in the model's own dtypes, microseconds.
        p99_us: 99th percentile of the same.
    """

    samples: int
    passed: int
    worst: float
    p50_us: float
    p99_us: float

    @property
    def ok(self) -> bool:
        """Every vector passed."""
        return self.passed == self.samples


def self_test(
    engine: Engine, bundle: Bundle, *, timed_runs: int = 256, timer_ns: Callable[[], int] | None = None
) -> SelfTestResult:
    """Run the vectors that the bundle brings for this model file, and time the engine.

    The vectors of a model with state are one sequence: the engine is reset before it, and again at the end.

    Args:
        engine: A loaded engine.
        bundle: The bundle it was loaded from.
        timed_runs: Run the vectors over and over until so many runs are timed.
        timer_ns: Monotonic nanoseconds; None: the engine's own.

    Raises:
        BundleError: The vectors are missing or do not fit the model.
    """
    model = engine.model
    frames, expected = vectors(bundle, model)
    count = len(frames)
    passed, worst = 0, 0.0
    engine.reset()
    for frame, answer in zip(frames, expected, strict=True):
        answers = engine.run(frame)
        off = max(_difference(answers[name], array) for name, array in answer.items())
        passed += off <= model.selftest.tolerance
        worst = max(worst, off)
    times, timer_ns = [], timer_ns or engine.timer_ns
    for i in range(max(timed_runs, 1)):
        started = timer_ns()
        engine.run(frames[i % count])
        times.append(timer_ns() - started)
    engine.reset()
    p50, p99 = np.percentile(times, [50, 99]) / 1000.0
    return SelfTestResult(samples=count, passed=passed, worst=worst, p50_us=float(p50), p99_us=float(p99))


def vectors(bundle: Bundle, model: ModelFile) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """The self-test's frames and their known answers, one dict by tensor name each.

    Raises:
        BundleError: They are missing or do not fit the model.
    """
    where = f"{bundle.id}: {model.selftest.file.path}"
    arrays = bundle.arrays(model.selftest.file)
    count = model.selftest.samples
    inputs = {
        t.name: _vectors(arrays, vector_key("input", i, t.name), t, count, where)
        for i, t in enumerate(model.app_inputs)
    }
    outputs = {
        t.name: _vectors(arrays, vector_key("output", i, t.name), t, count, where)
        for i, t in enumerate(model.app_outputs)
    }
    return (
        [{name: array[i] for name, array in inputs.items()} for i in range(count)],
        [{name: array[i] for name, array in outputs.items()} for i in range(count)],
    )


def vector_key(side: str, index: int, name: str) -> str:
    """What the self-test calls the array of an app tensor: ``input_<name>``, or its number where a name is no file's.

    >>> vector_key("input", 0, "image"), vector_key("output", 1, "a/b:0")
    ('input_image', 'output_1')
    """
    return f"{side}_{name if _PLAIN_NAME.fullmatch(name) else index}"


def _vectors(arrays: Mapping[str, Array], key: str, tensor: ModelTensor, count: int, where: str) -> Array:
    array = arrays.get(key)
    if array is None:
        raise BundleError(f"{where}: no array {key!r}; it holds {', '.join(sorted(arrays)) or 'none'}")
    shape = (count, *tensor.shape)
    if str(array.dtype) != tensor.dtype or array.size != int(np.prod(shape)):
        raise BundleError(f"{where}: {key} should be {tensor.dtype} {shape}, it is {array.dtype} {array.shape}")
    return array.reshape(shape)


def _difference(got: Array, expected: Array) -> float:
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))
