"""The quantization report of an export: what the file lost, what an operator costs, and which layers hurt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import KasminaError
from kasmina_edge.hardware_simulator import HardwareContext, read_workload
from kasmina_trainer.export import parity
from kasmina_trainer.export.models import thinned
from kasmina_trainer.quantization import QuantizeConfig
from kasmina_trainer.quantization.calibration import calibrated
from kasmina_trainer.quantization.folding import folded_graph
from kasmina_trainer.quantization.report import QuantizationReport, report_of
from kasmina_trainer.quantization.sensitivity import Effect, Sensitivities, measure_sensitivity
from kasmina_trainer.quantization.simulation import layer_bits, observe_points, rounding_points

Array = npt.NDArray[Any]

MOST_JUDGED = 128
"""Frames that single layers are measured on."""
MOST_LAYERS = 64
"""A network with more is not taken apart layer by layer: that would take longer than the export."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Exported:
    """What an export was made of, kept for its report.

    Attributes:
        module: Channels-first, in evaluation mode.
        calibration: Model inputs that set the ranges.  # (N, ..., C)
        held_out: Model inputs that nothing was set by.  # (M, ..., C)
        truth: Their classes, or None.  # (M,)
        config: How it was quantized; None: as `export_bundle` does by default.
        channels_last: As `export_bundle`.
    """

    module: nn.Module
    calibration: Array
    held_out: Array
    truth: Array | None
    config: QuantizeConfig | None = None
    channels_last: bool = True


def quantization_report(bundle: Bundle, made: Exported) -> QuantizationReport | None:
    """The report of a bundle's TFLite file; None for a head that is no classification, and for a float file.

    The layers are measured at the width that the file has them in: how much nearer to the float network the answers
    come when one layer alone is left in float.
    """
    if bundle.manifest.head != "classification" or not made.channels_last:
        return None
    model = bundle.model_for("litert")
    if model.inputs[0].dtype == "float32" and made.config is None:
        return None
    data, config = bundle.files[model.file.path], made.config or QuantizeConfig()
    notes = ["float size: of the weights alone"]
    found = None
    try:
        found = _layers(made, config)
    except (KasminaError, RuntimeError) as exc:
        reason = exc.message if isinstance(exc, KasminaError) else str(exc).splitlines()[0][:120]
        notes.append(f"layers not measured: {reason}")
    report = report_of(
        config,
        layer_bits(made.module, config.bits),
        answers=parity.litert_logits(data, made.held_out),
        float_answers=parity.float_logits(made.module, made.held_out),
        labels=made.truth,
        size_bytes=len(data),
        float_size_bytes=FLOAT_BYTES * sum(p.numel() for p in made.module.parameters()),
        latency_ms=_latencies(bundle, data),
        notes=notes,
    )
    return report if found is None else replace(report, hurts=_costs(found, report.bits))


def shares(report: QuantizationReport, most: int = 3) -> list[tuple[str, float]]:
    """The layers that hurt most, each with its share of what all layers cost; those below 5 % are left out."""
    whole = sum(max(0.0, effect.distance) for effect in report.hurts)
    found = [(effect.layer, effect.distance / whole) for effect in report.hurts if whole and effect.distance > 0]
    return [(layer, share) for layer, share in found if share >= 0.05][:most]


def _layers(made: Exported, config: QuantizeConfig) -> Sensitivities:
    if getattr(made.module, "fixed_batch", False):
        raise KasminaError("the network has a batch of one built in")
    graph = folded_graph(made.module)
    count = len(layer_bits(graph, config.bits))
    if count > MOST_LAYERS:
        raise KasminaError(f"{count} layers, at most {MOST_LAYERS} are measured one by one")
    frames = thinned(made.calibration, MOST_JUDGED)
    ranges = calibrated(observe_points(graph, frames, rounding_points(graph, frames)), config, border=())
    truth = None if made.truth is None else thinned(np.asarray(made.truth), MOST_JUDGED)
    return measure_sensitivity(graph, ranges, thinned(made.held_out, MOST_JUDGED), truth, bits=(32,))


def _costs(found: Sensitivities, bits: Mapping[str, int]) -> tuple[Effect, ...]:
    """What each layer costs at its width, worst first, from what leaving it in float gains. Pure."""
    lost = None
    if found.accuracy is not None and found.float_accuracy is not None:
        lost = found.float_accuracy - found.accuracy
    costs = [
        replace(
            effect,
            bits=bits.get(effect.layer, 8),
            distance=-effect.distance,
            accuracy_loss=None if lost is None or effect.accuracy_loss is None else lost - effect.accuracy_loss,
        )
        for effect in found.effects
    ]
    return tuple(sorted(costs, key=lambda effect: (-effect.distance, effect.layer)))


def _latencies(bundle: Bundle, data: bytes) -> list[tuple[str, float]]:
    """Estimated milliseconds of every operator on the bundle's target; empty where nothing can be estimated."""
    try:
        workload = read_workload(data, bundle.manifest.name)
        estimate = HardwareContext(load_profile(bundle.manifest.profile)).estimate(workload)
    except KasminaError:
        return []
    pairs = zip(workload.ops, estimate.ops, strict=True)
    return [(op.place or op.kind, cost.latency_us / 1000) for op, cost in pairs]
