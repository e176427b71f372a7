"""``profile calibrate``: measure this machine into a profile."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kasmina_edge.cli.output import console, emit, rows_table
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError, StorageError


def calibrate(
    base: Annotated[
        str | None, typer.Option("--base", metavar="PROFILE", help="Profile whose other fields stay as they are.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the new profile; without, the base's or this-cpu.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the TOML goes; without, it is printed.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="How long to measure; more give steadier figures.")] = 2.0,
    engine: Annotated[str, typer.Option("--engine", help="litert: the one that can be calibrated.")] = "litert",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure this machine's CPU into a profile, with a band from networks that were not fitted."""
    from kasmina_edge.hardware_simulator.calibrate import calibrate as measure
    from kasmina_edge.hardware_simulator.profile_text import profile_toml

    if engine != "litert":
        raise InputError(
            f"calibrate: engine {engine!r}; only litert is calibrated",
            "Leave --engine out; int8 nets are faster there.",
        )
    if out is not None and out.is_dir():
        raise InputError(f"{out}: is a folder", f"Name a file in it, e.g. {out / 'this-cpu.toml'}.")
    if out is not None and out.exists() and not force:
        raise InputError(f"{out}: is there already", "Name another file, or add --force.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}", "Make it, or name a file in another one.")
    if out is not None and not os.access(out if out.exists() else out.parent, os.W_OK):
        raise InputError(f"{out}: may not be written by this user", "Name a file in a folder of yours.")
    given = load_profile(base) if base is not None else None
    progress = console(stderr=True)
    with progress.status("loading") as status:
        profile, measured = measure(
            base=given,
            name=name,
            minutes=minutes,
            told=lambda kind, share: status.update(f"measuring {kind}: {100 * share:.0f} %"),
        )
    text = profile_toml(profile, comment="Measured on the machine itself. Keys and units: profiles/README.md.")
    if out is not None:
        _write(out, text)
    found: dict[str, Any] = {
        "profile": profile.name,
        "file": str(out) if out is not None else None,
        "band": profile.error_band,
        "measured": [
            {
                "numbers": each.kind,
                "band": each.model.band,
                "judged_on": len(each.off),
                "within_10_percent": round(each.within_tenth, 3),
                "reference_us": round(each.reference_us, 2),
                "spread": round(each.spread, 4),
            }
            for each in measured
        ],
    }
    if as_json:
        emit({**found, "toml": text}, as_json=True)
        return
    if out is None:
        sys.stdout.write(text)
    _tell(profile, found, progress_only=out is None)


def _tell(profile: HardwareProfile, found: dict[str, Any], *, progress_only: bool) -> None:
    rows = [("profile", f"{profile.name}: {profile.chip}, {profile.runtime_version}")]
    for each in found["measured"]:
        rows.append(
            (
                each["numbers"],
                f"band +-{100 * each['band']:.0f} %: {100 * each['within_10_percent']:.0f} % of {each['judged_on']} "
                f"networks that were not fitted are within 10 %; one measurement spreads {100 * each['spread']:.1f} %",
            )
        )
    if found["file"] is not None:
        rows.append(("written", f"{found['file']} (use it by that path, or put it into a folder of $KASMINA_PROFILES)"))
    console(stderr=progress_only).print(rows_table(rows))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise StorageError(f"{path}: cannot be written ({exc.strerror})", "Name a file in a folder of yours.") from exc
