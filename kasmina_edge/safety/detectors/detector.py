"""What every drift detector promises: `Detector.update`, and a state that survives a restart."""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from kasmina_edge.errors import InputError

STATE_FORMAT = 1


class DriftState(enum.Enum):
    """What `Detector.update` says of the stream after one more value.

    ``DRIFT`` is said with the value that settled it; the detector then goes on from what it sees now. `Adwin` may say
    it again with the next looks, while it lets go what is left of the old regime.
    """

    LEARNING = "learning"
    STABLE = "stable"
    DRIFT = "drift"


LEARNING, STABLE, DRIFT = DriftState.LEARNING, DriftState.STABLE, DriftState.DRIFT


class Detector(ABC):
    """One detector over one quantity; not safe for several threads.

    Attributes:
        name: Stands in the saved state, so that one detector's memory is not read by another.
        count: Values taken in since the start; ``ignored`` were not finite and are not among them.
        drifts: How often `DriftState.DRIFT` was said.
        onset: Values before the present one at which the last drift is held to have begun; 0 before the first.
    """

    name: ClassVar[str]
    _FIELDS: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self.count = 0
        self.ignored = 0
        self.drifts = 0
        self.onset = 0

    def update(self, x: float) -> DriftState:
        """Take in one value.

        Args:
            x: Any float; NaN and infinity change nothing but ``ignored``.

        Returns:
            ``LEARNING`` while too little was seen to say anything, ``DRIFT`` with the value that settled a change.
        """
        if x - x != 0.0:
            self.ignored += 1
            return STABLE if self.ready else LEARNING
        self.count += 1
        state = self._step(x)
        if state is DRIFT:
            self.drifts += 1
        return state

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether enough was seen to speak."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was seen; the counts stay."""

    @abstractmethod
    def _step(self, x: float) -> DriftState: ...

    def to_state(self) -> dict[str, Any]:
        """Everything remembered, as plain JSON values; `load_state` goes on as if nothing had happened."""
        kept = {name: getattr(self, name) for name in ("count", "ignored", "drifts", "onset", *self._FIELDS)}
        return {"format": STATE_FORMAT, "detector": self.name, **kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; on any error nothing is changed.

        Raises:
            InputError: Not a state of this detector, or one whose fields are missing or not finite numbers.
        """
        if state.get("detector") != self.name or state.get("format") != STATE_FORMAT:
            raise InputError(
                f"detector state: of {state.get('detector')!r} format {state.get('format')!r}, "
                f"this is {self.name!r} format {STATE_FORMAT}"
            )
        before = self.to_state()
        try:
            self._load({name: state[name] for name in before})
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as exc:
            self._load(before)
            raise InputError(f"detector state of {self.name}: damaged ({type(exc).__name__}: {exc})") from exc

    def _load(self, state: Mapping[str, Any]) -> None:
        for name in ("count", "ignored", "drifts", "onset"):
            setattr(self, name, whole(state[name]))
        for name in self._FIELDS:
            setattr(self, name, _number_like(getattr(self, name), state[name]))


def whole(value: Any) -> int:
    """A count out of a saved state; ValueError when it is none."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def finite(value: Any) -> float:
    """A finite number out of a saved state; ValueError when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def finites(value: Any) -> list[float]:
    """A list of finite numbers out of a saved state; ValueError when it is none."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return [finite(v) for v in value]


def _number_like(old: Any, new: Any) -> Any:
    if isinstance(old, list):
        return new
    return finite(new) if isinstance(old, float) else whole(new)
