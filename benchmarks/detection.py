"""An SSD-type detector after int8: mean average precision on the device's own route, beside heads that are joined.

Every figure comes from a bundle that was exported, opened by the runtime and decoded by its post-processing. The
control joins offsets and scores into one output, as many detectors are exported: one scale for both.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._detector import LABELS, joined_head, parted, scenes, trained
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.runtime import Runtime
from kasmina_trainer.datasets.composed_scenes import Scenes

Array = npt.NDArray[Any]
PROFILE = "x86-cpu"
SCORED_FROM = 0.05
APP_THRESHOLD = 0.3
CALIBRATION = 400
CHOSEN_BY = 50
MOST_LOST = 1.0
CONTROL_LOSES = 5.0
CONTROLS = (300, 64, 0)
"""Sides of frames in whose pixels the control's boxes are: SSD300's, this detector's; 0: raw."""
_TIMED = 200
_ROUNDS = 5


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """Int8 loss with its interval, the joined control, and what decoding costs."""
    import torch

    from kasmina_trainer.detection.network import postprocessing
    from kasmina_trainer.detection.parity import judged
    from kasmina_trainer.detection.scoring import judge, loss_interval, mean_average_precision
    from kasmina_trainer.export.layout import as_app, float_outputs

    torch.set_num_threads(1)
    network = trained(quick)
    learn, test = scenes(quick)
    frames = test.nhwc()
    post = postprocessing(LABELS, score_threshold=SCORED_FROM)
    app = as_app(network, (1, *frames.shape[1:]), output_names=network.output_names)
    before = judged(dict(zip(app.output_names, float_outputs(app, frames), strict=True)), test.truths, post)
    own = mean_average_precision(before)
    bundle = exported(network, learn, post)
    lost, intervals, after, levels = {}, {}, {}, {}
    for engine in ("litert", "onnxruntime"):
        with opened(bundle, engine) as runtime:
            found = [runtime.infer(frame).detections or () for frame in frames]
            if engine == "litert":
                decode_us, infer_us = timed(runtime, frames)
        after[engine] = mean_average_precision(judge(found, test.truths, len(LABELS)))
        levels[engine] = distinct(found)
        again = judge(found, test.truths, len(LABELS))
        lost[engine] = 100 * (own - after[engine])
        intervals[engine] = tuple(100 * v for v in loss_interval(before, again, seed=0))
    how = (
        f"{len(test)} held-out scenes of images of digits that trained nothing, {network_size(network)} parameters, "
        f"int8 LiteRT file in the runtime, decoded and suppressed by the manifest's post-processing; float torch "
        f"{100 * own:.1f}, int8 {100 * after['litert']:.1f} mAP@0.5; 95 % of 1000 paired bootstraps over scenes: "
        f"{intervals['litert'][0]:.2f} to {intervals['litert'][1]:.2f}"
    )
    found_rows = [
        row("SSD-type detector, mAP@0.5: int8 loss", MOST_LOST, lost["litert"], "points", lost["litert"], how),
        row(
            "the same in ONNX Runtime (QDQ)", MOST_LOST, lost["onnxruntime"], "points", lost["onnxruntime"],
            f"the bundle's ONNX twin; {intervals['onnxruntime'][0]:.2f} to {intervals['onnxruntime'][1]:.2f}",
        ),
    ]  # fmt: skip
    for side in CONTROLS:
        outputs = joined_outputs(joined_head(network, frame_pixels=side), learn, frames)
        control = judged(parted(outputs, frame_pixels=side), test.truths, post)
        loss = 100 * (own - mean_average_precision(control))
        low, high = (100 * v for v in loss_interval(before, control, seed=0))
        values = len(np.unique(control.scores))
        what = f"centres in pixels of a {side}-pixel frame, scores 0 to 1" if side else "raw offsets and logits"
        binding = side == max(CONTROLS)
        found_rows.append(
            {
                "name": f"control: one int8 output for boxes and scores ({what}), mAP lost",
                "target": f">= {CONTROL_LOSES:g}" if binding else None,
                "measured": round(loss, 2),
                "unit": "points",
                "ok": loss >= CONTROL_LOSES if binding else True,
                "how": f"the same network and scenes, one scale for both; {low:.2f} to {high:.2f}; scores take "
                f"{values + 1} values, {levels['litert'] + 1} with outputs of their own",
            }
        )
    found_rows.append(
        {
            "name": "decoding and suppression of a frame",
            "target": None,
            "measured": round(decode_us, 1),
            "unit": "us",
            "ok": True,
            "how": f"p50, boxes from {APP_THRESHOLD:g} up, numpy, lazily; `infer` beside it {infer_us:.1f} us",
        }
    )
    return found_rows


def row(name: str, target: float, measured: float, unit: str, judged_by: float, how: str) -> dict[str, Any]:
    """A row whose figure may not exceed the target."""
    return {
        "name": name,
        "target": target,
        "measured": round(measured, 2),
        "unit": unit,
        "ok": bool(judged_by <= target),
        "how": how,
    }


def network_size(network: Any) -> int:
    """Parameters."""
    return sum(p.numel() for p in network.parameters())


def exported(network: Any, learn: Scenes, post: Any) -> Bundle:
    """The detector as a bundle, by the product's own route; its ranges are chosen without any test scene."""
    from kasmina_trainer.detection.parity import measured_boxes
    from kasmina_trainer.export.bundle import export_bundle

    some = learn.take(slice(CALIBRATION, CALIBRATION + CHOSEN_BY))
    return export_bundle(
        network,
        "digit-finder",
        version="1.0.0",
        profile=PROFILE,
        calibration=learn.nhwc()[:CALIBRATION],
        held_out=(some.nhwc(), some.truths),
        postprocessing=post,
        output_names=network.output_names,
        measured=measured_boxes(some.truths, post.model_copy(update={"score_threshold": APP_THRESHOLD})),
        minimum_agreement=0.9,
    )


@contextmanager
def opened(bundle: Bundle, engine: str) -> Iterator[Runtime]:
    """The bundle in a runtime without telemetry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.file_name
        path.write_bytes(pack(bundle))
        with Runtime.open(path, profile=PROFILE, engine=engine, verify=lambda _: None, telemetry=None) as runtime:
            yield runtime


def joined_outputs(module: Any, learn: Scenes, frames: Array) -> list[Array]:
    """De-quantized outputs of an int8 file whose head is joined, an array a grid.  # (N, H, W, C)"""
    from kasmina_trainer.export.bundle import export_bundle

    calibration = learn.nhwc()[:CALIBRATION]
    bundle = export_bundle(
        module,
        "joined",
        version="1.0.0",
        profile=PROFILE,
        calibration=calibration,
        held_out=(calibration[:50], None),
        minimum_agreement=0.0,
    )
    with opened(bundle, "litert") as runtime:
        answers = [runtime.infer(frame).outputs for frame in frames]
    return [np.concatenate([answer[io.name] for answer in answers]) for io in bundle.manifest.outputs]


def distinct(found: Sequence[Sequence[Any]]) -> int:
    """How many different scores there are."""
    return len({d.score for some in found for d in some})


def timed(runtime: Runtime, frames: Array) -> tuple[float, float]:
    """Microseconds of decoding a frame at an app's threshold, and of `infer`: medians, interleaved."""
    from kasmina_edge.engines.postprocessing import BoxReader

    manifest = runtime.manifest
    assert manifest.postprocessing is not None
    model = next(m for m in manifest.models if m.engine == "litert")
    reader = BoxReader(
        manifest.postprocessing,
        list(zip(manifest.outputs, model.app_outputs, strict=True)),
        score_threshold=APP_THRESHOLD,
    )
    decoding, inferring = [], []
    for _ in range(_ROUNDS):
        for frame in frames[:_TIMED]:
            began = perf_counter_ns()
            result = runtime.infer(frame)
            inferring.append(perf_counter_ns() - began)
            raws = result.raw_outputs
            began = perf_counter_ns()
            reader(raws)
            decoding.append(perf_counter_ns() - began)
    return statistics.median(decoding) / 1000, statistics.median(inferring) / 1000
