"""A bundle from a network: both model files, what they were proven to do, and what they learned from. Unsigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import (
    MINIMUM_AGREEMENT,
    Acceptance,
    BundleManifest,
    DomainStatistics,
    FileEntry,
    Graft,
    ModelIO,
    Preprocessing,
    ReferenceProbes,
)
from kasmina_edge.contracts.postprocessing import Postprocessing
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines.tensors import softmax_score
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.safety.drift import domain_statistics
from kasmina_trainer.export import documents, flatbuffer, judging, mapping, models, onnx, parity, refusals, tflite
from kasmina_trainer.export.collector import without_collector
from kasmina_trainer.export.documents import ModelCard
from kasmina_trainer.export.guarding import GuardFrames, guard_file
from kasmina_trainer.export.judging import Judge, Measured
from kasmina_trainer.export.layout import AppModule, as_app, float_outputs
from kasmina_trainer.export.models import Built, Proof, thinned
from kasmina_trainer.quantization import HEADROOM, Prepared, QuantizeConfig, prepare

Array = npt.NDArray[Any]

PROBES_PATH = "probes.npz"
MOST_CALIBRATION_FRAMES = 400
WINDOW_FRAMES = 30
"""Sampled frames of a telemetry window (60 frames, every second one looked at)."""

DETECTION_AGREEMENT = 0.95
"""Share of boxes that an exported detector keeps, by default: a box at the threshold comes and goes with one step."""

Head = Literal["classification", "detection", "other"]


@runtime_checkable
class Exportable(Protocol):
    """What export needs of a seeded network."""

    @property
    def sites(self) -> Sequence[str]:
        """Names of the seed sites: submodules of `module_for_export`."""

    def module_for_export(self) -> nn.Module:
        """Channels-first, in evaluation mode, on the CPU."""


def export_bundle(
    network: Exportable | nn.Module,
    name: str,
    *,
    version: str,
    profile: str,
    calibration: Array | None = None,
    held_out: tuple[Array, Any] | None = None,
    labels: Sequence[str] = (),
    domains: Mapping[str, Array] | None = None,
    probes: tuple[Array, Array] | None = None,
    parent: Bundle | Path | str | None = None,
    grafts: tuple[Graft, ...] | None = None,
    acceptance: Acceptance | None = None,
    seed: int = 0,
    release: int | None = None,
    preprocessing: Preprocessing | None = None,
    window: int = WINDOW_FRAMES,
    provenance: Mapping[str, str] | None = None,
    minimum_agreement: float | None = None,
    quantize: QuantizeConfig | None = None,
    train: tuple[Array, Array | None] | None = None,
    form: Literal["quantized", "float"] = "quantized",
    postprocessing: Postprocessing | None = None,
    measured: Measured | None = None,
    output_names: Sequence[str] | None = None,
    channels_last: bool = True,
    card: ModelCard | None = None,
    require_mapping: bool = False,
    guard: GuardFrames | Literal["none"] | None = None,
) -> Bundle:
    """Export a network as an unsigned bundle.

    Equal arguments give equal bytes, in and across processes.

    Args:
        network: What `evolve` gave, a `SeededNetwork`, or a bare channels-first module in evaluation mode with one
            input.
        name: The bundle's name; a graft's bundle keeps its host's.
        version: Semantic version.
        profile: Hardware profile the bundle is made for.
        calibration: Frames of every domain the network is for, in the app's units; they set the int8 ranges. At least
            16; at most 400 are used, evenly from the whole array.  # (N, H, W, C), (N, L, C) or (N, C)
        held_out: Frames and labels that nothing was trained or calibrated on; parity is measured on them. None for
            labels that are not known; what ``measured`` asks for, for a detector.  # (M, H, W, C), (M,)
        labels: Class names in the order of the network's answers, its first output; without them, the outputs are the
            app's business.
        domains: Reference frames of every domain the network was accepted on, for the drift statistics.
        probes: Labelled reference probes. A bundle with a parent carries its parent's, byte for byte.
        parent: The bundle this network grew from, or its file: its quantization is kept where that costs little
            accuracy.
        grafts: What has grown, for the manifest; None: what the network itself says.
        acceptance: The measurement that let the graft through; None: what `evolve` measured.
        seed: Chooses the self-test samples and seeds the drift thresholds.
        release: Release number; None leaves 0, to be given when the bundle is published.
        preprocessing: What the runtime does to a frame before the model; none by default.
        window: Frames that the drift threshold's windows hold.
        provenance: More lines for the manifest's provenance.
        minimum_agreement: How far each file must answer as the float network does on held-out inputs: share of equal
            top answers (0.99 by default), of equal boxes (0.95), or least cosine similarity of an output (0.99). A
            bundle exported under a lower one says so in its parity numbers, and `fleet publish` refuses it below 0.99
            unless insisted.
        quantize: How to quantize; None: full int8 after training, ranges of the smallest error.
        train: Frames and labels for quantization-aware training, where ``quantize`` asks for it.
        form: ``float`` keeps 32-bit weights and activations.
        postprocessing: How a detector's outputs become boxes; makes the head a detection.
        measured: Agreement and accuracies of answers, for a head that is no classification; without it, the least
            cosine similarity of an output.
        output_names: One an output of the network; those that ``postprocessing`` speaks of.
        channels_last: As `layout.as_app`.
        card: What people say of the network, for the model card.
        require_mapping: Fail where an Edge TPU profile's file does not map as a whole.
        guard: Good frames for the alarm that the device raises about others, by an output of statistics. "none" leaves
            out the guard that the parent has; None leaves out what no parent had.

    Raises:
        InputError: Shapes or counts do not fit, frames or weights are unusable, grafts without a parent, a form that
            the profile cannot compute, or nothing about a guard where the parent has one.
        KasminaError: The network does not convert, does not become int8 throughout, answers differently from its float
            self on too many held-out inputs (the message names both numbers), or does not map where it must.
    """
    target = load_profile(profile)
    refusals.refuse_unfit_form(target, form, quantize)
    if calibration is None or held_out is None:
        raise InputError(
            f"{name}: {'calibration' if calibration is None else 'held_out'} frames were not given",
            "Pass calibration=x (some hundred frames of every domain) and held_out=(x, y); y may be None.",
        )
    grown: Any = network if hasattr(network, "acceptance") else None  # what `evolve` gives
    own = getattr(network, "grafts", ()) if isinstance(network, Exportable) else ()
    grafts = grafts if grafts is not None else tuple(own)
    acceptance = grown.acceptance if acceptance is None and grown else acceptance
    parent = read_file(Path(parent)) if isinstance(parent, Path | str) else parent
    refusals.refuse_lost_guard(name, guard, parent)
    domains = domains or {}
    frames, truth = np.asarray(held_out[0], np.float32), held_out[1]
    calibration = np.asarray(calibration, np.float32)
    pre = preprocessing or Preprocessing()
    _check(calibration, frames, truth, domains, grafts, parent)
    refusals.refuse_bad_data(calibration, frames, pre, domains)
    module, sites = _module_of(network)
    refusals.refuse_bad_weights(module)
    calibration = thinned(calibration, MOST_CALIBRATION_FRAMES)
    fed = {key: _preprocess(x, pre) for key, x in (("calibration", calibration), ("held_out", frames))}
    app = as_app(module, (1, *frames.shape[1:]), channels_last=channels_last, output_names=output_names)
    head: Head = "detection" if postprocessing else "classification" if labels else "other"
    judge = _judge(head, app, fed["held_out"], truth, labels, measured)
    usual = DETECTION_AGREEMENT if head == "detection" else MINIMUM_AGREEMENT
    proof = Proof(
        held_out=fed["held_out"],
        calibration=fed["calibration"],
        judge=judge,
        seed=seed,
        parent=parent,
        minimum_agreement=usual if minimum_agreement is None else minimum_agreement,
    )
    prepared = None
    if quantize is not None and form == "quantized":
        if getattr(module, "fixed_batch", False):
            raise InputError(
                "the network has a batch of one built in, and this quantization runs it on batches",
                "Export it with flatten(1) and the like in place of fixed shapes, or quantize with --weights 8.",
            )
        learn = None if train is None else (_preprocess(np.asarray(train[0], np.float32), pre), train[1])
        prepared = prepare(module, quantize, fed["calibration"], learn, sites=sites)
    if form == "float":
        built, story = _float_models(app, proof), "none: float32 weights and activations"
    else:
        built, story = _quantized_models(app, module, sites, proof, quantize, prepared)
    files = {path: data for model in built for path, data in model.files.items()}
    probe_entry, probe_file = _probes(probes, parent)
    files.update(probe_file)
    watch = None
    if isinstance(guard, GuardFrames):
        seen = tuple(_preprocess(np.asarray(x, np.float32), pre) for x in (guard.frames, guard.held_out))
        watch, body = guard_file(guard, files[models.TFLITE_PATH], (seen[0], seen[1]), app.output_names)
        files[watch.file.path] = body
    lite = built[0]
    mapped = mapping.report(lite.files[lite.entry.file.path], target)
    if require_mapping:
        mapping.require(mapped, target)
    notes = {**(provenance or {}), "quantization": story}
    if mapped is not None:
        notes["edgetpu"] = mapped.sentence
    manifest = BundleManifest(
        name=name,
        version=version,
        release=release or 0,
        parent=parent.manifest.content_digest() if parent else None,
        host=(parent.manifest.host or parent.manifest.content_digest()) if parent else None,
        profile=profile,
        inputs=(ModelIO(name=lite.entry.inputs[0].name, shape=(1, *frames.shape[1:])),),
        outputs=tuple(
            ModelIO(name=own, shape=shape, labels=() if at and head == "classification" else tuple(labels))
            for at, (own, shape) in enumerate(zip(app.output_names, app.output_shapes, strict=True))
        ),
        head=head,
        preprocessing=pre,
        postprocessing=postprocessing,
        models=tuple(model.entry for model in built),
        grafts=grafts,
        domains=tuple(
            _domain(key, x, files[models.TFLITE_PATH], head, pre, window, seed) for key, x in sorted(domains.items())
        ),
        probes=probe_entry,
        acceptance=acceptance,
        provenance=notes,
        guard=watch,
    )
    body = documents.bill_of_materials(manifest, card or ModelCard(), built, module, judge.compares)
    document = FileEntry.of(documents.PATH, body)
    return Bundle(
        manifest=manifest.model_copy(update={"documents": (document,)}), files={**files, documents.PATH: body}
    )


@without_collector()
def _quantized_models(
    app: AppModule,
    module: nn.Module,
    sites: Sequence[str],
    proof: Proof,
    config: QuantizeConfig | None,
    prepared: Prepared | None,
) -> tuple[tuple[Built, ...], str]:
    """Both files, and which quantized version was shipped."""
    lite = tflite.export_tflite(
        module,
        calibration=proof.calibration,
        held_out=proof.held_out,
        judge=proof.judge,
        sites=sites,
        parent=_parent_model(proof.parent, "litert"),
        config=config,
        prepared=prepared,
        channels_last=app.moves_outputs,
    )
    proof = replace(proof, lite=lite.data)
    first = models.litert_model(lite.data, lite.inputs, lite.outputs, lite.sites, proof)
    twin = onnx.export_onnx(
        module,
        calibration=proof.calibration,
        held_out=proof.held_out,
        judge=proof.judge,
        parent=_parent_model(proof.parent, "onnxruntime"),
        headroom=HEADROOM if sites and proof.parent is None else 0.0,
        config=config,
        prepared=prepared,
        channels_last=app.moves_outputs,
    )
    return (first, models.onnx_model(twin, proof)), _story(lite)


@without_collector()
def _float_models(app: AppModule, proof: Proof) -> tuple[Built, ...]:
    data = tflite.export_float_tflite(app, app.app_shape)
    border = flatbuffer.border(flatbuffer.parse(data), floats=True)
    proof = replace(proof, lite=data)
    return (
        models.litert_model(data, *border, {}, proof),
        models.onnx_model(onnx.export_float_onnx(app, app.app_shape), proof),
    )


def _judge(
    head: Head, app: AppModule, frames: Array, truth: Any, labels: Sequence[str], measured: Measured | None
) -> Judge:
    reference = float_outputs(app, frames)
    if head == "classification":
        if reference[0].ndim != 2 or reference[0].shape[1] != len(labels):
            found = ", ".join(str(r.shape[1:]) for r in reference)
            raise InputError(f"the network answers {found}, {len(labels)} labels were given")
        known = None if truth is None else np.asarray(truth)
        return Judge(reference, app.output_names, judging.classification(reference, known), judging.TOP_ANSWERS)
    if measured is not None:
        return Judge(reference, app.output_names, measured, judging.BOXES if head == "detection" else judging.ALIKE)
    return Judge(reference, app.output_names, judging.resemblance, judging.ALIKE)


def _module_of(network: Exportable | nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module to convert, and the names of its seed sites; a bare module has none."""
    if isinstance(network, Exportable):
        return network.module_for_export(), tuple(network.sites)
    return network, ()


def _check(
    calibration: Array, frames: Array, truth: Any, domains: Mapping[str, Array], grafts: Sequence[Graft],
    parent: Bundle | None,
) -> None:  # fmt: skip
    if not 2 <= calibration.ndim <= 4 or calibration.shape[1:] != frames.shape[1:]:
        raise InputError(
            f"calibration {calibration.shape} and held-out frames {frames.shape}: expected (N, H, W, C), (N, L, C) or "
            "(N, C)",
            "Give both the app's shape, channels last.",
        )
    known = len(frames) if truth is None else len(truth)
    if not len(calibration) or len(frames) != known or len(frames) < 1:
        raise InputError(
            f"{len(calibration)} calibration frames, {len(frames)} held-out frames, {known} labels: "
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


def _parent_model(parent: Bundle | None, engine: str) -> bytes | None:
    """The parent's plain file for an engine, when this copy of the bundle holds it."""
    if parent is None:
        return None
    for model in parent.manifest.models:
        if model.engine == engine and model.compiled_for is None:
            return parent.files.get(model.file.path)
    return None


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


def _domain(
    name: str, frames: Array, model: bytes, head: Head, pre: Preprocessing, window: int, seed: int
) -> DomainStatistics:
    frames = np.asarray(frames, np.float32)
    scores = None
    if head == "classification":
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
