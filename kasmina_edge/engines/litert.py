"""LiteRT (``ai-edge-litert``) and its predecessor ``tflite-runtime``: TFLite files on the CPU, or on an Edge TPU.

"Edge TPU" is said only when the file holds an ``edgetpu-custom-op`` and the delegate took it; under the delegate an
uncompiled file runs on the CPU, and is reported so. LiteRT 2.3 writes one line to standard error when XNNPACK first
starts in a process; no setting of the library stops it, and nothing is done about it here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import EngineName, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.edgetpu import (
    DEFAULT_DELEGATE,
    EDGETPU_OP,
    is_compiled,
    last_line,
    load_delegate,
    look_at_delegate,
    open_delegate,
)
from kasmina_edge.engines.engine import Engine, EngineCheck, FileFacts, LoadedTensor
from kasmina_edge.engines.tflite_file import INT4, tensor_types
from kasmina_edge.errors import BundleError, EngineError

Array = npt.NDArray[Any]
INSTALL = "Install it with `pip install ai-edge-litert`."
INSTALL_OLD = "Install it with `pip install tflite-runtime 'numpy<2'` (Python 3.11 or older), or use ai-edge-litert."
_REMEMBERING = frozenset(
    f"{direction}{cell}"
    for direction in ("", "UNIDIRECTIONAL_SEQUENCE_", "BIDIRECTIONAL_SEQUENCE_")
    for cell in ("LSTM", "RNN")
) | {"VAR_HANDLE", "SVDF"}
"""Operations that keep something from call to call (BuiltinOperator of schema.fbs)."""


def any_interpreter() -> Any:
    """The interpreter module of LiteRT, or else of tflite-runtime.

    Raises:
        EngineError: Neither is installed.
    """
    try:
        return LitertEngine.library()[0]
    except EngineError:
        try:
            return TfliteRuntimeEngine.library()[0]
        except EngineError:
            pass
        raise


class LitertEngine(Engine):
    """Runs ``.tflite`` files. Inputs and outputs are matched by their order, because exports strip tensor names."""

    name: ClassVar[str] = "litert"
    takes: ClassVar[EngineName] = "litert"
    _package: ClassVar[str] = "ai_edge_litert"
    _called: ClassVar[str] = "LiteRT"
    _install: ClassVar[str] = INSTALL
    _runs_on: ClassVar[str] = "LiteRT CPU"
    _resolver: ClassVar[str] = "AUTO"
    _fast: ClassVar[bool] = True  # the wrapper under the interpreter is known, and may be called without its checks

    @classmethod
    def library(cls) -> tuple[Any, str]:
        """The interpreter module and its version.

        Raises:
            EngineError: It is not installed, or does not import here.
        """
        try:
            package = import_module(cls._package)
            module = import_module(f"{cls._package}.interpreter")
        except (ImportError, AttributeError) as exc:  # built against another numpy, it raises either
            raise EngineError(f"{cls._called} is not installed ({last_line(exc)})", cls._install) from exc
        return module, str(getattr(package, "__version__", ""))

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """See `Engine.check`; looks at the delegate, not at the accelerator, which may hang whoever asks it."""
        try:
            _, version = cls.library()
        except EngineError as exc:
            return EngineCheck(False, "", f"{exc.message}. {exc.next_step}")
        reason = f"{cls._called} {version}".strip()
        if model.compiled_for is not None and cls._resolver != "AUTO":
            return EngineCheck(False, "", f"{model.file.path} is compiled, and {cls.name} is for the CPU's kernels")
        if profile.accelerator != "edgetpu":
            if model.compiled_for is not None:
                return EngineCheck(False, "", f"{model.file.path} is compiled for {model.compiled_for}")
            return EngineCheck(True, cls._runs_on, reason)
        library = profile.delegate_library or DEFAULT_DELEGATE
        why = ""
        try:
            look_at_delegate(library)
        except EngineError as exc:
            why = exc.message
        if model.compiled_for != "edgetpu":
            short = library.split(".so")[0]
            return EngineCheck(True, cls._runs_on, reason, why or f"{short} present, bundle not compiled: CPU")
        if why:
            return EngineCheck(False, "", f"{model.file.path} is compiled for the Edge TPU: {why}", why)
        return EngineCheck(True, "Edge TPU", reason, "Edge TPU")

    @classmethod
    def facts(cls, data: bytes) -> FileFacts:
        """See `Engine.facts`; names are the file's own, as far as an export left them there."""
        interpreter = cls.library()[0].Interpreter(model_content=data)
        operations = {detail["op_name"] for detail in interpreter._get_ops_details()}
        return FileFacts(
            [_describe(d, named=True, open_axes=True) for d in interpreter.get_input_details()],
            [_describe(d, named=True, open_axes=True) for d in interpreter.get_output_details()],
            remembers=bool(operations & _REMEMBERING),
            free_names=True,
        )

    @classmethod
    def once(cls, data: bytes, inputs: list[Array]) -> list[Array]:
        """See `Engine.once`."""
        interpreter = cls.library()[0].Interpreter(model_content=data)
        for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
            if tuple(detail["shape"]) != array.shape:
                interpreter.resize_tensor_input(int(detail["index"]), array.shape)
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(int(detail["index"]), array)
        interpreter.invoke()
        return [np.asarray(interpreter.get_tensor(int(d["index"]))) for d in interpreter.get_output_details()]

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        module, _ = self.library()
        compiled = is_compiled(module, data)
        if compiled != (self.model.compiled_for == "edgetpu"):
            said = "is compiled for the Edge TPU" if self.model.compiled_for == "edgetpu" else "is not compiled"
            found = "holds an" if compiled else "holds no"
            raise BundleError(
                f"{self.model.file.path}: the manifest says it {said}, the file {found} {EDGETPU_OP.decode()}"
            )
        make = self._maker(module, data, profile, compiled)
        self._make = make if self.model.remembers else None
        try:
            self._interpreter = make()
        except RuntimeError as exc:
            if not compiled:
                raise
            raise EngineError(
                f"{self.model.file.path}: the Edge TPU's delegate did not take the compiled operation "
                f"({last_line(exc)})"
            ) from exc
        self.runs_on = "Edge TPU" if compiled else self._runs_on
        self.accelerator = "Edge TPU" if compiled else ""
        self._resizable = not compiled and not self.model.stateful
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._input_indices = [int(d["index"]) for d in inputs]
        self._output_indices = [int(d["index"]) for d in outputs]
        self._bind()
        return [_describe(d) for d in inputs], [_describe(d, open_axes=True) for d in outputs]

    def _maker(self, module: Any, data: bytes, profile: HardwareProfile, compiled: bool) -> Callable[[], Any]:
        """What makes an interpreter in its beginning."""
        shapes, resize = [tuple(t.shape) for t in self.model.inputs], self._resize

        def make() -> Any:
            options: dict[str, Any] = {"model_content": data, "num_threads": profile.threads}
            if compiled:
                options["experimental_delegates"] = [self._delegate(module, profile)]
            elif self._resolver != "AUTO":
                options["experimental_op_resolver_type"] = getattr(module.OpResolverType, self._resolver)
            interpreter = module.Interpreter(**options)
            for detail, shape in zip(interpreter.get_input_details(), shapes, strict=False):
                if _may_become(detail, shape, resize=resize):
                    interpreter.resize_tensor_input(int(detail["index"]), shape)
            interpreter.allocate_tensors()
            return interpreter

        return make

    def _delegate(self, module: Any, profile: HardwareProfile) -> Any:
        """The delegate, or the reason as an error: a compiled file runs nowhere else."""
        path = self.model.file.path
        if profile.accelerator != "edgetpu":
            raise EngineError(f"{path} is compiled for the Edge TPU, and profile {profile.name} has none")
        library = profile.delegate_library or DEFAULT_DELEGATE
        try:
            return load_delegate(library, module.load_delegate, device=profile.accelerator_device)
        except EngineError as exc:
            raise EngineError(f"{path} is compiled for the Edge TPU: {exc.message}", exc.next_step) from exc

    def _bind(self) -> None:
        """Take hold of the three calls of an inference; held, the wrapper refuses the interpreter's public ones."""
        interpreter = self._interpreter
        wrapper = getattr(interpreter, "_interpreter", None)
        found = [getattr(wrapper, name, None) for name in ("SetTensor", "Invoke", "GetTensor")]
        self._calls: tuple[Any, Any, Any]
        self._views: list[Array] | None = None
        if self._fast and all(map(callable, found)):
            self._calls = (found[0], found[1], found[2])
            views = [interpreter.tensor(index)() for index in self._input_indices]
            # a reset of what remembers makes another interpreter, with other memory; of a scalar there is no view
            if not self.model.remembers and all(isinstance(view, np.ndarray) for view in views):
                self._views = views
        else:
            self._calls = (interpreter.set_tensor, interpreter.invoke, lambda i, _: interpreter.get_tensor(i))

    def _call(self) -> Callable[[list[Array]], list[Array]]:
        set_tensor, invoke, get_tensor = self._calls
        inputs, outputs = self._input_indices, self._output_indices
        views: list[Any] = [*(self._views or (None for _ in inputs))]
        first, last, view = inputs[0], outputs[0], views[0]

        def bind(calls: tuple[Any, Any, Any]) -> None:
            nonlocal set_tensor, invoke, get_tensor, view
            set_tensor, invoke, get_tensor = calls
            if self._views is None:  # closed: the views would keep the model's memory
                view, views[:] = None, [None] * len(views)

        def one(arrays: list[Array]) -> list[Array]:
            array = arrays[0]
            if array is not view:
                set_tensor(first, array)
            invoke()
            return [get_tensor(last, 0)]

        def several(arrays: list[Array]) -> list[Array]:
            for index, array, own in zip(inputs, arrays, views, strict=True):
                if array is not own:
                    set_tensor(index, array)
            invoke()
            return [get_tensor(index, 0) for index in outputs]

        def several_with_scalars(arrays: list[Array]) -> list[Array]:
            return [np.asarray(array) for array in several(arrays)]

        self._rebind = bind
        if all(t.shape for t in self.model.outputs):
            self._whole = one if len(inputs) == len(outputs) == 1 else several
        else:
            self._whole = several_with_scalars
        return self._whole

    def _run(self, inputs: list[Array]) -> list[Array]:
        return self._whole(inputs)

    def _buffers(self) -> list[Array] | None:
        return self._views

    def _forget(self) -> None:
        assert self._make is not None
        # LiteRT 2.3's reset_all_variables does not reach resource variables (a test shows it), and the subgraph that
        # gives them their first values (CALL_ONCE) runs once in an interpreter's life.
        self._interpreter = self._make()
        self._bind()
        self._rebind(self._calls)

    def _close(self) -> None:
        self._calls, self._views = (_closed, _closed, _closed), None
        self._rebind(self._calls)
        self._interpreter = None


class PlainLitertEngine(LitertEngine):
    """LiteRT's own kernels without XNNPACK: slower on most networks, less memory, and other rounding."""

    name: ClassVar[str] = "litert-plain"
    _runs_on: ClassVar[str] = "LiteRT CPU without XNNPACK"
    _resolver: ClassVar[str] = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"


class ReferenceLitertEngine(LitertEngine):
    """LiteRT's reference kernels: slow, and the same on every machine; for golden vectors."""

    name: ClassVar[str] = "litert-reference"
    measured: ClassVar[bool] = False
    _runs_on: ClassVar[str] = "LiteRT CPU, reference kernels"
    _resolver: ClassVar[str] = "BUILTIN_REF"


class TfliteRuntimeEngine(LitertEngine):
    """``tflite-runtime`` on old images (2.14.0 of 2023: Python 3.11 or older, numpy 1)."""

    name: ClassVar[str] = "tflite-runtime"
    _package: ClassVar[str] = "tflite_runtime"
    _called: ClassVar[str] = "tflite-runtime"
    _install: ClassVar[str] = INSTALL_OLD
    _runs_on: ClassVar[str] = "tflite-runtime CPU"
    _fast: ClassVar[bool] = False

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        if INT4 in tensor_types(data):
            raise EngineError(
                f"{self.model.file.path} holds 4-bit tensors, which tflite-runtime answers with NaN and no error",
                INSTALL,
            )
        return super()._load(data, profile)


def _may_become(detail: dict[str, Any], shape: tuple[int, ...], *, resize: bool) -> bool:
    """Whether an input is to be resized: the file leaves the axes open that differ, or a batch is asked for."""
    own = tuple(int(n) for n in detail["shape"])
    signature = tuple(int(n) for n in detail.get("shape_signature", own))
    if own == shape or len(own) != len(shape):
        return False
    return resize or all(n in (-1, wanted) for n, wanted in zip(signature, shape, strict=True))


def _describe(detail: dict[str, Any], *, named: bool = False, open_axes: bool = False) -> LoadedTensor:
    name = str(detail["name"]) if named else None
    quantized = detail["quantization_parameters"]
    dtype = str(np.dtype(detail["dtype"]))
    shape: tuple[int | None, ...] = tuple(int(n) for n in detail["shape"])
    if open_axes:
        signature = detail.get("shape_signature", detail["shape"])
        shape = tuple(None if s < 0 else n for n, s in zip(shape, signature, strict=True))
    if len(quantized["scales"]) != 1:
        return LoadedTensor(name, shape, dtype)
    return LoadedTensor(name, shape, dtype, float(quantized["scales"][0]), int(quantized["zero_points"][0]))


def _closed(*_: object) -> Any:
    raise RuntimeError("closed")


__all__ = [
    "INSTALL",
    "LitertEngine",
    "PlainLitertEngine",
    "ReferenceLitertEngine",
    "TfliteRuntimeEngine",
    "any_interpreter",
    "open_delegate",
]
