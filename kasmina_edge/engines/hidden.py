"""Tensors that the app never sees: constants that a model asks for, and state that it hands from call to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelFile, ModelTensor

Array = npt.NDArray[Any]
Call = Callable[[list[Array]], list[Array]]


class HiddenTensors:
    """Fills in a model's constants and states, and takes its states out of the answer.

    State begins with zeros, moves on with every call that succeeds, and stays where it was when one fails.

    Args:
        model: The manifest's entry for the file.
    """

    def __init__(self, model: ModelFile) -> None:
        inputs = {t.name: i for i, t in enumerate(model.inputs)}
        outputs = {t.name: i for i, t in enumerate(model.outputs)}
        app_inputs, app_outputs = {t.name for t in model.app_inputs}, {t.name for t in model.app_outputs}
        self._filled: list[Any] = [
            None if t.constant is None else np.full(t.shape, t.constant, t.dtype) for t in model.inputs
        ]
        self._app_inputs = [i for name, i in inputs.items() if name in app_inputs]
        self._app_outputs = [i for name, i in outputs.items() if name in app_outputs]
        self._pairs = [(inputs[pair.input], outputs[pair.output]) for pair in model.states]
        self._states: list[tuple[int, ModelTensor]] = [(i, model.inputs[i]) for i, _ in self._pairs]
        self.begin()

    @staticmethod
    def of(model: ModelFile) -> HiddenTensors | None:
        """None for a model that shows the app every tensor."""
        plain = len(model.app_inputs) == len(model.inputs) and len(model.app_outputs) == len(model.outputs)
        return None if plain else HiddenTensors(model)

    def begin(self) -> None:
        """Every state back to zeros."""
        for i, tensor in self._states:
            self._filled[i] = np.zeros(tensor.shape, tensor.dtype)

    def around(self, call: Call) -> Call:
        """``call``, which takes and gives all tensors, as one that takes and gives the app's."""
        filled, pairs = self._filled, self._pairs
        app_inputs, app_outputs = self._app_inputs, self._app_outputs

        def answer(inputs: list[Array]) -> list[Array]:
            for i, array in zip(app_inputs, inputs, strict=True):
                filled[i] = array
            outputs = call(filled)
            for taken, given in pairs:
                filled[taken] = outputs[given]
            return [outputs[i] for i in app_outputs]

        return answer
