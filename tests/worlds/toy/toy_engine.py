"""A third party's engine as it would be written: numpy, a file format of its own, some forty lines.

A ``.toy`` file is JSON: a matrix, and whether the answers add up from call to call.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines import Engine, EngineCheck, FileFacts, LoadedTensor


class ToyEngine(Engine):
    """Runs ``.toy`` files."""

    name = "toy"

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        if model.compiled_for is not None:
            return EngineCheck(False, "", "no accelerator")
        return EngineCheck(True, "numpy", f"numpy {np.__version__}")

    @classmethod
    def facts(cls, data: bytes) -> FileFacts:
        weights, remembers = _parse(data)
        shapes = (1, weights.shape[0]), (1, weights.shape[1])
        return FileFacts(
            [LoadedTensor("x", shapes[0], "float32")], [LoadedTensor("y", shapes[1], "float32")], remembers
        )

    @classmethod
    def once(cls, data: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [inputs[0] @ _parse(data)[0]]

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        self._weights, _ = _parse(data)
        self._sum: Any = np.zeros((1, self._weights.shape[1]), np.float32)
        self.runs_on = "numpy"
        facts = self.facts(data)
        return facts.inputs, facts.outputs

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        answer = inputs[0] @ self._weights
        if self.model.remembers:
            self._sum = answer = self._sum + answer
            return [answer.copy()]
        return [answer]

    def _forget(self) -> None:
        self._sum = np.zeros_like(self._sum)

    def _close(self) -> None:
        self._weights = None


def _parse(data: bytes) -> tuple[np.ndarray, bool]:
    value = json.loads(data)
    return np.asarray(value["weights"], np.float32), bool(value["remembers"])
