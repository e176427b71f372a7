"""``plot``: a model file on a target, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.cli.output import emit, rows_table, size_text
from kasmina_trainer.cli.options import Json


def plot(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .tflite, .onnx or .kasmina file.")],
    profile: Annotated[str, typer.Option("--profile", help="Hardware target.")] = "coral",
    out: Annotated[Path | None, typer.Option("--out", help="The page; MODEL.PROFILE.html when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate a model on a target and draw it: time of every operation, memory over time, roofline."""
    from kasmina_edge.contracts.profile import load_profile
    from kasmina_edge.errors import InputError
    from kasmina_edge.hardware_simulator import HardwareContext, read_workload
    from kasmina_edge.storage import write_durable
    from kasmina_trainer.pages.hardware import hardware_page

    target = load_profile(profile)
    if not model.is_file():
        raise InputError(f"{model}: no such file", "Name a .tflite, .onnx or .kasmina file.")
    data = model.read_bytes()
    if model.suffix == ".kasmina":
        data = _inside(model)
    workload = read_workload(data, model.stem)
    estimate = HardwareContext(target).estimate(workload)
    path = out or model.with_name(f"{model.stem}.{target.name}.html")
    write_durable(path, hardware_page(workload, target).encode(), mode=0o644)
    value = {
        "file": str(path), "profile": target.name, "latency_ms": estimate.latency_ms, "band": estimate.band,
        "arena_bytes": estimate.arena_bytes, "constant_bytes": estimate.constant_bytes, "fits": estimate.fits,
        "energy_uj": estimate.energy_uj, "notes": list(estimate.notes),
    }  # fmt: skip
    rows = [
        ("latency", f"{estimate.latency_ms:.3g} ms {estimate.band_text}, estimated for {target.name}"),
        (
            "memory",
            f"{size_text(estimate.arena_bytes)} of activations, {size_text(estimate.constant_bytes)} of weights",
        ),
        *(("note", note) for note in estimate.notes),
        ("page", str(path)),
    ]
    emit(value, as_json=as_json, table=rows_table(rows))


def _inside(bundle: Path) -> bytes:
    """The plain TFLite file of a bundle."""
    from kasmina_edge.bundle import read_file
    from kasmina_edge.errors import InputError

    found = read_file(bundle)
    for model in found.manifest.models:
        if model.engine == "litert" and model.compiled_for is None and model.file.path in found.files:
            return found.read(model.file)
    raise InputError(f"{bundle}: no plain TFLite file in it, it holds {', '.join(found.engines())}")
