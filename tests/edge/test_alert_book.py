"""The device's alerts: hysteresis, cool-down, restart; and that nothing can make a storm of them."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_edge.safety.alert_book import (
    DEFAULT_EVENTS,
    DEFAULT_RULES,
    AlertBook,
    AlertEvent,
    AlertRule,
    EventRule,
    rules_from_settings,
)
from kasmina_edge.safety.security import SECURITY_KINDS
from kasmina_edge.settings import Settings

HOT = AlertRule(80.0, 75.0, raise_after=3, clear_after=2, cool_down_s=100.0, text="temperature, degrees Celsius")
LOW = AlertRule(64.0, 96.0, above=False, raise_after=1, clear_after=1, cool_down_s=0.0, text="free space, MB")
BOOK = AlertBook(rules={"temperature": HOT, "disk": LOW}, events={"replay": EventRule(quiet_s=50.0)})


def run(
    book: AlertBook, kind: str, values: list[float | None], start_s: float = 0.0
) -> tuple[AlertBook, list[AlertEvent]]:
    events = []
    for i, value in enumerate(values):
        book, event = book.feed(kind, value, start_s + i)
        if event is not None:
            events.append(event)
    return book, events


def test_it_takes_several_values_in_a_row_to_raise_and_to_clear() -> None:
    book, events = run(BOOK, "temperature", [81, 82, 70, 81, 82])
    assert events == [] and book.standing == {}
    book, events = run(book, "temperature", [83, 77, 76, 77])  # between the lines nothing changes
    assert [(e.kind, e.state, e.value, e.limit) for e in events] == [("temperature", "raised", 83, 80.0)]
    assert "83, above 80" in events[0].message and book.worst == 1
    book, events = run(book, "temperature", [74, 76, 74, 73], 10.0)
    assert [(e.state, e.at_s) for e in events] == [("cleared", 13.0)] and book.worst == 0


def test_too_little_is_the_other_way_round() -> None:
    _, events = run(BOOK, "disk", [200.0, 65.0, 63.0, 70.0, 97.0])
    assert [(e.state, e.message) for e in events] == [
        ("raised", "free space, MB: 63, below 64"),
        ("cleared", "free space, MB: 97, above 96"),
    ]


def test_what_was_not_measured_changes_nothing() -> None:
    book, _ = run(BOOK, "temperature", [81, 82])
    for nothing in (None, math.nan, math.inf):
        same, event = book.feed("temperature", nothing, 5.0)
        assert same is book and event is None
    assert run(book, "temperature", [83])[1]


def test_a_cool_down_holds_the_next_one_back_and_does_not_lose_it() -> None:
    book, _ = run(BOOK, "temperature", [81, 81, 81, 70, 70])
    book, events = run(book, "temperature", [90.0] * 200, 10.0)
    (event,) = events
    assert event.state == "raised" and event.at_s == 104.0, "100 s after it was cleared at 4 s"


@given(
    values=st.lists(st.floats(60, 100), min_size=1, max_size=400),
    cool_down_s=st.sampled_from([10.0, 50.0]),
    gap_s=st.sampled_from([0.1, 1.0]),
)
def test_no_series_of_values_makes_a_storm(values: list[float], cool_down_s: float, gap_s: float) -> None:
    book = AlertBook(rules={"t": AlertRule(80.0, 80.0, raise_after=1, clear_after=1, cool_down_s=cool_down_s)})
    raised = []
    for i, value in enumerate(values):
        book, event = book.feed("t", value, i * gap_s)
        if event is not None and event.state == "raised":
            raised.append(i * gap_s)
    assert len(raised) <= 1 + len(values) * gap_s / cool_down_s
    assert all(b - a >= cool_down_s - 1e-9 for a, b in pairwise(raised[1:]))


def test_without_a_cool_down_the_same_series_is_a_storm() -> None:
    """The negative control of the property above."""
    book = AlertBook(rules={"t": AlertRule(80.0, 80.0, raise_after=1, clear_after=1, cool_down_s=0.0)})
    _, events = run(book, "t", [70.0, 90.0] * 50)
    assert len(events) == 99


def test_a_clock_that_was_set_back_neither_storms_nor_silences_for_ever() -> None:
    book, _ = run(BOOK, "temperature", [81, 81, 81, 70, 70], 1e9)
    book, events = run(book, "temperature", [90.0] * 150, 0.0)
    assert [e.at_s for e in events] == [102.0], "the cool-down begins anew on the new clock"


@given(
    st.lists(st.tuples(st.sampled_from(["temperature", "disk", "replay", "settle"]), st.floats(0, 200)), max_size=60),
    st.integers(0, 60),
)
def test_a_restart_changes_nothing(steps: list[tuple[str, float]], cut: int) -> None:
    def play(book: AlertBook, part: list[tuple[str, float]], start: int) -> tuple[AlertBook, list[AlertEvent]]:
        events: list[AlertEvent] = []
        for i, (kind, value) in enumerate(part, start):
            if kind == "settle":
                book, found = book.settle(i * 20.0)
                events += found
                continue
            book, event = (
                book.occurred(kind, "again", i * 20.0) if kind == "replay" else book.feed(kind, value, i * 20.0)
            )
            events += [event] if event else []
        return book, events

    whole, told = play(BOOK, steps, 0)
    first, before = play(BOOK, steps[:cut], 0)
    again = BOOK.with_state(json.loads(json.dumps(first.to_state())))
    last, after = play(again, steps[cut:], min(cut, len(steps)))
    assert before + after == told and last.to_state() == whole.to_state()


def test_what_happens_is_told_once_and_counted_until_it_is_quiet() -> None:
    book, event = BOOK.occurred("replay", "version 3, seen 5", 0.0)
    assert event is not None and (event.state, event.severity, event.message) == (
        "raised",
        "critical",
        "version 3, seen 5",
    )
    for i in range(20):
        book, event = book.occurred("replay", "version 3, seen 5", 1.0 + i)
        assert event is None
    book, events = book.settle(69.0)
    assert events == () and book.worst == 2
    book, (over,) = book.settle(70.0)
    assert over.state == "cleared" and "21 times" in over.message and book.standing == {}
    assert over.sequence == 2 == book.sequence


def test_what_cannot_be_fed_is_refused() -> None:
    with pytest.raises(InputError, match="no such rule; there are disk, temperature"):
        BOOK.feed("humidity", 1.0, 0.0)
    with pytest.raises(InputError, match="no such event"):
        BOOK.occurred("humidity", "", 0.0)
    for make in (
        lambda: AlertRule(75.0, 80.0),
        lambda: AlertRule(80.0, 75.0, above=False),
        lambda: AlertRule(math.inf, 75.0),
        lambda: AlertRule(80.0, 75.0, raise_after=0),
        lambda: AlertRule(80.0, 75.0, cool_down_s=-1.0),
        lambda: EventRule(quiet_s=0.0),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize(
    "spoil", [{"format": 2}, {"sequence": -1}, {"memory": []}, {"memory": {"disk": {}}}, {"sequence": 1.5}]
)
def test_a_damaged_state_is_refused(spoil: dict[str, object]) -> None:
    with pytest.raises(InputError, match="saved alerts"):
        BOOK.with_state({**BOOK.to_state(), **spoil})


def test_kinds_that_have_no_rule_any_more_are_left_out() -> None:
    book, _ = run(BOOK, "disk", [1.0])
    assert AlertBook(rules={"temperature": HOT}).with_state(book.to_state()).standing == {}


def test_lines_come_from_the_settings_and_the_defaults_are_the_rules() -> None:
    settings = Settings.read(None, environ={})
    assert rules_from_settings(settings) == dict(DEFAULT_RULES)
    moved = Settings.read(
        None, environ={"KASMINA_ALERTS_TEMPERATURE_C": "60", "KASMINA_ALERTS_COOL_DOWN_S": "5"},
        flags={"alerts.disk_free_mb": 500.0},
    )  # fmt: skip
    rules = rules_from_settings(moved)
    assert (rules["temperature"].raise_at, rules["temperature"].clear_at) == (60.0, 55.0)
    assert (rules["disk"].raise_at, rules["disk"].clear_at) == (500.0, 750.0)
    assert {rule.cool_down_s for rule in rules.values()} == {5.0}
    with pytest.raises(InputError, match="more than 0"):
        Settings.read(None, environ={}, flags={"alerts.memory_share": 0.0})


def test_every_security_kind_has_a_rule() -> None:
    assert set(DEFAULT_EVENTS) == set(SECURITY_KINDS) and not set(DEFAULT_EVENTS) & set(DEFAULT_RULES)
