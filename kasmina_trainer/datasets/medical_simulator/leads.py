"""Twelve leads from a dipole, and from nine electrodes.

Signals: the matrix of Dower, Machado and Osborne 1980 (Clin. Cardiol. 3:87-97) from Frank's x, y, z to V1-V6, I and II;
the other four follow from I and II by Einthoven and Goldberger. Noise is born at electrodes and reaches the leads as
differences of potentials, so one loose electrode shows in every lead that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Matrix = npt.NDArray[np.float64]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")

_DOWER = np.array(
    [
        (0.632, -0.235, 0.059),  # I
        (0.235, 1.066, -0.132),  # II
        (-0.515, 0.157, -0.917),  # V1
        (0.044, 0.164, -1.387),
        (0.882, 0.098, -1.277),
        (1.213, 0.127, -0.601),
        (1.125, 0.127, -0.086),
        (0.831, 0.076, 0.230),  # V6
    ]
)


def _from_limbs(one: Matrix, two: Matrix) -> Matrix:
    """III, aVR, aVL and aVF of I and II."""
    return np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2])


def _of_electrodes() -> Matrix:
    unit = np.eye(len(ELECTRODES))
    right, left, leg = unit[:3]
    one, two = left - right, leg - right
    chest = unit[3:] - (right + left + leg) / 3
    return np.vstack([one[None], two[None], _from_limbs(one, two), chest])


OF_DIPOLE: Matrix = np.vstack([_DOWER[:2], _from_limbs(_DOWER[0], _DOWER[1]), _DOWER[2:]])
"""mV in each lead for one mV of x, y, z.  # (12, 3)"""
OF_ELECTRODES: Matrix = _of_electrodes()
"""Share of each electrode's potential in each lead.  # (12, 9)"""


def rows_of(leads: Sequence[str]) -> list[int]:
    """Where these leads stand in `LEADS`.

    Raises:
        InputError: No lead, one of another name, or one twice.
    """
    if not leads or len(set(leads)) != len(leads) or any(name not in LEADS for name in leads):
        raise InputError(f"leads {', '.join(leads) or 'none'}: expected different ones of {', '.join(LEADS)}")
    return [LEADS.index(name) for name in leads]
