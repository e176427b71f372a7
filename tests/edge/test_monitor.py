"""Alert rules and the picture of a fleet: raised for a reason, cleared when it is gone, never about what is unknown."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from worlds.telemetry import NOW, make_record

from kasmina_edge.contracts.record import Reported, Summary
from kasmina_edge.errors import InputError
from kasmina_edge.fleet.monitor import DeviceView, device_alerts, fleet_alerts, fleet_table, window_view, with_alerts
from kasmina_edge.safety.alerts import Alert, AlertLimits, accuracy_alert, changes, wilson_interval
from kasmina_edge.safety.drift import DriftHysteresis

LIMITS = AlertLimits(drift=DriftHysteresis(raise_windows=3, clear_windows=2), silent_s=30.0)


def make_view(records: list[Any], **changes: Any) -> DeviceView:
    fields: dict[str, Any] = {
        "device": "cam-1", "online": True, "last_heard_s": NOW, "latest": records[-1] if records else None,
        "windows": tuple(map(window_view, records)),
    }  # fmt: skip
    return DeviceView(**{**fields, **changes})


def kinds(view: DeviceView, now: float = NOW) -> set[str]:
    return {alert.kind for alert in device_alerts(view, now=now, limits=LIMITS)}


def drifts(*scores: float | None, **changes: Any) -> list[Any]:
    return [make_record(i, drift=s, **changes) for i, s in enumerate(scores)]


def test_drift_is_raised_and_cleared_with_hysteresis() -> None:
    assert kinds(make_view(drifts(9.0, 9.0))) == set()
    raised = drifts(0.3, 9.0, 9.0, 9.0)
    assert kinds(make_view(raised)) == {"drift"}
    assert kinds(make_view([*raised, *drifts(0.4)])) == {"drift"}
    assert kinds(make_view([*raised, *drifts(0.4, 0.4)])) == set()
    (alert,) = device_alerts(make_view(drifts(9.0, 9.0, 9.0, drift_domain="clean")), now=NOW, limits=LIMITS)
    assert "9.0 times" in alert.message and "nearest domain clean" in alert.message
    assert alert.text.startswith("cam-1: inputs drifted")


def test_a_graft_that_learned_the_domain_clears_drift() -> None:
    before = drifts(9.0, 9.0, 9.0)
    after = drifts(0.3, 0.2, bundle="n" * 64, release=2)
    view = make_view([*before, *after])
    assert kinds(view) == set() and view.drift == 0.2


def checks(seen: int, right: int, windows: int = 5, **changes: Any) -> list[Any]:
    return [make_record(i, check_frames=seen, check_correct=right, **changes) for i in range(windows)]


def test_accuracy_falls_only_with_evidence() -> None:
    assert kinds(make_view(checks(8, 2), expected_accuracy=0.97)) == {"accuracy"}
    assert kinds(make_view(checks(8, 8), expected_accuracy=0.97)) == set()
    assert kinds(make_view(checks(8, 7), expected_accuracy=0.90)) == set()
    assert kinds(make_view(checks(1, 0), expected_accuracy=0.97)) == set()  # five frames prove little
    assert kinds(make_view(checks(8, 2))) == set()  # nobody said what to expect


def test_accuracy_is_of_the_present_bundle_only() -> None:
    view = make_view([*checks(8, 2), *checks(8, 8, bundle="n" * 64, release=2)], expected_accuracy=0.97)
    assert view.check_accuracy == 1.0 and kinds(view) == set()


def test_false_accuracy_alarms_are_rare() -> None:
    """A bundle that keeps its promise: 60 check frames a look, many looks."""
    rng = np.random.default_rng(0)
    alarms = [accuracy_alert("d", 60, int(k), 0.95, LIMITS) is not None for k in rng.binomial(60, 0.95, 20_000)]
    assert np.mean(alarms) < 0.002
    found = [accuracy_alert("d", 60, int(k), 0.95, LIMITS) is not None for k in rng.binomial(60, 0.6, 2000)]
    assert np.mean(found) > 0.99


def test_silence_is_heard() -> None:
    view = make_view(drifts(0.1))
    assert kinds(view, NOW + 29.0) == set() and kinds(view, NOW + 31.0) == {"silent"}
    assert kinds(make_view([], online=False), NOW + 31.0) == {"offline"}
    assert kinds(make_view([], online=None, last_heard_s=None), NOW + 1e9) == set()


@pytest.mark.parametrize("status, kind", [("rolled_back", "rolled_back"), ("refused", "refused"), ("committed", None)])
def test_the_last_update_is_told(status: Any, kind: str | None) -> None:
    reported = Reported(device="cam-1", boot=1, sequence=0, at_s=NOW, status=status, reason="reference probes 61 %")
    found = device_alerts(make_view([], reported=reported), now=NOW, limits=LIMITS)
    assert {a.kind for a in found} == ({kind} if kind else set())
    assert all("reference probes 61 %" in a.message and a.severity == "critical" for a in found)


def test_lost_records_are_told() -> None:
    assert kinds(make_view([make_record(dropped_records=3)])) == {"records_dropped"}


def test_changes_between_two_looks() -> None:
    before = device_alerts(make_view(drifts(9.0, 9.0, 9.0)), now=NOW, limits=LIMITS)
    later = device_alerts(make_view(drifts(9.0, 9.0, 12.0)), now=NOW + 31.0, limits=LIMITS)
    raised, cleared = changes(before, later)
    assert [a.kind for a in raised] == ["silent"] and cleared == ()  # another drift value is the same alert
    raised, cleared = changes(later, [])
    assert raised == () and [a.kind for a in cleared] == ["drift", "silent"]


def test_the_fleet_lists_critical_alerts_first() -> None:
    views = [
        make_view(drifts(9.0, 9.0, 9.0), device="cam-1"),
        make_view(checks(8, 1), device="cam-2", expected_accuracy=0.97),
    ]
    found = fleet_alerts(views, now=NOW, limits=LIMITS)
    assert [(a.device, a.kind) for a in found] == [("cam-2", "accuracy"), ("cam-1", "drift")]
    assert with_alerts(views[0], now=NOW, limits=LIMITS).alerts == (found[1],)


def shown(views: list[DeviceView], now: float = NOW) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(fleet_table(views, now=now, limits=LIMITS))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_tells_what_is_known_and_dashes_the_rest() -> None:
    score = Summary(count=20, mean=0.91, variance=0.0, minimum=0.9, maximum=0.92)
    latest = make_record(2, drift=9.0, score=score, latency_us={"p50": 31.4}, check_frames=8, check_correct=2)
    reported = Reported(device="cam-1", boot=1, sequence=0, at_s=NOW, name="digits", version="1.0.0", release=4)
    text = shown([make_view([*drifts(9.0, 9.0), latest], reported=reported), DeviceView("cam-9")], NOW + 5.0)
    for part in ("cam-1", "online", "digits 1.0.0 (release 4)", "9.00", "25.0% of 8", "0.910", "31 us", "5 s ago"):
        assert part in text
    assert "inputs drifted" in text
    unknown = next(line for line in text.splitlines() if "cam-9" in line)
    assert unknown.count(" - ") == 8
    assert "No device was heard of yet." in shown([])


def test_devices_cannot_style_the_table() -> None:
    reason = "[red]x[/red] [/] [link=http://x]"
    reported = Reported(device="cam-1", boot=1, sequence=0, at_s=NOW, status="refused", reason=reason)
    assert reason in shown([make_view([], reported=reported)])


@given(st.integers(1, 500), st.data())
def test_wilson_contains_the_share_and_narrows(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    low, high = wilson_interval(right, total)
    assert 0.0 <= low <= right / total <= high <= 1.0
    wide = wilson_interval(right, total, z=2.6)
    assert wide[0] <= low + 1e-12 and high <= wide[1] + 1e-12


def test_wilson_equals_the_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263 and 15 of 148, Wilson score without continuity correction."""
    assert wilson_interval(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148, 1.959964) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    with pytest.raises(InputError, match="share of 3 in 2"):
        wilson_interval(3, 2)


def test_alerts_compare_by_device_and_kind() -> None:
    assert Alert("a", "drift", "warning", "x").key == Alert("a", "drift", "warning", "y", 2.0).key


HOSTILE = "[red]m[/red] :smile: " + chr(27) + "[2J" + chr(0x9B) + "2J" + chr(7) + chr(127) + chr(13)


def test_what_devices_say_is_neither_markup_nor_escapes() -> None:
    reported = Reported(
        device="cam-1", boot=1, sequence=1, at_s=NOW, name="digits", version=HOSTILE, release=1,
        status="rolled_back", reason=HOSTILE,
    )  # fmt: skip
    out = io.StringIO()
    shown = Console(file=out, width=300, color_system=None, force_terminal=True)
    shown.print(fleet_table([make_view([make_record()], reported=reported)], now=NOW))
    text = out.getvalue()
    assert text.count("[red]m[/red] :smile: \ufffd[2J\ufffd2J\ufffd\ufffd\ufffd") == 2  # the cell and the alert
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text.replace("\n", ""))
