"""PyTorch to a full-int8 TFLite file in canonical layout.

Route: channels-last inputs and outputs, litert-torch to float TFLite (`float_tflite`), own calibration,
ai-edge-quantizer, then the canonical rewrite of `flatbuffer`. A network that was grown on an exported parent is
quantized several times - with all the parent's ranges, with those that still fit, and freely - and
`quantization.choose` takes one by measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import nn

from kasmina_edge.contracts.manifest import ModelTensor, SiteTensors
from kasmina_edge.errors import InputError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer, judging, parity
from kasmina_trainer.export.alignment import Alignment, align
from kasmina_trainer.export.correction import correct_tflite, mean_error
from kasmina_trainer.export.float_tflite import FloatNetwork, convert, refuse_float
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.judging import Judge
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.export.sites import find_sites
from kasmina_trainer.quantization import Candidate, Prepared, QuantizeConfig, Range

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TfliteExport:
    """What `export_tflite` made.

    Attributes:
        data: The int8 file.
        inputs: Input tensors, in order.
        outputs: Output tensors, in order.
        sites: Tensor indices by seed site.
        chosen: The version that was taken.
        candidates: All versions that were measured, most pinned first.
    """

    data: bytes
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    sites: Mapping[str, SiteTensors]
    chosen: Candidate
    candidates: tuple[Candidate, ...]


def export_tflite(
    module: nn.Module,
    *,
    calibration: Array,
    held_out: Array,
    labels: Array | None = None,
    float_logits: Array | None = None,
    sites: Sequence[str] = (),
    parent: bytes | None = None,
    headroom: float = quantization.HEADROOM,
    config: QuantizeConfig | None = None,
    prepared: Prepared | None = None,
    judge: Judge | None = None,
    channels_last: bool = True,
    network: FloatNetwork | None = None,
) -> TfliteExport:
    """Convert, quantize, choose and canonicalize.

    Args:
        module: As `convert`.
        calibration: Model inputs that show every domain the network is for.  # (N, ..., C)
        held_out: Model inputs that nothing was trained or calibrated on.  # (M, ..., C)
        labels: Their classes, or None.  # (M,)
        float_logits: The module's own answers on them, where it has one output of classes.  # (M, classes)
        sites: Names of the seed sites inside the module.
        parent: TFLite file of the bundle this network grew from; its quantization is kept where that costs little.
        headroom: Share by which the ranges of a network without parent are widened; with ``config``, that one's.
        config: How to calibrate and how wide weights are; None: int8, ranges of the smallest error.
        prepared: What `quantization.prepare` made of the module for ``config``; it is converted in the module's place.
        judge: Compares answers, for a network that is no classification; None: ``float_logits`` and ``labels`` do.
        channels_last: As `layout.as_app`.
        network: What `convert` made of the folded module, where that is known already; of ``prepared``'s, where it
            changed the module. The bytes are the same.

    Raises:
        InputError: The frames do not fit the network, or ``network`` takes others.
        KasminaError: The network does not convert, or does not become int8 throughout.
    """
    folded = fold_norms(prepared.module if prepared else module)
    shape = (1, *calibration.shape[1:])
    if network is None:
        network = convert(folded, shape, channels_last=channels_last)
    elif network.app_shape != shape:
        raise InputError(f"the converted network takes {network.app_shape}, the frames are {shape}")
    places = find_sites(network, module, sites, calibration, prepared)
    if judge is None:
        given = (parity.float_logits(module, held_out) if float_logits is None else float_logits,)
        judge = Judge(given, network.output_names, judging.classification(given, labels), judging.TOP_ANSWERS)
    observed = quantization.observe(lambda: quantization.watch(network.data, calibration, network.activations))
    border = (*network.inputs, *network.outputs)
    own = _own_ranges(network, folded, observed, border, calibration, 0.0 if parent else headroom, config, prepared)
    if parent is not None and config is not None and config.headroom:
        bare = config.model_copy(update={"headroom": 0.0})
        own = _own_ranges(network, folded, observed, border, calibration, 0.0, bare, prepared)
    bits = quantization.tensor_bits(network.data, folded, prepared.bits) if prepared else {}
    free, whole = next(iter(own.values())), list(own.values())[-1]
    with quiet():
        first = quantization.quantize(network.data, free, bits)
    free_model = flatbuffer.parse(first)
    if 32 not in bits.values():
        refuse_float(free_model, network)
    versions: dict[str, dict[str, Range]] = {}
    alignment = None
    inherited: dict[str, Range] = {}
    if parent is not None:
        alignment = align(flatbuffer.parse(parent), free_model)
        inherited = inherited_ranges(flatbuffer.parse(parent), free_model, alignment)
        # a concatenation's inputs are requantized to its own scale: such a tensor is the quantizer's and has no range
        inherited = {name: found for name, found in inherited.items() if name in free}
        versions["pinned"] = quantization.pinned(free, inherited, observed)
        for most in quantization.STRAINS:
            for suffix, ranges in (("", free), (", whole range", whole)):
                name = f"partly pinned (strain {most:g}{suffix})"
                versions[name] = quantization.pinned(ranges, inherited, observed, most_strain=most)
    versions.update(own)
    float_calibration = float_outputs(as_app(module, network.app_shape, channels_last=channels_last), calibration)
    corrects = config is None or config.bias_correction != "none"
    candidates: list[Candidate] = []
    built: dict[str, dict[str, int]] = {}
    for name, ranges in versions.items():
        if any(ranges == versions[c.name] for c in candidates):
            continue
        with quiet():
            raw = first if ranges is free else quantization.quantize(network.data, ranges, bits)
        if corrects:
            raw = _corrected(raw, calibration, float_calibration, parent, alignment)
        data, built[name] = _canonical(raw, parent, alignment)
        agreement, accuracy = judge.measure(parity.litert_outputs(data, held_out))
        kept = sum(ranges[n] == r for n, r in inherited.items())
        candidates.append(Candidate(name, data, kept, len(inherited), agreement, accuracy))
    if parent is None and judge.compares != judging.TOP_ANSWERS:
        chosen = max(candidates, key=lambda c: c.agreement)  # no label tells what clipping costs: the nearest
    else:
        chosen = quantization.choose(candidates, judge.float_accuracy)
    model = flatbuffer.parse(chosen.data)
    index = built[chosen.name]
    return TfliteExport(
        chosen.data,
        *flatbuffer.border(model, floats=bool(bits)),
        {s: SiteTensors(input_index=index[a], output_index=index[b]) for s, (a, b) in places.items()},
        chosen,
        tuple(candidates),
    )


def export_float_tflite(module: nn.Module, shape: Sequence[int], *, channels_last: bool = True) -> bytes:
    """The float network as a TFLite file in canonical layout.

    Args:
        module: As `convert`.
        shape: The app's input shape.  # (1, ..., C)
        channels_last: As `layout.as_app`.
    """
    network = convert(fold_norms(module), shape, channels_last=channels_last)
    return _canonical(network.data, None, None)[0]


def _own_ranges(
    network: FloatNetwork,
    folded: nn.Module,
    observed: Mapping[str, quantization.Observed],
    border: Sequence[str],
    calibration: Array,
    headroom: float,
    config: QuantizeConfig | None,
    prepared: Prepared | None,
) -> dict[str, dict[str, Range]]:
    """Versions that owe nothing to a parent, by name; the first is the one to begin with."""
    if config is None:
        return {
            "free": quantization.free_ranges(observed, headroom=headroom, border=border),
            "free, whole range": quantization.free_ranges(observed, headroom=headroom, border=border, whole=True),
        }
    carried = None
    if prepared is not None and prepared.ranges:
        carried = quantization.carried_ranges(
            network.data, network.activations, prepared.module, prepared.ranges, calibration
        )
    return quantization.versions(observed, config, border=border, carried=carried)


def inherited_ranges(parent: Any, grown: Any, alignment: Alignment) -> dict[str, Range]:
    """The parent's activation ranges under the grown network's tensor names."""
    names = flatbuffer.tensor_names(grown)
    found: dict[str, Range] = {}
    for mine, other in alignment.stands_for.items():
        if flatbuffer.constant(grown, mine) is not None:
            continue
        scheme = flatbuffer.scale_and_zero(parent, other)
        if scheme is not None:
            found[names[mine]] = quantization.range_of(*scheme)
    return found


def _corrected(
    raw: bytes,
    calibration: Array,
    float_calibration: Sequence[Array],
    parent: bytes | None,
    alignment: Alignment | None,
) -> bytes:
    """A quantized file with the mean error of its answers taken out, where a last layer's bias can take it."""
    plain, _ = _canonical(raw, parent, alignment)
    answers = parity.litert_outputs(plain, calibration)
    model = flatbuffer.parse(raw)
    for place, (given, wanted) in enumerate(zip(answers, float_calibration, strict=True)):
        correct_tflite(model, mean_error(given, wanted), place)
    return flatbuffer.serialize(model)


def _canonical(raw: bytes, parent: bytes | None, alignment: Alignment | None) -> tuple[bytes, dict[str, int]]:
    """Canonical bytes, and the new index of every named tensor."""
    model = flatbuffer.parse(raw)
    names = flatbuffer.tensor_names(model)
    ancestor = flatbuffer.parse(parent) if parent is not None else None
    moved = flatbuffer.canonical(model, ancestor, alignment.twins if alignment else None)
    return flatbuffer.serialize(model), {names[old]: new for old, new in moved.items()}
