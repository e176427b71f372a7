"""Who gets what is left of a budget when several ask at once: pure, deterministic, never more than there is.

A policy says in which order requests are served, and which of them keep room free while they wait. `Fair` serves
whoever holds least (dominant resource fairness, Ghodsi et al. 2011); `Priority` serves the more important ones. Both
know age: without it a large request starves behind an endless row of small ones, and an unimportant one behind
important ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.nesting.budget import Budget

PATIENCE = 4
_NOTHING = Cost()


@dataclass(frozen=True)
class Request:
    """Somebody asks for a part of a budget.

    Attributes:
        child: Who; ties are broken by this name.
        cost: How much.
        priority: Higher is more important.
        value: What it is expected to bring, in the caller's unit; breaks ties of priority.
        waited: Rounds in which it asked in vain.
        holds: What it has already.
    """

    child: str
    cost: Cost
    priority: int = 0
    value: float = 0.0
    waited: int = 0
    holds: Cost = _NOTHING


@dataclass(frozen=True)
class Grant:
    """The answer to one request.

    Attributes:
        child: Whose.
        granted: Whether it got all that it asked for; parts are not given.
        reason: One clause, with both numbers where room lacked.
        hopeless: No waiting helps: it asks for more than the whole budget, or has lost its point.
    """

    child: str
    granted: bool
    reason: str
    hopeless: bool = False


class Policy(Protocol):
    """In which order requests are served."""

    @property
    def name(self) -> str:
        """As it stands in reasons."""

    def order(self, requests: Sequence[Request], whole: Budget) -> list[Request]:
        """The requests, first served first; the same for any order in which they are given."""

    def keeps_room(self, request: Request) -> bool:
        """Whether nobody behind this request may be served while it does not fit."""


@dataclass(frozen=True)
class Fair:
    """Whoever would hold the smallest dominant share comes first; whoever waited too long, before all others.

    The bound: let a request fit the whole budget, let ``n`` others be as old or older, and let every child leave after
    at most ``L`` rounds. Then it is served after at most ``patience + (n + 1) * L`` rounds, whatever else arrives.

    Attributes:
        patience: Rounds of waiting after which a request goes first, oldest first, and room is kept for it.
    """

    patience: int = PATIENCE
    name: str = "fair"

    def order(self, requests: Sequence[Request], whole: Budget) -> list[Request]:
        """Overdue ones by age; then by the share that each would hold."""

        def rank(request: Request) -> tuple[bool, int, float, str]:
            late = self.keeps_room(request)
            return (not late, -request.waited if late else 0, whole.share(request.holds + request.cost), request.child)

        return sorted(requests, key=rank)

    def keeps_room(self, request: Request) -> bool:
        """True from ``patience`` rounds of waiting on."""
        return request.waited >= self.patience


@dataclass(frozen=True)
class Priority:
    """The most important comes first, then the most valuable; waiting makes more important.

    Attributes:
        ageing: Rounds of waiting that count as one step of priority; 0: waiting counts for nothing, and a request may
            starve.
        patience: Rounds of waiting after which room is kept for a request that comes first.
    """

    ageing: int = PATIENCE
    patience: int = PATIENCE
    name: str = "priority"

    def order(self, requests: Sequence[Request], whole: Budget) -> list[Request]:
        """By priority with age, then value, then name."""
        return sorted(requests, key=lambda r: (-self._aged(r), -r.value, -r.waited, r.child))

    def keeps_room(self, request: Request) -> bool:
        """As `Fair`, unless waiting counts for nothing."""
        return self.ageing > 0 and request.waited >= self.patience

    def _aged(self, request: Request) -> int:
        return request.priority + (request.waited // self.ageing if self.ageing else 0)


POLICIES: dict[str, Policy] = {"fair": Fair(), "priority": Priority()}
"""Policies by the names that settings use."""


def arbitrate(
    requests: Sequence[Request], left: Budget, policy: Policy, *, whole: Budget | None = None
) -> tuple[Grant, ...]:
    """Answer every request of one round. What is granted is never more than ``left``, on any axis.

    Args:
        requests: One a child.
        left: What may be given.
        policy: Who comes first.
        whole: The budget when nothing is taken, which tells whether waiting can help; ``left`` when not given.

    Returns:
        One grant a request, in the order in which they were looked at.

    Raises:
        InputError: A child asks twice.
    """
    names = [request.child for request in requests]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{len(names)} requests of {len(set(names))} children: {', '.join(twice)} ask more than once")
    whole = left if whole is None else whole
    grants, kept_for = [], ""
    for request in policy.order(requests, whole):
        clause = left.allows(request.cost)
        if hopeless := whole.allows(request.cost):
            grants.append(Grant(request.child, False, f"more than the whole budget: {hopeless}", hopeless=True))
        elif kept_for:
            grants.append(Grant(request.child, False, f"room is kept for {kept_for}"))
        elif not clause:
            left = left.minus(request.cost)
            grants.append(Grant(request.child, True, f"granted by policy {policy.name}"))
        else:
            grants.append(Grant(request.child, False, clause))
            kept_for = request.child if policy.keeps_room(request) else ""
    return tuple(grants)
