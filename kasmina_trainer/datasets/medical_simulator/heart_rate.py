"""How long from beat to beat: breathing, the slow 0.1 Hz wave, and what is slower still.

Intervals follow a process in time, mean + s_hf b(t) + s_lf m(t) + s_vlf v(t). b is the patient's breathing (a narrow
band around its rate), so the respiratory sinus arrhythmia, the turning axis and the wandering baseline share one
breath; m is a band around 0.1 Hz (baroreflex), v falls as 1/f below 0.04 Hz. Bands and the ratio of their powers as in
the Task Force 1996 (Circulation 93:1043-1065) and in McSharry's tachogram of two Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float64]

CONTROL_HZ = 8.0
"""Samples a second of the slow signals."""
LF_HZ, LF_WIDTH_HZ = 0.1, 0.01
BREATH_WIDTH_HZ = 0.015
VLF_HZ = (0.003, 0.04)
SHORTEST_RR_S = 0.25


@dataclass(frozen=True)
class Pace:
    """A patient's rhythm in the sinus node.

    Attributes:
        mean_rr_s: Mean interval from beat to beat.
        sdnn_s: Standard deviation of the intervals.
        lf_over_hf: Power around 0.1 Hz over power at the breathing rate.
        breath_hz: Breaths a second.
    """

    mean_rr_s: float
    sdnn_s: float
    lf_over_hf: float
    breath_hz: float


def breathing(pace: Pace, samples: int, rng: np.random.Generator) -> Signal:
    """The breath, mean 0 and deviation 1, at `CONTROL_HZ`.  # (samples,)"""
    return _band(samples, pace.breath_hz, BREATH_WIDTH_HZ, rng)


def intervals(pace: Pace, breath: Signal, rng: np.random.Generator) -> Signal:
    """The length that a beat beginning at each moment would have, seconds, at `CONTROL_HZ`.  # (N,) as the breath's"""
    share = pace.lf_over_hf / (1 + pace.lf_over_hf)
    slow = 0.15  # of the variance is slower than both bands in these short stretches
    lf = _band(len(breath), LF_HZ, LF_WIDTH_HZ, rng)
    vlf = _slow(len(breath), rng)
    parts = np.sqrt(slow) * vlf + np.sqrt(1 - slow) * (np.sqrt(share) * lf + np.sqrt(1 - share) * breath)
    found: Signal = np.maximum(pace.mean_rr_s + pace.sdnn_s * parts, SHORTEST_RR_S)
    return found


def beat_times(rr_s: Signal, first_s: float, end_s: float) -> Signal:
    """When beats fall, from ``first_s`` to beyond ``end_s``.

    Args:
        rr_s: As `intervals`; its first value is for time 0, its last goes on.
        first_s: Of the first beat; may be negative.
        end_s: The last time given is the first one after it.
    """
    found = [first_s]
    while found[-1] <= end_s:
        at = min(max(int(found[-1] * CONTROL_HZ), 0), len(rr_s) - 1)
        found.append(found[-1] + float(rr_s[at]))
    return np.array(found)


def _band(samples: int, centre_hz: float, width_hz: float, rng: np.random.Generator) -> Signal:
    """A Gaussian process with a Gaussian spectrum, mean 0 and deviation 1 over a long time.

    The grid is at least 200 s long: a short one has too few lines inside a narrow band.
    """
    length = max(samples, int(200 * CONTROL_HZ))
    hertz = np.fft.rfftfreq(length, 1 / CONTROL_HZ)
    gain = np.exp(-0.25 * ((hertz - centre_hz) / width_hz) ** 2)
    return _drawn(gain, length, samples, rng)


def _slow(samples: int, rng: np.random.Generator) -> Signal:
    length = max(samples, int(400 * CONTROL_HZ))
    hertz = np.fft.rfftfreq(length, 1 / CONTROL_HZ)
    inside = (hertz >= VLF_HZ[0]) & (hertz <= VLF_HZ[1])
    return _drawn(np.where(inside, 1 / np.sqrt(np.maximum(hertz, VLF_HZ[0])), 0.0), length, samples, rng)


def _drawn(gain: Signal, length: int, samples: int, rng: np.random.Generator) -> Signal:
    """A stretch of a stationary process of this amplitude spectrum; its expected variance is 1."""
    lines = gain * (rng.normal(size=len(gain)) + 1j * rng.normal(size=len(gain)))
    lines[0] = 0.0
    deviation = 2 * np.sqrt(np.sum(gain[1:] ** 2)) / length
    found: Signal = np.fft.irfft(lines, length)[:samples] / deviation
    return found
