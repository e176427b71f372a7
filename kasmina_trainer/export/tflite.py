"""PyTorch to a full-int8 TFLite file in canonical layout.

Route: channels-last inputs and outputs, litert-torch to float TFLite, own calibration, ai-edge-quantizer, then the
canonical rewrite of `flatbuffer`. A network that was grown on an exported parent is quantized several times - with all
the parent's ranges, with those that still fit, and freely - and `quantization.choose` takes one by measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.contracts.manifest import ModelTensor, SiteTensors
from kasmina_edge.engines.tflite_graph import TfliteGraph
from kasmina_edge.errors import KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer, parity
from kasmina_trainer.export.alignment import Alignment, align
from kasmina_trainer.export.correction import correct_tflite
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.quantization import Candidate, Range

Array = npt.NDArray[Any]

_SITE_FRAMES = 3
_SITE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class FloatNetwork:
    """A float TFLite file whose tensors are called ``t0``, ``t1``, ...

    Attributes:
        activations: Names of all tensors that are computed or fed, in order of use.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
    """

    data: bytes
    activations: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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


def convert(module: nn.Module, shape: Sequence[int]) -> FloatNetwork:
    """Convert a channels-first module to float TFLite with channels-last input.

    Args:
        module: In evaluation mode, on the CPU; takes (1, C, H, W).
        shape: The app's input shape.  # (1, H, W, C)

    Raises:
        KasminaError: The converter refuses, or the result needs an operator that LiteRT's runtime does not have.
    """
    with quiet():
        import litert_torch

        try:
            wrapped = litert_torch.to_channel_last_io(module, args=[0]).eval()
            edge = litert_torch.convert(wrapped, (torch.zeros(tuple(shape)),))
            data = bytes(edge.model_content())
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"the network cannot be converted to TFLite: {reason[:300]}", _ADVICE) from exc
    model = flatbuffer.parse(data)
    refuse_unsupported(model)
    flatbuffer.number_tensors(model)
    names = flatbuffer.tensor_names(model)
    graph = model.subgraphs[0]
    activations = dict.fromkeys(int(i) for i in graph.inputs)
    for op in flatbuffer.operators(model):
        activations.update(dict.fromkeys(op.outputs))
    return FloatNetwork(
        flatbuffer.serialize(model),
        tuple(names[i] for i in activations),
        tuple(names[int(i)] for i in graph.inputs),
        tuple(names[int(i)] for i in graph.outputs),
    )


_ADVICE = "Build the network from operations that LiteRT has; a threshold or an iterated maximum replaces sorting."


def refuse_unsupported(model: Any) -> None:
    """Stop at operators that would convert and then not run.

    Raises:
        KasminaError: The message names them.
    """
    missing = flatbuffer.unsupported_operators(model)
    if missing:
        raise KasminaError(f"the network needs {', '.join(missing)}, which LiteRT's runtime does not have", _ADVICE)
    if len(model.subgraphs) != 1:
        raise KasminaError(f"the network became {len(model.subgraphs)} subgraphs, one can be quantized", _ADVICE)


def refuse_float(model: Any) -> None:
    """Stop at operators that did not become int8.

    Raises:
        KasminaError: The message names them with their types.
    """
    left = flatbuffer.float_operators(model)
    if left:
        raise KasminaError(
            f"{len(left)} operators stayed in floating point: {', '.join(left[:5])}",
            "Replace these operations by ones that ai-edge-quantizer knows.",
        )


def find_sites(
    network: FloatNetwork, module: nn.Module, sites: Sequence[str], frames: Array
) -> dict[str, tuple[str, str]]:
    """Which tensors hold the input and the output of each seed site, found by their values.

    Module and file compute the same values, so a tensor that equals what flows through a site on every frame, is that
    site's; names and numbering play no part. A branch that adds nothing yet leaves input and output equal: then the
    output is the sum that reads the input.

    Args:
        network: The converted module.
        module: The module itself; a site is a submodule's output, or, where that has an ``inner`` module, runs from the
            inner module's output (before the branch) to the submodule's own (behind it).
        sites: Submodule names.
        frames: At least one frame.  # (N, H, W, C)

    Raises:
        KasminaError: A site's values appear in no tensor.
    """
    places: dict[str, tuple[str, str]] = {}
    if not sites:
        return places
    frames = frames[:_SITE_FRAMES]
    flows = _flow_through(module, sites, frames)
    seen = list(quantization.watch(network.data, frames, network.activations))
    for site, (before, after) in flows.items():
        found = tuple(_first_equal(seen, values, network.activations) for values in (before, after))
        if found[0] is None or found[1] is None:
            raise KasminaError(
                f"site {site}: its values appear in no tensor of the converted file",
                "Put the site behind an activation or an addition, where the converter does not fuse it away.",
            )
        silent = found[0] == found[1] and isinstance(getattr(module.get_submodule(site), "inner", None), nn.Module)
        places[site] = (found[0], _sum_behind(network, found[0]) if silent else found[1])
    return places


def export_tflite(
    module: nn.Module,
    *,
    calibration: Array,
    held_out: Array,
    labels: Array | None,
    float_logits: Array,
    sites: Sequence[str] = (),
    parent: bytes | None = None,
    headroom: float = quantization.HEADROOM,
) -> TfliteExport:
    """Convert, quantize, choose and canonicalize.

    Args:
        module: As `convert`.
        calibration: Model inputs that show every domain the network is for.  # (N, H, W, C)
        held_out: Model inputs that nothing was trained or calibrated on.  # (M, H, W, C)
        labels: Their labels, or None.  # (M,)
        float_logits: The module's own answers on them.  # (M, classes)
        sites: Names of the seed sites inside the module.
        parent: TFLite file of the bundle this network grew from; its quantization is kept where that costs little.
        headroom: Share by which the ranges of a network without parent are widened.

    Raises:
        KasminaError: The network does not convert, or does not become int8 throughout.
    """
    network = convert(fold_norms(module), (1, *calibration.shape[1:]))
    places = find_sites(network, module, sites, calibration)
    observed = quantization.observe(lambda: quantization.watch(network.data, calibration, network.activations))
    border = (*network.inputs, *network.outputs)
    share = 0.0 if parent else headroom
    free = quantization.free_ranges(observed, headroom=share, border=border)
    whole = quantization.free_ranges(observed, headroom=share, border=border, whole=True)
    with quiet():
        first = quantization.quantize(network.data, free)
    free_model = flatbuffer.parse(first)
    refuse_float(free_model)
    versions: dict[str, dict[str, Range]] = {}
    alignment = None
    inherited: dict[str, Range] = {}
    if parent is not None:
        alignment = align(flatbuffer.parse(parent), free_model)
        inherited = inherited_ranges(flatbuffer.parse(parent), free_model, alignment)
        versions["pinned"] = quantization.pinned(free, inherited, observed)
        for most in quantization.STRAINS:
            for suffix, own in (("", free), (", whole range", whole)):
                name = f"partly pinned (strain {most:g}{suffix})"
                versions[name] = quantization.pinned(own, inherited, observed, most_strain=most)
    versions["free"] = free
    versions["free, whole range"] = whole
    float_calibration = parity.float_logits(module, calibration)
    candidates: list[Candidate] = []
    built: dict[str, dict[str, int]] = {}
    for name, ranges in versions.items():
        if any(ranges == versions[c.name] for c in candidates):
            continue
        with quiet():
            raw = first if ranges is free else quantization.quantize(network.data, ranges)
        data, built[name] = _corrected(raw, calibration, float_calibration, parent, alignment)
        agreement, accuracy = parity.measure(parity.litert_logits(data, held_out), float_logits, labels)
        kept = sum(ranges[n] == r for n, r in inherited.items())
        candidates.append(Candidate(name, data, kept, len(inherited), agreement, accuracy))
    float_accuracy = parity.measure(float_logits, float_logits, labels)[1]
    chosen = quantization.choose(candidates, float_accuracy)
    model = flatbuffer.parse(chosen.data)
    index = built[chosen.name]
    return TfliteExport(
        chosen.data,
        *flatbuffer.border(model),
        {s: SiteTensors(input_index=index[a], output_index=index[b]) for s, (a, b) in places.items()},
        chosen,
        tuple(candidates),
    )


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
    raw: bytes, calibration: Array, float_calibration: Array, parent: bytes | None, alignment: Alignment | None
) -> tuple[bytes, dict[str, int]]:
    """Canonical bytes with the answers' mean error taken out; the new index of every named tensor."""
    plain, _ = _canonical(raw, parent, alignment)
    shift = (parity.litert_logits(plain, calibration) - float_calibration).mean(axis=0)
    model = flatbuffer.parse(raw)
    correct_tflite(model, shift)
    return _canonical(flatbuffer.serialize(model), parent, alignment)


def _canonical(raw: bytes, parent: bytes | None, alignment: Alignment | None) -> tuple[bytes, dict[str, int]]:
    """Canonical bytes, and the new index of every named tensor."""
    model = flatbuffer.parse(raw)
    names = flatbuffer.tensor_names(model)
    ancestor = flatbuffer.parse(parent) if parent is not None else None
    moved = flatbuffer.canonical(model, ancestor, alignment.twins if alignment else None)
    return flatbuffer.serialize(model), {names[old]: new for old, new in moved.items()}


def _flow_through(module: nn.Module, sites: Sequence[str], frames: Array) -> dict[str, tuple[Array, Array]]:
    """Values before and behind each site, channels last.  # (N, H, W, C)"""
    caught: dict[tuple[str, int], Array] = {}
    hooks = []
    for site in sites:
        outer = module.get_submodule(site)
        inner = getattr(outer, "inner", None)
        for side, part in enumerate((inner if isinstance(inner, nn.Module) else outer, outer)):

            def note(_module: nn.Module, _args: Any, value: torch.Tensor, key: tuple[str, int] = (site, side)) -> None:
                caught[key] = np.moveaxis(value.detach().numpy(), 1, -1).copy()

            hooks.append(part.register_forward_hook(note))
    try:
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1), dtype=np.float32)))
    finally:
        for hook in hooks:
            hook.remove()
    return {site: (caught[site, 0], caught[site, 1]) for site in sites}


def _sum_behind(network: FloatNetwork, name: str) -> str:
    """The tensor that a silent residual branch leaves into: ``name`` plus what was computed from ``name``."""
    graph = TfliteGraph(network.data)
    names = flatbuffer.tensor_names(flatbuffer.parse(network.data))
    entry = names.index(name)
    for operator in graph.operators:
        branch = graph.branch(entry, operator.outputs[0])
        if branch is not None and any(entry in part.inputs for part in branch):
            return names[operator.outputs[0]]
    return name


def _first_equal(seen: Sequence[Mapping[str, Array]], values: Array, names: Sequence[str]) -> str | None:
    for name in names:
        if seen[0][name].shape[1:] == values.shape[1:] and all(
            np.allclose(frame[name][0], value, rtol=_SITE_TOLERANCE, atol=_SITE_TOLERANCE)
            for frame, value in zip(seen, values, strict=True)
        ):
            return name
    return None
