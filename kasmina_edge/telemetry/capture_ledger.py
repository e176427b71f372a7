"""What a capture folder remembers of itself: numbers given out, budgets spent, erasures carried out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.change_plan import ChangePlan, Erasure
from kasmina_edge.errors import KasminaError, StorageError
from kasmina_edge.telemetry.outbox_table import CLOCK_WAS_SET_S

MAX_SPANS_KNOWN = 256
_DAY_S = 86_400.0


class Spent(SignedContract):
    """What was spent of a budget, when its days began, and the newest plan that it was spent under.

    ``budget`` is that of `CaptureBudget.identity`; empty in what was written before it was, when ``serial`` told.
    """

    serial: int
    frames: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=0)] = 0
    since_s: float | None = None
    budget: str = ""

    def at(self, now_s: float) -> Spent:
        """The same, with days that began at a time a clock can have shown: not before it was set, never ahead of it."""
        if now_s < CLOCK_WAS_SET_S or not self.frames:
            return self
        began = self.since_s
        if began is None or began < CLOCK_WAS_SET_S or began > now_s:
            return self.model_copy(update={"since_s": now_s})
        return self

    def is_over(self, plan: ChangePlan, now_s: float) -> bool:
        """Whether the days that the plan gives are past."""
        days = plan.capture.max_days if plan.capture else None
        since_s = self.at(now_s).since_s
        if days is None or since_s is None or since_s < CLOCK_WAS_SET_S:
            return False
        return now_s - since_s >= days * _DAY_S


class Ledger(SignedContract):
    """Durable counts: the next sequence, what was spent by the name of the bundle that a plan is for, and erasures.

    ``erased`` are the demands that were carried out and told; ``covered`` is the time that they and those under way
    cover, as spans of seconds since 1970 in order.
    """

    next_sequence: Annotated[int, Field(ge=0)] = 0
    spent: dict[str, Spent] = {}
    erased: tuple[str, ...] = ()
    covered: tuple[tuple[float, float], ...] = ()

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged ledger is a `StorageError`."""
        return StorageError

    def under(self, plan: ChangePlan) -> Spent | None:
        """What was spent under ``plan``; None when a newer plan was in force already, and this one allows nothing."""
        budget = plan.capture.identity() if plan.capture else ""
        spent = self.spent.get(plan.bundle)
        if spent is not None and spent.serial > plan.serial:
            return None
        if spent is not None and (spent.budget == budget or (not spent.budget and spent.serial == plan.serial)):
            return spent.model_copy(update={"serial": plan.serial, "budget": budget})
        return Spent(serial=plan.serial, budget=budget)

    def covering(self, erasure: Erasure) -> tuple[tuple[float, float], ...]:
        """``covered`` with this demand's time; of many spans the newest `MAX_SPANS_KNOWN` stay."""
        joined: list[tuple[float, float]] = []
        for from_s, to_s in sorted({*self.covered, (erasure.from_s, erasure.to_s)}):
            if joined and from_s <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], to_s)
            else:
                joined.append((from_s, to_s))
        return tuple(joined[-MAX_SPANS_KNOWN:])
