"""What telemetry is told about a supervised accelerator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["hang", "crash", "wrong", "slow", "gone"]
EventKind = Literal["hang", "crash", "wrong", "slow", "gone", "back"]


@dataclass(frozen=True)
class AcceleratorEvent:
    """One change of who answers.

    Attributes:
        kind: ``hang``: a call did not come back, the worker was killed. ``crash``: the worker died. ``wrong``: an
            answer was no number, differed from the twin's or from a known one. ``slow``: too many late answers.
            ``gone``: the device or its library refused. ``back``: in service again after its probation.
        at_s: Wall clock, seconds since 1970 UTC.
        detail: What was seen, and what was done to the device.
        runs_on: Who answers from now on, as people read it.
        fallbacks_total: Times the accelerator was taken out since the engine was opened, this one included.
        backoff_s: Wait until the next try, seconds; 0 for ``back``.
    """

    kind: EventKind
    at_s: float
    detail: str
    runs_on: str
    fallbacks_total: int
    backoff_s: float = 0.0


@dataclass(frozen=True)
class AcceleratorCounters:
    """A snapshot, counted since the engine was opened.

    Attributes:
        in_service: Whether the accelerator answers now; on probation it does not yet.
        cause: Why it does not: the kind of the last fault; empty while in service, on the first probation, and closed.
        frames: Frames answered, by whomever.
        by_twin: Of those, answered by the twin.
        compared: Of those, computed by both and compared before the answer was given.
        late: Calls that missed their deadline.
        canaries: Known vectors asked of the accelerator in service.
        starts: Workers started.
        fallbacks: Times it was taken out, by cause.
        deadline_ms: What a call may take now; None while there is no worker.
        verify_every: Every how many frames the twin computes too, 0 for never; None while there is no worker.
    """

    in_service: bool
    cause: str
    frames: int
    by_twin: int
    compared: int
    late: int
    canaries: int
    starts: int
    fallbacks: dict[str, int] = field(default_factory=dict)
    deadline_ms: float | None = None
    verify_every: int | None = None

    @property
    def fallbacks_total(self) -> int:
        """Times it was taken out, for whatever cause."""
        return sum(self.fallbacks.values())
