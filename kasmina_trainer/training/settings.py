"""How long and how boldly a network trains, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from kasmina_edge.errors import InputError

Progress = Callable[[int, int], None]
Watch = Callable[[int, float], None]
Group = tuple[float, Sequence[nn.Parameter]]


@dataclass(frozen=True)
class Minutes:
    """A time budget; what does not fit is left out, and the report says so."""

    minutes: float

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise InputError(f"budget of {self.minutes} minutes: expected more than 0")

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.minutes * 60


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how boldly.

    Attributes:
        steps: Optimiser steps.
        batch: Rows a step, over all sources together.
        learning_rate: Peak of a one-cycle schedule (Smith and Topin 2018).
        weight_decay: Decoupled (AdamW).
        label_smoothing: Share of the label spread over the other classes.
        shift: Every row is moved by up to so many pixels each way, zeros moving in.
        keep: Weight of staying near the teacher's answers on the first source (distillation, Hinton et al. 2015).
        remember: Ask the teacher once for every row of the first source, instead of at every step; only where rows stay
            where they are (``shift`` 0).
        fused: The optimiser takes its step for all parameters in one kernel, where they are on the CPU: sooner where
            they are many and small, and rounded otherwise in the last place.
    """

    steps: int = 500
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    shift: int = 1
    keep: float = 0.0
    remember: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        if self.remember and self.shift:
            raise InputError(f"remember with a shift of {self.shift}: rows that move have no answer to remember")


@dataclass(frozen=True)
class Thinned:
    """The first source holds only those of its rows that teach anything, moved already.

    Attributes:
        share: How many of all rows of that source they are, above 0 to 1; they weigh as much as all of them did.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"a source thinned to a share of {self.share}: expected more than 0, and at most 1")

    def rows(self, each: int) -> int:
        """Rows a step, where ``each`` would be drawn of the whole source."""
        return max(1, round(self.share * each))


@dataclass(frozen=True)
class TrainingRun:
    """What happened: steps done of those asked for, the mean loss of the last tenth, wall seconds.

    ``peak_bytes`` is what learning keeps besides the network itself: values saved for the way back, gradients and the
    optimiser's moments. It is counted at the first step, so it does not depend on the machine; 0 when nothing learned.
    """

    steps: int
    asked_steps: int
    loss: float
    seconds: float
    peak_bytes: int = 0
