"""How strongly a blueprint grows: three numbers, and a ceiling for each."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.errors import InputError, KasminaError

AXES = ("learning_rate", "width", "gain")
"""The three numbers, in the order in which they are told."""
MOST = 4.0


class Intensity(Contract):
    """How strongly something grows; 1 everywhere changes nothing.

    Adam divides a step by the gradient's size, so that a learning rate alone changes little of what is reached; width
    and gain do.

    Attributes:
        learning_rate: Factor of the plan's rate, above 0 and at most 4.
        width: Factor of the settings that a blueprint marks as its width, above 0 and at most 4.
        gain: Factor of the gate, 0 to 1: 0 is the host's outputs.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    learning_rate: Annotated[float, Field(gt=0, le=MOST)] = 1.0
    width: Annotated[float, Field(gt=0, le=MOST)] = 1.0
    gain: Annotated[float, Field(ge=0, le=1)] = 1.0

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed level is an `InputError`."""
        return InputError

    def capped(self, ceilings: Intensity) -> Intensity:
        """The smaller of both on every axis.

        >>> Intensity(width=2.0).capped(Intensity(width=1.5, gain=0.5))
        Intensity(learning_rate=1.0, width=1.5, gain=0.5)
        """
        return Intensity(**{axis: min(getattr(self, axis), getattr(ceilings, axis)) for axis in AXES})

    def at_most(self, other: Intensity) -> bool:
        """Whether it is above the other on no axis."""
        return all(getattr(self, axis) <= getattr(other, axis) for axis in AXES)

    @property
    def text(self) -> str:
        """The three numbers as people read them."""
        return f"learning rate x {self.learning_rate:g}, width x {self.width:g}, gain {self.gain:g}"


HIGHEST = Intensity(learning_rate=MOST, width=MOST, gain=1.0)
"""No ceiling but the ranges."""
REST = "*"
"""Stands for every blueprint that is not named."""


class IntensitySettings(Contract):
    """What was configured.

    Attributes:
        default: For blueprints without an entry.
        blueprints: By the blueprint's name.
        ceilings: What nothing may exceed.
    """

    model_config = ConfigDict(extra="forbid")

    default: Intensity = Intensity()
    blueprints: dict[str, Intensity] = {}
    ceilings: Intensity = HIGHEST

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed configuration is an `InputError`."""
        return InputError

    def of(self, blueprint: str) -> Intensity:
        """What holds for a blueprint: its own entry or the default, below the ceilings."""
        return self.blueprints.get(blueprint, self.default).capped(self.ceilings)

    def levels(self) -> dict[str, Intensity]:
        """What holds for each blueprint by its name, and under `REST` for all others: what ``evolve`` takes."""
        return {REST: self.default.capped(self.ceilings), **{name: self.of(name) for name in self.blueprints}}
