"""What the three numbers act on: settings, parameter groups, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

from kasmina_edge.errors import InputError
from kasmina_trainer.intensity_scaler.levels import Intensity

P = TypeVar("P")


class Scalable(Protocol):
    """Settings with a width, as those of every blueprint."""

    def scaled(self, width: float) -> Self:
        """The same settings with another width."""


S = TypeVar("S", bound=Scalable)


def widened(settings: S, intensity: Intensity) -> S:
    """Settings of the width that is asked for: what a blueprint is built with."""
    return settings.scaled(intensity.width)


def rate_groups(
    parameters: Mapping[str, Sequence[P]], intensities: Mapping[str, Intensity]
) -> list[tuple[float, list[P]]]:
    """Factors of the learning rate and what learns at each, for ``groups=`` of `kasmina_trainer.training.train`.

    Args:
        parameters: What learns, by site.
        intensities: What holds at a site; 1 where nothing is said.

    Raises:
        InputError: An intensity for a site where nothing learns.
    """
    unknown = [site for site in intensities if site not in parameters]
    if unknown:
        raise InputError(f"intensity of {', '.join(unknown)}: nothing learns there; {', '.join(parameters)} learn")
    groups: dict[float, list[P]] = {}
    for site, members in parameters.items():
        factor = intensities[site].learning_rate if site in intensities else 1.0
        groups.setdefault(factor, []).extend(members)
    return list(groups.items())


def gate_value(asked: float, intensity: Intensity) -> float:
    """The value of a gate.

    Args:
        asked: What the graft was made with, 0 to 1.
        intensity: What holds for it now.

    Raises:
        InputError: ``asked`` is outside 0 to 1.
    """
    if not 0.0 <= asked <= 1.0:
        raise InputError(f"intensity {asked}: expected 0 to 1")
    return asked * intensity.gain
