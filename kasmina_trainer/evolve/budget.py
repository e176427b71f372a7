"""What a growth may take: minutes of training, and multiply-accumulates and parameters that every frame then costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.training import Minutes

_WRITTEN = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|k|M|G|p)$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_THOUSANDS = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


@dataclass(frozen=True)
class Macs:
    """Most multiply-accumulates that a growth may add to one frame."""

    macs: int

    def __post_init__(self) -> None:
        if not isinstance(self.macs, Integral) or self.macs < 1:
            raise InputError(f"budget of {self.macs} MACs: expected a whole number of 1 or more")


@dataclass(frozen=True)
class Parameters:
    """Most values that a growth may add."""

    parameters: int

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Integral) or self.parameters < 1:
            raise InputError(f"budget of {self.parameters} parameters: expected a whole number of 1 or more")


Budget = Minutes | Macs | Parameters


@dataclass(frozen=True)
class Allowance:
    """Budgets together; None: unlimited.

    >>> Allowance.of([Minutes(1), Macs(500)])
    Allowance(seconds=60.0, macs=500, parameters=None)
    >>> Allowance(macs=500).refusal(Cost(10, 800, 10))
    '800 MACs a frame, the budget leaves 500'
    """

    seconds: float | None = None
    macs: int | None = None
    parameters: int | None = None

    @classmethod
    def of(cls, budget: Budget | Sequence[Budget] | None) -> Allowance:
        """Of one budget or several; the smallest of a kind holds, and time without end is no limit.

        Raises:
            InputError: Something else than a budget.
        """
        several = budget if isinstance(budget, list | tuple) else [] if budget is None else [budget]
        given = [b for b in several if isinstance(b, Minutes | Macs | Parameters)]
        if len(given) != len(several):
            raise InputError(f"budget {budget!r}: expected Minutes, Macs or Parameters, or several of them")
        return cls(
            min((b.seconds for b in given if isinstance(b, Minutes) and isfinite(b.seconds)), default=None),
            min((b.macs for b in given if isinstance(b, Macs)), default=None),
            min((b.parameters for b in given if isinstance(b, Parameters)), default=None),
        )

    def refusal(self, cost: Cost) -> str:
        """Why a price is too high, with both numbers; "" when it is not."""
        if self.macs is not None and cost.macs > self.macs:
            return f"{cost.macs} MACs a frame, the budget leaves {self.macs}"
        if self.parameters is not None and cost.parameters > self.parameters:
            return f"{cost.parameters} parameters, the budget leaves {self.parameters}"
        return ""

    def minus(self, cost: Cost) -> Allowance:
        """What is left when a price is paid; never below 0."""
        return Allowance(
            self.seconds,
            None if self.macs is None else max(0, self.macs - cost.macs),
            None if self.parameters is None else max(0, self.parameters - cost.parameters),
        )


@dataclass(frozen=True)
class Deadline:
    """A point on a clock; None: there is none."""

    at_s: float | None
    clock: Callable[[], float]

    @classmethod
    def after(cls, seconds: float | None, clock: Callable[[], float], *, spent_s: float = 0.0) -> Deadline:
        """So many seconds from now, less what an earlier process has spent."""
        return cls(None if seconds is None else clock() + max(0.0, seconds - spent_s), clock)

    def part(self, share: float) -> Deadline:
        """The end of the first ``share`` of what is left."""
        if self.at_s is None:
            return self
        now = self.clock()
        return Deadline(now + share * max(0.0, self.at_s - now), self.clock)

    @property
    def passed(self) -> bool:
        """It is over."""
        return self.at_s is not None and self.clock() >= self.at_s


def parse_budget(text: str, host_parameters: int | None = None) -> Budget:
    """A budget as it is written on a command line.

    Args:
        text: ``90s``, ``5m``, ``1h`` of training; ``200k``, ``2M``, ``1G`` MACs a frame; ``500p`` parameters.
        host_parameters: With it ``10%`` is a share of the host's parameters.

    Raises:
        InputError: Written otherwise.

    >>> parse_budget("5m"), parse_budget("200k"), parse_budget("500p")
    (Minutes(minutes=5.0), Macs(macs=200000), Parameters(parameters=500))
    >>> parse_budget("10%", 4000)
    Parameters(parameters=400)
    """
    if host_parameters is not None and re.fullmatch(r"\d+(\.\d+)?%", text):
        return Parameters(int(float(text[:-1]) / 100 * host_parameters))
    found = _WRITTEN.match(text)
    if not found:
        raise InputError(
            f"budget {text!r}: expected a time (90s, 5m, 1h), MACs a frame (200k, 2M) or parameters (500p, 10%)"
        )
    number, unit = float(found[1]), found[2]
    if not isfinite(number * _THOUSANDS["G"]):
        raise InputError(f"budget {text[:20]}... of {len(text)} characters: too large")
    if unit in _SECONDS:
        return Minutes(number * _SECONDS[unit] / 60)
    return Parameters(int(number)) if unit == "p" else Macs(int(number * _THOUSANDS[unit]))
