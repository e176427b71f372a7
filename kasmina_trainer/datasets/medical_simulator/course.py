"""What happens in a heart over a stretch of time: both chambers' activations, what trembles, and the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.medical_simulator import shapes
from kasmina_trainer.datasets.medical_simulator.dipole import Dipole, Waves, moved, rendered
from kasmina_trainer.datasets.medical_simulator.heart_rate import (
    CONTROL_HZ,
    beat_times,
    breathing,
    intervals,
)
from kasmina_trainer.datasets.medical_simulator.patients import Patient, rotation

Signal = npt.NDArray[np.float64]
LEAD_IN_S = 3.0
"""So much happens before the first sample, unseen, so that no stretch begins in a state of its own."""


@dataclass(frozen=True)
class Mark:
    """A beat or a change of rhythm, as an expert would note it.

    Attributes:
        at_s: After the first sample; a beat's mark stands at its R peak.
        symbol: As in WFDB: ``N``, ``V``, ``+`` and so on.
        note: WFDB's auxiliary text, e.g. ``(AFIB``.
    """

    at_s: float
    symbol: str
    note: str = ""


@dataclass
class Course:
    """A stretch being filled.

    Attributes:
        patient: Whose heart.
        seconds: How long.
        rng: Draws what this stretch alone has.
        breath: At `CONTROL_HZ`, from the first sample on.
        rr_s: Length of a sinus beat that would begin now, seconds, at `CONTROL_HZ`.
        turns: Waves with their places in time.
        marks: The truth.
        tremors: What no wave describes: dipoles at any rate.
    """

    patient: Patient
    seconds: float
    rng: np.random.Generator
    breath: Signal = field(init=False)
    rr_s: Signal = field(init=False)
    turns: list[Waves] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    tremors: list[Tremor] = field(default_factory=list)

    def __post_init__(self) -> None:
        samples = int(np.ceil(self.seconds * CONTROL_HZ)) + 2
        self.breath = breathing(self.patient.pace, samples, self.rng)
        self.rr_s = intervals(self.patient.pace, self.breath, self.rng)

    def sinus(self, *, faster: float = 1.0) -> Signal:
        """When the sinus node lets the ventricles beat: R peaks from before the first sample to after the last.

        Args:
            faster: Divides every interval.
        """
        first = -LEAD_IN_S - float(self.rng.uniform(0, 1)) * self.patient.pace.mean_rr_s
        return beat_times(self.rr_s / faster, first, self.seconds + 1.0)

    def atrial(self, onset_s: float, turn: Waves | None = None) -> None:
        """A P wave (the sinus one when none is given) that begins at ``onset_s``."""
        self.turns.append(moved(self.patient.atrial() if turn is None else turn, onset_s))

    def ventricular(self, at_s: float, turn: Waves, symbol: str = "N") -> None:
        """A QRS-T whose R peak is at ``at_s``, and its mark."""
        self.turns.append(moved(turn, at_s))
        self.mark(at_s, symbol)

    def conducted(self, at_s: float, rr_s: float, *, symbol: str = "N", pr_s: float | None = None) -> None:
        """A sinus beat: P, then QRS and T.

        Args:
            at_s: Of the R peak.
            rr_s: Length of the beat before it; QT follows it.
            symbol: Of its mark.
            pr_s: From the onset of P to the onset of QRS; the patient's when left out.
        """
        self.atrial(at_s - shapes.ONSET_S - (pr_s or self.patient.pr_s))
        self.ventricular(at_s, self.patient.ventricular(rr_s), symbol)

    def mark(self, at_s: float, symbol: str, note: str = "") -> None:
        """Note something, if it is inside."""
        if 0 <= at_s < self.seconds:
            self.marks.append(Mark(at_s, symbol, note))

    def rhythm(self, note: str, at_s: float = 0.0) -> None:
        """A rhythm begins: WFDB's ``+`` with ``(NAME``."""
        self.mark(max(0.0, at_s), "+", note)

    def rendered(self, rate_hz: float) -> Dipole:
        """The dipole in mV, turned to and fro by the breath.  # (3, N)"""
        samples = round(self.seconds * rate_hz)
        found = np.zeros((3, samples))
        if self.turns:
            found += rendered(np.vstack(self.turns), samples, rate_hz)
        time = np.arange(samples) / rate_hz
        for tremor in self.tremors:
            found += tremor.at(time)
        swing = np.deg2rad(self.patient.breath_deg) * np.interp(
            time, np.arange(len(self.breath)) / CONTROL_HZ, self.breath
        )
        x, y, z = found
        cos, sin = np.cos(swing), np.sin(swing)
        return np.stack([cos * x - sin * y, sin * x + cos * y, z])


@dataclass(frozen=True)
class Tremor:
    """A dipole that trembles in one direction, from one moment to another: a sum of oscillators that wander.

    Attributes:
        vector: mV of amplitude one.  # (3,)
        hertz: Of each oscillator.
        sizes: Of each oscillator.
        phases: Of each oscillator, radians.
        wander_hz: How fast frequency and size wander.
        depth: How far: radians of phase, and share of the size.
        from_s: When it begins; it fades in and out over 0.1 s.
        to_s: When it ends.
        teeth: Harmonics of each oscillator, falling as 1/n: above 1 a sawtooth's teeth.
    """

    vector: npt.NDArray[np.float64]
    hertz: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]
    phases: npt.NDArray[np.float64]
    wander_hz: float
    depth: float
    from_s: float
    to_s: float
    teeth: int = 1

    def at(self, time: Signal) -> Dipole:
        """mV at these moments.  # (N,) to (3, N)"""
        slow = 2 * np.pi * self.wander_hz * time
        found = np.zeros(len(time))
        for i, (hertz, size, phase) in enumerate(zip(self.hertz, self.sizes, self.phases, strict=True)):
            angle = 2 * np.pi * hertz * time + phase + self.depth * np.sin(slow * (1 + 0.37 * i) + 3 * phase)
            swell = size * (1 + min(0.6, self.depth) * np.sin(0.71 * slow * (1 + 0.23 * i) + 5 * phase))
            for tooth in range(1, self.teeth + 1):
                found += swell * np.sin(tooth * angle) / tooth
        edge = np.clip((time - self.from_s) / 0.1, 0, 1) * np.clip((self.to_s - time) / 0.1, 0, 1)
        return np.asarray(self.vector)[:, None] * (found * edge)[None, :]


def drawn_direction(rng: np.random.Generator, around: tuple[float, float, float], spread_deg: float) -> np.ndarray:
    """A vector turned by chance.  # (3,)"""
    return rotation(rng.normal(0, spread_deg, 3)) @ np.asarray(around, np.float64)
