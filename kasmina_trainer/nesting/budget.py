"""What may still be spent, in the units of `Cost`; children draw from what their parent has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost

_PRICED = {"parameters": "parameters", "macs": "macs", "bytes": "extra_bytes"}
_SPELLED = {"parameters": "parameters", "macs": "MACs", "bytes": "bytes"}


@dataclass(frozen=True)
class Budget:
    """Limits of what may stand in one place; None is no limit.

    Attributes:
        parameters: Values that learn.
        macs: Multiply-adds of one frame.
        bytes: Memory of the int8 file: weights, biases, gates; as `Cost.extra_bytes`.

    Raises:
        InputError: A limit below 0.

    >>> Budget(parameters=100).allows(Cost(parameters=120))
    '120 parameters asked for, 100 left'
    >>> Budget(parameters=100, macs=9).minus(Cost(40, 4))
    Budget(parameters=60, macs=5, bytes=None)
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for axis, limit in self._limits().items():
            if limit is not None and limit < 0:
                raise InputError(f"budget of {limit} {_SPELLED[axis]}: expected 0 or more")

    def allows(self, cost: Cost) -> str:
        """Why a price cannot be paid, with both numbers; "" when it can."""
        return "; ".join(
            f"{_price(cost, axis):,} {_SPELLED[axis]} asked for, {limit:,} left"
            for axis, limit in self._limits().items()
            if limit is not None and _price(cost, axis) > limit
        )

    def minus(self, cost: Cost) -> Budget:
        """What is left behind a price.

        Raises:
            InputError: It cannot be paid.
        """
        if clause := self.allows(cost):
            raise InputError(f"over budget: {clause}")
        return Budget(**{a: None if limit is None else limit - _price(cost, a) for a, limit in self._limits().items()})

    def plus(self, more: Budget) -> Budget:
        """Raised by another budget's limits; what has no limit keeps none."""
        added = more._limits()
        return Budget(**{a: None if limit is None else limit + (added[a] or 0) for a, limit in self._limits().items()})

    def bounds(self, part: Budget) -> str:
        """Why a part cannot be handed on out of this, with the axis that it leaves open; "" when nothing is open."""
        given = part._limits()
        return "; ".join(
            f"{_SPELLED[axis]} without a limit asked for, {limit:,} left"
            for axis, limit in self._limits().items()
            if limit is not None and given[axis] is None
        )

    def reserved(self, now: Cost) -> Cost:
        """What handing this budget on takes away: its limits, and where it has none what is used now."""
        limits = {a: _price(now, a) if limit is None else limit for a, limit in self._limits().items()}
        return Cost(**{_PRICED[axis]: value for axis, value in limits.items()})

    def share(self, cost: Cost) -> float:
        """The largest share of any limit that a price takes (dominant share, Ghodsi et al. 2011); 0 without limits."""
        shares = [0.0]
        for axis, limit in self._limits().items():
            price = _price(cost, axis)
            if limit is not None and price:
                shares.append(price / limit if limit else float("inf"))
        return max(shares)

    def _limits(self) -> dict[str, int | None]:
        return {"parameters": self.parameters, "macs": self.macs, "bytes": self.bytes}


def _price(cost: Cost, axis: str) -> int:
    return int(getattr(cost, _PRICED[axis]))
