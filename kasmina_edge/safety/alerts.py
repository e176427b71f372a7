"""Alerts: what a person should look at, as values, and the pure rules that raise them.

No rule keeps state or reads a clock: the caller hands in what was measured and the time, and gets alerts back. What was
not measured raises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kasmina_edge.errors import InputError
from kasmina_edge.safety.drift import DriftHysteresis

Kind = str
"""``drift``, ``accuracy``, ``silent``, ``offline``, ``rolled_back``, ``refused`` and ``records_dropped`` follow from
what the controller sees (this module); other kinds come from devices (`kasmina_edge.safety.alert_book`) and from the
watch on trust, clocks and audit logs (`kasmina_edge.safety.security`)."""
Severity = Literal["warning", "critical"]


@dataclass(frozen=True, order=True)
class Alert:
    """One thing to look at; the same alert on the same device compares by ``key``.

    Attributes:
        message: One sentence with both numbers.
        value: What was measured, in the unit of the message; None when the alert is about an event.
        limit: What it was compared with.
    """

    device: str
    kind: Kind
    severity: Severity
    message: str
    value: float | None = None
    limit: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Device and kind: what is raised once and cleared once."""
        return self.device, self.kind

    @property
    def text(self) -> str:
        """Device and message in one line."""
        return f"{self.device}: {self.message}"


@dataclass(frozen=True)
class AlertLimits:
    """Where the lines are.

    Attributes:
        drift: The hysteresis around the drift line.
        confidence_z: Standard normal quantile of the accuracy interval; 1.96 is 95 % two-sided.
        accuracy_margin: Share that field accuracy may lie below the bundle's before it counts.
        minimum_checks: Check frames below which nothing is said about accuracy.
        silent_s: Seconds without telemetry from a device that says it is online.
    """

    drift: DriftHysteresis = field(default_factory=DriftHysteresis)
    confidence_z: float = 1.96
    accuracy_margin: float = 0.05
    minimum_checks: int = 10
    silent_s: float = 60.0


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927, JASA 22:209).

    Args:
        right: Successes.
        total: Trials; at least 1.
        z: Standard normal quantile.

    Raises:
        InputError: ``total`` below 1 or ``right`` outside 0 to ``total``.

    >>> low, high = wilson_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    if total < 1 or not 0 <= right <= total:
        raise InputError(f"share of {right} in {total}: expected 0 <= right <= total and total >= 1")
    share = right / total
    scale = 1.0 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def drift_alert(
    device: str, scores: Sequence[float | None], limits: AlertLimits, *, domain: str | None = None
) -> Alert | None:
    """Drift stands when the detector, run over the device's last windows (oldest first), is raised at the end."""
    if not limits.drift.run(scores).raised:
        return None
    latest = next(s for s in reversed(scores) if s is not None)
    nearest = f", nearest domain {domain}" if domain else ""
    return Alert(
        device, "drift", "warning",
        f"inputs drifted: {latest:.1f} times the alarm distance ({limits.drift.raise_at:.1f}){nearest}",
        latest, limits.drift.raise_at,
    )  # fmt: skip


def accuracy_alert(device: str, checks: int, correct: int, expected: float | None, limits: AlertLimits) -> Alert | None:
    """Accuracy fell when even the upper end of its interval lies below what the bundle promised, less the margin."""
    if expected is None or checks < limits.minimum_checks:
        return None
    high = wilson_interval(correct, checks, limits.confidence_z)[1]
    line = expected - limits.accuracy_margin
    if high >= line:
        return None
    return Alert(
        device, "accuracy", "critical",
        f"check frames: {correct} of {checks} right ({correct / checks:.1%}, at most {high:.1%}); "
        f"the bundle was accepted at {expected:.1%}",
        correct / checks, line,
    )  # fmt: skip


def silence_alert(
    device: str, online: bool | None, last_heard_s: float | None, now_s: float, limits: AlertLimits
) -> Alert | None:
    """A device that went offline, or says it is online and sends nothing; one never heard of raises nothing."""
    quiet_s = None if last_heard_s is None else max(0.0, now_s - last_heard_s)
    if online is False:
        since = "" if quiet_s is None else f", last heard {quiet_s:.0f} s ago"
        return Alert(device, "offline", "warning", f"the broker lost this device{since}", quiet_s, None)
    if quiet_s is None or quiet_s <= limits.silent_s:
        return None
    return Alert(
        device, "silent", "warning",
        f"nothing heard for {quiet_s:.0f} s; expected every {limits.silent_s:.0f} s", quiet_s, limits.silent_s,
    )  # fmt: skip


def update_alert(device: str, status: str | None, reason: str) -> Alert | None:
    """The last update was rolled back or refused."""
    if status == "rolled_back":
        return Alert(device, "rolled_back", "critical", f"update taken back: {reason or 'no reason given'}")
    if status == "refused":
        return Alert(device, "refused", "critical", f"update refused: {reason or 'no reason given'}")
    return None


def dropped_alert(device: str, dropped: int) -> Alert | None:
    """Records were lost before they could be sent."""
    if dropped <= 0:
        return None
    return Alert(device, "records_dropped", "warning", f"{dropped} outbox records were dropped unsent", dropped, 0)


def changes(before: Iterable[Alert], after: Iterable[Alert]) -> tuple[tuple[Alert, ...], tuple[Alert, ...]]:
    """Which alerts were raised and which were cleared between two looks, compared by device and kind.

    >>> alert = Alert("cam-1", "drift", "warning", "inputs drifted")
    >>> changes([], [alert]) == ((alert,), ()) and changes([alert], []) == ((), (alert,))
    True
    """
    old, new = {a.key: a for a in before}, {a.key: a for a in after}
    raised = tuple(a for key, a in sorted(new.items()) if key not in old)
    cleared = tuple(a for key, a in sorted(old.items()) if key not in new)
    return raised, cleared
