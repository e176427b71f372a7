"""``export``: a signed bundle from a checkpoint, or from a user's own ``.pt2`` or ``.onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from kasmina_edge.cli.output import emit, rows_table, size_text
from kasmina_edge.errors import InputError
from kasmina_trainer.cli import captured as captures
from kasmina_trainer.cli.options import GROWN_FILE, HOST_FILE, Captured, Json, Out, Seed, Simulated
from kasmina_trainer.cli.own_network import both_worlds, export_grown, load_grown
from kasmina_trainer.cli.progress import busy
from kasmina_trainer.datasets import digits
from kasmina_trainer.datasets.scenes import divide

if TYPE_CHECKING:
    from kasmina_edge.bundle import Bundle
    from kasmina_trainer.checkpoints import Checkpoint
    from kasmina_trainer.export.report import Exported


def export(
    model: Annotated[
        Path | None,
        typer.Argument(help="A .pt2 (torch.export.save), an .onnx, or a checkpoint; without it, the newest in OUT."),
    ] = None,
    out: Out = Path("build"),
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="What to export; the grown one in OUT, else the host."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the bundle; digits for a checkpoint, else the file's.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Semantic version; 1.0.0, and 1.1.0 when grown.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Hardware target.")] = "coral",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="For MODEL: .npz with x (N, H, W, C), (N, L, C) or (N, C), and y if known."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="For MODEL: the same for parity; every fourth calibration frame without it."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="For MODEL: class names, comma-separated, or a file with one a line.")
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Bits of the weights: 8, 4 or float.")] = "8",
    minimum_agreement: Annotated[
        float | None,
        typer.Option("--minimum-agreement", min=0, max=1, help="Share of answers that must stay; 0.99 by default."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="For MODEL: channels-last (the app's frames), or as-is.")
    ] = "channels-last",
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="For an .onnx with open axes, batch included: 1,3,96,96.")
    ] = None,
    require_mapping: Annotated[
        bool, typer.Option("--require-mapping", help="Fail where an Edge TPU would not run all of it.")
    ] = False,
    host: Annotated[
        Path | None,
        typer.Option("--host", help="For a checkpoint that grew on your own network: its .pt2 or .onnx."),
    ] = None,
    parent: Annotated[
        Path | None, typer.Option("--parent", help="The host's bundle, under grafts; the newest in OUT when left out.")
    ] = None,
    captured: Captured = None,
    simulated: Simulated = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Quantize, prove TFLite and ONNX against torch, and sign OUT/NAME-VERSION.kasmina with the desk key.

    Nothing in MODEL is executed: pickles are refused. A model card is written beside the bundle.
    """
    from kasmina_trainer.cli import export_model, exported
    from kasmina_trainer.export.report import quantization_report
    from kasmina_trainer.export.writing import write_bundle

    form = export_model.form_of(weights, profile)
    options: dict[str, Any] = {
        "profile": profile,
        "minimum_agreement": minimum_agreement,
        "require_mapping": require_mapping,
        "seed": seed,
        **form,
    }
    if model is not None and not export_model.is_checkpoint(model):
        if checkpoint or host or parent or captured or simulated:
            raise InputError(
                "--checkpoint, --host, --parent, --captured and --simulated belong to a checkpoint, MODEL is none"
            )
        with busy("Reading, quantizing and checking against torch", quiet=as_json):
            bundle, more, made = export_model.export_file(
                model,
                name=name,
                version=version or "1.0.0",
                calibration=calibration,
                held_out=held_out,
                labels=labels,
                layout=layout,
                input_shape=input_shape,
                options=options,
            )
    elif host is not None:
        more = ()
        rows_of = both_worlds(host, calibration, captured)
        saved, own_network = load_grown(model or checkpoint or out / GROWN_FILE, host)
        own = name or export_model.bundle_name(host)
        version = version or "1.1.0"
        with busy("Quantizing and checking against torch", quiet=as_json):
            bundle, made = export_grown(
                saved,
                own_network,
                own,
                version=version,
                parent=_parent(parent, out, own),
                calibration=rows_of[0],
                held_out=held_out,
                captured=rows_of[1],
                labels=labels,
                options=options,
            )
    else:
        more = ()
        saved = _load(model or checkpoint or _newest(out))
        own = name or "digits"
        under = _parent(parent, out, own) if saved.grafts else None
        version = version or ("1.1.0" if saved.grafts else "1.0.0")
        with busy("Quantizing and checking against torch", quiet=as_json):
            bundle, made = _export(saved, own, version, under, captured, simulated, seed, options)
    path = write_bundle(bundle, out)
    card = path.with_suffix(".card.md")
    with busy("Measuring layer by layer", quiet=as_json):
        report = quantization_report(bundle, made)
    manifest = bundle.manifest
    rows = [("bundle", f"{manifest.id}, {len(manifest.grafts)} grafts, content {manifest.content_digest()[:12]}")]
    rows += more
    if manifest.acceptance is not None and not manifest.acceptance.accepted:
        rows.append(("gate", f"REFUSED what grew: {'; '.join(manifest.acceptance.reasons)}; grow it again before use"))
    for entry in manifest.models:
        rows.append((entry.engine, f"{size_text(entry.file.size_bytes)}, {export_model.proof(manifest, entry)}"))
    rows += [*exported.report_rows(report), *exported.estimate_rows(bundle), *export_model.mapping_rows(bundle)]
    value = {
        "file": str(path),
        "card": str(card),
        "digest": manifest.content_digest(),
        "manifest": manifest.model_dump(mode="json"),
        "mapping": export_model.mapping_value(bundle),
        "estimate": exported.estimate_value(bundle),
        "quantization": None if report is None else report.as_data(),
    }
    emit(value, as_json=as_json, table=rows_table([*rows, ("card", str(card)), ("written", str(path))]))


def _load(path: Path) -> Checkpoint:
    from kasmina_trainer.checkpoints import load_checkpoint

    return load_checkpoint(path)


def _newest(out: Path) -> Path:
    return next((p for p in (out / GROWN_FILE, out / HOST_FILE) if p.is_file()), out / HOST_FILE)


def _parent(parent: Path | None, out: Path, name: str) -> Bundle:
    from kasmina_edge.bundle import read_file

    if parent is not None:
        return read_file(parent)
    hosts = [b for b in map(read_file, sorted(out.glob(f"{name}-*.kasmina"))) if not b.manifest.grafts]
    if not hosts:
        raise InputError(
            f"{out}: no bundle of the host below these grafts",
            f"Export the host first (kasmina-trainer export --checkpoint {out / HOST_FILE}, or your own .pt2), or pass "
            "--parent.",
        )
    return max(hosts, key=lambda bundle: bundle.manifest.version_key())


def _export(
    saved: Checkpoint,
    name: str,
    version: str,
    parent: Bundle | None,
    captured: Path | None,
    simulated: str | None,
    seed: int,
    options: dict[str, Any],
) -> tuple[Bundle, Exported]:
    """A checkpoint of the digits host, with or without grafts, and what it was made of."""
    from kasmina_trainer.export.bundle import export_bundle
    from kasmina_trainer.export.documents import ModelCard
    from kasmina_trainer.export.report import Exported

    parts = digits.split_digits(int(saved.metadata.get("seed", seed)))
    calibration, domains = parts.host.nhwc(), {"clean": parts.probes.nhwc()}
    frames = [(parts.check.nhwc(), parts.check.y), (parts.probes.nhwc(), parts.probes.y)]
    if saved.grafts:
        x, y = captures.target(captured, simulated, parts.camera, seed)
        divided = divide(x, seed=int(saved.metadata.get("growth_seed", seed)))
        x = digits.to_nhwc(x)
        domains["captured"] = x[divided.learn]
        calibration = np.concatenate([calibration, x[divided.learn]])
        frames.append((x[divided.judge], y[divided.judge]))
    held_out = np.concatenate([x for x, _ in frames])
    truth = np.concatenate([y for _, y in frames])
    bundle = export_bundle(
        saved.network,
        name,
        version=version,
        calibration=calibration,
        held_out=(held_out, truth),
        labels=digits.LABELS,
        domains=domains,
        probes=(parts.probes.nhwc(), parts.probes.y),
        parent=parent,
        grafts=saved.grafts,
        acceptance=saved.acceptance,
        card=ModelCard(
            description="Handwritten digits, one a frame.",
            training_data=("scikit-learn load_digits",),
            evaluation_data=("scikit-learn load_digits, held out",),
        ),
        **options,
    )
    module = saved.network.module_for_export()
    return bundle, Exported(module, calibration, held_out, truth, options.get("quantize"))
