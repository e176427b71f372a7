"""Windows for learning: ten seconds of three leads and the pattern in them, split by patient.

What was fixed before the first network saw any of it, and is not to be moved afterwards: the patterns, three leads of a
Holter recorder, ten seconds at 128 Hz, an SNR drawn evenly between 6 and 24 dB (the range of the noise stress test's
levels in which a person still reads the strip), a noise mix drawn anew for each window, and one electrode in twenty
windows that has fallen off. Ranges inside patterns and patients were widened once since and narrowed nowhere. A patient
is in one part only; every patient has every pattern equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels, Samples
from kasmina_trainer.datasets.ecg_peaks import band_gain
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES
from kasmina_trainer.datasets.medical_simulator.recording import record

SNR_DB = (6.0, 24.0)
LEADS = ("II", "V1", "V5")
RATE_HZ = 128.0
SECONDS = 10.0
LENGTH = 1280
INPUT_SHAPE = (len(LEADS), 1, LENGTH)  # (C, H, W)
BAND_HZ = (0.5, 40.0)
"""What the app leaves of a window: without drift (ST stays, as the filter has no delay) and without mains."""
FULL_SCALE_MV = 3.0
"""-3 to 3 mV become 0 to 1."""
LOST_LEAD_SHARE = 0.05
PATIENTS = (200, 40, 100)
"""In training, validation and test."""


@dataclass(frozen=True)
class Windows:
    """Windows of some patients.

    Attributes:
        x: In [0, 1].  # (N, 3, 1, 1280)
        y: Places in `patterns.NAMES`.  # (N,)
        patients: Numbers of the patients.  # (N,)
        snr_db: What was drawn.  # (N,)
    """

    x: Images
    y: Labels
    patients: npt.NDArray[np.int64]
    snr_db: npt.NDArray[np.float64]

    @property
    def samples(self) -> Samples:
        """Inputs and labels."""
        return self.x, self.y


def load(
    seed: int = 0, *, patients: tuple[int, int, int] = PATIENTS, views: int = 1, names: Sequence[str] = NAMES
) -> Splits:
    """Training, validation and test part, which share no patient.  # x (N, 3, 1, 1280) in [0, 1]

    Args:
        seed: Of patients, rhythms and noise.
        patients: How many in each part.
        views: Windows of each pattern a patient.
        names: Patterns; labels are places in this list.

    Raises:
        InputError: A part without patients, or no such pattern.
    """
    parts = [part.samples for part in split(seed, patients=patients, views=views, names=names)]
    return Splits(train=parts[0], validation=parts[1], test=parts[2], labels=tuple(names))


def split(
    seed: int = 0, *, patients: tuple[int, int, int] = PATIENTS, views: int = 1, names: Sequence[str] = NAMES
) -> tuple[Windows, Windows, Windows]:
    """The three parts as `load`, with patients and noise beside them."""
    if min(patients) < 1 or views < 1:
        raise InputError(f"{patients} patients with {views} windows a pattern: expected at least one of each")
    ends = np.cumsum((0, *patients))
    first, second, third = (
        windows(seed, range(ends[part], ends[part + 1]), views=views, names=names) for part in range(3)
    )
    return first, second, third


def windows(
    seed: int,
    numbers: Sequence[int],
    *,
    views: int = 1,
    names: Sequence[str] = NAMES,
    snr_db: tuple[float, float] = SNR_DB,
) -> Windows:
    """Windows of the patients with these numbers: every pattern ``views`` times each.

    Args:
        seed: As `load`.
        numbers: Of the patients.
        views: As `load`.
        names: As `load`.
        snr_db: Other noise than the fixed range, for a look beyond it.

    Raises:
        InputError: No patients, patterns or views, a pattern twice or unknown, or a range that does not rise.
    """
    if not len(numbers) or not names or views < 1 or len(set(names)) != len(names):
        raise InputError(
            f"{len(numbers)} patients, {views} views of {', '.join(names) or 'no pattern'}: some of each, once"
        )
    if not -60 <= snr_db[0] <= snr_db[1] <= 120:
        raise InputError(f"noise from {snr_db[0]} to {snr_db[1]} dB: expected a range within -60 to 120 dB")
    count = len(numbers) * len(names) * views
    x = np.empty((count, *INPUT_SHAPE), np.float32)
    y, whose, snr = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count)
    at = 0
    for number in numbers:
        who = patient(seed, number)
        for label, name in enumerate(names):
            for view in range(views):
                rng = who.rng(201, view, label)
                snr[at] = rng.uniform(*snr_db)
                found = record(
                    who, name, seconds=SECONDS, rate_hz=RATE_HZ, snr_db=float(snr[at]), leads=LEADS, seed=view
                )
                signal = found.signal
                if rng.uniform() < LOST_LEAD_SHARE:
                    signal = signal.copy()
                    signal[rng.integers(len(LEADS))] = 0.0
                x[at], y[at], whose[at] = conditioned(signal), label, number
                at += 1
    return Windows(x, y, whose, snr)


def conditioned(signal: npt.NDArray[np.float64], rate_hz: float = RATE_HZ) -> Images:
    """What an app does to a window before the network sees it.

    Args:
        signal: mV.  # (leads, N)
        rate_hz: Samples a second.

    Returns:
        In [0, 1], 0.5 for no voltage.  # (leads, 1, N)
    """
    samples = signal.shape[1]
    calm = np.fft.irfft(np.fft.rfft(signal) * _gain(samples, rate_hz), samples)
    found: Images = np.clip(calm / (2 * FULL_SCALE_MV) + 0.5, 0.0, 1.0).astype(np.float32)[:, None]
    return found


@lru_cache(maxsize=8)
def _gain(samples: int, rate_hz: float) -> npt.NDArray[np.float64]:
    return band_gain(samples, rate_hz, BAND_HZ)
