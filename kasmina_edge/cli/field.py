"""``fleet frames`` and ``fleet erasures``: captured inputs for whoever labels them, and who has erased what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from kasmina_edge.cli.fleet import FleetOption, JsonOption, open_fleet
from kasmina_edge.cli.output import emit, grid
from kasmina_edge.contracts.record import printable
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.fleet.erasures import ErasureBook
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.storage import make_private_folder, write_durable

LABELS_FILE = "labels.csv"


def frames(
    device: Annotated[str, typer.Argument(help="Whose captured inputs.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder: one .npy a frame, and labels.csv to fill in.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Only those that arrived in the last so many minutes.")
    ] = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open a device's captured inputs for labelling; they lie readable in the folder, and are yours to delete."""
    from io import BytesIO

    import numpy as np

    from kasmina_edge.telemetry.captured_frame import open_capture

    office = open_fleet(fleet)
    entry = next((d for d in office.config.devices if d.id == device), None)
    if entry is None:
        raise InputError(f"{device}: not enrolled here", f"Enrolled: {_enrolled(office)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty", "Name a new folder.")
    since_s = time.time() - 60 * minutes if minutes is not None else 0.0
    key, written, refused = office.sealing_key(), [], 0
    make_private_folder(out)
    for stored in office.store().captures(device):
        if stored.received_s < since_s:
            continue
        try:
            frame = open_capture(stored.payload, key, entry.public_key)
        except KasminaError:
            refused += 1
            continue
        if frame.digest not in written:
            data = BytesIO()
            np.save(data, frame.array, allow_pickle=False)
            write_durable(out / f"{frame.digest}.npy", data.getvalue())
            written.append(frame.digest)
    write_durable(out / LABELS_FILE, "".join(["digest,label\n", *(f"{digest},\n" for digest in written)]).encode())
    told = f", {refused} could not be trusted" if refused else ""
    emit(
        {"frames": len(written), "refused": refused, "out": str(out)},
        as_json=as_json,
        table=f"{len(written)} captured inputs of {device} in {out}{told}; fill in {LABELS_FILE}, then "
        f"`kasmina-edge fleet captures {device} --labels {out / LABELS_FILE} --out captured.npz`",
    )


def erasures(fleet: FleetOption = None, as_json: JsonOption = False) -> None:
    """Every erasure that was demanded, and which devices have proven it."""
    office = open_fleet(fleet)
    store = office.store()
    proofs: dict[str, dict[str, int]] = {}
    for entry in office.config.devices:
        for name, count in _proofs(e.payload for e in store.events(entry.id, 10_000)):
            proofs.setdefault(name, {})[entry.id] = count
    rows, value = [], {}
    for demand in ErasureBook(office.folder / "erasures.json").all():
        due = [d.id for d in office.config.devices if demand.device in (None, d.id)]
        done = proofs.get(demand.id, {})
        waiting = [d for d in due if d not in done]
        rows.append(
            (
                demand.id,
                demand.device or "@all",
                f"{_day(demand.from_s)} to {_day(demand.to_s)}",
                printable(", ".join(f"{d} ({done[d]} frames)" for d in due if d in done)) or "nobody yet",
                ", ".join(waiting) or "-",
            )
        )
        value[demand.id] = {**json.loads(demand.to_bytes()), "proven": done, "waiting": waiting}
    table: Any = grid("", ("erasure", "of", "span (UTC)", "proven by", "waits for"), rows) if rows else "None demanded."
    emit({"erasures": value}, as_json=as_json, table=table)


def _proofs(payloads: Iterator[bytes]) -> Iterator[tuple[str, int]]:
    """Erasure and number of frames of each proof among a device's audit events."""
    for payload in payloads:
        event = json.loads(payload)
        fields = event.get("fields")
        if event.get("event") == "captures_erased" and isinstance(fields, dict):
            yield str(fields.get("erasure", ""))[:64], int(fields.get("frames", 0))


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(min(at_s, 253_402_300_799.0)))


def _enrolled(office: FleetFolder) -> str:
    return ", ".join(d.id for d in office.config.devices) or "none"
