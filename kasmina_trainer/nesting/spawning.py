"""Children that compete: requests wait in a row, a round of arbitration answers them, what is granted grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Unpack

import torch

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.nesting.arbitration import POLICIES, Grant, Policy, Request, arbitrate
from kasmina_trainer.nesting.budget import Budget
from kasmina_trainer.nesting.config import MAX_CHILDREN, ChildConfig
from kasmina_trainer.nesting.controller import trunk_cost
from kasmina_trainer.nesting.planning import ChildOptions
from kasmina_trainer.nesting.pricing import around
from kasmina_trainer.nesting.seed import NestedBranch
from kasmina_trainer.seeds.lifecycle import Plain, Record, SiteState, Step

IDLE_SHARE = 0.02


@dataclass(frozen=True)
class Waiting:
    """A request that has not been granted yet.

    Attributes:
        plan: The child that shall come; None where a child that is there asks for more budget.
        more: What it asks for then.
        request: As the arbitration sees it.
        seed: Of first weights.
        reason: Why it asks.
    """

    request: Request
    plan: ChildConfig | None = None
    more: Budget | None = None
    seed: int = 0
    reason: str = ""


class Nursery:
    """The waiting row of one nested seed.

    Args:
        nest: Whose budget is shared out.
        policy: Who comes first; the seed's own when left out.
        record: Called with every step and every refusal, before anything changes.
        clock: Wall clock, seconds since 1970 UTC.
    """

    def __init__(
        self,
        nest: NestedBranch,
        *,
        policy: Policy | None = None,
        record: Record | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._nest = nest
        self._policy = policy or POLICIES[nest.policy]
        self._record, self._clock = record, clock
        self._row: list[Waiting] = []
        self._round = 0

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Who waits, in the order of asking."""
        return tuple(waiting.request for waiting in self._row)

    def ask(
        self,
        name: str,
        blueprint: str,
        *,
        value: float = 0.0,
        seed: int = 0,
        reason: str = "",
        **options: Unpack[ChildOptions],
    ) -> None:
        """Ask for a child; arguments as in `NestedBranch.spawn`.

        Args:
            name: What it is called.
            blueprint: Name in the library.
            value: What it is expected to bring; breaks ties of priority.
            seed: Chooses its first weights.
            reason: For the record.
            options: See `ChildOptions`.

        Raises:
            InputError: It could not stand here, it asks for more than the whole budget, or it waits already.
        """
        self._refuse_twice(name)
        plan = self._nest.plan(name, blueprint, **options)
        request = Request(name, self._nest.price(plan), plan.priority, value)
        self._enter(Waiting(request, plan, seed=seed, reason=reason))

    def ask_more(
        self, name: str, more: Budget, *, priority: int | None = None, value: float = 0.0, reason: str = ""
    ) -> None:
        """Ask for a larger budget of a nested child.

        Args:
            name: Which.
            more: What is added to its limits.
            priority: The child's own when left out.
            value: As in `ask`.
            reason: For the record.

        Raises:
            InputError: It is not nested, it asks for more than the whole budget, or it waits already.
        """
        self._refuse_twice(name)
        plan = self._nest.child(name).plan
        held = self._nest.nest(name).budget.reserved(Cost()) + around(self._nest.controller.hidden)
        own = plan.priority if priority is None else priority
        request = Request(name, more.reserved(Cost()), own, value, holds=held)
        self._enter(Waiting(request, more=more, reason=reason))

    def settle(self) -> tuple[Grant, ...]:
        """One round: everybody who waits is answered, and what was granted stands afterwards.

        Returns:
            One grant a request, in the order in which they were looked at; those that have lost their point come first
            and wait no longer.
        """
        self._round += 1
        stale = [self._stale(waiting) for waiting in self._row]
        grants = [Grant(w.request.child, False, s, hopeless=True) for w, s in zip(self._row, stale, strict=True) if s]
        self._row = [waiting for waiting, clause in zip(self._row, stale, strict=True) if not clause]
        requests = [waiting.request for waiting in self._row]
        for grant in arbitrate(requests, self._nest.left(), self._policy, whole=self._whole()):
            at, waiting = next((i, w) for i, w in enumerate(self._row) if w.request.child == grant.child)
            if grant.granted and waiting.plan is not None and len(self._nest.names) >= MAX_CHILDREN:
                full = f"{len(self._nest.names)} children stand here, at most {MAX_CHILDREN}"
                grant = replace(grant, granted=False, reason=full)
            if grant.granted:
                self._grow(waiting, grant)
                del self._row[at]
            else:
                self._refuse(waiting, grant)
                older = replace(waiting.request, waited=waiting.request.waited + 1)
                self._row[at] = replace(waiting, request=older)
            grants.append(grant)
        return tuple(grants)

    def withdraw(self, name: str) -> None:
        """Ask no longer.

        Raises:
            InputError: Nobody of that name waits.
        """
        left = [waiting for waiting in self._row if waiting.request.child != name]
        if len(left) == len(self._row):
            names = ", ".join(w.request.child for w in self._row) or "nobody"
            raise InputError(f"seed {self._nest.port.name}: {name!r} does not wait; {names} does")
        self._row = left

    def review(self, frames: torch.Tensor, *, below: float = IDLE_SHARE) -> dict[str, float]:
        """Retire children that the controller has silenced, or that add next to nothing, and free their budget.

        Args:
            frames: Values at the site.  # (N, *port.shape)
            below: Share of all that is added under which a child is idle.

        Returns:
            Share by the name of each child that went. Nobody goes while nothing is added at all.
        """
        shares = self._nest.shares(frames)
        idle = {name: share for name, share in shares.items() if share < below} if any(shares.values()) else {}
        for name, share in idle.items():
            self._nest.retire(
                name,
                f"adds {share:.2%} of what the children add, {below:.2%} is the least",
                record=self._record,
                at_s=float(self._clock()),
            )
        return idle

    def _enter(self, waiting: Waiting) -> None:
        if clause := self._whole().allows(waiting.request.cost):
            raise InputError(
                f"seed {self._nest.port.name}: child {waiting.request.child}: more than the whole budget: {clause}",
                "Ask for a smaller one, or raise the budget.",
            )
        self._row.append(waiting)

    def _whole(self) -> Budget:
        """What children could share if none were there."""
        return self._nest.budget.minus(trunk_cost(self._nest.port, self._nest.controller.hidden))

    def _stale(self, waiting: Waiting) -> str:
        """Why a request has lost its point since it was made; "" when it has not."""
        there = waiting.request.child in self._nest.names
        if waiting.plan is not None:
            return "it is there already" if there else ""
        return "" if there else "it has gone"

    def _refuse_twice(self, name: str) -> None:
        if any(waiting.request.child == name for waiting in self._row):
            raise InputError(f"seed {self._nest.port.name}: {name} waits already", "Withdraw it first.")

    def _grow(self, waiting: Waiting, grant: Grant) -> None:
        at_s = float(self._clock())
        if waiting.plan is None:
            assert waiting.more is not None
            self._nest.hand_on(grant.child, waiting.more, record=self._record, at_s=at_s)
            return
        plan = waiting.plan
        self._nest.spawn(
            plan.name,
            plan.blueprint,
            config=plan.settings,
            version=plan.version,
            priority=plan.priority,
            intensity=plan.intensity,
            seed=waiting.seed,
            reason=f"{waiting.reason or plan.blueprint}; {grant.reason}, round {self._round}",
            record=self._record,
            at_s=at_s,
        )

    def _refuse(self, waiting: Waiting, grant: Grant) -> None:
        state = SiteState.DORMANT if waiting.plan is not None else self._nest.child(grant.child).state
        told: dict[str, Plain] = {"round": self._round, "waited": waiting.request.waited + 1}
        place = f"{self._nest.port.name}/{grant.child}"
        step = Step(place, state, state, f"waits: {grant.reason}", told, float(self._clock()))
        if self._record is not None:
            self._record(step)
        self._nest.history.append(step)
