"""A bundle from a network: both model files, what they were proven to do, and what they learned from. Unsigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import (
    MINIMUM_AGREEMENT,
    Acceptance,
    BundleManifest,
    DomainStatistics,
    FileEntry,
    Graft,
    ModelFile,
    ModelIO,
    ModelTensor,
    Parity,
    Preprocessing,
    ReferenceProbes,
    SelfTest,
    SiteTensors,
)
from kasmina_edge.engines.tensors import softmax_score
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.safety.drift import domain_statistics
from kasmina_trainer.export import onnx, parity, tflite

Array = npt.NDArray[Any]

TFLITE_PATH, ONNX_PATH, PROBES_PATH = "model.tflite", "model.onnx", "probes.npz"
SELFTEST_SAMPLES = 64
MOST_CALIBRATION_FRAMES = 400
WINDOW_FRAMES = 30
"""Sampled frames of a telemetry window (60 frames, every second one looked at)."""


@runtime_checkable
class Exportable(Protocol):
    """What export needs of a seeded network."""

    @property
    def sites(self) -> Sequence[str]:
        """Names of the seed sites: submodules of `module_for_export`."""

    def module_for_export(self) -> nn.Module:
        """Channels-first, in evaluation mode, on the CPU."""


@dataclass(frozen=True)
class _Built:
    """A model's entry in the manifest, its files, and its answers on the held-out inputs."""

    entry: ModelFile
    files: Mapping[str, bytes]


def export_bundle(
    network: Exportable | nn.Module,
    name: str,
    *,
    version: str,
    profile: str,
    calibration: Array,
    held_out: tuple[Array, Array],
    labels: Sequence[str],
    domains: Mapping[str, Array],
    probes: tuple[Array, Array] | None = None,
    parent: Bundle | None = None,
    grafts: tuple[Graft, ...] = (),
    acceptance: Acceptance | None = None,
    seed: int = 0,
    release: int | None = None,
    preprocessing: Preprocessing | None = None,
    window: int = WINDOW_FRAMES,
    provenance: Mapping[str, str] | None = None,
    minimum_agreement: float = MINIMUM_AGREEMENT,
) -> Bundle:
    """Export a network as an unsigned bundle.

    Equal arguments give equal bytes, in and across processes.

    Args:
        network: A `SeededNetwork`, or a bare channels-first module in evaluation mode.
        name: The bundle's name; a graft's bundle keeps its host's.
        version: Semantic version.
        profile: Hardware profile the bundle is made for.
        calibration: Frames of every domain the network is for, in the app's units; they set the int8 ranges.
            At most 400 are used, evenly from the whole array.  # (N, H, W, C)
        held_out: Frames and labels that nothing was trained or calibrated on; parity is measured on them.
            # (M, H, W, C), (M,)
        labels: Class names in the order of the network's answers.
        domains: Reference frames of every domain the network was accepted on, for the drift statistics.
        probes: Labelled reference probes. A bundle with a parent carries its parent's, byte for byte.
        parent: The bundle this network grew from: its quantization is kept where that costs little accuracy.
        grafts: What has grown, for the manifest.
        acceptance: The measurement that let the graft through.
        seed: Chooses the self-test samples and seeds the drift thresholds.
        release: Release number; None leaves 0, to be given when the bundle is published.
        preprocessing: What the runtime does to a frame before the model; none by default.
        window: Frames that the drift threshold's windows hold.
        provenance: More lines for the manifest's provenance.
        minimum_agreement: Share of held-out inputs on which each file must answer as the float network does. A bundle
            exported under a lower one says so in its parity numbers, and `fleet publish` refuses it unless insisted.

    Raises:
        InputError: Shapes or counts do not fit, or grafts without a parent.
        KasminaError: The network does not convert, does not become int8 throughout, or answers differently from its
            float self on too many held-out inputs (the message names both numbers).
    """
    frames, truth = np.asarray(held_out[0], np.float32), np.asarray(held_out[1])
    calibration = np.asarray(calibration, np.float32)
    _check(calibration, frames, truth, domains, grafts, parent)
    pre = preprocessing or Preprocessing()
    module, sites = _module_of(network)
    calibration = _thinned(calibration, MOST_CALIBRATION_FRAMES)
    fed = {key: _preprocess(x, pre) for key, x in (("calibration", calibration), ("held_out", frames))}
    reference = parity.float_logits(module, fed["held_out"])
    if reference.ndim != 2 or reference.shape[1] != len(labels):
        raise InputError(f"the network answers {reference.shape[1:]}, {len(labels)} labels were given")
    lite = tflite.export_tflite(
        module,
        calibration=fed["calibration"],
        held_out=fed["held_out"],
        labels=truth,
        float_logits=reference,
        sites=sites,
        parent=_parent_model(parent),
    )
    rows = _selftest_rows(len(frames), seed)
    lite_model = _litert_model(lite, fed, reference, truth, rows, parent, minimum_agreement)
    twin = onnx.export_onnx(
        module,
        calibration=fed["calibration"],
        held_out=fed["held_out"],
        labels=truth,
        float_logits=reference,
    )
    models = (lite_model, _onnx_model(twin, fed, reference, truth, rows, parent, minimum_agreement))
    files = {path: data for model in models for path, data in model.files.items()}
    probe_entry, probe_file = _probes(probes, parent)
    files.update(probe_file)
    manifest = BundleManifest(
        name=name,
        version=version,
        release=release or 0,
        parent=parent.manifest.content_digest() if parent else None,
        host=(parent.manifest.host or parent.manifest.content_digest()) if parent else None,
        profile=profile,
        inputs=(ModelIO(name=lite.inputs[0].name, shape=(1, *frames.shape[1:])),),
        outputs=(ModelIO(name=lite.outputs[0].name, shape=(1, len(labels)), labels=tuple(labels)),),
        head="classification",
        preprocessing=pre,
        models=tuple(model.entry for model in models),
        grafts=grafts,
        domains=tuple(_domain(key, x, lite.data, pre, window, seed) for key, x in sorted(domains.items())),
        probes=probe_entry,
        acceptance=acceptance,
        provenance={**(provenance or {}), "quantization": _story(lite)},
    )
    return Bundle(manifest=manifest, files=files)


def _module_of(network: Exportable | nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module to convert, and the names of its seed sites; a bare module has none."""
    if isinstance(network, Exportable):
        return network.module_for_export(), tuple(network.sites)
    return network, ()


def _check(
    calibration: Array, frames: Array, truth: Array, domains: Mapping[str, Array], grafts: Sequence[Graft],
    parent: Bundle | None,
) -> None:  # fmt: skip
    if calibration.ndim != 4 or frames.ndim != 4 or calibration.shape[1:] != frames.shape[1:]:
        raise InputError(f"calibration {calibration.shape} and held-out frames {frames.shape}: expected (N, H, W, C)")
    if not len(calibration) or len(frames) != len(truth) or len(frames) < 1:
        raise InputError(
            f"{len(calibration)} calibration frames, {len(frames)} held-out frames, {len(truth)} labels: "
            "expected at least one of each, and a label a frame"
        )
    for key, x in domains.items():
        if np.shape(x)[1:] != frames.shape[1:]:
            raise InputError(f"domain {key}: frames of shape {np.shape(x)[1:]}, expected {frames.shape[1:]}")
    if grafts and parent is None:
        raise InputError(f"{len(grafts)} grafts and no parent", "Pass the host's bundle as parent.")


def _preprocess(frames: Array, pre: Preprocessing) -> Array:
    if pre.mean == 0.0 and pre.std == 1.0:
        return frames
    return ((frames - np.float32(pre.mean)) / np.float32(pre.std)).astype(np.float32)


def _parent_model(parent: Bundle | None) -> bytes | None:
    """The parent's plain TFLite file, when this copy of the bundle holds it."""
    if parent is None:
        return None
    for model in parent.manifest.models:
        if model.engine == "litert" and model.compiled_for is None:
            return parent.files.get(model.file.path)
    return None


def _selftest_rows(count: int, seed: int) -> Array:
    """Which held-out inputs become self-test vectors: 64 different ones, or all of fewer."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:SELFTEST_SAMPLES])


def _litert_model(
    made: tflite.TfliteExport, fed: Mapping[str, Array], reference: Array, truth: Array, rows: Array,
    parent: Bundle | None, minimum_agreement: float,
) -> _Built:  # fmt: skip
    found = parity.parity(parity.litert_logits(made.data, fed["held_out"]), reference, truth)
    parity.require(TFLITE_PATH, found, minimum_agreement)
    asked = _parent_vectors(parent, "litert", made.inputs[0])
    quantized = parity.to_rows(_tolerance_frames(fed), made.inputs[0])
    asked = quantized[rows] if asked is None else asked
    everything = np.concatenate([asked, quantized])
    fast = parity.litert_answers(made.data, everything)
    slow = parity.litert_answers(made.data, everything, reference_kernels=True)
    tolerance = float(max(1, np.abs(fast.astype(np.int32) - slow.astype(np.int32)).max()))
    return _model(
        TFLITE_PATH, "litert", made.data, made.inputs, made.outputs, asked, slow[: len(asked)], tolerance, found,
        made.sites,
    )  # fmt: skip


def _onnx_model(
    made: onnx.OnnxExport, fed: Mapping[str, Array], reference: Array, truth: Array, rows: Array,
    parent: Bundle | None, minimum_agreement: float,
) -> _Built:  # fmt: skip
    found = parity.parity(parity.onnx_logits(made.data, fed["held_out"]), reference, truth)
    parity.require(ONNX_PATH, found, minimum_agreement)
    asked = _parent_vectors(parent, "onnxruntime", made.inputs[0])
    frames = _tolerance_frames(fed)
    asked = frames[rows] if asked is None else asked
    everything = np.concatenate([asked, frames])
    fast = parity.onnx_logits(made.data, everything)
    plain = parity.onnx_logits(made.data, everything, optimize=False)
    tolerance = float(max(onnx.output_step(made.data), np.abs(plain - fast).max()) * 1.01)
    return _model(
        ONNX_PATH, "onnxruntime", made.data, made.inputs, made.outputs, asked, plain[: len(asked)], tolerance, found, {}
    )


def _tolerance_frames(fed: Mapping[str, Array]) -> Array:
    """Held-out frames first, then some of the calibration's: what the self-test's tolerance is measured on."""
    return np.concatenate([fed["held_out"], _thinned(fed["calibration"], SELFTEST_SAMPLES)])


def _parent_vectors(parent: Bundle | None, engine: str, tensor: ModelTensor) -> Array | None:
    """The parent's self-test inputs, where the grown model takes the same numbers: the update carries only answers."""
    for model in parent.manifest.models if parent else ():
        if parent and model.engine == engine and model.compiled_for is None and model.inputs == (tensor,):
            path = model.selftest.file.path
            return parent.arrays(model.selftest.file)[f"input_{tensor.name}"] if path in parent.files else None
    return None


def _thinned(frames: Array, most: int) -> Array:
    """At most so many frames, evenly from the whole array, so that every domain keeps its share."""
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).round().astype(np.intp)]


def _model(
    path: str, engine: Any, data: bytes, inputs: tuple[ModelTensor, ...], outputs: tuple[ModelTensor, ...],
    asked: Array, answered: Array, tolerance: float, found: Parity, sites: Mapping[str, SiteTensors],
) -> _Built:  # fmt: skip
    vectors = pack_arrays({f"input_{inputs[0].name}": asked, f"output_{outputs[0].name}": answered})
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
    return _Built(entry, {path: data, selftest_path: vectors})


def _probes(
    probes: tuple[Array, Array] | None, parent: Bundle | None
) -> tuple[ReferenceProbes | None, dict[str, bytes]]:
    """The parent's probes byte for byte, or new ones for a host."""
    if parent is not None and parent.manifest.probes is not None:
        entry = parent.manifest.probes
        return entry, {entry.file.path: parent.read(entry.file)}
    if probes is None:
        return None, {}
    if parent is not None:
        raise KasminaError(f"{parent.id} has no reference probes, so its grafts cannot bring their own")
    x, y = np.asarray(probes[0], np.float32), np.asarray(probes[1], np.int64)
    if len(x) != len(y) or not len(x):
        raise InputError(f"reference probes: {len(x)} inputs and {len(y)} labels")
    data = pack_arrays({"inputs": x, "labels": y})
    return ReferenceProbes(file=FileEntry.of(PROBES_PATH, data), samples=len(x)), {PROBES_PATH: data}


def _domain(name: str, frames: Array, model: bytes, pre: Preprocessing, window: int, seed: int) -> DomainStatistics:
    frames = np.asarray(frames, np.float32)
    logits = parity.litert_logits(model, _preprocess(frames, pre))
    scores = [softmax_score(row)[1] for row in logits]
    return domain_statistics(name, frames, scores, window, seed)


def _story(made: tflite.TfliteExport) -> str:
    """Which quantized version was shipped, and what the others measured."""
    chosen = made.chosen
    tried = ", ".join(
        f"{c.name} {c.agreement:.4f}" + ("" if c.accuracy is None else f"/{c.accuracy:.4f}") for c in made.candidates
    )
    return f"{chosen.name}, {chosen.pinned} of {chosen.inherited} ranges from the parent; agreement/accuracy: {tried}"
