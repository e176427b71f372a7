"""How near made heart beats are to real ones: four distributions, two distances, and what a distance of nothing is.

The real record is five minutes of one patient (record 208 of the MIT-BIH Arrhythmia Database, lead MLII), who has a
great many ventricular beats; so it is compared with simulated patients in sinus rhythm, with premature ventricular
beats and in bigeminy, in equal parts. Beats are found by `ecg_peaks` in every signal alike, so what the detector does
wrong it does wrong everywhere. One person is no population: a small distance says that the simulator makes beats of the
right kind and size, not that its spread is a population's. Beside stands the distance between the two halves of the
real record: what one heart is from itself a few minutes later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.ecg_peaks import SHAPE_BAND_HZ, band_passed, half_widths_ms, r_peaks
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.recording import RATE_HZ, record

Signal = npt.NDArray[np.float64]

FEATURES = {"RR": "s", "QRS half width": "ms", "R amplitude": "mV", "spectrum": "Hz"}
"""What is compared, and the unit of its Wasserstein distance."""
SPECTRUM_HZ = (0.7, 40.0)
PATTERNS = ("normal", "pvc", "bigeminy")
LONGEST_RR_S = 3.0
"""Longer gaps are failures of a recorder or of the detector."""
_BLOCK_S = 8.0


@dataclass(frozen=True)
class Measured:
    """Values of each feature of a set of signals, with weights (of the spectrum: frequencies, by power).

    Attributes:
        values: By feature.
        weights: By feature.
    """

    values: dict[str, Signal]
    weights: dict[str, Signal]


@dataclass(frozen=True)
class Distance:
    """How far two distributions of a feature are apart.

    Attributes:
        feature: One of `FEATURES`.
        between: The two, in words.
        kolmogorov: Largest difference of the distribution functions, 0 to 1.
        wasserstein: Mean way from one to the other, in the feature's unit.
        unit: Of ``wasserstein``.
    """

    feature: str
    between: str
    kolmogorov: float
    wasserstein: float
    unit: str

    def __str__(self) -> str:
        both = f"KS {self.kolmogorov:.3f}, Wasserstein {self.wasserstein:.3g} {self.unit}"
        return f"{self.feature:15} {self.between:28} {both}"


def measured(signals: Sequence[Signal], rate_hz: float) -> Measured:
    """The features of one lead of several recordings.

    Args:
        signals: mV, at least ten seconds each.  # (N,) each
        rate_hz: Samples a second.

    Raises:
        InputError: No signals, or one that is too short or not finite.
    """
    if not signals:
        raise InputError("realism: no signals, at least one is needed")
    found: dict[str, list[Signal]] = {name: [] for name in FEATURES}
    block = round(_BLOCK_S * rate_hz)
    hertz = np.fft.rfftfreq(block, 1 / rate_hz).astype(np.float64)
    inside = (hertz >= SPECTRUM_HZ[0]) & (hertz <= SPECTRUM_HZ[1])
    power = np.zeros(int(inside.sum()))
    for signal in signals:
        peaks = r_peaks(signal, rate_hz)
        rr = np.diff(peaks) / rate_hz
        found["RR"].append(rr[rr < LONGEST_RR_S])
        found["QRS half width"].append(half_widths_ms(signal, rate_hz, peaks))
        found["R amplitude"].append(np.abs(band_passed(signal, rate_hz, SHAPE_BAND_HZ)[peaks]))
        pieces = signal[: len(signal) // block * block].reshape(-1, block)
        each = np.abs(np.fft.rfft((pieces - pieces.mean(1, keepdims=True)) * np.hanning(block)))[:, inside] ** 2
        np.add(power, each.sum(0) / each.sum(), out=power)
    values = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    values["spectrum"] = hertz[inside]
    weights = {name: np.ones(len(each)) for name, each in values.items()}
    weights["spectrum"] = power
    return Measured(values, weights)


def distances(first: Measured, second: Measured, between: str) -> list[Distance]:
    """Both distances of every feature."""
    return [
        Distance(
            name,
            between,
            kolmogorov(first.values[name], second.values[name], first.weights[name], second.weights[name]),
            wasserstein(first.values[name], second.values[name], first.weights[name], second.weights[name]),
            unit,
        )
        for name, unit in FEATURES.items()
    ]


def kolmogorov(a: Signal, b: Signal, of_a: Signal | None = None, of_b: Signal | None = None) -> float:
    """Largest difference of two distribution functions; values may have weights.

    >>> kolmogorov(np.array([0.0, 1.0]), np.array([0.0, 1.0])), kolmogorov(np.zeros(3), np.ones(3))
    (0.0, 1.0)
    """
    _, first, second = _functions(a, b, of_a, of_b)
    return float(np.abs(first - second).max())


def wasserstein(a: Signal, b: Signal, of_a: Signal | None = None, of_b: Signal | None = None) -> float:
    """Mean distance by which one distribution must be moved to become the other; values may have weights.

    >>> wasserstein(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    2.0
    """
    at, first, second = _functions(a, b, of_a, of_b)
    return float(np.sum(np.abs(first - second)[:-1] * np.diff(at)))


def simulated(seed: int = 0, *, patients: int = 24, seconds: float = 60.0, snr_db: float = 20.0) -> list[Signal]:
    """Lead II of simulated patients at the real record's rate, the three `PATTERNS` in turn, mV."""
    return [
        record(
            patient(seed, n), PATTERNS[n % 3], seconds=seconds, rate_hz=RATE_HZ, snr_db=snr_db, leads=("II",)
        ).signal[0]
        for n in range(patients)
    ]


def likened(real: Signal, seed: int = 0, *, patients: int = 12, snr_db: float = 20.0) -> list[Signal]:
    """As `simulated`, of patients whose mean rate and R amplitude are the real record's; the rest is their own.

    Their sinus intervals are the record's median and middle spread, their amplitudes are scaled until R in lead II has
    the record's median. So of RR and amplitude only the form is compared, and widths and spectrum as they are.
    """
    truth = measured([real], RATE_HZ)
    quarters = np.quantile(truth.values["RR"], (0.25, 0.5, 0.75))
    height = float(np.median(truth.values["R amplitude"]))
    found = []
    for number in range(patients):
        who = patient(seed, number)
        plain = record(who, "normal", seconds=20.0, rate_hz=RATE_HZ, snr_db=None, leads=("II",)).signal[0]
        own = float(np.median(measured([plain], RATE_HZ).values["R amplitude"]))
        pace = replace(who.pace, mean_rr_s=float(quarters[1]), sdnn_s=float(quarters[2] - quarters[0]) / 1.349)
        alike = replace(who, pace=pace, size=who.size * height / own)
        name = PATTERNS[number % len(PATTERNS)]
        found.append(record(alike, name, seconds=60.0, rate_hz=RATE_HZ, snr_db=snr_db, leads=("II",)).signal[0])
    return found


def report(
    real: Signal,
    made: Mapping[str, Callable[[], Sequence[Signal]]],
    *,
    rate_hz: float = RATE_HZ,
) -> list[Distance]:
    """Distances of every generator from the real record, and of the record's halves from each other.

    Args:
        real: Of `kasmina_trainer.datasets.ecg.load_signal`.
        made: Names of generators and what makes their signals, at the same rate.
        rate_hz: Samples a second of all.
    """
    half = len(real) // 2
    truth = measured([real], rate_hz)
    rows = distances(measured([real[:half]], rate_hz), measured([real[half:]], rate_hz), "record 208, its two halves")
    for name, make in made.items():
        rows += distances(measured(make(), rate_hz), truth, f"{name} and record 208")
    return rows


def _functions(a: Signal, b: Signal, of_a: Signal | None, of_b: Signal | None) -> tuple[Signal, Signal, Signal]:
    """Where values lie, and both distribution functions there."""
    if not len(a) or not len(b):
        raise InputError(f"distance of {len(a)} and {len(b)} values: expected at least one of each")
    at = np.unique(np.concatenate([a, b]))
    parts = []
    for values, weights in ((a, of_a), (b, of_b)):
        order = np.argsort(values, kind="stable")
        mass = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)[order]
        summed = np.concatenate([[0.0], np.cumsum(mass)])
        parts.append(summed[np.searchsorted(values[order], at, side="right")] / summed[-1])
    return at, parts[0], parts[1]
