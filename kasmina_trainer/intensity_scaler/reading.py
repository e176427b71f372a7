"""From a row of telemetry, a device's or the trainer's own, to the signals that lower intensity."""

from __future__ import annotations

import math
from typing import Literal

from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_trainer.intensity_scaler.overrides import Signals

_ALERTS: tuple[Literal["warning", "critical"] | None, ...] = (None, "warning", "critical")


def signals_of(row: SeedTelemetry, *, parameters: int | None = None, latency_us: float | None = None) -> Signals:
    """What a row says of a site; what it did not measure stays unmeasured.

    Args:
        row: Completed, so that budget and safety stand in it (`kasmina_edge.telemetry.seed_rows.completed`).
        parameters: Those that the grafts have, by which the overdraft is weighed; None: not known.
        latency_us: What a frame takes, likewise.
    """
    safety, budget = row.safety, row.budget
    shares = [] if budget is None else [
        _share(left, used)
        for left, used in ((budget.parameters, parameters), (budget.latency_us, latency_us))
        if left is not None and used is not None
    ]  # fmt: skip
    return Signals(
        drift=None if safety is None else safety.drift,
        budget_left=min(shares, default=None),
        alert=None if safety is None or safety.alert is None else _ALERTS[safety.alert],
    )


def _share(left: float, used: float) -> float:
    """What is left of what was allowed, as a share of that; below 0 when overdrawn."""
    allowed = left + used
    if allowed > 0:
        return left / allowed
    return -math.inf if left < 0 else 0.0
