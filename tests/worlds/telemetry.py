"""Small values for tests of telemetry and the fleet: records, plans, frames, a clock that is moved by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.change_plan import CaptureBudget, ChangePlan, HealthLimits
from kasmina_edge.contracts.record import TelemetryRecord

NOW = 1_800_000_000.0
BUNDLE = "b" * 64


class Clock:
    """Seconds since 1970 that stand still until they are moved."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_record(sequence: int = 0, **changes: Any) -> TelemetryRecord:
    """A record of two quiet seconds; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        "device": "cam-1", "bundle": BUNDLE, "release": 1, "slot": "a", "boot": 1, "sequence": sequence,
        "started_s": NOW + 2.0 * sequence, "duration_s": 2.0, "frames": 40, "sampled": 20,
    }  # fmt: skip
    return TelemetryRecord(**{**fields, **changes})


def make_plan(controller_key: str | None, **changes: Any) -> ChangePlan:
    """A plan that allows capture of 5 frames to ``controller_key``; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        "bundle": "digits", "serial": 1, "hosts": ("a" * 64,), "blueprints": {"depthwise": (1,)}, "sites": ("s1",),
        "maximum_parameters": 1000, "maximum_growth_bytes": 1000,
        "health": HealthLimits(probes="c" * 64, minimum_accuracy=0.9),
        "capture": CaptureBudget(max_frames=5, max_bytes=100_000), "controller_key": controller_key,
    }  # fmt: skip
    return ChangePlan(**{**fields, **changes})


def make_frame(seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise in the shape of the demo's camera, (16, 16, 1)."""
    return np.random.default_rng(seed).random((16, 16, 1)).astype(np.float32)
