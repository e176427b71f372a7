"""What one activation of a chamber looks like: rows of waves in Frank's x, y, z, before a patient makes them its own.

Times are seconds after the R peak for ventricles and after the onset for atria. The vectors follow the textbook course
of activation (Goldberger's and Surawicz's: septum to the right and front, free wall to the left and down, base to the
back); sizes were set so that Dower's leads have the amplitudes of a healthy adult (R in II about 1.2 mV, S in V1 about
1 mV, T in II about 0.3 mV). Conduction defects by the criteria of the AHA/ACCF/HRS 2009 recommendations (Surawicz et
al., Circulation 119:e235).
"""

from __future__ import annotations

import numpy as np

from kasmina_trainer.datasets.medical_simulator.dipole import Waves, waves

ONSET_S = 0.048
"""From the onset of a normal QRS to its R peak."""
P_S = 0.100
"""Duration of a P wave."""
T_TAIL_S = 0.034
"""Width of the T wave's second, steeper half; T ends 2.5 of it after that half's centre."""


def p_wave() -> Waves:
    """Right, then left atrium."""
    return waves((0.036, 0.018, 0.02, 0.09, -0.05), (0.064, 0.018, 0.06, 0.06, 0.03))


def retrograde_p() -> Waves:
    """From the node upwards: negative in II, III and aVF."""
    return waves((0.036, 0.018, -0.01, -0.10, 0.00), (0.060, 0.016, 0.02, -0.07, 0.02))


def qrs() -> Waves:
    """Septum, free wall in two parts, base."""
    return waves(
        (-0.028, 0.0085, -0.12, -0.04, -0.22),
        (-0.005, 0.0085, 0.84, 0.72, 0.02),
        (0.006, 0.0095, 0.62, 0.52, 0.56),
        (0.028, 0.0095, -0.14, -0.18, 0.38),
    )


def t_wave(end_s: float, vector: tuple[float, float, float] = (0.24, 0.22, -0.12), *, stretch: float = 1.0) -> Waves:
    """A T wave, steeper on its far side.

    Args:
        end_s: Its end, after the R peak.
        vector: At its peak, mV.
        stretch: Of its widths.
    """
    tail = end_s - 2.5 * T_TAIL_S * stretch
    x, y, z = vector
    return waves(
        (tail - 0.038 * stretch, 0.048 * stretch, 0.62 * x, 0.62 * y, 0.62 * z),
        (tail, T_TAIL_S * stretch, 0.55 * x, 0.55 * y, 0.55 * z),
    )


def left_bundle_block() -> Waves:
    """No septal wave; broad, notched to the left and back; about 150 ms, from 75 ms before."""
    return waves(
        (-0.040, 0.014, 0.32, 0.12, 0.32),
        (-0.010, 0.017, 0.85, 0.34, 0.66),
        (0.032, 0.018, 0.85, 0.26, 0.50),
    )


def right_bundle_block() -> Waves:
    """A normal beginning and a late broad wave to the right and front: R' in V1, slurred S in I, V5, V6."""
    return np.vstack([qrs(), waves((0.062, 0.017, -0.45, -0.06, -0.56), (0.088, 0.014, -0.22, -0.02, -0.26))])


def ectopic_ventricular(direction: np.ndarray, size_mv: float, width_s: float) -> Waves:
    """A beat born in a ventricle, spreading through muscle: broad, with a T wave against it. Kept: 140 to 200 ms.

    Args:
        direction: Of the main vector, any length.  # (3,)
        size_mv: Of the main vector.
        width_s: Duration of the QRS.
    """
    main = np.asarray(direction, np.float64) / np.linalg.norm(direction) * size_mv
    across = np.cross(main, (0.0, 0.35, 1.0))
    across *= 0.3 * size_mv / max(1e-9, float(np.linalg.norm(across)))
    unit = width_s / 5.0
    rows = [
        (-0.9 * unit, 0.62 * unit, *(0.48 * main + across)),
        (0.0, 0.70 * unit, *(0.66 * main)),
        (1.15 * unit, 0.66 * unit, *(0.44 * main - across)),
        (2.1 * unit, 1.2 * unit, *(-0.12 * main)),
        (0.29, 0.055, *(-0.26 * main)),
        (0.33, 0.040, *(-0.16 * main)),
    ]
    return waves(*rows)


def st_shift(from_s: float, to_s: float, vector: tuple[float, float, float]) -> Waves:
    """A plateau between two moments: four waves of equal width, level to 8 % between the inner ones.

    Args:
        from_s: After the R peak, where the plateau has been reached.
        to_s: Where it begins to end.
        vector: Its height, mV.
    """
    count = 4
    step = (to_s - from_s) / (count - 1)
    height = step / (0.75 * step * np.sqrt(2 * np.pi))  # so that overlapping waves add up to the vector
    x, y, z = (float(height) * value for value in vector)
    return waves(*((from_s + i * step, 0.75 * step, x, y, z) for i in range(count)))
