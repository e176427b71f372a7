"""``audit verify|tail``: whether a hash-chained log is whole, and what it says."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.cli.output import emit, grid
from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.safety.audit import Head, head_path, tail, verify
from kasmina_edge.updates.floor import FloorFile

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
DEFAULT_LOG = Path("kasmina-data") / "audit.log"
_HEX = frozenset("0123456789abcdef")
app = typer.Typer(help="The hash-chained audit log.", no_args_is_help=True)


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="An audit.log, or a data folder.")] = DEFAULT_LOG,
    head: Annotated[
        str | None, typer.Option("--head", help="SEQUENCE:HASH that somebody else remembers, e.g. the controller.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether the chain holds, and reaches what its head, the floor file beside it, and ``--head`` remember."""
    path = _log_in(path)
    anchor = _told(head) if head is not None else _anchor(path)
    if not head_path(path).exists() and anchor is None:  # with either, a log that is gone was removed
        _require_log(path)
    report = verify(path, remembered=anchor)
    if not report.ok:
        where = f"line {report.first_bad_line}" if report.first_bad_line else "its end"
        raise TrustError(f"{path}: {where}: {report.reason}", "Keep the file; somebody changed it.", breach="tamper")
    value = {
        "ok": report.ok,
        "entries": report.entries,
        "first_bad_line": report.first_bad_line,
        "reason": report.reason,
        "head": dataclasses.asdict(report.head) if report.head else None,
        "anchor": dataclasses.asdict(anchor) if anchor else None,
    }
    known = f", and it has entry {anchor.seq} that is remembered elsewhere" if anchor else ""
    emit(value, as_json=as_json, table=f"{path}: {report.entries} entries, the chain holds{known}")


@app.command("tail")
def tail_command(
    path: Annotated[Path, typer.Argument(help="An audit.log, or a data folder.")] = DEFAULT_LOG,
    lines: Annotated[int, typer.Option("-n", min=1, help="How many entries.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """The newest entries, oldest first."""
    path = _log_in(path)
    _require_log(path)
    entries = tail(path, lines)
    rows = [
        (str(e.seq), _utc(e.at_s), e.event, ", ".join(f"{k} {_short(v)}" for k, v in e.fields.items())) for e in entries
    ]
    emit(
        {"entries": [dataclasses.asdict(entry) for entry in entries]},
        as_json=as_json,
        table=grid(str(path), ("entry", "time (UTC)", "event", "what"), rows),
    )


def _utc(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


def _short(value: object) -> str:
    """A value for people: digests by their first 12 characters."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:12] if len(text) == 64 and set(text) <= _HEX else text


def _log_in(path: Path) -> Path:
    """The log itself, or that of a data folder."""
    return path / "audit.log" if path.is_dir() and (path / "audit.log").exists() else path


def _anchor(path: Path) -> Head | None:
    """What the floor file of the same data folder remembers; None for a log that lies elsewhere."""
    floor = FloorFile(path.parent / "trust" / "floor").read(must_exist=False).audit
    return None if floor is None else Head(floor.seq, floor.hash)


def _told(text: str) -> Head:
    seq, _, digest = text.partition(":")
    if not seq.isdecimal() or len(digest) != 64 or not set(digest) <= _HEX:
        raise InputError(f"--head {text}: expected SEQUENCE:HASH with 64 hex digits")
    return Head(int(seq), digest)


def _require_log(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected an audit.log")
    if not path.exists():
        raise InputError(f"{path}: no such file", "Name an audit.log; a device's lies in its data folder.")
