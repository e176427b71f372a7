"""Several frames in one call: the manifest's entry of a model with a longer first axis, and the proof that it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelFile, ModelTensor

Array = npt.NDArray[Any]
_INTEGERS = frozenset("iub")


def batched_entry(model: ModelFile, size: int) -> ModelFile | None:
    """``model`` as the library would describe it after its first axes were made ``size`` long.

    Args:
        model: The entry for one frame.
        size: Frames a call, at least 1.

    Returns:
        None where frames would not be independent: a model with state or constants, or a first axis other than 1.
    """
    tensors = (*model.inputs, *model.outputs)
    if model.stateful or model.compiled_for is not None or len(model.app_inputs) != len(model.inputs):
        return None
    if any(t.shape[:1] != (1,) for t in tensors):
        return None

    def longer(tensor: ModelTensor) -> ModelTensor:
        return tensor.model_copy(update={"shape": (size, *tensor.shape[1:])})

    return model.model_copy(
        update={"inputs": tuple(map(longer, model.inputs)), "outputs": tuple(map(longer, model.outputs))}
    )


def seeded_frames(model: ModelFile, count: int, seed: int = 0) -> list[list[Array]]:
    """``count`` frames of the model's app inputs: standard normal floats, uniform integers of their whole range."""
    rng = np.random.default_rng(seed)
    return [[_noise(t, rng) for t in model.app_inputs] for _ in range(count)]


def agrees(
    single: Callable[[list[Array]], list[Array]],
    batch: Callable[[list[Array]], list[Array]],
    frames: Sequence[list[Array]],
    tolerance: float,
) -> bool:
    """Whether one call with all ``frames`` answers what single calls answer, within ``tolerance`` steps or units."""
    inputs = [np.concatenate(parts) for parts in zip(*frames, strict=True)]
    together = batch(inputs)
    for i, frame in enumerate(frames):
        for alone, all_of_them in zip(single(frame), together, strict=True):
            if all_of_them.shape != (len(frames), *alone.shape[1:]):
                return False
            gap = np.abs(alone[0].astype(np.float64) - all_of_them[i].astype(np.float64))
            if not (gap <= tolerance).all():  # a NaN is no agreement
                return False
    return True


def _noise(tensor: ModelTensor, rng: np.random.Generator) -> Array:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, tensor.shape).astype(dtype)
    if dtype.kind in _INTEGERS:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, tensor.shape, dtype=dtype, endpoint=True)
    return rng.standard_normal(tensor.shape).astype(dtype)
