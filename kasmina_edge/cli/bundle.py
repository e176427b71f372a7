"""Looking into bundles: ``bundle show|verify``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.bundle import read_file
from kasmina_edge.cli import bundle_create, bundle_map
from kasmina_edge.cli.output import emit, rows_table, size_text
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.updates.trust import TrustStore, verify_bundle

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
app = typer.Typer(help="Make bundles from model files, and look into them.", no_args_is_help=True)
bundle_create.register(app)
bundle_map.register(app)
DEFAULT_DATA = Path("kasmina-data")
_COMPARED = {
    "classification": "top-1 agreement with float",
    "detection": "boxes shared with float",
    "other": "least likeness (cosine) to float",
}


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A .kasmina file.")], as_json: JsonOption = False) -> None:
    """What a bundle holds; signatures are `bundle verify`'s work."""
    manifest = read_file(path).manifest
    rows = [
        ("bundle", f"{manifest.id}  release {manifest.release}  {short_digest(manifest.digest())}"),
        ("profile", manifest.profile),
        (
            "grafts",
            ", ".join(
                f"{g.blueprint} v{g.blueprint_version} @ {g.site}, {g.parameters} parameters" for g in manifest.grafts
            )
            or "none: this is a host",
        ),
        ("domains", ", ".join(d.name for d in manifest.domains) or "none"),
    ]
    for model in manifest.models:
        parity = model.parity
        proof = (
            "parity not measured"
            if parity is None
            else f"{_COMPARED[manifest.head]} {100 * parity.top1_agreement:.1f} % of {parity.samples}"
        )
        state = ", keeps state" if model.stateful else ""
        rows.append((model.file.path, f"{size_text(model.file.size_bytes)}, {model.engine}, {proof}{state}"))
    if manifest.acceptance is not None:
        a = manifest.acceptance
        rows.append(
            (
                "acceptance",
                f"{'accepted' if a.accepted else 'NOT accepted'}: target {100 * a.target_before:.1f} -> "
                f"{100 * a.target_after:.1f} %, clean {100 * a.clean_before:.1f} -> "
                f"{100 * a.clean_after:.1f} % {'; '.join(a.reasons)}",
            )
        )
    emit(manifest.model_dump(mode="json"), as_json=as_json, table=rows_table(rows))


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="A .kasmina file.")],
    data: Annotated[
        Path, typer.Option("--data", envvar="KASMINA_DATA", help="Whose pinned root to hold it against.")
    ] = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """Check every digest and signature, offline."""
    bundle = read_file(path)
    pinned, clock = None, time.time
    if (data / "trust").is_dir():
        trust = TrustStore(data / "trust", clock=time.time)
        pinned, clock = trust.root() if trust.kind else None, trust.now
    by = verify_bundle(bundle, pinned_root=pinned, clock=clock)
    emit(
        {"verified": True, "kind": by.kind, "role": by.role, "key_id": by.key_id, "digest": bundle.manifest.digest()},
        as_json=as_json,
        table=f"{bundle.manifest.id}: verified, signed by role {by.role} under {by.kind} root {by.key_id[:12]}",
    )
