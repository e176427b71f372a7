"""A recording of one patient: twelve leads in mV with a stated noise, and the truth about every beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator.course import Course, Mark
from kasmina_trainer.datasets.medical_simulator.dipole import Dipole
from kasmina_trainer.datasets.medical_simulator.leads import LEADS, OF_DIPOLE, rows_of
from kasmina_trainer.datasets.medical_simulator.noise import Converter, Mix, drawn_mix, noise
from kasmina_trainer.datasets.medical_simulator.patients import Patient
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES, pattern

Signal = npt.NDArray[np.float64]

RATE_HZ = 360.0
"""As the MIT-BIH Arrhythmia Database."""
RATES_HZ = (100.0, 2000.0)
SECONDS = (5.0, 7200.0)
SNR_DB = (-60.0, 120.0)
CONVERTER = Converter()


@dataclass(frozen=True)
class Recording:
    """What a recorder keeps.

    Attributes:
        signal: mV, on the converter's steps.  # (leads, N)
        clean: The heart alone, mV, before noise and converter.  # (leads, N)
        rate_hz: Samples a second.
        leads: Names of the rows.
        marks: Beats and rhythms in time order.
        pattern: What was made to happen.
        patient: To whom.
        snr_db: Power of the patient's sinus rhythm over the noise's, mean of twelve leads; None: no noise.
        converter: Its steps.
    """

    signal: Signal
    clean: Signal
    rate_hz: float
    leads: tuple[str, ...]
    marks: tuple[Mark, ...]
    pattern: str
    patient: Patient
    snr_db: float | None
    converter: Converter

    @property
    def seconds(self) -> float:
        """Its length."""
        return float(self.signal.shape[1] / self.rate_hz)

    def beats(self, symbols: str = "NLRAVEj") -> npt.NDArray[np.int64]:
        """Samples of the R peaks of beats of these kinds."""
        at = [mark.at_s for mark in self.marks if mark.symbol in symbols]
        last = self.signal.shape[1] - 1
        return np.array([min(round(s * self.rate_hz), last) for s in at], np.int64)


def record(
    patient: Patient,
    happening: str = "normal",
    *,
    seconds: float = 10.0,
    rate_hz: float = RATE_HZ,
    snr_db: float | None = 20.0,
    mix: Mix | None = None,
    leads: Sequence[str] = LEADS,
    seed: int = 0,
    converter: Converter = CONVERTER,
) -> Recording:
    """Record a patient while a pattern happens.

    Args:
        patient: From `patients.patient`.
        happening: A name of `patterns.NAMES`.
        seconds: How long; 5 to 7200.
        rate_hz: Samples a second; 100 to 2000.
        snr_db: Power of this patient's sinus rhythm (mean of twelve leads, mean removed) over the noise's power. The
            sinus rhythm is the measure for every pattern, as asystole has no power of its own. -60 to 120; None: none.
        mix: Shares of the kinds of noise; drawn when left out.
        leads: Which, in this order.
        seed: Draws what this recording alone has; the patient stays the same.
        converter: Steps on which the signal is kept.

    Raises:
        InputError: No such pattern or lead, or a length, rate, noise or seed outside its range.
    """
    if not SECONDS[0] <= seconds <= SECONDS[1] or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise InputError(
            f"recording of {seconds} s at {rate_hz} Hz: expected {SECONDS[0]:g} to {SECONDS[1]:g} s"
            f" at {RATES_HZ[0]:g} to {RATES_HZ[1]:g} Hz"
        )
    if (snr_db is not None and not SNR_DB[0] <= snr_db <= SNR_DB[1]) or seed < 0:
        raise InputError(
            f"recording at {snr_db} dB with seed {seed}: expected {SNR_DB[0]:g} to {SNR_DB[1]:g} dB, and 0 or above"
        )
    rows, wanted = rows_of(leads), pattern(happening)
    rng = patient.rng(101, seed, NAMES.index(happening))
    course = Course(patient, seconds, rng)
    wanted.happens(course)
    clean = seen(patient, course.rendered(rate_hz))
    signal = clean
    if snr_db is not None:
        power = sinus_power(patient) / 10 ** (snr_db / 10)
        signal = clean + noise(clean.shape[1], rate_hz, power, mix or drawn_mix(rng), course.breath, rng)
    return Recording(
        signal=converter.millivolts(converter.counts(signal[rows])),
        clean=clean[rows],
        rate_hz=rate_hz,
        leads=tuple(leads),
        marks=tuple(sorted(course.marks, key=lambda mark: mark.at_s)),
        pattern=happening,
        patient=patient,
        snr_db=snr_db,
        converter=converter,
    )


def seen(patient: Patient, dipole: Dipole) -> Signal:
    """What the twelve leads see of a heart: Dower's matrix, and how near the chest electrodes sit.  # (12, N)"""
    found: Signal = OF_DIPOLE @ dipole
    found[-len(patient.chest) :] *= np.array(patient.chest)[:, None]
    return found


@lru_cache(maxsize=4096)
def sinus_power(patient: Patient) -> float:
    """Mean square of a patient's own sinus rhythm over twelve leads, their means removed, mV^2."""
    course = Course(patient, 20.0, patient.rng(102))
    pattern("normal").happens(course)
    leads = seen(patient, course.rendered(120.0))
    return float(np.mean((leads - leads.mean(1, keepdims=True)) ** 2))
