"""LiteRT (``ai-edge-litert``; ``tflite-runtime`` on old images): TFLite files on the CPU by XNNPACK, or on an Edge TPU.

"Edge TPU" is said only when the file holds an ``edgetpu-custom-op`` and the delegate took it; under the delegate an
uncompiled file runs on the CPU, and is reported so. Google's ``libedgetpu`` is reached through LiteRT's
``load_delegate``; the package called ``pycoral`` in the Python index is something else and is never used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import EngineName, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine, EngineCheck, LoadedTensor
from kasmina_edge.errors import BundleError, EngineError

Array = npt.NDArray[Any]
DEFAULT_DELEGATE = "libedgetpu.so.1"
EDGETPU_OP = b"edgetpu-custom-op"
INSTALL = "Install it with `pip install 'kasmina[litert]'`."
_CREATE = "tflite_plugin_create_delegate"


def load_library() -> tuple[Any, str, str]:
    """The interpreter module, what people call it, and its version.

    Raises:
        EngineError: Neither ``ai_edge_litert`` nor ``tflite_runtime`` is installed.
    """
    try:
        import ai_edge_litert
        from ai_edge_litert import interpreter

        return interpreter, "LiteRT", str(getattr(ai_edge_litert, "__version__", ""))
    except ImportError as first:
        try:
            import tflite_runtime
            from tflite_runtime import interpreter

            return interpreter, "tflite-runtime", str(getattr(tflite_runtime, "__version__", ""))
        except ImportError:
            raise EngineError(f"LiteRT is not installed ({first})", INSTALL) from first


def open_delegate(library: str, load: Callable[[str], Any] | None = None) -> tuple[Any, str]:
    """Load an accelerator's delegate: (delegate, "") or (None, why not).

    The library is looked at before LiteRT's ``load_delegate`` gets it, because a failure in there leaves a half-made
    object that complains on standard error when it is collected.

    Args:
        library: Shared library, e.g. ``libedgetpu.so.1``.
        load: Used in place of LiteRT's ``load_delegate`` and of the look before it.
    """
    try:
        if load is None:
            getattr(ctypes.CDLL(library), _CREATE)
            load = load_library()[0].load_delegate
        return load(library), ""
    except OSError as exc:
        missing = "no such file" in str(exc).lower()
        return None, f"{library} not found" if missing else f"{library} cannot be loaded ({_first_line(exc)})"
    except AttributeError:
        return None, f"{library} is not a LiteRT delegate (it has no {_CREATE})"
    except (ValueError, RuntimeError) as exc:
        return None, f"{library} present, no Edge TPU answered ({_first_line(exc)})"


def is_compiled(module: Any, data: bytes) -> bool:
    """Whether the file needs an Edge TPU: it names the operation, and the CPU cannot run it."""
    if EDGETPU_OP not in data:
        return False
    try:
        module.Interpreter(model_content=data).allocate_tensors()
    except (RuntimeError, ValueError) as exc:
        return EDGETPU_OP.decode() in str(exc)
    return False


class LitertEngine(Engine):
    """Runs ``.tflite`` files. Inputs and outputs are matched by their order, because exports strip tensor names."""

    name: ClassVar[EngineName] = "litert"

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """See `Engine.check`; tries the delegate when the profile asks for the Edge TPU."""
        try:
            _, library, version = load_library()
        except EngineError as exc:
            return EngineCheck(False, "", f"{exc.message}. {exc.next_step}")
        cpu = f"{library} CPU"
        reason = f"{library} {version}".strip()
        if profile.accelerator != "edgetpu":
            if model.compiled_for is not None:
                return EngineCheck(False, "", f"{model.file.path} is compiled for {model.compiled_for}")
            return EngineCheck(True, cpu, reason)
        _, why = open_delegate(profile.delegate_library or DEFAULT_DELEGATE)
        if model.compiled_for != "edgetpu":
            short = (profile.delegate_library or DEFAULT_DELEGATE).split(".so")[0]
            return EngineCheck(True, cpu, reason, why or f"{short} present, bundle not compiled: CPU")
        if why:
            return EngineCheck(False, "", f"{model.file.path} is compiled for the Edge TPU: {why}", why)
        return EngineCheck(True, "Edge TPU", reason, "Edge TPU")

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        module, library, _ = load_library()
        compiled = is_compiled(module, data)
        if compiled != (self.model.compiled_for == "edgetpu"):
            said = "is compiled for the Edge TPU" if self.model.compiled_for == "edgetpu" else "is not compiled"
            found = "holds an" if compiled else "holds no"
            raise BundleError(
                f"{self.model.file.path}: the manifest says it {said}, the file {found} {EDGETPU_OP.decode()}"
            )
        delegates: list[Any] = []
        if compiled:
            delegates.append(self._accelerator(profile))
        try:
            self._interpreter = module.Interpreter(
                model_content=data, num_threads=profile.threads, experimental_delegates=delegates or None
            )
            self._interpreter.allocate_tensors()
        except RuntimeError as exc:
            if not compiled:
                raise
            raise EngineError(
                f"{self.model.file.path}: the Edge TPU's delegate did not take the compiled operation "
                f"({_first_line(exc)})"
            ) from exc
        self.runs_on = "Edge TPU" if compiled else f"{library} CPU"
        self.accelerator = "Edge TPU" if compiled else ""
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._input_indices = [int(d["index"]) for d in inputs]
        self._output_indices = [int(d["index"]) for d in outputs]
        self._one_to_one = len(inputs) == len(outputs) == 1
        self._input_index, self._output_index = self._input_indices[0], self._output_indices[0]
        return [_describe(d) for d in inputs], [_describe(d) for d in outputs]

    def _accelerator(self, profile: HardwareProfile) -> Any:
        """The delegate, or the reason as an error: a compiled file runs nowhere else."""
        path = self.model.file.path
        if profile.accelerator != "edgetpu":
            raise EngineError(f"{path} is compiled for the Edge TPU, and profile {profile.name} has none")
        delegate, why = open_delegate(profile.delegate_library or DEFAULT_DELEGATE)
        if delegate is None:
            raise EngineError(f"{path} is compiled for the Edge TPU: {why}")
        return delegate

    def _run(self, inputs: list[Array]) -> list[Array]:
        interpreter = self._interpreter
        if self._one_to_one:
            interpreter.set_tensor(self._input_index, inputs[0])
            interpreter.invoke()
            return [interpreter.get_tensor(self._output_index)]
        for index, array in zip(self._input_indices, inputs, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._output_indices]

    def _close(self) -> None:
        self._interpreter = None


def _describe(detail: dict[str, Any]) -> LoadedTensor:
    quantized = detail["quantization_parameters"]
    dtype = str(np.dtype(detail["dtype"]))
    shape = tuple(int(n) for n in detail["shape"])
    if len(quantized["scales"]) != 1:
        return LoadedTensor(None, shape, dtype)
    return LoadedTensor(None, shape, dtype, float(quantized["scales"][0]), int(quantized["zero_points"][0]))


def _first_line(exc: Exception) -> str:
    text = [line for line in str(exc).strip().splitlines() if line]
    return (text[-1] if text else type(exc).__name__)[:160]
