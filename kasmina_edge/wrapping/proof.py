"""The self-test of a wrapped model: its vectors, the known answers, and a tolerance measured over the engines here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelFile, ModelIO, ModelTensor, Preprocessing
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines import Engine, engine_types
from kasmina_edge.engines.choice import checked
from kasmina_edge.engines.registry import OURS
from kasmina_edge.engines.tensors import to_model
from kasmina_edge.errors import InputError, KasminaError

Array = npt.NDArray[Any]
Frames = list[dict[str, Array]]
LEAST_STEPS = 1.0
"""Tolerance of integer outputs at least: kernels of other machines round one step otherwise."""
LEAST_SHARE = 1e-3
"""Tolerance of float outputs at least, as a share of the largest known answer."""
MOST_STEPS, MOST_SHARE = 8.0, 0.05
"""An engine that is further off than that does not widen the tolerance: it does not agree."""


@dataclass(frozen=True)
class Agreement:
    """How one engine answered the self-test's vectors.

    Attributes:
        engine: Its name.
        runs_on: As `Engine.runs_on`; empty when it could not run.
        worst: Largest difference from the known answers, in steps (integer outputs) or units; None when it did not run.
        agrees: It is near enough to be counted in the tolerance.
        reason: Why it did not run.
    """

    engine: str
    runs_on: str = ""
    worst: float | None = None
    agrees: bool = False
    reason: str = ""


def make_frames(
    tensors: Sequence[ModelTensor],
    ios: Sequence[ModelIO],
    pre: Preprocessing,
    *,
    samples: Mapping[str, Array] | None,
    count: int,
    seed: int,
) -> Frames:
    """Self-test inputs in the model's own types: real samples, or numbers drawn from ``seed``.

    Drawn floats are uniform in the valid range, or standard normal where there is none; quantized inputs are drawn so
    that the whole integer range occurs; other integers are 0 or 1, because they may be indices.

    Raises:
        InputError: Samples are missing, differ in number, or do not fit.
    """
    if samples is None:
        rng = np.random.default_rng(seed)
        return [{t.name: _drawn(t, pre, rng) for t in tensors} for _ in range(count)]
    if len(tensors) == 1 and len(samples) == 1:
        samples = {tensors[0].name: next(iter(samples.values()))}
    missing = [t.name for t in tensors if t.name not in samples]
    if missing:
        raise InputError(f"samples: none for input {missing[0]}; there are {', '.join(sorted(samples)) or 'none'}")
    lengths = {name: len(samples[name]) for name in (t.name for t in tensors)}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise InputError(f"samples: {lengths}; every input needs as many, and at least one")
    frames: Frames = []
    for i in range(next(iter(lengths.values()))):
        frames.append({t.name: _fitted(samples[t.name][i], t, io, pre) for t, io in zip(tensors, ios, strict=True)})
    return frames


def answers(engine: Engine, frames: Frames) -> Frames:
    """What an engine answers to a sequence from the model's beginning."""
    engine.reset()
    return [engine.run(frame) for frame in frames]


def agreements(
    kind: type[Engine], model: ModelFile, data: bytes, profile: HardwareProfile, frames: Frames, known: Frames
) -> list[Agreement]:
    """Every engine here that takes the file, and ``kind`` itself with four threads, against the known answers."""
    found = []
    for name, other in engine_types().items():
        if other.takes != kind.takes or other.simulated:
            continue
        check = checked(other, profile, model)
        if not check.ok:
            found.append(Agreement(name, reason=check.reason))
            continue
        threads = profile.model_copy(update={"threads": 4}) if other is kind else profile
        try:
            with other(model, data, threads) as engine:
                worst = _worst(answers(engine, frames), known)
                found.append(Agreement(name, engine.runs_on, worst, worst <= _most(model, known)))
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            if name in OURS and not isinstance(exc, KasminaError):
                raise
            found.append(Agreement(name, reason=exc.message if isinstance(exc, KasminaError) else repr(exc)))
    return found


def tolerance(model: ModelFile, known: Frames, found: Sequence[Agreement]) -> float:
    """The largest difference among engines that agree, with room for a machine that is not here."""
    worst = max((a.worst for a in found if a.agrees and a.worst is not None), default=0.0)
    if _floats(model):
        return float(max(1.5 * worst, LEAST_SHARE * _largest(known)))
    return float(max(np.ceil(worst), LEAST_STEPS))


def _floats(model: ModelFile) -> bool:
    return any(t.dtype.startswith("float") for t in model.app_outputs)


def _most(model: ModelFile, known: Frames) -> float:
    return MOST_SHARE * _largest(known) if _floats(model) else MOST_STEPS


def _largest(known: Frames) -> float:
    return max(float(np.abs(a.astype(np.float64)).max(initial=0.0)) for frame in known for a in frame.values()) or 1.0


def _worst(got: Frames, known: Frames) -> float:
    gaps = [
        np.abs(frame[name].astype(np.float64) - array.astype(np.float64)).max(initial=0.0)
        for frame, wanted in zip(got, known, strict=True)
        for name, array in wanted.items()
    ]
    worst = float(np.max(gaps))
    return float("inf") if np.isnan(worst) else worst


def _drawn(tensor: ModelTensor, pre: Preprocessing, rng: np.random.Generator) -> Array:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind in "iu" and tensor.scale is not None and pre.valid_range is None:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, tensor.shape, dtype=dtype, endpoint=True)
    if dtype.kind in "iub" and tensor.scale is None:
        return rng.integers(0, 2, tensor.shape).astype(dtype)
    if dtype == np.float64:
        return np.asarray(rng.standard_normal(tensor.shape))
    low, high = pre.valid_range or (0.0, 0.0)
    drawn = rng.uniform(low, high, tensor.shape) if pre.valid_range else rng.standard_normal(tensor.shape)
    raw = drawn if pre.valid_range else drawn * pre.std + pre.mean
    return to_model(np.asarray(raw, np.float32), tensor, pre)


def _fitted(sample: Array, tensor: ModelTensor, io: ModelIO, pre: Preprocessing) -> Array:
    array = np.asarray(sample)
    if array.size != int(np.prod(tensor.shape)):
        raise InputError(f"samples: input {tensor.name} is {tuple(tensor.shape)}, a sample is {array.shape}")
    array = array.reshape(tensor.shape)
    if array.dtype == np.dtype(tensor.dtype) and (tensor.dtype != "float32"):
        return array.copy(order="C")
    if io.dtype != "float32":
        if array.dtype.kind not in "iub" or (array.dtype.kind == "b") != (io.dtype == "bool"):
            raise InputError(f"samples: input {tensor.name} is {io.dtype}, samples are {array.dtype}")
        return np.asarray(array, tensor.dtype)
    return to_model(np.asarray(array, np.float32), tensor, pre).copy()
