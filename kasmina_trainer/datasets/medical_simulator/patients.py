"""A patient: every number that makes one heart different from another, drawn from a seed.

Everything that stays with a person (shape and size of each wave, axis, conduction times, rate and its variability,
where an ectopic beat is born, what their electrodes pick up) is in here and nowhere else. Patients with different
numbers share nothing, so a split by patient cannot leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator import shapes
from kasmina_trainer.datasets.medical_simulator.dipole import Waves, turned
from kasmina_trainer.datasets.medical_simulator.heart_rate import Pace

MEAN_RR_S = (0.62, 1.05)
SDNN_S = (0.015, 0.055)
LF_OVER_HF = (0.4, 2.5)
BREATH_HZ = (0.18, 0.36)
PR_S = (0.125, 0.195)
QTC_S = (0.375, 0.435)
QT_EXPONENT = (1 / 3, 1 / 2)
"""How QT follows the beat length: from Fridericia's cube root to Bazett's square root; people differ (Malik 2002)."""
SIZE_SPREAD, T_SPREAD, P_SPREAD = 0.20, 0.35, 0.25
"""Of the logarithm of a whole heart's amplitude, and beside it of its T and its P waves'."""
WIDEN, T_STRETCH = (0.78, 1.15), (0.80, 1.20)
CHEST_SPREAD = 0.15
"""Of the logarithm of each chest lead's size: a chest electrode never sits where the textbook's does."""
AXIS_DEG = 13.0
WAVE_SPREAD = 0.15
SHIFT_S = 0.0025


@dataclass(frozen=True)
class Patient:
    """One heart, at rest.

    Attributes:
        number: Its own, within a seed.
        pace: Its sinus rhythm.
        pr_s: From the onset of P to the onset of QRS.
        qtc_s: QT at one beat a second.
        qt_exponent: By which power of the beat length QT follows it.
        size: Factor of all its amplitudes.
        t_size: Factor of its T waves' beside it.
        p_size: Factor of its P waves' beside it.
        widen: Factor of its waves' widths.
        t_stretch: Factor of its T waves' widths beside it.
        chest: Factors of what V1 to V6 see.
        axis_deg: Turn of its dipole about x, y, z.
        breath_deg: How far breathing turns the dipole.
        wave_seed: Small differences of single waves are drawn from it.
    """

    number: int
    pace: Pace
    pr_s: float
    qtc_s: float
    qt_exponent: float
    size: float
    t_size: float
    p_size: float
    widen: float
    t_stretch: float
    chest: tuple[float, ...]
    axis_deg: tuple[float, float, float]
    breath_deg: float
    wave_seed: tuple[int, ...]

    def qt_s(self, rr_s: float, qtc_s: float | None = None) -> float:
        """QT interval at a beat length: QTc times the patient's own power of RR in seconds."""
        corrected: float = (qtc_s or self.qtc_s) * rr_s**self.qt_exponent
        return corrected

    def own(self, turn: Waves, name: str, *, factor: float = 1.0) -> Waves:
        """Waves as this patient has them: resized, widened, turned and each a little different, always alike.

        Args:
            turn: From `shapes`.
            name: Of the shape; each name has differences of its own.
            factor: Of the amplitude beside the patient's.
        """
        sizes, shifts, widths = _differences(self.wave_seed, name, len(turn))
        found = turned(turn, _turn(self.axis_deg))
        found[:, 2:] *= (self.size * factor * sizes)[:, None]
        found[:, 0] += shifts
        found[:, 1] *= self.widen * widths
        return found

    def atrial(self) -> Waves:
        """The sinus P wave, after its onset."""
        return self.own(shapes.p_wave(), "p", factor=self.p_size)

    def ventricular(self, rr_s: float) -> Waves:
        """A conducted QRS with the T wave that belongs to a beat of this length, after the R peak."""
        late = shapes.t_wave(self.qt_s(rr_s) - shapes.ONSET_S, stretch=self.t_stretch)
        return np.vstack([self.own(shapes.qrs(), "qrs"), self.own(late, "t", factor=self.t_size)])

    def rng(self, *purpose: int) -> np.random.Generator:
        """Chance that belongs to this patient and a purpose."""
        return np.random.default_rng((*self.wave_seed, *purpose))


def patient(seed: int, number: int) -> Patient:
    """Patient ``number`` of a seed; the same two numbers always give the same heart.

    Raises:
        InputError: One of them is below 0.

    >>> patient(0, 3) == patient(0, 3) != patient(0, 4)
    True
    """
    if seed < 0 or number < 0:
        raise InputError(f"patient {number} of seed {seed}: expected 0 or above")
    rng = np.random.default_rng((seed, number, 20030301))
    pace = Pace(
        mean_rr_s=float(rng.uniform(*MEAN_RR_S)),
        sdnn_s=float(rng.uniform(*SDNN_S)),
        lf_over_hf=float(np.exp(rng.uniform(*np.log(LF_OVER_HF)))),
        breath_hz=float(rng.uniform(*BREATH_HZ)),
    )
    return Patient(
        number=number,
        pace=pace,
        pr_s=float(rng.uniform(*PR_S)),
        qtc_s=float(rng.uniform(*QTC_S)),
        size=float(np.exp(rng.normal(0, SIZE_SPREAD))),
        t_size=float(np.exp(rng.normal(0, T_SPREAD))),
        p_size=float(np.exp(rng.normal(0, P_SPREAD))),
        widen=float(rng.uniform(*WIDEN)),
        axis_deg=(float(rng.normal(0, AXIS_DEG)), float(rng.normal(0, AXIS_DEG)), float(rng.normal(0, AXIS_DEG))),
        breath_deg=float(rng.uniform(1.0, 5.0)),
        qt_exponent=float(rng.uniform(*QT_EXPONENT)),
        t_stretch=float(rng.uniform(*T_STRETCH)),
        chest=tuple(np.exp(rng.normal(0, CHEST_SPREAD, 6)).tolist()),
        wave_seed=(seed, number, 7),
    )


@lru_cache(maxsize=1024)
def _differences(
    seed: tuple[int, ...], name: str, count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Factors of size, shifts in seconds and factors of width of a shape's waves."""
    rng = np.random.default_rng((*seed, *name.encode()))
    sizes = np.exp(rng.normal(0, WAVE_SPREAD, count))
    return sizes, rng.normal(0, SHIFT_S, count), np.exp(rng.normal(0, WAVE_SPREAD / 2, count))


@lru_cache(maxsize=64)
def _turn(degrees: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    return rotation(degrees)


def rotation(degrees: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn about x, then y, then z.  # (3,) to (3, 3)"""
    a, b, c = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    found: npt.NDArray[np.float64] = about_z @ about_y @ about_x
    return found
