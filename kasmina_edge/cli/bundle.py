"""Looking at files: ``bundle show|verify``, ``profile list|show|check``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.bundle import read_file
from kasmina_edge.cli import bundle_create
from kasmina_edge.cli.output import emit, grid, kilobytes, rows_table
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.profile import list_profiles, load_profile, read_profile
from kasmina_edge.errors import InputError
from kasmina_edge.updates.trust import TrustStore, verify_bundle

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
app = typer.Typer(help="Make bundles from model files, and look into them.", no_args_is_help=True)
bundle_create.register(app)
profile_app = typer.Typer(help="Hardware targets.", no_args_is_help=True)
DEFAULT_DATA = Path("kasmina-data")


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
            else (f"top-1 agreement with float {100 * parity.top1_agreement:.1f} % of {parity.samples}")
        )
        state = ", keeps state" if model.stateful else ""
        rows.append((model.file.path, f"{kilobytes(model.file.size_bytes)}, {model.engine}, {proof}{state}"))
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


@profile_app.command("list")
def profile_list(as_json: JsonOption = False) -> None:
    """Every hardware target."""
    profiles = list_profiles()
    rows = [
        (p.name, ", ".join(p.aliases) or "-", p.chip, f"{100 * p.error_band:.0f} %", p.description)
        for p in profiles.values()
    ]
    emit(
        {p.name: p.description for p in profiles.values()},
        as_json=as_json,
        table=grid("", ("profile", "alias", "chip", "band", "what"), rows),
    )


@profile_app.command("show")
def profile_show(name: str, as_json: JsonOption = False) -> None:
    """One target with its figures and their source."""
    profile = load_profile(name)
    value = profile.model_dump(mode="json")
    rows = [(k, str(v)) for k, v in value.items() if k != "anchors" and v is not None]
    rows += [("anchor", f"{a.network}: {a.latency_ms} ms ({a.source})") for a in profile.anchors]
    emit(value, as_json=as_json, table=rows_table(rows))


@profile_app.command("check")
def profile_check(path: str, as_json: JsonOption = False) -> None:
    """Whether a profile file is well formed."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{path}: is a folder, expected a profile file (.toml)")
    if not file.exists() and ("/" in path or file.suffix):
        raise InputError(f"{path}: no such file", "Name a profile file (.toml), or a profile of `profile list`.")
    profile = read_profile(file) if file.exists() else load_profile(path)
    emit({"ok": True, "name": profile.name}, as_json=as_json, table=f"{path}: profile {profile.name} is well formed")
