"""What a recording adds to the heart: wandering baseline, muscles, mains, loose electrodes; and the converter.

Noise is born at the nine electrodes and goes through the same differences as potentials do (`leads.OF_ELECTRODES`).
The four kinds are those of the MIT-BIH noise stress test (Moody, Muldrow and Mark 1984) and the mains. All are made in
the frequency domain or as transients, at any rate; what lies above half the rate is left out rather than folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator.heart_rate import CONTROL_HZ
from kasmina_trainer.datasets.medical_simulator.leads import ELECTRODES, OF_ELECTRODES

Signal = npt.NDArray[np.float64]

KINDS = ("wander", "muscle", "mains", "motion")
WANDER_HZ = 0.5
MUSCLE_HZ = (20.0, 150.0)
MAINS_HZ = (50.0, 60.0)
"""Which of the two is the patient's own."""


@dataclass(frozen=True)
class Mix:
    """Shares of the noise's power, in the order of `KINDS`; positive, their sum is what they are measured against.

    Attributes:
        wander: Slow drift below `WANDER_HZ`, half of it with the breath.
        muscle: Muscles, 20 to 150 Hz, swelling and fading.
        mains: 50 or 60 Hz with its third harmonic.
        motion: Steps and bumps of single electrodes, 1 to 10 Hz.
    """

    wander: float = 0.4
    muscle: float = 0.3
    mains: float = 0.1
    motion: float = 0.2

    def __post_init__(self) -> None:
        if not all(0 <= share < np.inf for share in self.shares) or sum(self.shares) <= 0:
            raise InputError(f"noise shares {self.shares}: expected none below 0 and a sum above 0")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of `KINDS`."""
        return self.wander, self.muscle, self.mains, self.motion


def drawn_mix(rng: np.random.Generator) -> Mix:
    """Any proportions: a Dirichlet draw with parameter one, in which single kinds often prevail."""
    return Mix(*rng.dirichlet(np.ones(len(KINDS))).tolist())


def noise(samples: int, rate_hz: float, power_mv2: float, mix: Mix, breath: Signal, rng: np.random.Generator) -> Signal:
    """Noise in twelve leads whose mean power over leads and time is ``power_mv2``.

    Args:
        samples: How many.
        rate_hz: Samples a second.
        power_mv2: Mean square, mV^2.
        mix: Shares of the kinds.
        breath: At `CONTROL_HZ`, as long as the signal.
        rng: Draws it.

    Returns:
        mV.  # (12, samples)
    """
    made = (
        _wander(samples, rate_hz, breath, rng),
        _muscle(samples, rate_hz, rng),
        _mains(samples, rate_hz, rng),
        _motion(samples, rate_hz, rng),
    )
    total = sum(mix.shares)
    found = np.zeros((len(OF_ELECTRODES), samples))
    for share, electrodes in zip(mix.shares, made, strict=True):
        leads = OF_ELECTRODES @ electrodes
        power = float(np.mean(leads**2))
        if power > 0:
            found += leads * np.sqrt(power_mv2 * share / total / power)
    power = float(np.mean(found**2))  # a transient may have fallen out of so short a stretch
    return found * np.sqrt(power_mv2 / power) if power > 0 else found


def _wander(samples: int, rate_hz: float, breath: Signal, rng: np.random.Generator) -> Signal:
    time = np.arange(samples) / rate_hz
    with_breath = np.interp(time, np.arange(len(breath)) / CONTROL_HZ, breath)
    drift = _coloured(samples, rate_hz, rng, lambda hz: np.where(hz <= WANDER_HZ, 1 / np.maximum(hz, 0.05), 0.0))
    return drift + rng.normal(0, 1, (len(ELECTRODES), 1)) * with_breath


def _muscle(samples: int, rate_hz: float, rng: np.random.Generator) -> Signal:
    bare = _coloured(samples, rate_hz, rng, _muscle_spectrum)
    swell = _coloured(samples, rate_hz, rng, lambda hz: np.where(hz <= WANDER_HZ, 1.0, 0.0))
    return bare * np.exp(0.6 * swell) * np.exp(rng.normal(0, 0.5, (len(ELECTRODES), 1)))


def _muscle_spectrum(hertz: Signal) -> Signal:
    low, high = MUSCLE_HZ
    return np.where((hertz >= low) & (hertz <= high), np.sqrt(low / np.maximum(hertz, low)), 0.0)


def _mains(samples: int, rate_hz: float, rng: np.random.Generator) -> Signal:
    base = float(rng.choice(MAINS_HZ)) + rng.normal(0, 0.03)
    time = np.arange(samples) / rate_hz
    found = np.zeros((len(ELECTRODES), samples))
    for harmonic, size in ((1, 1.0), (3, 0.25)):
        if harmonic * base < rate_hz / 2:
            phase = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.3, (len(ELECTRODES), 1))
            sizes = size * np.exp(rng.normal(0, 0.5, (len(ELECTRODES), 1)))
            found += sizes * np.sin(2 * np.pi * harmonic * base * time + phase)
    return found


def _motion(samples: int, rate_hz: float, rng: np.random.Generator) -> Signal:
    """On average one bump in four seconds, each at one electrode, and a soft rumble of the same band below them."""
    time = np.arange(samples) / rate_hz
    found = 0.15 * _coloured(samples, rate_hz, rng, lambda hz: ((hz >= 1) & (hz <= 10)) / np.maximum(hz, 1))
    seconds = samples / rate_hz
    for _ in range(1 + rng.poisson(seconds / 4)):
        start, decay = rng.uniform(0, seconds), rng.uniform(0.1, 0.6)
        since = np.maximum(time - start, 0.0)
        wave = (1 - np.exp(-since / 0.03)) * np.exp(-since / decay) * np.cos(2 * np.pi * rng.uniform(0.3, 3) * since)
        found[rng.integers(len(ELECTRODES))] += rng.normal(0, 2) * wave
    return found


def _coloured(samples: int, rate_hz: float, rng: np.random.Generator, gain: Callable[[Signal], Signal]) -> Signal:
    """Noise of nine electrodes with this amplitude spectrum, mean 0, deviation 1 each."""
    length = max(samples, int(20 * rate_hz))  # so that the slow lines of a short stretch are not its own period
    hertz = np.fft.rfftfreq(length, 1 / rate_hz).astype(np.float64)
    weight = np.asarray(gain(hertz), np.float64)
    weight[0] = 0.0
    used = np.flatnonzero(weight)
    drawn = rng.standard_normal((2, len(ELECTRODES), len(used)))
    lines = np.zeros((len(ELECTRODES), len(hertz)), np.complex128)
    lines[:, used] = weight[used] * (drawn[0] + 1j * drawn[1])
    deviation = 2 * np.sqrt(np.sum(weight**2)) / length
    found: Signal = np.fft.irfft(lines, length)[:, :samples] / max(deviation, 1e-12)
    return found


@dataclass(frozen=True)
class Converter:
    """An analogue-to-digital converter.

    Attributes:
        bits: Of resolution; at most 16.
        per_mv: Steps a millivolt.
    """

    bits: int = 12
    per_mv: float = 200.0

    def __post_init__(self) -> None:
        if self.bits not in range(8, 17) or not 0 < self.per_mv < np.inf:
            raise InputError(f"converter of {self.bits} bits, {self.per_mv} steps a mV: expected 8 to 16 and above 0")

    def counts(self, signal_mv: Signal) -> npt.NDArray[np.int16]:
        """Whole steps, saturating.  # any shape"""
        top = 2 ** (self.bits - 1) - 1
        return np.clip(np.rint(signal_mv * self.per_mv), -top - (self.bits < 16), top).astype(np.int16)

    def millivolts(self, counts: npt.NDArray[np.int16]) -> Signal:
        """The steps' values in mV."""
        return counts / self.per_mv
