"""The dynamical model of McSharry and others 2003, solved: a heart's electric dipole as a sum of Gaussian waves.

McSharry, Clifford, Tarassenko and Smith (IEEE Trans. Biomed. Eng. 50:289-294) let a point run round a limit cycle,
x' = a x - w y, y' = a y + w x with a = 1 - sqrt(x^2 + y^2), and let every wave i push a third coordinate as it passes
the angle of that wave. Sameni and others 2007 (EURASIP J. Adv. Signal Process. 43407) do so for three coordinates, the
dipole's, and measure the waves in mV:

    s' = - sum_i  A_i  w / b_i^2  d_i  exp(-d_i^2 / 2 b_i^2),      d_i = angle - angle_i.

**Why no step by step solution is needed.** On the cycle the radius is 1 and stays 1, so the angle grows by w a second
and nothing else. As d_i' = w, the right-hand side is the time derivative of A_i exp(-d_i^2 / 2 b_i^2), whatever w does
meanwhile; so s is the sum of A_i exp(-d_i^2 / 2 b_i^2), exactly. A turn at the angular speed w makes of the angles
seconds: a wave is centred at angle_i / w and b_i / w wide. That is the form used here: each turn of each chamber has a
time of its own, so atria and ventricles can run apart, as they do in heart block. A test holds both forms together by a
Runge-Kutta solution of the four equations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Waves = npt.NDArray[np.float64]
"""Rows of one turn: centre (s), width (s, one standard deviation), x, y, z (mV).  # (W, 5)"""
Dipole = npt.NDArray[np.float64]
"""x to the left, y to the feet, z to the back, as Frank 1956; mV.  # (3, N)"""

REACH = 6.0
"""Widths to both sides beyond which a wave counts as over; what is cut off is below 2e-8 of its peak."""
_ROWS_AT_ONCE = 2048


def waves(*rows: tuple[float, float, float, float, float]) -> Waves:
    """Waves from (centre s, width s, x, y, z mV).  # (W, 5)"""
    return np.array(rows, np.float64).reshape(-1, 5)


def moved(turn: Waves, by_s: float) -> Waves:
    """The same waves later."""
    found = turn.copy()
    found[:, 0] += by_s
    return found


def turned(turn: Waves, rotation: npt.NDArray[np.float64]) -> Waves:
    """The same waves in another direction.

    Args:
        turn: Waves.  # (W, 5)
        rotation: Applied to each vector from the left.  # (3, 3)
    """
    found = turn.copy()
    found[:, 2:] = found[:, 2:] @ rotation.T
    return found


def at_speed(turn: Waves, period_s: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Angles and angular widths (radians) of waves when a turn takes ``period_s``.  # (W,), (W,)"""
    speed = 2 * np.pi / period_s
    return turn[:, 0] * speed, turn[:, 1] * speed


def rendered(all_waves: Waves, samples: int, rate_hz: float) -> Dipole:
    """The dipole over time.

    Args:
        all_waves: Waves of every turn, centres in seconds after the first sample; what lies outside fades in or out.
        samples: How many to give.
        rate_hz: Samples a second.

    Returns:
        mV.  # (3, samples)
    """
    found = np.zeros((3, samples))
    order = np.argsort(all_waves[:, 1], kind="stable")  # equal widths together, so that few samples are in vain
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = all_waves[order[start : start + _ROWS_AT_ONCE]]
        near = int(np.ceil(REACH * float(rows[:, 1].max()) * rate_hz)) + 1
        at = np.rint(rows[:, 0] * rate_hz).astype(np.int64)[:, None] + np.arange(-near, near + 1)[None, :]
        height = np.exp(-0.5 * ((at / rate_hz - rows[:, :1]) / rows[:, 1:2]) ** 2)
        inside = (at >= 0) & (at < samples)
        where = at[inside]
        for axis in range(3):
            found[axis] += np.bincount(where, (height * rows[:, 2 + axis : 3 + axis])[inside], samples)[:samples]
    return found
