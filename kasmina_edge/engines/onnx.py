"""ONNX Runtime: ``.onnx`` files on the CPU provider, or on another of its providers."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import EngineName, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine, EngineCheck, FileFacts, LoadedTensor
from kasmina_edge.engines.onnx_file import outside_part
from kasmina_edge.errors import BundleError, EngineError, InputError

Array = npt.NDArray[Any]
INSTALL = "Install it with `pip install onnxruntime`."
CPU_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_ERRORS_ONLY = 3
_ELSEWHERE = "lies in a file beside the model, which no signature covers"
ONE_FILE = (
    "Save the model as one file: onnx.save_model(onnx.load(PATH), NEW_PATH), or torch.onnx.export(..., "
    "external_data=False), and wrap that."
)


def load_library() -> Any:
    """The ``onnxruntime`` module, with Microsoft's own telemetry switched off unless ``ORT_DISABLE_TELEMETRY`` is set.

    Raises:
        EngineError: It is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it writes a device id and events below the home folder
    try:
        import onnxruntime
    except ImportError as exc:
        raise EngineError(f"ONNX Runtime is not installed ({exc})", INSTALL) from exc
    return onnxruntime


class OnnxEngine(Engine):
    """Runs ``.onnx`` files. Buffers are bound once, so that a run copies the frame in and the answer out, no more."""

    name: ClassVar[str] = "onnxruntime"
    takes: ClassVar[EngineName] = "onnxruntime"
    _runs_on: ClassVar[str] = "ONNX Runtime CPU"
    _provider: ClassVar[str] = CPU_PROVIDER
    _install: ClassVar[str] = INSTALL

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """See `Engine.check`; this engine knows no accelerator."""
        try:
            library = load_library()
        except EngineError as exc:
            return EngineCheck(False, "", f"{exc.message}. {cls._install}")
        if model.compiled_for is not None:
            return EngineCheck(False, "", f"{model.file.path} is compiled for {model.compiled_for}")
        if cls._provider not in library.get_available_providers():
            have = ", ".join(library.get_available_providers())
            return EngineCheck(
                False,
                "",
                f"this ONNX Runtime {library.__version__} is not built with it (it has {have}). {cls._install}",
            )
        accelerator = "ONNX Runtime does not reach an Edge TPU" if profile.accelerator == "edgetpu" else ""
        return EngineCheck(True, cls._runs_on, f"ONNX Runtime {library.__version__}", accelerator)

    def _providers(self) -> list[Any]:
        """What the session is asked to run on, first choice first."""
        return [CPU_PROVIDER]

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        if outside := outside_part(data):
            raise BundleError(f"{self.model.file.path}: {outside} {_ELSEWHERE}", ONE_FILE)
        library = load_library()
        options = library.SessionOptions()
        options.intra_op_num_threads = profile.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        session = library.InferenceSession(data, options, providers=self._providers())
        if self._provider not in session.get_providers():
            raise EngineError(f"{self.model.file.path}: {self.name} did not start, and the CPU stood in for it")
        self._session = session
        self._binding = session.io_binding()
        nodes = {node.name: _DTYPES.get(node.type) for node in (*session.get_inputs(), *session.get_outputs())}
        self._values: list[Any] = []
        self._bound_inputs: list[Array] = []
        self._bound_outputs: list[Array] = []
        for tensors, bind, bound in (
            (self.model.inputs, self._binding.bind_ortvalue_input, self._bound_inputs),
            (self.model.outputs, self._binding.bind_ortvalue_output, self._bound_outputs),
        ):
            for tensor in tensors:
                buffer = np.zeros(tensor.shape, tensor.dtype)
                bound.append(buffer)
                if nodes.get(tensor.name) == tensor.dtype:  # else the comparison with the manifest refuses it
                    value = library.OrtValue.ortvalue_from_numpy(buffer)
                    if value.data_ptr() != buffer.ctypes.data:
                        raise EngineError(f"ONNX Runtime {library.__version__} copies bound buffers", self._install)
                    bind(tensor.name, value)
                    self._values.append(value)
        self.runs_on = self._runs_on
        inputs = [_describe(node) for node in session.get_inputs()]
        self._resizable = not self.model.stateful and all(t.shape[:1] == (None,) for t in inputs)
        return inputs, [_describe(node) for node in session.get_outputs()]

    @classmethod
    def facts(cls, data: bytes) -> FileFacts:
        """See `Engine.facts`."""
        session = _session(data)
        return FileFacts([_describe(n) for n in session.get_inputs()], [_describe(n) for n in session.get_outputs()])

    @classmethod
    def once(cls, data: bytes, inputs: list[Array]) -> list[Array]:
        """See `Engine.once`."""
        session = _session(data)
        names = [node.name for node in session.get_inputs()]
        return [np.asarray(a) for a in session.run(None, dict(zip(names, inputs, strict=True)))]

    def _run(self, inputs: list[Array]) -> list[Array]:
        for bound, array in zip(self._bound_inputs, inputs, strict=True):
            if array is not bound:
                bound[...] = array
        self._session.run_with_iobinding(self._binding)
        return [bound.copy() for bound in self._bound_outputs]

    def _buffers(self) -> list[Array] | None:
        return self._bound_inputs

    def _close(self) -> None:
        self._binding = self._session = None
        self._values.clear()


def _session(data: bytes) -> Any:
    if outside := outside_part(data):
        raise InputError(f"{outside} {_ELSEWHERE}", ONE_FILE)
    library = load_library()
    options = library.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return library.InferenceSession(data, options, providers=[CPU_PROVIDER])


def _describe(node: Any) -> LoadedTensor:
    shape = tuple(n if isinstance(n, int) else None for n in node.shape)
    return LoadedTensor(str(node.name), shape, _DTYPES.get(node.type, str(node.type)))
