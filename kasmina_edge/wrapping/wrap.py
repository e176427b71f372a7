"""A third party's model file as a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile, SelfTest
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines import Engine, engine_type, self_test
from kasmina_edge.engines.selftest import vector_key
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError
from kasmina_edge.wrapping.proof import Agreement, Frames, agreements, answers, make_frames, tolerance
from kasmina_edge.wrapping.tensors import Tensors, WrapPlan, app_io, read_tensors

Array = npt.NDArray[Any]
ENGINE_BY_ENDING = {".tflite": "litert", ".onnx": "onnxruntime"}


@dataclass(frozen=True)
class Wrapped:
    """A bundle that is not signed yet, and how it was proven.

    Attributes:
        bundle: One model file, without parity: there is no float network to compare it with.
        agreements: Every engine that takes such files, against the known answers.
        notes: What weakens the proof, for the person who wraps.
    """

    bundle: Bundle
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> ModelFile:
        """The entry of the one model file."""
        return self.bundle.manifest.models[0]


def wrap(data: bytes, file_name: str, plan: WrapPlan, profile: HardwareProfile) -> Wrapped:
    """Make a bundle of one model file: its tensors as the engine reads them, and a self-test of the engine's answers.

    Args:
        data: The file's bytes; they go into the bundle as they are.
        file_name: Its name; the ending chooses the engine where the plan names none.
        plan: What a person says about it.
        profile: The hardware target that the answers are made under.

    Raises:
        InputError: The plan does not fit the file, or the answers are not numbers.
        EngineError: The engine is not installed, or does not run the file.
        BundleError: The engine does not read the file.
    """
    kind = engine_type(plan.engine or _engine_for(file_name))
    tensors = _read(kind, data, plan, file_name)
    path = f"model{PurePath(file_name).suffix.lower()}"
    draft = _entry(kind, path, data, tensors, b"", 1, 0.0)
    if not draft.app_inputs or not draft.app_outputs:
        raise InputError(f"{file_name}: every input is a state or a constant; the app would have nothing to pass")
    inputs, outputs = app_io(draft.app_inputs), app_io(draft.app_outputs, plan.labels)
    classes = int(np.prod(outputs[0].shape))
    if plan.labels and len(plan.labels) != classes:
        raise InputError(f"{file_name}: {len(plan.labels)} labels, the first output has {classes} values")
    frames = make_frames(
        draft.app_inputs, inputs, plan.preprocessing, samples=plan.samples, count=plan.vectors, seed=plan.seed
    )
    with kind(draft, data, profile) as engine:
        known = [{name: array.copy() for name, array in answer.items()} for answer in answers(engine, frames)]
    _require_numbers(known, file_name)
    found = agreements(kind, draft, data, profile, frames, known)
    vectors = pack_arrays(_vectors(draft, frames, known))
    model = _entry(kind, path, data, tensors, vectors, len(frames), tolerance(draft, known, found))
    manifest = BundleManifest.parse(
        {
            "name": plan.name,
            "version": plan.version,
            "release": 0,
            "profile": plan.profile,
            "inputs": [io.model_dump() for io in inputs],
            "outputs": [io.model_dump() for io in outputs],
            "head": plan.head,
            "preprocessing": plan.preprocessing.model_dump(),
            "models": [model.model_dump()],
            "provenance": {
                "wrapped": PurePath(file_name).name,
                "answers": f"{kind.name}: {kind.check(profile, model).reason}",
                "vectors": f"{len(frames)} {'samples' if plan.samples is not None else f'from seed {plan.seed}'}",
                "agreeing": ", ".join(sorted(a.engine for a in found if a.agrees)),
            },
        }
    )
    bundle = Bundle(manifest, {path: data, model.selftest.file.path: vectors}, {})
    _prove(kind, bundle, model, data, profile)
    return Wrapped(bundle, tuple(found), tuple(_notes(known, plan)))


def _engine_for(file_name: str) -> str:
    ending = PurePath(file_name).suffix.lower()
    if ending not in ENGINE_BY_ENDING:
        raise InputError(
            f"{file_name}: {ending or 'no ending'}; {', '.join(ENGINE_BY_ENDING)} are known",
            "Name the engine that takes such files with --engine.",
        )
    return ENGINE_BY_ENDING[ending]


def _read(kind: type[Engine], data: bytes, plan: WrapPlan, where: str) -> Tensors:
    try:
        return read_tensors(kind, data, plan, where)
    except InputError as exc:  # an engine does not know the file's name
        if exc.message.startswith(where):
            raise
        raise InputError(f"{where}: {exc.message}", exc.next_step) from exc
    except KasminaError:
        raise
    except Exception as exc:
        text = str(exc).strip().splitlines() or [type(exc).__name__]
        raise BundleError(
            f"{where}: {kind.name} does not run it ({text[0][:200]})",
            "Is it a model file of this engine? Where inputs have open axes, say their shapes with --input.",
        ) from exc


def _entry(
    kind: type[Engine], path: str, data: bytes, tensors: Tensors, vectors: bytes, count: int, most: float
) -> ModelFile:
    return ModelFile(
        file=FileEntry.of(path, data),
        engine=kind.takes,
        inputs=tensors.inputs,
        outputs=tensors.outputs,
        selftest=SelfTest(file=FileEntry.of(f"selftest.{kind.takes}.npz", vectors), samples=count, tolerance=most),
        states=tensors.states,
        remembers=tensors.remembers,
    )


def _vectors(model: ModelFile, frames: Frames, known: Frames) -> dict[str, Array]:
    arrays = {}
    for side, tensors, rows in (("input", model.app_inputs, frames), ("output", model.app_outputs, known)):
        for i, t in enumerate(tensors):
            arrays[vector_key(side, i, t.name)] = np.stack([row[t.name] for row in rows])
    return arrays


def _notes(known: Frames, plan: WrapPlan) -> list[str]:
    same = [name for name in known[0] if all(np.array_equal(known[0][name], row[name]) for row in known)]
    notes = []
    if same and len(known) > 1:
        notes.append(f"output {same[0]} is the same for all {len(known)} vectors: they prove little; give --samples")
    elif plan.samples is None:
        notes.append("the self-test's inputs are drawn at random; --samples with real ones would prove more")
    return notes


def _require_numbers(known: Frames, where: str) -> None:
    for i, answer in enumerate(known):
        for name, array in answer.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"{where}: output {name} holds NaN or infinity for self-test vector {i}",
                    "Give real inputs with --samples, or the range they have with --valid-range.",
                )


def _prove(kind: type[Engine], bundle: Bundle, model: ModelFile, data: bytes, profile: HardwareProfile) -> None:
    with kind(model, data, profile) as engine:
        result = self_test(engine, bundle, timed_runs=1)
    if not result.ok:
        raise EngineError(
            f"{bundle.id}: {kind.name} answers otherwise the second time ({result.passed} of {result.samples} vectors "
            f"agree, worst {result.worst:g})",
            "The model draws random numbers, or keeps state that --state does not name.",
        )
