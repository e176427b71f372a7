"""Safety has the last word on intensity: it lowers at once, it never raises.

Drift, an overdrawn budget and alerts lower the level; the lower level stays when they pass. Somebody has to release it,
and what is raised is proven anew: it goes back through PROBING.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kasmina_edge.errors import InputError
from kasmina_trainer.intensity_scaler.levels import HIGHEST, Intensity

SHUT_AT_DRIFT = 4.0
LEAST = 0.01
"""What is left of a learning rate and a width at worst: nothing trains at 0, and no layer is 0 wide."""


@dataclass(frozen=True)
class Signals:
    """What was measured of a site; None was not measured and changes nothing.

    Attributes:
        drift: Distance to the nearest known domain in units of its alarm line: 1 is the line.
        budget_left: Share of the budget that is left; below 0 it is overdrawn.
        alert: The worst alert that stands.
    """

    drift: float | None = None
    budget_left: float | None = None
    alert: Literal["warning", "critical"] | None = None

    @property
    def calm(self) -> bool:
        """Whether nothing that was measured asks for a lower level."""
        drifts = self.drift is not None and not self.drift <= 1.0
        return not drifts and not (self.budget_left is not None and not self.budget_left >= 0.0) and self.alert is None


def lowered(now: Intensity, signals: Signals, ceilings: Intensity = HIGHEST) -> tuple[Intensity, str]:
    """The level that signals leave: on no axis above ``now`` or above the ceilings.

    Above the alarm line, gain and learning rate fall as 1 / drift; from four times the line on the gate is shut. An
    overdrawn budget narrows, and slows learning, by the share that is overdrawn. A warning halves the gain, a critical
    alert shuts the gate. A figure that is not a number counts as the worst.

    Args:
        now: Before.
        signals: What was measured.
        ceilings: What nothing may exceed.

    Returns:
        The level, and why, with both numbers; "" where nothing changed.
    """
    rate = width = gain = 1.0
    reasons = []
    if signals.drift is not None and not signals.drift <= 1.0:
        factor = 1.0 / signals.drift if signals.drift < SHUT_AT_DRIFT else 0.0
        rate, gain = rate * factor, gain * factor
        reasons.append(f"drift {signals.drift:.3g}, the line is 1")
    if signals.budget_left is not None and not signals.budget_left >= 0.0:
        factor = 0.0 if math.isnan(signals.budget_left) else 1.0 / (1.0 - signals.budget_left)
        rate, width = rate * factor, width * factor
        reasons.append(f"budget overdrawn: {signals.budget_left:.3g} left, 0 is the least")
    if signals.alert is not None:
        gain *= 0.5 if signals.alert == "warning" else 0.0
        reasons.append(f"{signals.alert} alert")
    level = Intensity(
        learning_rate=now.learning_rate * max(rate, LEAST) or now.learning_rate,  # a product may underflow
        width=now.width * max(width, LEAST) or now.width,
        gain=now.gain * gain,
    ).capped(ceilings)
    if not reasons and level != now:
        reasons.append(f"ceilings are {ceilings.text}")
    return level, "; ".join(reasons)


@dataclass(frozen=True)
class Change:
    """One change of level.

    Attributes:
        before: The level that held.
        after: The level that holds.
        reason: Why.
    """

    before: Intensity
    after: Intensity
    reason: str


class SafetyOverride:
    """The level of one site under safety, latched at the lowest that was seen.

    Args:
        asked: What was configured.
        ceilings: What nothing may exceed.
        record: Called with every change before it holds.
    """

    def __init__(
        self,
        asked: Intensity,
        *,
        ceilings: Intensity = HIGHEST,
        record: Callable[[Change], None] | None = None,
    ) -> None:
        self._asked = asked.capped(ceilings)
        self._ceilings = ceilings
        self._record = record
        self._level = self._asked
        self._last = Signals()
        self._history: list[Change] = []

    @property
    def level(self) -> Intensity:
        """What holds now."""
        return self._level

    @property
    def held(self) -> bool:
        """Whether it is below what was configured."""
        return self._level != self._asked

    @property
    def history(self) -> tuple[Change, ...]:
        """Every change, oldest first."""
        return tuple(self._history)

    def observe(self, signals: Signals) -> Intensity:
        """Take in what was measured; the level falls at once or stays. The same signals twice lower once.

        A record that cannot be written does not keep the level up: it falls, and the error is raised then.
        """
        wanted, reason = lowered(self._asked, signals, self._ceilings)
        level = self._level.capped(wanted)
        self._last = signals
        if level != self._level:
            change = Change(self._level, level, reason)
            self._level = level
            self._history.append(change)
            if self._record is not None:
                self._record(change)
        return self._level

    def release(self, reason: str, *, probe: Callable[[str], None]) -> Intensity:
        """Back to what was configured, by somebody's decision.

        Args:
            reason: Who decided and why.
            probe: Puts the site back to PROBING, for what is raised has to be accepted anew; what it raises stops the
                release.

        Raises:
            InputError: No reason is given, nothing is held, or the last signals still ask for a lower level.
        """
        if not reason.strip():
            raise InputError("release of an intensity: a reason is needed", "Say who decided, and why.")
        if not self.held:
            raise InputError(f"nothing to release: the level is what was configured, {self._level.text}")
        _, still = lowered(self._asked, self._last, self._ceilings)
        if not self._last.calm:
            raise InputError(f"not released: {still}", "Release it when the signals have passed.")
        change = Change(self._level, self._asked, reason)
        probe(reason)
        if self._record is not None:
            self._record(change)
        self._level = self._asked
        self._history.append(change)
        return self._level
