"""What happens while a growth runs, told as it happens; live tables and TensorBoard files listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["phase", "step", "arm", "rung", "verdict"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``phase`` a part begins, ``step`` one optimiser step, ``arm`` a candidate was measured, ``rung`` a round
            of the race is over, ``verdict`` the gate has spoken.
        name: Of what it happened to: a candidate, a rival, a phase.
        step: Steps done in it.
        values: Figures by name: ``loss``, ``score``, ``target``, ``clean``, ``parameters``, ``steps``.
    """

    kind: Kind
    name: str
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


Listener = Callable[[Event], None]


def together(listeners: Sequence[Listener | None]) -> Listener:
    """One listener for several; None is left out."""
    present = [listener for listener in listeners if listener is not None]

    def tell(event: Event) -> None:
        for listener in present:
            listener(event)

    return tell
