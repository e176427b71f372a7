"""The controller's verbs for captured inputs: open them with labels, and erase them everywhere."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from kasmina_edge.cli.fleet import FleetOption, JsonOption, OfflineOption, offline_folder, open_fleet
from kasmina_edge.cli.output import emit, plain, rows_table
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.change_plan import Erasure
from kasmina_edge.errors import InputError, PlanError
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.storage import write_durable


def register(app: typer.Typer) -> None:
    """Add the verbs to ``fleet``."""
    app.command()(captures)
    app.command()(erase)


def captures(
    device: Annotated[str, typer.Argument(help="Whose captured inputs.")],
    labels: Annotated[Path, typer.Option("--labels", help="Annotator's CSV: digest,label.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the .npz for `kasmina-trainer evolve`.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Only those that arrived in the last so many minutes.")
    ] = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open a device's captured inputs and join them with an annotator's labels."""
    since_s = time.time() - 60 * minutes if minutes is not None else 0.0
    exported = export_captures(open_fleet(fleet), device, labels, since_s=since_s)
    write_durable(out, pack_arrays({"x": exported.x, "y": exported.y}))
    write_durable(out.with_suffix(".batches.json"), json.dumps(list(exported.batches)).encode())
    emit(
        {"samples": len(exported.y), "unlabelled": exported.unlabelled, "unknown": exported.unknown, "out": str(out)},
        as_json=as_json,
        table=f"{len(exported.y)} labelled inputs of {device} written to {out} "
        f"({exported.unlabelled} without a label, {exported.unknown} labels without an input)",
    )


def export_captures(office: FleetFolder, device: str, labels: Path, *, since_s: float) -> Any:
    """Captured inputs of one device with labels; see `kasmina_edge.fleet.captures`."""
    from kasmina_edge.fleet.captures import export_labelled, read_annotations

    entry = next((d for d in office.config.devices if d.id == device), None)
    if entry is None:
        raise InputError(f"{device}: not enrolled here", f"Enrolled: {', '.join(d.id for d in office.config.devices)}.")
    return export_labelled(
        office.store(),
        office.sealing_key(),
        {device: entry.public_key},
        read_annotations(labels),
        devices=[device],
        since_s=since_s,
    )


def erase(
    device: Annotated[str, typer.Argument(help="Device id, or @all.")],
    since: Annotated[str, typer.Option("--from", help="ISO 8601 moment, by the device's clock.")] = "1970-01-01",
    until: Annotated[str | None, typer.Option("--to", help="ISO 8601 moment; now by default.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="Names the demand in the audit logs.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    fleet: FleetOption = None,
    offline_keys: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase captured inputs here, on devices and on their way; name the grafts that learned from them."""
    office = open_fleet(fleet)
    try:
        demand = Erasure.parse(
            {
                "id": name or f"erasure-{secrets.token_hex(4)}",
                "device": None if device == "@all" else device,
                "from_s": _moment(since),
                "to_s": _moment(until) if until else time.time(),
            },
            where="erase",
        )
    except PlanError as exc:
        raise InputError(exc.message, "Pass --from before --to, and a device id or @all.") from exc
    if not yes and not as_json:
        typer.confirm(
            f"Erase the captured inputs of {device} from {_said(demand.from_s)} to {_said(demand.to_s)}?", abort=True
        )
    done = office.erase(demand, offline_folder(office, offline_keys))
    rows = [
        ("erased here", f"{len(done.removed)} captured inputs"),
        (
            "devices",
            "; ".join(f"change plan {serial} for {bundle}" for bundle, serial in done.plans)
            or "no change plan is signed: nothing reaches devices",
        ),
        ("learned from", "; ".join(done.grafts) or "no published graft names what was erased"),
    ]
    if done.grafts:
        rows.append(("next", "kasmina-edge fleet withdraw NAME, then grow again without it"))
    value = {
        "erasure": json.loads(demand.to_bytes()),
        "removed": len(done.removed),
        "plans": dict(done.plans),
        "grafts": list(done.grafts),
    }
    if not as_json:
        from kasmina_edge.cli.output import console

        console().print(
            plain(f"Erasure {demand.id}: devices carry it out with their next check and prove it in their audit logs.")
        )
    emit(value, as_json=as_json, table=rows_table(rows))


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InputError(
            f"{text!r}: not an ISO 8601 moment", "For example 2026-11-01 or 2026-11-01T08:00:00Z."
        ) from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _said(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
