"""The engine interface: one model file on one inference library, behind a base class that keeps the promises.

An engine is one ``_load`` and one ``_run``; the base checks names, shapes and dtypes, holds the lock (inference
libraries are not safe for several threads), compares the loaded model with the manifest, fills in constants, carries
state from call to call, and lets only our errors out.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import EngineName, ModelFile, ModelTensor
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.batching import agrees, batched_entry, seeded_frames
from kasmina_edge.engines.hidden import HiddenTensors
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError

Array = npt.NDArray[Any]
_SCALE_TOLERANCE = 1e-6
_MOST_FRAMES = 4096
_PROOF_FRAMES = 8
log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class FileFacts:
    """What a model file says about itself, before there is a manifest; open axes are None.

    Attributes:
        inputs: In the file's order, with the file's names.
        outputs: The same.
        remembers: It keeps state in variables of its own.
        free_names: The engine matches tensors by their order, so that a manifest may give them better names.
    """

    inputs: list[LoadedTensor]
    outputs: list[LoadedTensor]
    remembers: bool = False
    free_names: bool = False


class Engine(ABC):
    """One loaded model.

    Args:
        model: The manifest's entry for the file.
        data: The file's bytes.
        profile: The hardware target: threads, accelerator.
        resize: Give the file's first axes the lengths that ``model`` names, where the library can; for `batch_of`.

    Raises:
        BundleError: The file does not load, or its tensors differ from the manifest.
        EngineError: The inference library is not installed, or refuses this machine.

    Attributes:
        name: What profiles and settings call this engine.
        takes: The ``engine`` of the manifest entries whose files it runs; its own name, if it says nothing else.
        measured: Whether "auto" may choose it.
        simulated: Whether it takes a predicted time instead of its own; such an engine proves nothing about a file.
        runs_on: As `EngineCheck.runs_on`, known for certain now.
        accelerator: As `EngineCheck.accelerator`.
        timer_ns: The clock that inferences are timed by; not the machine's where a rehearsal counts time.
        known_frames: Gives frames (lists of app inputs) that `batch_of` is proven on; `open_engine` puts the bundle's
            self-test vectors there.
    """

    name: ClassVar[str]
    takes: ClassVar[EngineName]
    measured: ClassVar[bool] = True
    simulated: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "takes") and hasattr(cls, "name"):
            cls.takes = cls.name

    def __init__(self, model: ModelFile, data: bytes, profile: HardwareProfile, *, resize: bool = False) -> None:
        self.model = model
        self.runs_on = ""
        self.accelerator = ""
        self.known_frames: Callable[[], list[list[Array]]] | None = None
        self.timer_ns: Callable[[], int] = time.perf_counter_ns
        self._lock = threading.Lock()
        self._closed = False
        self._resize = resize
        self._resizable = False
        self._inputs = [(t.name, tuple(t.shape), np.dtype(t.dtype)) for t in model.app_inputs]
        self._outputs = [(t.name, tuple(t.shape)) for t in model.app_outputs]
        if model.remembers and type(self)._forget is Engine._forget:
            raise EngineError(f"{model.file.path} keeps state in variables of its own, and {self.name} cannot reset it")
        try:
            inputs, outputs = self._load(data, profile)
        except KasminaError:
            raise
        except Exception as exc:
            raise BundleError(f"{model.file.path}: {self.name} cannot load it ({_first_line(exc)})") from exc
        _compare(model.file.path, "inputs", model.inputs, inputs)
        _compare(model.file.path, "outputs", model.outputs, outputs)
        self._source = (data, profile) if self._resizable else None
        self._hidden = HiddenTensors.of(model)
        call = self._call()
        self._answer = call if self._hidden is None else self._hidden.around(call)

    @classmethod
    @abstractmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """Whether this machine can run ``model`` under ``profile``; nothing of the model is loaded."""

    @classmethod
    def facts(cls, data: bytes) -> FileFacts:
        """What the library reads in a file; for `bundle create`. An engine that cannot say may leave it out.

        Raises:
            EngineError: The library is not installed, or this engine reads no file without a manifest.
        """
        raise EngineError(f"{cls.name} reads no file without a manifest")

    @classmethod
    def once(cls, data: bytes, inputs: list[Array]) -> list[Array]:
        """One call of a file in its beginning, inputs in the file's order and of any shape that it can take.

        Raises:
            EngineError: As `facts`.
        """
        raise EngineError(f"{cls.name} runs no file without a manifest")

    @abstractmethod
    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        """Load the file; return its inputs and outputs in order, and set ``runs_on`` and ``accelerator``.

        Axes that the file leaves open get the manifest's lengths. Where ``self._resize`` is set, the first axes get
        them too. ``self._resizable`` says whether `batch_of` is worth a try.
        """

    @abstractmethod
    def _run(self, inputs: list[Array]) -> list[Array]:
        """One inference with every tensor of the file in its order; the outputs belong to the caller."""

    def _call(self) -> Callable[[list[Array]], list[Array]]:
        """`_run`, or something faster that does the same; asked once, after `_load`, and called until `close`."""
        return self._run

    def _buffers(self) -> list[Array] | None:
        """See `input_buffers`; of every tensor of the file."""
        return None

    def _forget(self) -> None:
        """Bring a model that remembers back to its beginning; what `_call` gave stays valid."""
        raise NotImplementedError

    def _close(self) -> None:  # noqa: B027 - most libraries free themselves
        """Give back what the library holds."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference in the model's own dtypes.

        Args:
            inputs: One array for each of the model's app inputs, by its name in the manifest.

        Returns:
            The app outputs by name. They belong to the caller.

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
                outputs = self._answer(ordered)
            except Exception as exc:
                raise self.failure(exc) from exc
        for (name, wanted), array in zip(self._outputs, outputs, strict=True):
            if array.shape != wanted:
                raise EngineError(
                    f"{self.model.file.path}: output {name!r} is {array.shape}, the manifest says {wanted}",
                    "The model's output grows with its input; give the manifest the shape that comes out.",
                )
        return {name: array for (name, _), array in zip(self._outputs, outputs, strict=True)}

    def hot_path(self) -> Callable[[list[Array]], list[Array]]:
        """The bare inference, for a caller that brings its own lock and checks, as the runtime does.

        It takes the app inputs in the model's own shapes and dtypes and in the manifest's order, as `InputConverter`
        makes them, gives the app outputs in that order, and raises what the library raises: pass that to `failure`.
        The caller's lock also keeps `reset` and `close` apart from it.
        """
        return self._answer

    def input_buffers(self) -> list[Array] | None:
        """The library's own memory of the app inputs, to save a copy a call: write the frame there, pass that array.

        `hot_path` knows these very arrays and does not copy them; others it copies, as ever. They are to be written
        under the caller's lock only, and not after `close`.

        Returns:
            One array for each app input in the manifest's order; None where the library shows none.
        """
        found = self._buffers()
        if found is None:
            return None
        shown = {t.name for t in self.model.app_inputs}
        return [array for tensor, array in zip(self.model.inputs, found, strict=True) if tensor.name in shown]

    def reset(self) -> None:
        """All state back to the beginning, as after loading; nothing happens to a model without state.

        Raises:
            EngineError: The engine is closed, or the library failed.
        """
        with self._lock:
            if self._closed:
                raise self.failure(RuntimeError("closed"))
            if self._hidden is not None:
                self._hidden.begin()
            if self.model.remembers:
                try:
                    self._forget()
                except Exception as exc:
                    raise self.failure(exc) from exc

    @property
    def resizable(self) -> bool:
        """Whether `batch_of` is worth a try; the engine then keeps the file's bytes for it."""
        return self._source is not None

    def batch_of(self, size: int) -> Engine | None:
        """The same model with ``size`` frames a call: every app input and output has a first axis of that length.

        It is a second loaded model with a life of its own; close it too. Before it is given, one of its calls is
        compared with single calls (`known_frames`, or noise) within the self-test's tolerance.

        Args:
            size: Frames a call, 1 to 4096.

        Returns:
            None where the model cannot be resized: it has state, a first axis other than 1, fixed shapes inside, or
            its frames do not come out as they do alone.

        Raises:
            InputError: ``size`` is out of range.
        """
        if not 1 <= size <= _MOST_FRAMES:
            raise InputError(f"a batch of {size}: 1 to {_MOST_FRAMES} frames are possible")
        entry = batched_entry(self.model, size)
        if entry is None or self._source is None:
            return None
        data, profile = self._source
        frames = (self.known_frames and self.known_frames()) or seeded_frames(self.model, min(size, _PROOF_FRAMES))
        frames = [frames[i % len(frames)] for i in range(size)]
        try:
            batch = type(self)(entry, data, profile, resize=True)
        except KasminaError:
            return None
        try:
            with type(self)(self.model, data, profile) as single:
                if agrees(single.hot_path(), batch.hot_path(), frames, self.model.selftest.tolerance):
                    return batch
        except Exception:  # a library refuses some shapes only when it runs
            batch.close()
            return None
        batch.close()
        return None

    def failure(self, exc: Exception) -> EngineError:
        """The typed form of what an inference library raised."""
        if self._closed:
            return EngineError(f"{self.model.file.path}: the engine is closed", "Open the runtime again.")
        return EngineError(f"{self.model.file.path}: {self.name} failed ({_first_line(exc)})")

    def close(self) -> None:
        """Free the model; calling it twice is harmless, running it afterwards is an `EngineError`.

        A library that fails at this is logged, and stops nobody.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._close()
                except KeyboardInterrupt:
                    raise
                except BaseException as exc:  # it is closed to everybody all the same
                    log.warning("%s: %s failed to close (%r)", self.model.file.path, self.name, exc)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _names(self) -> list[str]:
        return sorted(name for name, _, _ in self._inputs)


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
