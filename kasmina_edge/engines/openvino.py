"""ONNX Runtime's OpenVINO provider: ``.onnx`` files on Intel's kernels."""

from __future__ import annotations

from typing import Any, ClassVar

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import LoadedTensor
from kasmina_edge.engines.onnx import CPU_PROVIDER, OnnxEngine

INSTALL = "Install it with `pip install onnxruntime-openvino`, which takes the place of onnxruntime."


class OpenvinoEngine(OnnxEngine):
    """Runs ``.onnx`` files on the CPU through OpenVINO; what OpenVINO does not take, ONNX Runtime's CPU provider runs.

    Its kernels round otherwise than ONNX Runtime's: a bundle's self-test says whether they do for that bundle.
    """

    name: ClassVar[str] = "openvino"
    _runs_on: ClassVar[str] = "OpenVINO CPU"
    _provider: ClassVar[str] = "OpenVINOExecutionProvider"
    _install: ClassVar[str] = INSTALL

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        self._threads = profile.threads
        return super()._load(data, profile)

    def _providers(self) -> list[Any]:
        return [(self._provider, {"device_type": "CPU", "num_of_threads": str(self._threads)}), CPU_PROVIDER]
