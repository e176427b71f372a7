"""``profile list|show|check``: hardware targets, where their numbers come from, and what a model costs there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from kasmina_edge.cli import profile_calibrate
from kasmina_edge.cli.bundle_map import model_bytes
from kasmina_edge.cli.output import emit, grid, plain, rows_table, size_text
from kasmina_edge.contracts.profile import HardwareProfile, find_profiles, load_profile, read_profile
from kasmina_edge.errors import InputError, KasminaError

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
DataOption = Annotated[
    Path, typer.Option("--data", envvar="KASMINA_DATA", help="Data folder; its `profiles` are looked into first.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--profiles", metavar="FOLDER", help="Own profiles; before all others.")
]
DEFAULT_DATA = Path("kasmina-data")
SLOWEST = 5
app = typer.Typer(help="Hardware targets: what they are, and what a model costs there.", no_args_is_help=True)
app.command("calibrate")(profile_calibrate.calibrate)


@app.command("list")
def list_command(profiles: FolderOption = None, data: DataOption = DEFAULT_DATA, as_json: JsonOption = False) -> None:
    """Every hardware target."""
    shelf = find_profiles(_folders(profiles, data))
    found = {name: profile for name, (profile, _) in sorted(shelf.profiles.items())}
    columns = ("profile", "alias", "chip", "kind", "anchors", "band", "what")
    rows: list[tuple[str, ...]] = [
        (p.name, ", ".join(p.aliases) or "-", p.chip, p.kind, str(len(p.anchors) or "-"), _band(_printed(p)),
         p.description)
        for p in found.values()
    ]  # fmt: skip
    rows += [(path.stem, *("-",) * 5, f"not read: {fault.message}") for path, fault in shelf.faults.items()]
    value: dict[str, Any] = {
        p.name: {"aliases": list(p.aliases), "chip": p.chip, "kind": p.kind, "anchors": len(p.anchors),
                 "band": _printed(p), "description": p.description}
        for p in found.values()
    }  # fmt: skip
    value |= {str(path): {"error": fault.message} for path, fault in shelf.faults.items()}
    emit(value, as_json=as_json, table=grid("", columns, rows))


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name, alias, or a .toml file.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="A bundle, .tflite or .onnx: what it costs there."),
    ] = None,
    profiles: FolderOption = None,
    data: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """One target with every number and its source; with --model, an estimate and its band."""
    profile = load_profile(name, _folders(profiles, data))
    if model is not None:
        value, page = _estimate(profile, model)
        emit(value, as_json=as_json, table=page)
        return
    fields = profile.model_dump(mode="json")
    value = {**fields, "predictions": [_figure(f) for f in _compare(profile)]}
    emit(value, as_json=as_json, table=_page(profile, fields))


@app.command("check")
def check_command(
    files: Annotated[list[str] | None, typer.Argument(help="Profile files or names; without, every one found.")] = None,
    profiles: FolderOption = None,
    data: DataOption = DEFAULT_DATA,
    as_json: JsonOption = False,
) -> None:
    """Whether profiles are well formed and usable, every number has a source, and bands hold their own anchors."""
    from kasmina_edge.hardware_simulator.anchoring import anchor_network

    folders = _folders(profiles, data)
    rows, faults, values = [], [], []
    if files:
        subjects = [(name, _read(name, folders)) for name in files]
    else:
        shelf = find_profiles(folders)
        subjects = [(name, profile) for name, (profile, _) in sorted(shelf.profiles.items())]
        for path, fault in shelf.faults.items():
            faults.append(fault.message)
            rows.append((path.stem, "FAIL", "-", "-", "-", fault.message))
            values.append({"file": str(path), "name": path.stem, "ok": False, "faults": [fault.message],
                           "anchors": []})  # fmt: skip
    for where, profile in subjects:
        figures = _compare(profile)
        wrong = [f"{key}: nobody says where it comes from" for key in profile.unsourced()]
        wrong += [
            f"{f.network}: published {f.published_ms} ms, predicted {f.predicted_ms:.4g} ms, band {_band(f.band)}"
            for f in figures
            if f.inside is False
        ]
        refused = _refused(profile)
        if refused and (profile.coefficients or any(f.why == refused for f in figures if anchor_network(f.network))):
            wrong.append(refused)
        faults += [f"{where}: {each}" for each in wrong]
        known = [f for f in figures if f.predicted_ms is not None]
        say = "; ".join(wrong) or f"profile {profile.name} is well formed{refused and f'; {refused}'}"
        worst = max((abs(f.off or 0.0) for f in known), default=None)
        off = "-" if worst is None else f"{100 * worst:.0f} %"
        rows.append((where, "FAIL" if wrong else "ok", f"{len(known)} of {len(figures)}", off, _band(_printed(profile)),
                     say))  # fmt: skip
        values.append({"file": where, "name": profile.name, "ok": not wrong, "faults": wrong,
                       "anchors": [_figure(f) for f in figures]})  # fmt: skip
    columns = ("profile", "", "anchors predicted", "at most off", "band", "what")
    first = values[0] if len(values) == 1 else {}
    value = {**first, "ok": not faults, "profiles": values}
    emit(value, as_json=as_json, table=grid("", columns, rows))
    if faults and not as_json:
        raise KasminaError(
            f"{len(faults)} faults; the first: {faults[0]}", "profiles/README.md says what a profile needs."
        )
    if faults:
        raise typer.Exit(1)


def _folders(profiles: Path | None, data: Path) -> tuple[Path, ...]:
    """Own folders, the nearest first.

    Raises:
        InputError: ``--profiles`` names none.
    """
    if profiles is not None and not profiles.is_dir():
        raise InputError(f"--profiles {profiles}: no such folder", "Name a folder of .toml files.")
    return tuple(folder for folder in (profiles, data / "profiles") if folder is not None)


def _read(name: str, folders: tuple[Path, ...]) -> HardwareProfile:
    file = Path(name)
    if file.is_dir():
        raise InputError(f"{name}: is a folder, expected a profile file (.toml)", "Give a folder as --profiles FOLDER.")
    if not file.exists() and ("/" in name or file.suffix):
        raise InputError(f"{name}: no such file", "Name a profile file (.toml), or a profile of `profile list`.")
    return read_profile(file) if file.exists() else load_profile(name, folders)


def _compare(profile: HardwareProfile) -> tuple[Any, ...]:
    from kasmina_edge.hardware_simulator.published import compare

    return compare(profile)


def _refused(profile: HardwareProfile) -> str:
    """Why nothing can be estimated from it, or ""."""
    from kasmina_edge.hardware_simulator import HardwareContext

    try:
        HardwareContext(profile)
    except InputError as exc:
        return exc.message
    return ""


def _figure(figure: Any) -> dict[str, Any]:
    return {"network": figure.network, "published_ms": figure.published_ms, "predicted_ms": figure.predicted_ms,
            "off": figure.off, "band": figure.band, "inside": figure.inside, "why": figure.why}  # fmt: skip


def _page(profile: HardwareProfile, fields: dict[str, Any]) -> RenderableType:
    """What it is, its numbers with their sources, its anchors with what is predicted for them."""
    words = [(key, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for key, v in fields.items()
             if key not in ("anchors", "coefficients", "sources") and v not in (None, "", [])
             and not isinstance(v, int | float)]  # fmt: skip
    numbers = [(key, _number(v), _source(profile, key)) for key, v in fields.items()
               if isinstance(v, int | float) and not isinstance(v, bool)]  # fmt: skip
    numbers += [(k, _number(v), _source(profile, f"coefficients.{k}")) for k, v in profile.coefficients.items()]
    anchors = [
        (
            f.network,
            _number(f.published_ms),
            "-" if f.predicted_ms is None else f"{f.predicted_ms:.4g}",
            "-" if f.off is None else f"{100 * f.off:+.0f} %",
            "-" if a.energy_uj is None else _number(a.energy_uj),
            a.source,
        )
        for f, a in zip(_compare(profile), profile.anchors, strict=True)
    ]
    parts: list[RenderableType] = [rows_table(words), plain(""), grid("", ("number", "value", "source"), numbers)]
    if anchors:
        columns = ("anchor", "published ms", "predicted ms", "off", "published uJ", "source")
        parts += [plain(""), grid("", columns, anchors)]
    else:
        parts += [plain("No anchors: every estimate from this profile says that its band is unknown.")]
    return Group(*parts)


def _source(profile: HardwareProfile, key: str) -> str:
    """The longest key of ``sources`` that covers it, or the file's own."""
    covering = [k for k in profile.sources if key == k or ("." in key and key.startswith((f"{k}.", k)))]
    return profile.sources[max(covering, key=len)] if covering else profile.source


def _estimate(profile: HardwareProfile, path: Path) -> tuple[dict[str, Any], RenderableType]:
    """What a model file costs there."""
    from kasmina_edge.hardware_simulator import HardwareContext, read_workload

    workload = read_workload(model_bytes(path), path.name)
    found = HardwareContext(profile).estimate(workload)
    energy = "unknown" if found.energy_uj is None else f"{found.energy_uj:.3g} uJ"
    rows = [
        ("model", f"{path.name}: {workload.macs:,} multiply-accumulates in {len(workload.ops)} operations"),
        ("profile", f"{profile.name}: {profile.chip}, {profile.runtime} {profile.runtime_version}"),
        ("latency", f"{found.latency_ms:.3g} ms, {_spoken(found.band)}"),
        ("energy", f"{energy} ({found.energy_how})"),
        *((f.memory, f"{size_text(f.needed_bytes)} of {size_text(f.there_bytes)}{'' if f.ok else ': does not fit'}")
          for f in found.memory),
        *(("note", note) for note in found.notes),
    ]  # fmt: skip
    order = sorted(range(len(found.ops)), key=lambda i: -found.ops[i].latency_us)[:SLOWEST]
    total_us = found.latency_ms * 1000.0 or 1.0
    slowest = [
        (workload.ops[i].place or f"op {i} {workload.ops[i].kind.upper()}", f"{found.ops[i].latency_us:,.1f}",
         f"{100 * found.ops[i].latency_us / total_us:.0f} %", found.ops[i].where, found.ops[i].bound)
        for i in order
    ]  # fmt: skip
    value = {
        "model": path.name, "profile": profile.name, "latency_ms": found.latency_ms, "band": found.band,
        "energy_uj": found.energy_uj, "energy_how": found.energy_how, "arena_bytes": found.arena_bytes,
        "constant_bytes": found.constant_bytes, "macs": workload.macs, "fits": found.fits, "notes": list(found.notes),
        "ops": [{"kind": w.kind, "latency_us": c.latency_us, "where": c.where, "bound": c.bound}
                for w, c in zip(workload.ops, found.ops, strict=True)],
    }  # fmt: skip
    columns = ("slowest", "us", "share", "where", "bound by")
    return value, Group(rows_table(rows), plain(""), grid("", columns, slowest))


def _printed(profile: HardwareProfile) -> float | None:
    """The band that estimates from it carry; None: unknown, for nothing was measured there."""
    return profile.error_band if profile.anchors else None


def _band(band: float | None) -> str:
    return "unknown" if band is None else f"± {100 * band:.0f} %"


def _spoken(band: float | None) -> str:
    return "band unknown" if band is None else f"± {100 * band:.0f} %"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
