"""Which of a model file's tensors are the app's, which are state, and which are constants."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelIO, ModelTensor, Preprocessing, StatePair
from kasmina_edge.engines import Engine, FileFacts, LoadedTensor
from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]
_TYPES = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_NEXT = ("{}N", "{}n", "{}_n", "{}_out", "{}_new", "{}_next", "new_{}", "next_{}", "out_{}", "output_{}", "{}o")
_EXPORTED = re.compile(r"^(?:serving_default_)?(.+?)(?::\d+)?$")
_STATE = re.compile(r"state|hidden|cell|cache|memory|^[hc]\d*(_in)?$", re.IGNORECASE)


@dataclass(frozen=True)
class WrapPlan:
    """What a person says about a model file; the file says the rest.

    Attributes:
        name: The bundle's name.
        version: Semantic version.
        profile: Hardware target.
        engine: The engine whose answers are taken as the known ones; "" is the one that the file's ending names.
        shapes: Shapes of inputs with open axes, by name. An open first axis is 1 without being asked.
        states: Input name to output name; None guesses where the names leave no doubt.
        constants: Value of inputs that the app is not to see.
        labels: Class names in the order of the first output.
        head: Whether the first output is a classification.
        preprocessing: What the runtime does to float inputs.
        vectors: How many self-test vectors are drawn from ``seed`` where there are no samples.
        seed: As said.
        samples: Real inputs by name, N of each, instead: float32 in the app's units, or in the model's own type.
    """

    name: str
    version: str = "1.0.0"
    profile: str = "x86-cpu"
    engine: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    states: Mapping[str, str] | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    head: str = "other"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    vectors: int = 16
    seed: int = 0
    samples: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Tensors:
    """A model file's tensors with their roles.

    Attributes:
        inputs: All of the file's, in its order.
        outputs: The same.
        states: What is carried from call to call.
        remembers: As `ModelFile.remembers`.
    """

    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    states: tuple[StatePair, ...]
    remembers: bool


def read_tensors(kind: type[Engine], data: bytes, plan: WrapPlan, where: str) -> Tensors:
    """Ask the engine what the file holds, fill in what it leaves open, and give every tensor its role.

    Raises:
        InputError: A name that the file does not have, an axis that nobody gave a length, a type that no bundle holds.
        EngineError: The engine's library is not installed, or does not read the file.
    """
    facts = kind.facts(data)
    for side, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        if not tensors:
            raise InputError(
                f"{where}: the model has no {side}",
                "Export it with at least one input and one output; a bundle's app passes frames and reads answers.",
            )
    names_in = _names(facts.inputs, "input", free=facts.free_names)
    names_out = _names(facts.outputs, "output", free=facts.free_names)
    for option, given in (("--input", plan.shapes), ("--constant", plan.constants), ("--state", plan.states or {})):
        for name in given:
            if name not in names_in:
                raise InputError(f"{where}: {option} {name}: the model's inputs are {', '.join(names_in)}")
    maybe_state = set(plan.states or ()) | ({n for n in names_in if _following(n, names_out)} - {None})
    inputs = [
        _tensor(
            name,
            t,
            _closed(name, t, plan.shapes.get(name), state=name in maybe_state, where=where),
            plan.constants.get(name),
            where,
        )
        for name, t in zip(names_in, facts.inputs, strict=True)
    ]
    answers = _once(kind, data, inputs, where)
    outputs = [
        _tensor(name, t, tuple(a.shape), None, where)
        for name, t, a in zip(names_out, facts.outputs, answers, strict=True)
    ]
    states = _states(plan, inputs, outputs, where)
    return Tensors(tuple(inputs), tuple(outputs), states, facts.remembers)


def _once(kind: type[Engine], data: bytes, inputs: Sequence[ModelTensor], where: str) -> list[Array]:
    """The answers to zeros, for their shapes; a scalar that cannot be zero is the likeliest reason to have none."""
    try:
        return kind.once(data, [np.full(t.shape, t.constant or 0, t.dtype) for t in inputs])
    except Exception as exc:
        scalars = [t.name for t in inputs if t.constant is None and t.dtype.startswith(("int", "uint")) and not t.shape]
        if not scalars:
            raise
        text = str(exc).strip().splitlines() or [type(exc).__name__]
        raise InputError(
            f"{where}: {kind.name} does not run it while {' and '.join(scalars)} is 0 ({text[0][:200]})",
            f"Say the value that belongs there, e.g. --constant {scalars[0]}=16000 for a sampling rate.",
        ) from exc


def app_io(tensors: Sequence[ModelTensor], labels: tuple[str, ...] = ()) -> tuple[ModelIO, ...]:
    """How the app sees tensors: quantized ones as float32, other whole numbers as they are; labels on the first."""
    return tuple(
        ModelIO.parse(
            {
                "name": t.name,
                "dtype": "float32" if t.scale is not None else t.dtype,
                "shape": t.shape,
                "labels": labels if i == 0 else (),
            }
        )
        for i, t in enumerate(tensors)
    )


def _names(tensors: Sequence[LoadedTensor], side: str, *, free: bool) -> list[str]:
    """The file's names; where they are free, without an exporter's dress, and numbered where none or equal."""
    plain = [t.name or "" for t in tensors]
    if not free:
        return plain
    undressed = [m[1] if (m := _EXPORTED.match(name)) else name for name in plain]
    generic = [n == "StatefulPartitionedCall" or not n for n in undressed]
    names = [f"{side}_{i}" if bad else n for i, (n, bad) in enumerate(zip(undressed, generic, strict=True))]
    return names if len(set(names)) == len(names) else [f"{side}_{i}" for i in range(len(names))]


def _closed(
    name: str, tensor: LoadedTensor, given: tuple[int, ...] | None, *, state: bool, where: str
) -> tuple[int, ...]:
    shape = tensor.shape
    if given is not None:
        fits = len(given) == len(shape) and all(n in (None, g) for n, g in zip(shape, given, strict=True))
        if not fits or min(given, default=1) < 1:
            raise InputError(f"{where}: --input {name}: the model takes {_say(shape)}, got {_say(given)}")
        return given
    open_axes = [i for i, n in enumerate(shape) if n is None and not (i == 0 or state)]
    if open_axes:
        raise InputError(
            f"{where}: input {name} is {_say(shape)}, and axis {open_axes[0]} has no length",
            f"Say it: --input {name}={'x'.join('1' if n is None else str(n) for n in shape)}, with your lengths.",
        )
    return tuple(1 if n is None else n for n in shape)


def _tensor(name: str, tensor: LoadedTensor, shape: tuple[int, ...], constant: float | None, where: str) -> ModelTensor:
    if tensor.dtype not in _TYPES:
        raise InputError(f"{where}: {name} is {tensor.dtype}; bundles hold {', '.join(_TYPES)}")
    if 0 in shape:
        raise InputError(
            f"{where}: {name} is {_say(shape)}, and an axis of length 0 holds nothing",
            f"Export the model without it, or say a length where the axis is open: --input {name}=1x512.",
        )
    whole = tensor.dtype in ("int8", "uint8", "int16", "int32") and bool(tensor.scale)
    return ModelTensor.parse(
        {
            "name": name,
            "shape": shape,
            "dtype": tensor.dtype,
            "scale": tensor.scale if whole else None,
            "zero_point": tensor.zero_point if whole else None,
            "constant": constant,
        }
    )


def _following(name: str, outputs: Sequence[str]) -> str | None:
    """The output whose name says that it is the next ``name``; None where none or several do."""
    if not _STATE.search(name):
        return None
    wanted = {pattern.format(name).lower() for pattern in _NEXT}
    if "in" in name:
        wanted.add(name.replace("in", "out").lower())
    found = [o for o in outputs if o.lower() in wanted]
    return found[0] if len(found) == 1 else None


def _states(
    plan: WrapPlan, inputs: Sequence[ModelTensor], outputs: Sequence[ModelTensor], where: str
) -> tuple[StatePair, ...]:
    by_name = {t.name: t for t in outputs}
    if plan.states is not None:
        for taken, given in plan.states.items():
            if given not in by_name:
                raise InputError(f"{where}: --state {taken}={given}: the model's outputs are {', '.join(by_name)}")
        return tuple(StatePair(input=taken, output=given) for taken, given in plan.states.items())
    found = []
    for tensor in inputs:
        other = by_name.get(_following(tensor.name, list(by_name)) or "")
        if other and tensor.constant is None and (other.shape, other.dtype) == (tensor.shape, tensor.dtype):
            found.append(StatePair(input=tensor.name, output=other.name))
    all_are = len(found) in (len(inputs), len(outputs))  # then nothing would be left for the app
    return () if all_are else tuple(found)


def _say(shape: Sequence[int | None]) -> str:
    return "x".join("?" if n is None else str(n) for n in shape) or "a single number"


__all__ = ["FileFacts", "Tensors", "WrapPlan", "app_io", "read_tensors"]
