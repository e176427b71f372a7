"""Which file of a bundle can stand in for an accelerator's."""

from __future__ import annotations

import numpy as np

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile, ModelTensor
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine
from kasmina_edge.errors import BundleError, EngineError


def find_twin(bundle: Bundle, profile: HardwareProfile, model: ModelFile) -> tuple[type[Engine], ModelFile] | None:
    """The first engine and plain file, in the profile's order, that can stand in for ``model`` on this machine.

    None when this copy of the bundle holds no such file: then the accelerator cannot be supervised.
    """
    from kasmina_edge.engines.choice import Candidates

    without = profile.model_copy(update={"accelerator": None})
    for kind, other, _ in Candidates(bundle.manifest, without, present=set(bundle.files)):
        if other.compiled_for is None and other.file != model.file:
            try:
                check_twin(bundle.id, model, other)
            except (BundleError, EngineError):
                continue
            return kind, other
    return None


def check_twin(where: str, model: ModelFile, twin: ModelFile) -> None:
    """Both files have to take and give the same numbers.

    Args:
        where: The bundle, for the message.
        model: The accelerator's file.
        twin: The one that shall stand in.

    Raises:
        BundleError: They do not; the message names the tensors.
        EngineError: A file keeps state in variables of its own.
    """
    for file in (model, twin):
        if file.remembers:
            raise EngineError(
                f"{where}: {file.file.path} keeps state in variables of its own, which no twin can follow"
            )
    for side in ("inputs", "outputs"):
        ours, theirs = getattr(model, side), getattr(twin, side)
        if [_numbers(t) for t in ours] != [_numbers(t) for t in theirs]:
            raise BundleError(
                f"{where}: {twin.file.path} cannot stand in for {model.file.path}, their {side} differ "
                f"({[_numbers(t) for t in theirs]} and {[_numbers(t) for t in ours]})"
            )


def _numbers(tensor: ModelTensor) -> tuple[object, ...]:
    scale = None if tensor.scale is None else float(np.float32(tensor.scale))
    return tuple(tensor.shape), tensor.dtype, scale, tensor.zero_point
