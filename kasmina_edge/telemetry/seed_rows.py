"""What a reader does with seed records: complete rows for a policy, and the sums over windows, devices and fleets.

Pure functions of `TelemetryRecord` values; controller, monitor and trainer use them alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kasmina_edge.contracts.record import HardwareContext, SafetyScores, SeedTelemetry, TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.sketch import LogHistogram, merge_sketches

log = logging.getLogger(__name__)


def completed(record: TelemetryRecord) -> tuple[SeedTelemetry, ...]:
    """Every seed row of a record with what the record says once for all of them.

    Hardware comes from the record; age, budget, reason and safety from the row of the whole model; drift and check
    accuracy from the record. What a row says itself stands. Empty where the record carries no seeds.
    """
    rows = record.seeds or ()
    whole = next((row for row in rows if not row.site), None)
    shares = {"drift": record.drift} if record.drift is not None else {}
    if record.check_frames:
        shares["check_accuracy"] = min(record.check_correct, record.check_frames) / record.check_frames
    found = []
    for row in rows:
        base = row.safety or (whole.safety if whole else None) or SafetyScores()
        safety = base.model_copy(update={name: v for name, v in shares.items() if getattr(base, name) is None})
        hardware = row.hardware or record.hardware
        update = {
            "hardware": hardware if hardware is not None and hardware.measured else None,
            "safety": safety if safety.measured else None,
            "budget": row.budget or (whole.budget if whole else None),
            "reason": row.reason or (whole.reason if whole else None),
        }
        found.append(row.model_copy(update=update))
    return tuple(found)


@dataclass(frozen=True)
class Distribution:
    """Quantiles of a merged sketch, each within 1 %; None where nothing was measured.

    Attributes:
        count: Values behind it.
        skipped: Sketches that could not be read.
    """

    count: int
    p50: float | None
    p90: float | None
    p99: float | None
    skipped: int = 0


def merged_latency(records: Iterable[TelemetryRecord]) -> Distribution:
    """Latency of all records together, microseconds: of one device, or of a fleet."""
    return _distribution(record.latency_sketch for record in records)


def merged_score(records: Iterable[TelemetryRecord]) -> Distribution:
    """Top scores of all records together, shares of 1."""
    return _distribution(record.score_sketch for record in records)


def _distribution(texts: Iterable[str | None]) -> Distribution:
    parts, skipped = [], 0
    for text in texts:
        if text is None:
            continue
        try:
            parts.append(LogHistogram.decode(text))
        except InputError as exc:
            skipped += 1
            log.debug("a sketch was left out: %s", exc.message)
    total = merge_sketches(parts)
    p50, p90, p99 = (total.quantile(share) for share in (0.5, 0.9, 0.99))
    return Distribution(total.count, p50, p90, p99, skipped)


def newest_with_seeds(records: Sequence[TelemetryRecord]) -> TelemetryRecord | None:
    """The newest record under the present bundle that carries seed rows; None where there is none."""
    if not records:
        return None
    latest = max(records, key=lambda r: r.started_s)
    for record in sorted(records, key=lambda r: r.started_s, reverse=True):
        if record.bundle == latest.bundle and record.seeds:
            return record
    return None


def newest_hardware(records: Sequence[TelemetryRecord]) -> HardwareContext | None:
    """The newest hardware context; None where none was sent."""
    known = [r for r in records if r.hardware is not None]
    return max(known, key=lambda r: r.started_s).hardware if known else None


SEED_COLUMNS = (
    "device", "site", "graft", "utilization", "contribution", "drift", "variance", "age", "parameters left",
)  # fmt: skip


def seed_table(records: Iterable[TelemetryRecord]) -> list[tuple[str, ...]]:
    """Cells for the monitor's table of seed sites, one row a site, columns as `SEED_COLUMNS`.

    Args:
        records: One of each device, as `newest_with_seeds` finds it.

    Returns:
        Text as it came from the devices: print it through `kasmina_edge.contracts.record.printable`. A dash stands for
        what was not measured.
    """
    found: list[tuple[str, ...]] = []
    for record in sorted(records, key=lambda r: r.device):
        for row in completed(record):
            left = row.budget.parameters if row.budget else None
            found.append(
                (
                    record.device,
                    row.site or "(model)",
                    row.blueprint or "-",
                    _cell(row.utilization, ".2f"),
                    _cell(row.contribution, ".3f"),
                    _cell(row.interface_drift, ".4f"),
                    _cell(row.activation_variance, ".3g"),
                    _age(row.age_s),
                    "-" if left is None else str(left),
                )
            )
    return found


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
