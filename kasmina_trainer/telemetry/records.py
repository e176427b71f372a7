"""From rows of seed telemetry to the record that a device would send, and to figures that a table shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kasmina_edge.contracts.record import HardwareContext, SeedTelemetry, TelemetryRecord
from kasmina_edge.telemetry.details import short

_FIGURES = SeedTelemetry.BITS[:7] + SeedTelemetry.BITS[10:]
"""The values that are plain numbers."""


@dataclass(frozen=True)
class Window:
    """What passed through a network between two records.

    Attributes:
        started_s: Wall clock, seconds since 1970 UTC; it lasted ``duration_s``.
        frames: Rows that the network answered; ``sampled`` of them were looked at.
        features: Means of the drift features over the sampled rows; None: no row.
        drift: Distance to the nearest domain, 1 is the alarm line; ``domain`` its name; None: not measured.
    """

    started_s: float
    duration_s: float
    frames: int
    sampled: int
    features: Mapping[str, float] | None = None
    drift: float | None = None
    domain: str | None = None


def record_of(
    rows: Sequence[SeedTelemetry],
    window: Window,
    *,
    bundle: str,
    device: str = "trainer",
    source: str = "trainer",
    sequence: int = 0,
    release: int = 0,
    hardware: HardwareContext | None = None,
) -> TelemetryRecord:
    """One record of the contract that devices send; `kasmina_edge.telemetry.seed_rows.completed` completes its rows.

    Args:
        rows: The whole model first, then its sites.
        window: When, and how much passed.
        bundle: What answered: a bundle's id, or the host's digest while there is none.
        device: Who tells, in lower case.
        source: Which process of it.
        sequence: Counts up.
        release: Of the bundle; 0 while there is none.
        hardware: What the machine was doing; None: not measured.
    """
    features = None if window.features is None else {name: short(value) for name, value in window.features.items()}
    return TelemetryRecord(
        device=device,
        bundle=bundle,
        release=release,
        source=source,
        sequence=sequence,
        started_s=round(window.started_s, 3),
        duration_s=round(window.duration_s, 3),
        frames=window.frames,
        sampled=window.sampled,
        features=features,
        drift=None if window.drift is None else short(window.drift),
        drift_domain=window.domain,
        hardware=hardware,
        seeds=tuple(rows) or None,
    )


def shown(rows: Sequence[SeedTelemetry]) -> dict[str, dict[str, float]]:
    """Measured figures by site and name, as `SeededNetwork.report` takes them; the whole model is left out."""
    return {
        row.site: {name: float(getattr(row, name)) for name in _FIGURES if row.is_measured(name)}
        for row in rows
        if row.site
    }
