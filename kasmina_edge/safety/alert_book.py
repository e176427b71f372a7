"""The alerts of one device: rules with hysteresis and cool-down, as a value that is stepped.

`AlertBook.feed` takes what was measured and the time, and gives the next book with the event that this caused, if any.
It reads no clock and keeps nothing aside, so an agent can save it as JSON, go on after a restart, and be tested by a
table. A value between the two lines of a rule changes nothing (hysteresis), and a kind that was just cleared is not
raised again before its cool-down has passed: a value that flaps gives at most two events a cool-down, however fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from kasmina_edge.errors import InputError
from kasmina_edge.safety.security import SECURITY_KINDS, SECURITY_SEVERITY

Severity = Literal["warning", "critical"]
FORMAT = 1
_MOST_TEXT = 500


@dataclass(frozen=True)
class AlertRule:
    """When one kind of alert is raised and cleared.

    Attributes:
        raise_at: The line beyond which values speak for the alert.
        clear_at: The line beyond which they speak against it, on the other side of ``raise_at`` or equal to it.
        above: Whether too much is what is wrong (temperature), or too little (free space).
        raise_after: Values in a row that raise; ``clear_after`` that clear.
        cool_down_s: Seconds after a clearing in which it is not raised again.
        severity: How bad it is.
        text: What it is about and its unit, e.g. ``temperature, degrees Celsius``.
    """

    raise_at: float
    clear_at: float
    above: bool = True
    raise_after: int = 3
    clear_after: int = 3
    cool_down_s: float = 600.0
    severity: Severity = "warning"
    text: str = ""

    def __post_init__(self) -> None:
        lines = (self.clear_at, self.raise_at) if self.above else (self.raise_at, self.clear_at)
        if not (math.isfinite(lines[0]) and math.isfinite(lines[1]) and lines[0] <= lines[1]):
            side = "not above" if self.above else "not below"
            raise InputError(f"alert rule: clear_at {self.clear_at} must be {side} raise_at {self.raise_at}")
        if min(self.raise_after, self.clear_after) < 1 or not self.cool_down_s >= 0:
            raise InputError(
                f"alert rule: raise_after {self.raise_after} and clear_after {self.clear_after} must be at least 1, "
                f"cool_down_s {self.cool_down_s} at least 0"
            )

    def speaks(self, raised: bool, value: float) -> bool:
        """Whether ``value`` speaks against what stands: for raising when nothing stands, for clearing when it does."""
        line = self.clear_at if raised else self.raise_at
        return (value < line if raised else value > line) if self.above else (value > line if raised else value < line)


@dataclass(frozen=True)
class EventRule:
    """When something that happens, rather than is measured, is told, and when it is over.

    Attributes:
        quiet_s: Seconds without another occurrence after which it is cleared.
        cool_down_s: Seconds after a clearing in which it is not raised again; occurrences are counted meanwhile.
        severity: How bad it is.
    """

    quiet_s: float = 86_400.0
    cool_down_s: float = 0.0
    severity: Severity = "critical"

    def __post_init__(self) -> None:
        if not (self.quiet_s > 0 and self.cool_down_s >= 0):
            raise InputError(
                f"event rule: quiet_s {self.quiet_s} > 0 and cool_down_s {self.cool_down_s} >= 0 must hold"
            )


DEFAULT_RULES: Mapping[str, AlertRule] = MappingProxyType(
    {
        "temperature": AlertRule(80.0, 75.0, text="temperature, degrees Celsius"),
        "throttled": AlertRule(0.5, 0.5, text="clock held down, share of looks"),
        "disk": AlertRule(64.0, 96.0, above=False, severity="critical", text="free space of the data folder, MB"),
        "memory": AlertRule(0.9, 0.81, text="share of the memory bound in use"),
        "open_files": AlertRule(0.9, 0.81, text="share of the bound on open files in use"),
        "outbox": AlertRule(0.5, 0.5, raise_after=1, text="outbox records dropped unsent since the last look"),
        "accelerator": AlertRule(0.5, 0.5, raise_after=1, text="1 while the CPU answers for the accelerator"),
        "drift": AlertRule(1.0, 0.8, text="drift, times the alarm distance"),
        "quantity_drift": AlertRule(0.5, 0.5, raise_after=1, clear_after=1, text="quantities adrift"),
    }
)
"""Lines of a device that nobody set; `rules_from_settings` moves them."""

DEFAULT_EVENTS: Mapping[str, EventRule] = MappingProxyType(
    {kind: EventRule(severity=SECURITY_SEVERITY[kind]) for kind in SECURITY_KINDS}
)


class AlertEvent(NamedTuple):
    """What one step changed.

    Attributes:
        sequence: Counts up with every event of a book.
        value: The value that settled it; None for an event rule.
        limit: The line it crossed.
    """

    sequence: int
    kind: str
    state: Literal["raised", "cleared"]
    severity: Severity
    message: str
    at_s: float
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class AlertMemory:
    """What is remembered of one kind.

    Attributes:
        since_s: When it was raised; None while it is not.
        against: Values in a row that spoke against what stands.
        cleared_s: When it was cleared last; None: never.
        last_s: When an event rule's kind occurred last.
        count: Occurrences since it was raised, those held back by the cool-down included.
        message: As it was raised.
    """

    since_s: float | None = None
    against: int = 0
    cleared_s: float | None = None
    last_s: float = 0.0
    count: int = 0
    message: str = ""


_NOTHING = AlertMemory()


@dataclass(frozen=True)
class AlertBook:
    """Every alert of one device, as a value.

    Args:
        rules: By kind, what is measured.
        events: By kind, what happens.
        memory: By kind, what is remembered.
        sequence: The last event's number.

    >>> book = AlertBook(rules={"disk": AlertRule(64.0, 96.0, above=False, raise_after=2, text="free space, MB")})
    >>> for now, free in enumerate((50.0, 40.0, 70.0)):
    ...     book, event = book.feed("disk", free, float(now))
    ...     if event: print(event.state, event.message)
    raised free space, MB: 40, below 64
    """

    rules: Mapping[str, AlertRule] = field(default_factory=lambda: DEFAULT_RULES)
    events: Mapping[str, EventRule] = field(default_factory=lambda: DEFAULT_EVENTS)
    memory: Mapping[str, AlertMemory] = field(default_factory=dict)
    sequence: int = 0

    def feed(
        self, kind: str, value: float | None, now_s: float, *, detail: str = ""
    ) -> tuple[AlertBook, AlertEvent | None]:
        """Take in one measurement.

        Args:
            kind: One of ``rules``.
            value: In the rule's unit; None (not measured) and values that are not finite change nothing.
            now_s: Wall clock, seconds since 1970 UTC; may jump.
            detail: Added to the message.

        Raises:
            InputError: No such rule.
        """
        rule = self.rules.get(kind)
        if rule is None:
            raise InputError(f"alert kind {kind!r}: no such rule; there are {', '.join(sorted(self.rules))}")
        if value is None or not math.isfinite(value):
            return self, None
        known = self.memory.get(kind, _NOTHING)
        raised = known.since_s is not None
        if not rule.speaks(raised, value):
            return (self._with(kind, replace(known, against=0)) if known.against else self), None
        known = replace(known, against=known.against + 1)
        if known.against < (rule.clear_after if raised else rule.raise_after):
            return self._with(kind, known), None
        if raised:
            return self._clear(
                kind, known, rule.severity, _told(rule, value, rule.clear_at, detail, True), now_s, value
            )
        if _cools(known, rule.cool_down_s, now_s):
            return self._with(
                kind, replace(known, count=known.count + 1, cleared_s=min(known.cleared_s or 0.0, now_s))
            ), None
        message = _told(rule, value, rule.raise_at, detail, False)
        return self._raise(kind, known, rule.severity, message, now_s, value, rule.raise_at)

    def occurred(self, kind: str, message: str, now_s: float) -> tuple[AlertBook, AlertEvent | None]:
        """Something happened; told when it is not standing already.

        Raises:
            InputError: No such rule.
        """
        rule = self.events.get(kind)
        if rule is None:
            raise InputError(f"alert kind {kind!r}: no such event; there are {', '.join(sorted(self.events))}")
        known = self.memory.get(kind, _NOTHING)
        known = replace(known, last_s=now_s, count=known.count + 1)
        if known.since_s is not None:
            return self._with(kind, known), None
        if _cools(known, rule.cool_down_s, now_s):
            return self._with(kind, replace(known, cleared_s=min(known.cleared_s or 0.0, now_s))), None
        return self._raise(kind, known, rule.severity, message, now_s, None, None)

    def settle(self, now_s: float) -> tuple[AlertBook, tuple[AlertEvent, ...]]:
        """Clear what did not happen again for long enough; to be called now and then."""
        book, events = self, []
        for kind, rule in self.events.items():
            known = book.memory.get(kind, _NOTHING)
            if known.since_s is None:
                continue
            if now_s < known.last_s:  # the clock was set back: the quiet time begins anew
                book = book._with(kind, replace(known, last_s=now_s))
            elif now_s - known.last_s >= rule.quiet_s:
                told = f"not again for {rule.quiet_s:.0f} s, {known.count} times before"
                book, event = book._clear(kind, known, rule.severity, told, now_s, None)
                events.append(event)
        return book, tuple(events)

    @property
    def standing(self) -> dict[str, AlertMemory]:
        """What is raised now, by kind."""
        return {kind: known for kind, known in sorted(self.memory.items()) if known.since_s is not None}

    @property
    def worst(self) -> int:
        """0 nothing stands, 1 a warning, 2 a critical alert."""
        return max((2 if self.severity(kind) == "critical" else 1 for kind in self.standing), default=0)

    def to_state(self) -> dict[str, Any]:
        """What is remembered, as plain JSON values; the rules are not."""
        return {
            "format": FORMAT,
            "sequence": self.sequence,
            "memory": {kind: asdict(known) for kind, known in sorted(self.memory.items())},
        }

    def with_state(self, state: Mapping[str, Any]) -> AlertBook:
        """This book with what was remembered; kinds without a rule are left out.

        Raises:
            InputError: Not a saved book.
        """
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']!r}, this program reads {FORMAT}")
            kept = {**self.rules, **self.events}
            memory = {kind: _memory(value) for kind, value in state["memory"].items() if kind in kept}
            return replace(self, memory=memory, sequence=_count(state["sequence"]))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InputError(f"saved alerts: damaged ({type(exc).__name__}: {exc})") from exc

    def severity(self, kind: str) -> Severity:
        """How bad a kind is; a kind without a rule is a warning."""
        rule = self.rules.get(kind) or self.events.get(kind)
        return rule.severity if rule else "warning"

    def _with(self, kind: str, known: AlertMemory) -> AlertBook:
        return replace(self, memory={**self.memory, kind: known})

    def _raise(
        self, kind: str, known: AlertMemory, severity: Severity, message: str, now_s: float,
        value: float | None, limit: float | None,
    ) -> tuple[AlertBook, AlertEvent]:  # fmt: skip
        message = message[:_MOST_TEXT]
        known = replace(known, since_s=now_s, against=0, message=message)
        book = replace(self._with(kind, known), sequence=self.sequence + 1)
        return book, AlertEvent(book.sequence, kind, "raised", severity, message, now_s, value, limit)

    def _clear(
        self, kind: str, known: AlertMemory, severity: Severity, message: str, now_s: float, value: float | None
    ) -> tuple[AlertBook, AlertEvent]:
        known = replace(known, since_s=None, against=0, cleared_s=now_s, count=0, message="")
        book = replace(self._with(kind, known), sequence=self.sequence + 1)
        return book, AlertEvent(book.sequence, kind, "cleared", severity, message[:_MOST_TEXT], now_s, value, None)


def rules_from_settings(setting: Mapping[str, Any] | Any) -> dict[str, AlertRule]:
    """The rules with the lines of the section ``alerts.``.

    Args:
        setting: Anything that gives a value for ``setting["alerts.temperature_c"]``: `kasmina_edge.settings.Settings`.

    Raises:
        InputError: A line is not a finite number, or a cool-down is negative.
    """
    cool_down_s, drift = float(setting["alerts.cool_down_s"]), float(setting["alerts.drift"])
    hot, disk = float(setting["alerts.temperature_c"]), float(setting["alerts.disk_free_mb"])
    memory = float(setting["alerts.memory_share"])
    lines = {
        "temperature": (hot, hot - 5.0),
        "disk": (disk, 1.5 * disk),
        "memory": (memory, 0.9 * memory),
        "drift": (drift, 0.8 * drift),
    }
    moved = {k: replace(DEFAULT_RULES[k], raise_at=up, clear_at=down) for k, (up, down) in lines.items()}
    return {kind: replace(rule, cool_down_s=cool_down_s) for kind, rule in {**DEFAULT_RULES, **moved}.items()}


def _told(rule: AlertRule, value: float, line: float, detail: str, over: bool) -> str:
    side = ("below" if rule.above else "above") if over else ("above" if rule.above else "below")
    return f"{rule.text or 'value'}: {value:.4g}, {side} {line:.4g}" + (f"; {detail}" if detail else "")


def _cools(known: AlertMemory, cool_down_s: float, now_s: float) -> bool:
    """Whether the last clearing is too near; a clock that was set back starts the cool-down anew, once."""
    return known.cleared_s is not None and now_s - known.cleared_s < cool_down_s


def _memory(value: Mapping[str, Any]) -> AlertMemory:
    since, cleared = value["since_s"], value["cleared_s"]
    return AlertMemory(
        None if since is None else _time(since), _count(value["against"]), None if cleared is None else _time(cleared),
        _time(value["last_s"]), _count(value["count"]), str(value["message"])[:_MOST_TEXT],
    )  # fmt: skip


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a time")
    return float(value)
