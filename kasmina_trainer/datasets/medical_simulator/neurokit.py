"""Signals of somebody else's generator, `neurokit2` (Makowski et al. 2021, MIT): a second opinion, where installed.

neurokit2 solves McSharry's model step by step, one lead at a time, and knows no arrhythmia. What can be said with its
parameters (angles, sizes and widths of P, Q, R, S, T, rate and its spread) is said here: sinus rhythm, sinus rhythm
without P waves and with irregular beats as in atrial fibrillation, a T wave that comes late, the rate of a regular
tachycardia. These are few patterns, and their words are ours; a detector that only knew the simulator's own way of
drawing would fail on them.

**Its own default numbers are not used for windows.** They make a QRS half width of 28 ms (measured as `realism` does;
record 208: 19 ms) and, by their angles, a T wave that ends 0.44 s after R at 60 beats a minute; its twelve-lead table
makes T in II as high as R. A detector that is right calls that a bundle branch block and a long QT. The numbers here
are a textbook adult's: PR 180 ms, QRS 95 ms, QT 380 ms, and sizes of each wave in II, V1 and V5.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES
from kasmina_trainer.datasets.medical_simulator.windows import LEADS, LENGTH, SECONDS, conditioned

Signal = npt.NDArray[np.float64]

PATTERNS = ("normal", "af", "svt", "long_qt")
"""Those that its parameters can express."""
INSTALL = "Install it: pip install neurokit2"
R_MV = 1.2
"""Its signals have no unit: R peaks in lead II are set to this."""


def generator() -> Any:
    """The package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module("neurokit2")
    except ImportError as exc:
        raise InputError(f"neurokit2 cannot be imported ({exc})", INSTALL) from exc


def sinus_signals(count: int, *, seconds: float, rate_hz: float, seed: int = 0) -> list[Signal]:
    """Lead II in sinus rhythm at 57 to 97 beats a minute, mV.

    Args:
        count: How many.
        seconds: How long.
        rate_hz: Samples a second.
        seed: Draws rates and noise.

    Raises:
        InputError: neurokit2 is not installed.
    """
    nk, rng = generator(), np.random.default_rng(seed)
    found = []
    for _ in range(count):
        raw = nk.ecg_simulate(
            duration=int(np.ceil(seconds)) + _SETTLING_S,
            sampling_rate=int(rate_hz),
            heart_rate=float(rng.uniform(57, 97)),
            heart_rate_std=float(rng.uniform(1, 4)),
            noise=0.02,
            random_state=int(rng.integers(2**31)),
        )
        signal = np.asarray(raw, np.float64)[int(_SETTLING_S * rate_hz) :][: round(seconds * rate_hz)]
        found.append((signal - np.median(signal)) * R_MV / (np.quantile(signal, 0.999) - np.median(signal)))
    return found


def windows(count: int, *, seed: int = 0) -> tuple[Images, Labels]:
    """Windows of `PATTERNS` in turn as the detector wants them; labels are places in `patterns.NAMES`.

    Args:
        count: How many; each takes neurokit2 about half a second.
        seed: Draws rates, parameters and noise.

    Raises:
        InputError: neurokit2 is not installed.
    """
    nk, rng = generator(), np.random.default_rng(seed)
    x, y = np.empty((count, len(LEADS), 1, LENGTH), np.float32), np.empty(count, np.int64)
    for i in range(count):
        name = PATTERNS[i % len(PATTERNS)]
        orders, state = _orders(name, rng), int(rng.integers(2**31))
        leads = []
        for lead in LEADS:  # the same state: the same beats in every lead
            sizes = np.array(SIZES[lead]) * np.where([name in ("af", "svt"), 0, 0, 0, 0], 0.0, 1.0)
            raw = nk.ecg_simulate(
                duration=int(SECONDS) + 2 * _SETTLING_S,
                sampling_rate=_NATIVE_HZ,
                noise=float(rng.uniform(0.005, 0.03)),
                random_state=state,
                ai=tuple((sizes * _UNIT / np.array(orders["bi"]) ** 2).tolist()),
                **orders,
            )
            signal = _at_rate(np.asarray(raw, np.float64)[_SETTLING_S * _NATIVE_HZ :])
            swing = float(np.quantile(signal, 0.999) - np.quantile(signal, 0.001))
            leads.append((signal - np.median(signal)) * R_MV * float(np.ptp(sizes)) / swing)
        x[i], y[i] = conditioned(np.stack(leads)), NAMES.index(name)
    return x, y


SIZES = {
    "II": (0.12, -0.08, 1.00, -0.15, 0.25),
    "V1": (0.06, 0.20, -0.70, -0.10, 0.03),
    "V5": (0.08, -0.10, 1.10, -0.12, 0.28),
}
"""P, Q, R, S, T of a healthy adult, as shares of R in II; in V1 the wave at Q's place is its small r, at R's its S."""
_NATIVE_HZ = 250
_SETTLING_S = 2  # its solution begins off the cycle
_UNIT = 0.108  # what neurokit2's own R comes to: size times squared width


def _orders(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of `ecg_simulate` that make a pattern; angles in degrees, P Q R S T."""
    angles, widths = [-60.0, -10.0, 0.0, 10.0, 80.0], [0.15, 0.05, 0.06, 0.05, 0.28]
    rate, spread = float(rng.uniform(57, 97)), float(rng.uniform(1, 3))
    if name == "af":
        rate, spread = float(rng.uniform(75, 125)), float(rng.uniform(14, 22))
    elif name == "svt":
        rate, spread = float(rng.uniform(156, 210)), 0.5
    elif name == "long_qt":
        rate = float(rng.uniform(55, 70))
        angles[4], widths[4] = float(rng.uniform(125, 140)), 0.32
    return {"heart_rate": rate, "heart_rate_std": spread, "ti": tuple(angles), "bi": tuple(widths)}


def _at_rate(signal: Signal) -> Signal:
    """Ten seconds at 250 Hz as 1280 samples at 128 Hz, in the frequency domain.  # (2500,) to (1280,)"""
    native = round(SECONDS * _NATIVE_HZ)
    lines = np.fft.rfft(signal[:native])[: LENGTH // 2 + 1]
    lines[-1] = 0.0
    found: Signal = np.fft.irfft(lines, LENGTH) * (LENGTH / native)
    return found
