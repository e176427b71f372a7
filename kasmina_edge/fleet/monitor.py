"""The picture of a fleet: what is known of each device, the alerts that follow from it, and a table for people.

Pure functions over `DeviceView` values; `FleetStore.devices` makes the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.record import Reported, TelemetryRecord, printable
from kasmina_edge.safety.alerts import (
    Alert,
    AlertLimits,
    accuracy_alert,
    drift_alert,
    dropped_alert,
    silence_alert,
    update_alert,
)

ACCURACY_WINDOWS = 15
WIDE = 120
_COLUMNS = ("device", "state", "runs", "drift", "check frames", "score", "p50", "heard", "alerts")
_NARROW = ("device", "state", "runs", "drift", "check frames", "heard")


class WindowView(NamedTuple):
    """What the monitor remembers of one telemetry window."""

    bundle: str
    release: int
    drift: float | None
    check_frames: int
    check_correct: int


@dataclass(frozen=True)
class DeviceView:
    """What is known of one device; None is *not known*, never zero.

    Attributes:
        online: What its birth or will said last.
        boot: The boot counter of that message.
        reported: What it says it runs.
        last_heard_s: When its last telemetry, report or state arrived, on the controller's clock.
        latest: Its newest telemetry record.
        windows: Its last windows, oldest first.
        expected_accuracy: What the bundle of the newest record was accepted at, as a share.
        held: What the device raised, and security alerts that nobody acknowledged.
        alerts: What stands now.
    """

    device: str
    online: bool | None = None
    boot: int | None = None
    reported: Reported | None = None
    last_heard_s: float | None = None
    latest: TelemetryRecord | None = None
    windows: tuple[WindowView, ...] = ()
    expected_accuracy: float | None = None
    held: tuple[Alert, ...] = ()
    alerts: tuple[Alert, ...] = ()

    @property
    def last_telemetry_s(self) -> float | None:
        """End of the newest telemetry window, on the device's clock."""
        return None if self.latest is None else self.latest.started_s + self.latest.duration_s

    @property
    def drift(self) -> float | None:
        """Drift of the newest window that has one under the bundle of the newest record."""
        return next((w.drift for w in reversed(self._present()) if w.drift is not None), None)

    @property
    def checks(self) -> tuple[int, int]:
        """Check frames, and how many of them were right, in the last windows under the present bundle."""
        recent = self._present()[-ACCURACY_WINDOWS:]
        right = sum(min(w.check_correct, w.check_frames) for w in recent)  # a device may say more than it saw
        return sum(w.check_frames for w in recent), right

    @property
    def check_accuracy(self) -> float | None:
        """Share of check frames that were right; None when there were none."""
        seen, right = self.checks
        return right / seen if seen else None

    def _present(self) -> list[WindowView]:
        if self.latest is None:
            return []
        subject = self.latest.bundle, self.latest.release
        return [w for w in self.windows if (w.bundle, w.release) == subject]


def window_view(record: TelemetryRecord) -> WindowView:
    """The part of a record that the monitor remembers."""
    return WindowView(record.bundle, record.release, record.drift, record.check_frames, record.check_correct)


def device_alerts(view: DeviceView, *, now: float, limits: AlertLimits | None = None) -> tuple[Alert, ...]:
    """Every alert that stands for one device: what follows from the view, and what is held, once a kind.

    Args:
        view: What is known of it.
        now: The controller's clock, seconds since 1970 UTC.
        limits: Where the lines are.
    """
    limits = limits or AlertLimits()
    seen, right = view.checks
    reported = view.reported
    domain = view.latest.drift_domain if view.latest else None
    found = (
        drift_alert(view.device, [w.drift for w in view.windows], limits, domain=domain),
        accuracy_alert(view.device, seen, right, view.expected_accuracy, limits),
        silence_alert(view.device, view.online, view.last_heard_s if _has_app(view) else None, now, limits),
        update_alert(view.device, reported.status, reported.reason) if reported else None,
        dropped_alert(view.device, view.latest.dropped_records if view.latest else 0),
    )
    by_kind: dict[str, Alert] = {}
    for alert in (*found, *view.held):
        if alert is not None and (alert.kind not in by_kind or alert.severity == "critical"):
            by_kind[alert.kind] = alert
    return tuple(by_kind.values())


def _has_app(view: DeviceView) -> bool:
    """Whether an app of this device has sent telemetry since the agent's start: an agent alone is quiet by nature."""
    return view.online is not True or (view.latest is not None and view.boot in (None, view.latest.boot))


def with_alerts(view: DeviceView, *, now: float, limits: AlertLimits | None = None) -> DeviceView:
    """The view with the alerts that stand at ``now``."""
    return replace(view, alerts=device_alerts(view, now=now, limits=limits))


def fleet_alerts(views: Sequence[DeviceView], *, now: float, limits: AlertLimits | None = None) -> tuple[Alert, ...]:
    """Every alert of the fleet, critical ones first, then by device."""
    found = [alert for view in views for alert in device_alerts(view, now=now, limits=limits)]
    return tuple(sorted(found, key=lambda a: (a.severity != "critical", a.device, a.kind)))


def fleet_table(
    views: Sequence[DeviceView], *, now: float, limits: AlertLimits | None = None, width: int = WIDE
) -> Group:
    """For people: one row a device, what is not known is a dash; below it every alert in full, critical ones first.

    Args:
        views: The fleet.
        now: The controller's clock, seconds since 1970 UTC.
        limits: Where the lines are.
        width: Columns of the terminal; below `WIDE` only what matters most has a column.
    """
    table = Table(box=None, header_style="bold", padding=(0, 2 if width >= WIDE else 1))
    kept = [i for i, name in enumerate(_COLUMNS) if width >= WIDE or name in _NARROW]
    for i in kept:
        right = _COLUMNS[i] in ("drift", "check frames", "score", "p50", "heard")
        table.add_column(_COLUMNS[i], justify="right" if right else "left", no_wrap=width >= WIDE or i > 2)
    for view in sorted(views, key=lambda v: v.device):
        cells = _cells(view, device_alerts(view, now=now, limits=limits), now)
        table.add_row(*(cells[i] for i in kept))
    if not views:
        table.caption = "No device was heard of yet."
    told = [
        _text(f"  {_name(alert)} {alert.device}: {alert.message}", _STYLES.get(alert.severity, "yellow"))
        for alert in fleet_alerts(views, now=now, limits=limits)
    ]
    return Group(table, *([Text("")] if told else []), *told)


_STYLES = {"critical": "red"}


def _text(text: str, style: str = "") -> Text:
    """Neither markup nor terminal escapes: part of it is what devices say."""
    return Text(printable(text), style=style)


def _name(alert: Alert) -> str:
    return alert.kind.replace("_", " ")


def _cells(view: DeviceView, alerts: Sequence[Alert], now: float) -> list[Text]:
    latest = view.latest
    kinds = {alert.kind for alert in alerts}
    seen, right = view.checks
    checks = f"{right / seen:.1%} of {seen}" if seen else "-"
    score = f"{latest.score.mean:.3f}" if latest and latest.score else "-"
    p50 = latest.latency_us.get("p50") if latest and latest.latency_us else None
    heard = "-" if view.last_heard_s is None else f"{max(0.0, now - view.last_heard_s):.0f} s ago"
    critical = any(alert.severity == "critical" for alert in alerts)
    return [
        _text(view.device),
        Text("-") if view.online is None else Text("online", "green") if view.online else Text("offline", "yellow"),
        _text(_runs(view)),
        Text("-" if view.drift is None else f"{view.drift:.2f}", style="yellow" if "drift" in kinds else ""),
        Text(checks, style="red" if "accuracy" in kinds else ""),
        Text(score),
        Text("-" if p50 is None else f"{p50:.0f} us"),
        Text(heard, style="yellow" if kinds & {"silent", "offline"} else ""),
        Text(", ".join(_name(alert) for alert in alerts) or "-", style="red" if critical else ""),
    ]


def _runs(view: DeviceView) -> str:
    reported = view.reported
    if reported is None or reported.name is None:
        return short_digest(view.latest.bundle) if view.latest else "-"
    return f"{reported.name} {reported.version} (release {reported.release})"
