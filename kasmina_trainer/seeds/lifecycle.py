"""The life of a seed site as a table of allowed steps, and the record of the steps that were taken.

A step is recorded first and taken then: a record that cannot be written stops the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from kasmina_edge.errors import InputError
from kasmina_edge.safety.audit import AuditLog

Plain = float | int | str


class SiteState(StrEnum):
    """Life of a seed site."""

    DORMANT = "dormant"
    PROBING = "probing"
    ACTIVE = "active"
    REMOVED = "removed"


_D, _P, _A, _R = SiteState.DORMANT, SiteState.PROBING, SiteState.ACTIVE, SiteState.REMOVED
STEPS: Mapping[SiteState, frozenset[SiteState]] = MappingProxyType(
    {
        _D: frozenset({_P}),
        _P: frozenset({_A, _R, _D}),  # back to dormant: a probe that lost its race
        _A: frozenset({_P, _R}),  # probing again: more training, or a higher intensity
        _R: frozenset({_P}),
    }
)
"""Which states may follow which."""


@dataclass(frozen=True)
class Step:
    """One step of one site.

    Attributes:
        site: Which.
        before: State it left.
        after: State it entered.
        reason: One sentence.
        evidence: Figures that the step rests on, by name.
        at_s: Wall clock, seconds since 1970 UTC; 0 where it is not known.
        host: First 12 characters of the host's digest.
    """

    site: str
    before: SiteState
    after: SiteState
    reason: str
    evidence: Mapping[str, Plain] = field(default_factory=dict)
    at_s: float = 0.0
    host: str = ""

    def to_json(self, *, times: bool = True) -> dict[str, Any]:
        """Plain data; without ``times`` the same steps give the same bytes."""
        plain = {**vars(self), "before": str(self.before), "after": str(self.after), "evidence": dict(self.evidence)}
        return plain if times else {k: v for k, v in plain.items() if k != "at_s"}


Record = Callable[[Step], None]


class LifeCycle:
    """States of all sites and how they came about.

    Args:
        sites: Names; all are dormant at first.
        clock: Wall clock, seconds since 1970 UTC.
        record: Called with every step before it is taken; what it raises stops the step.
        host: The host's digest.
    """

    def __init__(
        self,
        sites: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        record: Record | None = None,
        host: str = "",
    ) -> None:
        self._states = dict.fromkeys(sites, SiteState.DORMANT)
        self._history: list[Step] = []
        self._clock, self._record, self._host = clock, record, host

    @property
    def states(self) -> dict[str, SiteState]:
        """State of every site."""
        return dict(self._states)

    @property
    def history(self) -> tuple[Step, ...]:
        """Every step, oldest first."""
        return tuple(self._history)

    def record_to(self, record: Record | None) -> None:
        """From here on, steps are recorded with ``record``."""
        self._record = record

    def last(self, site: str) -> Step | None:
        """The newest step of a site, or None."""
        return next((step for step in reversed(self._history) if step.site == site), None)

    def born_s(self, site: str) -> float | None:
        """When what stands at a site was grown, seconds since 1970 UTC; None where nothing does."""
        if self._states[site] not in (SiteState.PROBING, SiteState.ACTIVE):
            return None
        fresh = (SiteState.DORMANT, SiteState.REMOVED)
        births = [s.at_s for s in self._history if s.site == site and s.before in fresh]
        return births[-1] if births and births[-1] else None

    def check(self, site: str, to: SiteState) -> None:
        """Whether a step is allowed.

        Raises:
            InputError: No such site, or not from its state; the steps that are allowed are named.
        """
        if site not in self._states:
            raise InputError(f"no seed site is called {site!r}; sites are {', '.join(self._states)}")
        now = self._states[site]
        if to not in STEPS[now]:
            allowed = ", ".join(sorted(STEPS[now]))
            raise InputError(f"site {site} is {now}: it cannot become {to}", f"From {now} it can become {allowed}.")

    def move(self, site: str, to: SiteState, *, reason: str, **evidence: Plain) -> Step:
        """Take one step.

        Raises:
            InputError: As `check`.
            Exception: What ``record`` raised; nothing has changed then.
        """
        self.check(site, to)
        step = Step(site, self._states[site], to, reason, evidence, float(self._clock()), self._host[:12])
        if self._record is not None:
            self._record(step)
        self._states[site] = to
        self._history.append(step)
        return step

    def to_json(self, *, times: bool = True) -> dict[str, Any]:
        """States and history as plain data; ``times`` as in `Step.to_json`."""
        return {
            "states": {name: str(state) for name, state in self._states.items()},
            "history": [step.to_json(times=times) for step in self._history],
        }

    def from_json(self, data: Mapping[str, Any]) -> None:
        """Take over states and history that were saved; nothing is recorded again.

        Raises:
            InputError: Other sites, an unknown state, or a history that the table does not allow or that does not lead
                to these states.
        """
        try:
            states = {str(name): SiteState(value) for name, value in data["states"].items()}
            history = [_read_step(step) for step in data["history"]]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InputError(f"life cycle: malformed ({exc})") from exc
        if set(states) != set(self._states):
            raise InputError(f"life cycle of sites {', '.join(states)}; expected {', '.join(self._states)}")
        walked = dict.fromkeys(self._states, SiteState.DORMANT)
        for step in history:
            if step.site not in walked or step.before is not walked[step.site] or step.after not in STEPS[step.before]:
                raise InputError(f"life cycle: site {step.site} cannot go from {step.before} to {step.after} here")
            walked[step.site] = step.after
        if walked != states:
            wrong = next(name for name in states if states[name] is not walked[name])
            raise InputError(f"life cycle: site {wrong} is said to be {states[wrong]}, its steps say {walked[wrong]}")
        self._states = {name: states[name] for name in self._states}
        self._history = history


def audit_steps(log: AuditLog) -> Record:
    """A ``record`` that writes every step into the audit log, as ``seed.probing``, ``seed.active`` and so on."""

    def write(step: Step) -> None:
        log.append(
            f"seed.{step.after}",
            site=step.site,
            before=str(step.before),
            reason=step.reason,
            evidence=dict(step.evidence),
            host=step.host,
        )

    return write


def _read_step(data: Mapping[str, Any]) -> Step:
    return Step(
        site=str(data["site"]),
        before=SiteState(data["before"]),
        after=SiteState(data["after"]),
        reason=str(data["reason"]),
        evidence=dict(data["evidence"]),
        at_s=float(data.get("at_s", 0.0)),
        host=str(data["host"]),
    )
