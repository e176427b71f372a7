"""``fleet seeds``: what is measured at the seed sites of each device, and the latency of the fleet together."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from kasmina_edge.cli.fleet import FleetOption, JsonOption, open_fleet
from kasmina_edge.cli.output import emit, grid
from kasmina_edge.contracts.record import TelemetryRecord, printable
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.seed_rows import (
    SEED_COLUMNS,
    Distribution,
    completed,
    merged_latency,
    merged_score,
    newest_with_seeds,
    seed_table,
)


def seeds(
    device: Annotated[str | None, typer.Argument(help="Only this device; left out: every one.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Telemetry of the last so many minutes.")] = 60.0,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the graft at each seed site does on each device, and latency and scores of all of them together."""
    office = open_fleet(fleet)
    known = [d.id for d in office.config.devices]
    if device is not None and device not in known:
        raise InputError(f"{device}: not enrolled here", f"Enrolled: {', '.join(known) or 'none'}.")
    store = office.store()
    heard = {d: store.telemetry(d, time.time() - 60 * minutes) for d in ([device] if device else known)}
    newest = [found for records in heard.values() if (found := newest_with_seeds(records)) is not None]
    every: list[TelemetryRecord] = [record for records in heard.values() for record in records]
    latency, score = merged_latency(every), merged_score(every)
    rows = [tuple(map(printable, row)) for row in seed_table(newest)]
    value: dict[str, Any] = {
        "devices": {r.device: [json.loads(s.model_dump_json()) for s in completed(r)] for r in newest},
        "latency_us": _shares(latency),
        "score": _shares(score),
    }
    told = [
        Text(f"latency of {latency.count} inferences: {_quantiles(latency, 'us', '.0f')}"),
        Text(f"top score of {score.count} looked at: {_quantiles(score, '', '.3f')}"),
    ]
    if not rows:
        told.insert(0, Text("No device has sent seed telemetry in this time: an app has to infer there for a minute."))
    table = Group(*([grid("", SEED_COLUMNS, rows)] if rows else []), *told)
    emit(value, as_json=as_json, table=table)


def _shares(found: Distribution) -> dict[str, float | None]:
    return {"count": found.count, "p50": found.p50, "p90": found.p90, "p99": found.p99}


def _quantiles(found: Distribution, unit: str, form: str) -> str:
    if found.p50 is None or found.p90 is None or found.p99 is None:
        return "not measured"
    parts = (("p50", found.p50), ("p90", found.p90), ("p99", found.p99))
    return ", ".join(f"{name} {value:{form}} {unit}".rstrip() for name, value in parts)
