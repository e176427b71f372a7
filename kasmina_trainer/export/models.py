"""One model file's part of a bundle: its entry in the manifest, its parity numbers and its self-test vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import FileEntry, ModelFile, ModelTensor, Parity, SelfTest, SiteTensors
from kasmina_trainer.export import flatbuffer, judging, onnx, parity
from kasmina_trainer.export.judging import Judge, OutputFigures
from kasmina_trainer.export.selftest_vectors import MOST_VECTORS, affordable, drawn_rows, telling_rows

Array = npt.NDArray[Any]

TFLITE_PATH, ONNX_PATH = "model.tflite", "model.onnx"
_FLOAT_SLACK = 1e-5


@dataclass(frozen=True)
class Built:
    """A model's entry in the manifest, its files, and the numbers of its outputs.

    Attributes:
        entry: For the manifest.
        files: The model and its self-test vectors, by path.
        figures: One an output.
    """

    entry: ModelFile
    files: Mapping[str, bytes]
    figures: tuple[OutputFigures, ...]


@dataclass(frozen=True)
class Proof:
    """What files are proven with.

    Attributes:
        held_out: Model inputs that nothing was trained or calibrated on.  # (M, ...)
        calibration: Model inputs that set the ranges; some of them help to find the self-test's tolerance.
        judge: Compares answers on ``held_out`` with the float network's.
        seed: Chooses which held-out inputs become self-test vectors.
        parent: Its self-test inputs are taken over where the grown model takes the same numbers.
        minimum_agreement: Least agreement that passes.
        lite: The TFLite file, spoilt to find the inputs that tell; "" before it is made.
    """

    held_out: Array
    calibration: Array
    judge: Judge
    seed: int
    parent: Bundle | None
    minimum_agreement: float
    lite: bytes = b""

    @cached_property
    def telling(self) -> Array:
        """Held-out inputs in the order in which they help to tell a spoilt file from a whole one."""
        inputs, _ = flatbuffer.border(flatbuffer.parse(self.lite), floats=True)
        return telling_rows(self.lite, parity.to_rows(self.held_out, inputs[0]), self.seed)

    def vectors(self, data: bytes, inputs: Array, answers: Sequence[Array]) -> Array:
        """Which held-out inputs a file is tested with: 64 of them, or the first of ``telling`` where it affords fewer.

        Args:
            data: The file.
            inputs: As the file takes them.  # (M, ...)
            answers: Its own, on the held-out inputs.  # (M, ...)
        """
        one = inputs[:1].nbytes + sum(a[:1].size * inputs.itemsize for a in answers)
        count = affordable(len(data), one)
        drawn = drawn_rows(len(inputs), self.seed)
        return drawn if count >= len(drawn) else np.sort(self.telling[:count])

    def frames(self) -> Array:
        """Held-out frames first, then some of the calibration's: what the self-test's tolerance is measured on."""
        return np.concatenate([self.held_out, thinned(self.calibration, MOST_VECTORS)])


def thinned(frames: Array, most: int) -> Array:
    """At most so many frames, evenly from the whole array, so that every domain keeps its share."""
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).round().astype(np.intp)]


def litert_model(
    data: bytes,
    inputs: tuple[ModelTensor, ...],
    outputs: tuple[ModelTensor, ...],
    sites: Mapping[str, SiteTensors],
    proof: Proof,
) -> Built:
    """A TFLite file with its proof; the tolerance is what XNNPACK differs by from the reference kernels.

    Raises:
        KasminaError: It answers differently from the float network on too many held-out inputs.
    """
    rows = parity.to_rows(proof.frames(), inputs[0])
    given = parity.litert_raw(data, rows)
    answers = parity.in_units(outputs, [a[: len(proof.held_out)] for a in given])
    found = proof.judge.parity(answers)
    judging.require(TFLITE_PATH, found, proof.judge.compares, proof.minimum_agreement)
    known = _parent_vectors(proof.parent, "litert", inputs[0])
    if known is None:
        which = proof.vectors(data, rows[: len(proof.held_out)], answers)
        slow = parity.litert_raw(data, rows, reference_kernels=True)
        asked, answered = rows[which], [a[which] for a in slow]
    else:
        both = np.concatenate([known, rows])
        given, slow = parity.litert_raw(data, both), parity.litert_raw(data, both, reference_kernels=True)
        asked, answered = known, [a[: len(known)] for a in slow]
    tolerance = max(_litert_tolerance(a, b) for a, b in zip(given, slow, strict=True))
    return _built(
        TFLITE_PATH, "litert", data, (inputs, outputs), asked, answered, tolerance, found, sites,
        proof.judge.outputs(answers),
    )  # fmt: skip


def onnx_model(made: onnx.OnnxExport, proof: Proof) -> Built:
    """An ONNX file with its proof; the tolerance is what fused kernels differ by from plain ones, or one step.

    Raises:
        KasminaError: It answers differently from the float network on too many held-out inputs.
    """
    frames = proof.frames()
    fast = parity.onnx_outputs(made.data, frames)
    answers = [a[: len(proof.held_out)] for a in fast]
    found = proof.judge.parity(answers)
    judging.require(ONNX_PATH, found, proof.judge.compares, proof.minimum_agreement)
    known = _parent_vectors(proof.parent, "onnxruntime", made.inputs[0])
    if known is None:
        which = proof.vectors(made.data, proof.held_out, answers)
        plain = parity.onnx_outputs(made.data, frames, optimize=False)
        asked, answered = frames[which], [a[which] for a in plain]
    else:
        both = np.concatenate([known, frames])
        fast, plain = parity.onnx_outputs(made.data, both), parity.onnx_outputs(made.data, both, optimize=False)
        asked, answered = known, [a[: len(known)] for a in plain]
    steps = onnx.output_steps(made.data)
    tolerance = max(
        max(step, float(np.abs(a - b).max())) * 1.01 if step else _float_tolerance(a, b)
        for a, b, step in zip(plain, fast, steps, strict=True)
    )
    return _built(
        ONNX_PATH, "onnxruntime", made.data, (made.inputs, made.outputs), asked, answered, float(tolerance), found, {},
        proof.judge.outputs(answers),
    )  # fmt: skip


def _litert_tolerance(fast: Array, slow: Array) -> float:
    if fast.dtype.kind == "f":
        return _float_tolerance(fast, slow)
    return float(max(1, np.abs(fast.astype(np.int32) - slow.astype(np.int32)).max()))


def _float_tolerance(fast: Array, slow: Array) -> float:
    """Twice what two kernel sets differ by, and never less than rounding in float32."""
    return float(2 * np.abs(fast - slow).max() + _FLOAT_SLACK * max(1.0, np.abs(slow).max()))


def _parent_vectors(parent: Bundle | None, engine: str, tensor: ModelTensor) -> Array | None:
    """The parent's self-test inputs, where the grown model takes the same numbers: the update carries only answers."""
    for model in parent.manifest.models if parent else ():
        if parent and model.engine == engine and model.compiled_for is None and model.inputs == (tensor,):
            path = model.selftest.file.path
            return parent.arrays(model.selftest.file)[f"input_{tensor.name}"] if path in parent.files else None
    return None


def _built(
    path: str,
    engine: Any,
    data: bytes,
    border: tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]],
    asked: Array,
    answered: Sequence[Array],
    tolerance: float,
    found: Parity,
    sites: Mapping[str, SiteTensors],
    figures: tuple[OutputFigures, ...],
) -> Built:
    inputs, outputs = border
    vectors = pack_arrays(
        {
            f"input_{inputs[0].name}": asked,
            **{f"output_{tensor.name}": rows for tensor, rows in zip(outputs, answered, strict=True)},
        }
    )
    selftest_path = f"selftest.{engine}.npz"
    entry = ModelFile(
        file=FileEntry.of(path, data),
        engine=engine,
        inputs=inputs,
        outputs=outputs,
        selftest=SelfTest(file=FileEntry.of(selftest_path, vectors), samples=len(asked), tolerance=tolerance),
        parity=found,
        sites=dict(sites),
    )
    return Built(entry, {path: data, selftest_path: vectors}, figures)
