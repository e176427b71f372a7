"""What a graft costs on the air: the model delta, beside the whole file and beside a fully fine-tuned host.

One host, one depthwise graft for a lens out of focus, and one full fine-tuning of the same host on the same samples,
all exported by the product's own route. Bytes are exact and repeat from run to run.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import zstandard
from torch import nn

from kasmina_edge.updates.delta import make_delta
from kasmina_trainer.datasets.corruptions import blur
from kasmina_trainer.datasets.digits import split_digits, to_nhwc
from kasmina_trainer.evolve import GRAFT_SETTINGS, evolve
from kasmina_trainer.export import parity, tflite
from kasmina_trainer.seeds import attach_seeds
from kasmina_trainer.training import as_tensors, train, train_host

SHARE_TARGET = 0.08
ALLOWANCE_BYTES = 4500
CAPTURED = 200
_SEED = 0


def rows() -> list[dict[str, Any]]:
    """Model delta against its two targets, and what it spares."""
    parts = split_digits(_SEED)
    host = train_host(parts.host, seed=_SEED)
    learn, judge = parts.camera.take(slice(0, CAPTURED)), parts.camera.take(slice(CAPTURED, len(parts.camera)))
    captured, unseen = blur(learn.x), blur(judge.x)
    grown = evolve(
        attach_seeds(host),
        train=(parts.host.x, parts.host.y),
        target=(captured, learn.y),
        holdout_clean=(parts.probes.x, parts.probes.y),
        holdout_target=(unseen, judge.y),
        rival=False,
        seed=_SEED,
    )
    clean = to_nhwc(parts.host.x)
    mixed = np.concatenate([clean[:CAPTURED], to_nhwc(captured)])
    held_out = np.concatenate([to_nhwc(parts.probes.x), to_nhwc(parts.check.x), to_nhwc(unseen)])
    labels = np.concatenate([parts.probes.y, parts.check.y, judge.y])

    def export(module: nn.Module, calibration: Any, parent: bytes | None) -> tflite.TfliteExport:
        return tflite.export_tflite(
            module,
            calibration=calibration,
            held_out=held_out,
            labels=labels,
            float_logits=parity.float_logits(module, held_out),
            parent=parent,
        )

    parent = export(host, clean[: 2 * CAPTURED], None).data
    graft = export(grown.module_for_export(), mixed, parent)
    tuned_host = copy.deepcopy(host).requires_grad_(True)
    train(
        tuned_host,
        list(tuned_host.parameters()),
        [as_tensors((parts.host.x, parts.host.y), "cpu"), as_tensors((captured, learn.y), "cpu")],
        settings=GRAFT_SETTINGS,
        seed=_SEED,
    )
    tuned = export(tuned_host.eval().requires_grad_(False), mixed, parent)

    size = len(graft.data)
    delta = len(make_delta(parent, graft.data))
    by_name = {c.name: len(make_delta(parent, c.data)) for c in graft.candidates}
    best_tuned = min(len(make_delta(parent, c.data)) for c in tuned.candidates)
    places = ", ".join(f"{g.blueprint}@{g.site}" for g in grown.grafts)
    story = (
        f"{places}, {grown.parameters} parameters, int8 TFLite of {size} B, names stripped; shipped version: "
        f"{graft.chosen.name}, {graft.chosen.pinned} of {graft.chosen.inherited} ranges from the host, accuracy "
        f"{graft.chosen.accuracy:.4f}, agreement {graft.chosen.agreement:.4f} on {len(held_out)} held-out inputs"
    )
    others = "; ".join(
        f"{c.name}: {by_name[c.name]} B, accuracy {c.accuracy:.4f}, agreement {c.agreement:.4f}"
        for c in graft.candidates
    )
    return [
        _row("delta.model_share", SHARE_TARGET, delta / size, "of the file", story),
        _row("delta.model_minus_parameters", ALLOWANCE_BYTES, delta - grown.parameters, "B", f"delta of {delta} B"),
        _row("delta.model_free_ranges", None, by_name["free"], "B", others),
        _row("delta.whole_file_zstd19", None, len(zstandard.ZstdCompressor(19).compress(graft.data)), "B", "beside it"),
        _row(
            "delta.fine_tuned_host", None, best_tuned, "B",
            f"smallest delta of {len(tuned.candidates)} quantized versions; every parameter of the host fine-tuned on "
            f"the same samples, accuracy {tuned.chosen.accuracy:.4f}",
        ),
    ]  # fmt: skip


def _row(name: str, target: float | None, measured: float, unit: str, how: str) -> dict[str, Any]:
    ok = target is None or measured <= target
    return {"name": name, "target": target, "measured": measured, "unit": unit, "ok": bool(ok), "how": how}
