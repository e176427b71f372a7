"""The engine interface: one model file on one inference library, behind a base class that keeps the promises.

An engine is one ``_load`` and one ``_run``; the base checks names, shapes and dtypes, holds the lock (inference
libraries are not safe for several threads), compares the loaded model with the manifest, and lets only our errors out.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import EngineName, ModelFile, ModelTensor
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError

Array = npt.NDArray[Any]
_SCALE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class EngineCheck:
    """Can it run here, and if not, why: a value, found before anything is loaded.

    Attributes:
        ok: The library is there and takes the file.
        runs_on: What people read, e.g. ``LiteRT CPU`` or ``Edge TPU``.
        reason: Why not, or the library's version.
        accelerator: What became of the accelerator that the profile asks for; empty when it asks for none.
    """

    ok: bool
    runs_on: str
    reason: str = ""
    accelerator: str = ""


@dataclass(frozen=True)
class LoadedTensor:
    """An input or output as the inference library reports it; None where the library does not say."""

    name: str | None
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


class Engine(ABC):
    """One loaded model.

    Args:
        model: The manifest's entry for the file.
        data: The file's bytes.
        profile: The hardware target: threads, accelerator.

    Raises:
        BundleError: The file does not load, or its tensors differ from the manifest.
        EngineError: The inference library is not installed, or refuses this machine.

    Attributes:
        runs_on: As `EngineCheck.runs_on`, known for certain now.
        accelerator: As `EngineCheck.accelerator`.
    """

    name: ClassVar[EngineName]

    def __init__(self, model: ModelFile, data: bytes, profile: HardwareProfile) -> None:
        self.model = model
        self.runs_on = ""
        self.accelerator = ""
        self._lock = threading.Lock()
        self._closed = False
        self._inputs = [(t.name, tuple(t.shape), np.dtype(t.dtype)) for t in model.inputs]
        self._outputs = [t.name for t in model.outputs]
        try:
            inputs, outputs = self._load(data, profile)
        except KasminaError:
            raise
        except Exception as exc:
            raise BundleError(f"{model.file.path}: {self.name} cannot load it ({_first_line(exc)})") from exc
        _compare(model.file.path, "inputs", model.inputs, inputs)
        _compare(model.file.path, "outputs", model.outputs, outputs)

    @classmethod
    @abstractmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """Whether this machine can run ``model`` under ``profile``; nothing of the model is loaded."""

    @abstractmethod
    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        """Load the file; return its inputs and outputs in order, and set ``runs_on`` and ``accelerator``."""

    @abstractmethod
    def _run(self, inputs: list[Array]) -> list[Array]:
        """One inference; the outputs belong to the caller."""

    def _close(self) -> None:  # noqa: B027 - most libraries free themselves
        """Give back what the library holds."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference in the model's own dtypes.

        Args:
            inputs: One array for each input tensor, by its name in the manifest.

        Returns:
            Output arrays by name. They belong to the caller.

        Raises:
            InputError: A name, shape or dtype differs from the manifest.
            EngineError: The library failed, or the engine is closed.
        """
        if len(inputs) != len(self._inputs):
            raise InputError(f"{self.model.file.path}: expected inputs {self._names()}, got {sorted(inputs)}")
        ordered = []
        for name, shape, dtype in self._inputs:
            array = inputs.get(name)
            if array is None:
                raise InputError(f"{self.model.file.path}: expected inputs {self._names()}, got {sorted(inputs)}")
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"{self.model.file.path}: input {name!r} is {dtype} {shape}, got {array.dtype} {array.shape}"
                )
            ordered.append(array)
        with self._lock:
            try:
                return dict(zip(self._outputs, self._run(ordered), strict=True))
            except Exception as exc:
                raise self.failure(exc) from exc

    def hot_path(self) -> Callable[[list[Array]], list[Array]]:
        """The bare inference, for a caller that brings its own lock and checks, as the runtime does.

        It takes arrays of the model's own shapes and dtypes in the manifest's order, as `InputConverter` makes them,
        and raises what the library raises: pass that to `failure`.
        """
        return self._run

    def failure(self, exc: Exception) -> EngineError:
        """The typed form of what an inference library raised."""
        if self._closed:
            return EngineError(f"{self.model.file.path}: the engine is closed", "Open the runtime again.")
        return EngineError(f"{self.model.file.path}: {self.name} failed ({_first_line(exc)})")

    def close(self) -> None:
        """Free the model; calling it twice is harmless, running it afterwards is an `EngineError`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _names(self) -> list[str]:
        return sorted(name for name, _, _ in self._inputs)


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
    engine: Engine, bundle: Bundle, *, timed_runs: int = 256, timer_ns: Callable[[], int] = time.perf_counter_ns
) -> SelfTestResult:
    """Run the vectors that the bundle brings for this model file, and time the engine.

    Args:
        engine: A loaded engine.
        bundle: The bundle it was loaded from.
        timed_runs: Run the vectors over and over until so many runs are timed.
        timer_ns: Monotonic nanoseconds.

    Raises:
        BundleError: The vectors are missing or do not fit the model.
    """
    model = engine.model
    where = f"{bundle.id}: {model.selftest.file.path}"
    arrays = bundle.arrays(model.selftest.file)
    count = model.selftest.samples
    inputs = {t.name: _vectors(arrays, f"input_{t.name}", t, count, where) for t in model.inputs}
    outputs = {t.name: _vectors(arrays, f"output_{t.name}", t, count, where) for t in model.outputs}
    passed, worst = 0, 0.0
    frames = [{name: vectors[i] for name, vectors in inputs.items()} for i in range(count)]
    for i, frame in enumerate(frames):
        answers = engine.run(frame)
        off = max(_difference(answers[name], expected[i]) for name, expected in outputs.items())
        passed += off <= model.selftest.tolerance
        worst = max(worst, off)
    times = []
    for i in range(max(timed_runs, 1)):
        started = timer_ns()
        engine.run(frames[i % count])
        times.append(timer_ns() - started)
    p50, p99 = np.percentile(times, [50, 99]) / 1000.0
    return SelfTestResult(samples=count, passed=passed, worst=worst, p50_us=float(p50), p99_us=float(p99))


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


def _compare(path: str, side: str, named: tuple[ModelTensor, ...], found: list[LoadedTensor]) -> None:
    """The loaded model against the manifest, field by field."""
    if len(named) != len(found):
        raise BundleError(f"{path}: the manifest says {len(named)} {side}, the model has {len(found)}")
    for i, (ours, theirs) in enumerate(zip(named, found, strict=True)):
        where = f"{path}: {side}[{i}]"
        if theirs.name is not None and theirs.name != ours.name:
            raise BundleError(f"{where}.name: the manifest says {ours.name!r}, the model {theirs.name!r}")
        shape = theirs.shape
        if len(shape) != len(ours.shape) or any(
            b is not None and a != b for a, b in zip(ours.shape, shape, strict=True)
        ):
            raise BundleError(f"{where}.shape: the manifest says {tuple(ours.shape)}, the model {shape}")
        if theirs.dtype != ours.dtype:
            raise BundleError(f"{where}.dtype: the manifest says {ours.dtype}, the model {theirs.dtype}")
        if theirs.scale is None:
            continue
        if ours.scale is None or abs(ours.scale - theirs.scale) > _SCALE_TOLERANCE * theirs.scale:
            raise BundleError(f"{where}.scale: the manifest says {ours.scale}, the model {theirs.scale:.9g}")
        if ours.zero_point != theirs.zero_point:
            raise BundleError(f"{where}.zero_point: the manifest says {ours.zero_point}, the model {theirs.zero_point}")


def _first_line(exc: Exception) -> str:
    text = str(exc).strip().splitlines()
    return (text[0] if text else type(exc).__name__)[:200]
