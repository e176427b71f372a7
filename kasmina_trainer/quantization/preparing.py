"""Everything that is done to a network in torch before it is converted: one call, one configuration."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.bias_correction import correct_biases
from kasmina_trainer.quantization.calibration import calibrated, range_by, require_frames
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.equalise import equalise
from kasmina_trainer.quantization.folding import (
    channel_axis,
    folded_graph,
    require_finite_weights,
    weighted_layers,
)
from kasmina_trainer.quantization.qat import Loss, one_core, train_rounded
from kasmina_trainer.quantization.ranges import Array, Range, snapped, with_headroom
from kasmina_trainer.quantization.rounding import clipped_weight
from kasmina_trainer.quantization.simulation import layer_bits, observe_points, rounding_points

MOST_CORRECTION_FRAMES = 256


@dataclass(frozen=True)
class Prepared:
    """A float network that is ready to be converted and quantized.

    Attributes:
        module: The network; the given one where nothing had to be done.
        bits: Width of each weighted layer, by module name.
        ranges: Activation ranges that training has learned, by node name of ``module``, snapped; empty for `ptq`: then
            the converted file's own calibration decides.
        notes: What was done, a sentence each.
        before: The folded network before anything changed its values, node by node the same; None: nothing did.
    """

    module: nn.Module
    bits: Mapping[str, int]
    ranges: Mapping[str, Range]
    notes: tuple[str, ...]
    before: fx.GraphModule | None = None


def prepare(
    module: nn.Module,
    config: QuantizeConfig,
    calibration: Array,
    train: tuple[Array, Array | None] | None = None,
    *,
    valid: Range | None = None,
    sites: Sequence[str] = (),
    loss: Loss = functional.cross_entropy,
    device: str = "cpu",
) -> Prepared:
    """Fold, equalise, clip, train against the rounding and correct biases, as the configuration says.

    Args:
        module: In evaluation mode, on the CPU; it is not changed.
        config: What to do.
        calibration: Model inputs that show every domain the network is for.  # (N, ..., C)
        train: For ``qat``: frames and labels (or None for labels); None: the calibration frames, taught by the float
            network alone.
        valid: Valid range of an input's values; frames outside of it are refused.
        sites: Names of seed sites, which equalisation leaves alone.
        loss: For ``qat``: takes the network's answer and a batch of labels.
        device: Where ``qat`` runs: ``cpu`` or ``cuda``.

    Raises:
        InputError: The frames, the weights or the configuration are wrong, or the network cannot be traced and the
            configuration needs that; the message names the layer or both numbers.
    """
    require_frames(calibration, valid=valid)
    require_finite_weights(module)
    needs_bits = config.weight_bits == 4 or any(b == 4 for b in config.per_layer.values())
    if not (_needs_graph(config) or (needs_bits and config.clip_weights)):
        bits = layer_bits(module, config.bits)
        _refuse_unknown(config, bits)
        return Prepared(module, bits, {}, ())
    with one_core():
        return _changed(module, config, calibration, train, sites, loss, device)


def _changed(
    module: nn.Module,
    config: QuantizeConfig,
    calibration: Array,
    train: tuple[Array, Array | None] | None,
    sites: Sequence[str],
    loss: Loss,
    device: str,
) -> Prepared:
    before = graph = folded_graph(module)
    bits = layer_bits(graph, config.bits)
    _refuse_unknown(config, bits)
    notes: list[str] = []
    if config.equalize:
        graph, done = equalise(graph, calibration, sites=sites)
        notes.append(f"equalised {len(done)} pairs of layers")
    if config.clip_weights:
        graph, cut = _clip(graph, bits)
        if cut:
            notes.append(f"4-bit weights of {cut} layers cut off where that lowers their error")
    ranges: dict[str, Range] = {}
    if config.method == "qat":
        graph, ranges = _trained(graph, bits, config, calibration, train, loss, device, notes)
    if config.bias_correction == "all":
        points = rounding_points(graph, calibration)
        frames = calibration[:MOST_CORRECTION_FRAMES]
        seen = observe_points(graph, frames, points)
        own = ranges or calibrated(seen, config, border=_inputs(graph))
        graph, taken = correct_biases(graph, bits, own, frames)
        most = max(taken.values(), default=0.0)
        notes.append(f"biases of {len(taken)} layers corrected, by {most:.2%} of a layer's spread at most")
    return Prepared(graph, bits, ranges, tuple(notes), before)


def _trained(
    graph: fx.GraphModule,
    bits: dict[str, int],
    config: QuantizeConfig,
    calibration: Array,
    train: tuple[Array, Array | None] | None,
    loss: Loss,
    device: str,
    notes: list[str],
) -> tuple[fx.GraphModule, dict[str, Range]]:
    inputs = _inputs(graph)
    seen = observe_points(graph, calibration, rounding_points(graph, calibration))
    start = {n: (o.low, o.high) if n in inputs else range_by(o, config) for n, o in seen.items()}
    run = train_rounded(
        graph, bits, start, config, calibration, train, border=inputs, loss=loss, device=device
    )  # fmt: skip
    notes.append(f"{config.qat_steps} steps against the rounding, loss {run.first_loss:.4g} to {run.last_loss:.4g}")
    return run.graph, snapped(with_headroom(run.ranges, config.headroom, keep=inputs))


def _clip(graph: fx.GraphModule, bits: Mapping[str, int]) -> tuple[fx.GraphModule, int]:
    """A graph with the weights of 4-bit layers cut off; how many layers changed."""
    graph = copy.deepcopy(graph)
    changed = 0
    for name, layer in weighted_layers(graph).items():
        if bits[name] == 4:
            cut = clipped_weight(layer.weight.detach(), 4, channel_axis(layer))
            changed += not torch.equal(cut, layer.weight)
            layer.weight.data.copy_(cut)
    return graph, changed


def _needs_graph(config: QuantizeConfig) -> bool:
    return config.method == "qat" or config.equalize or config.bias_correction == "all"


def _refuse_unknown(config: QuantizeConfig, bits: Mapping[str, int]) -> None:
    for name in config.per_layer:
        if name not in bits:
            near = difflib.get_close_matches(name, bits, n=3, cutoff=0.0)
            raise InputError(
                f"per_layer.{name}: no such layer among the {len(bits)} that have weights",
                f"Did you mean {', '.join(near)}?" if near else "The network has no convolution or linear layer.",
            )


def _inputs(graph: fx.GraphModule) -> tuple[str, ...]:
    return tuple(node.name for node in graph.graph.nodes if node.op == "placeholder")
