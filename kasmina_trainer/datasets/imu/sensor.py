"""What a phone's inertial sensor adds to the truth: offset, wander, noise, and steps of its converter.

The figures are those of the phone of UCI HAPT (Samsung Galaxy S II), measured on its 61 recordings: `measured_sensor`
does it again. White noise is the median, over recordings, of the differences' deviation in each recording's five
stillest windows; offsets are the spread of the means there. People hold still only so well, so the noise is an upper
bound; the steps are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.imu.windows import LENGTH, Recording

Signal = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SensorModel:
    """A sensor's faults; accelerations in g, rates in rad/s.

    Attributes:
        acceleration_noise: Deviation of the white noise of each sample, by axis.
        rate_noise: Likewise.
        acceleration_gain: Deviation of the gain from 1, one draw a sensor.
        acceleration_offset: Deviation of the offset, one draw a sensor and axis.
        rate_offset: Likewise.
        wander: Deviation that an offset walks in a minute, as a share of its own deviation.
        acceleration_step: Least difference of two readings.
        rate_step: Likewise.
        acceleration_limit: Readings beyond are held there.
        rate_limit: Likewise.
    """

    acceleration_noise: tuple[float, float, float] = (0.0024, 0.0027, 0.0045)
    rate_noise: tuple[float, float, float] = (0.0037, 0.0046, 0.0043)
    acceleration_gain: float = 0.010
    acceleration_offset: float = 0.010
    rate_offset: float = 0.002
    wander: float = 0.2
    acceleration_step: float = 0.00139
    rate_step: float = 0.000305
    acceleration_limit: float = 2.0
    rate_limit: float = 8.7

    def read(self, truth: Signal, rng: np.random.Generator, rate_hz: float) -> Signal:
        """What the sensor says of a true motion.

        Args:
            truth: Specific force in g and rate in rad/s, in the sensor's axes.  # (6, N)
            rng: Draws this sensor's faults and its noise.
            rate_hz: Samples a second.

        Returns:
            The readings.  # (6, N)
        """
        samples = truth.shape[1]
        offsets = np.array([self.acceleration_offset] * 3 + [self.rate_offset] * 3)[:, None]
        walk = np.cumsum(rng.normal(0.0, 1.0, (6, samples)), 1) * (self.wander / np.sqrt(60 * rate_hz))
        gain = np.ones((6, 1))
        gain[:3] += rng.normal(0.0, self.acceleration_gain)
        noise = np.array(self.acceleration_noise + self.rate_noise)[:, None] * rng.normal(0.0, 1.0, (6, samples))
        raw = truth * gain + offsets * (rng.normal(0.0, 1.0, (6, 1)) + walk) + noise
        step = np.array([self.acceleration_step] * 3 + [self.rate_step] * 3)[:, None]
        limit = np.array([self.acceleration_limit] * 3 + [self.rate_limit] * 3)[:, None]
        found: Signal = np.round(np.clip(raw, -limit, limit) / step) * step
        return found


def measured_sensor(recordings: Sequence[Recording]) -> dict[str, tuple[float, ...]]:
    """Noise and offsets of real recordings, as the module's text says.

    Raises:
        InputError: No recording of five windows or more.
    """
    noise, rates, forces = [], [], []
    for recording in recordings:
        windows = recording.signal.shape[1] // LENGTH
        if windows < 5:
            continue
        cut = recording.signal[:, : windows * LENGTH].astype(np.float64).reshape(6, windows, LENGTH)
        still = np.argsort(cut.std(2).sum(0))[:5]
        noise.append(np.diff(cut[:, still], axis=2).std(2).mean(1) / np.sqrt(2))
        rates.append(cut[3:, still].mean((1, 2)))
        forces.append(float(np.linalg.norm(cut[:3, still].mean(2), axis=0).mean()))
    if not noise:
        raise InputError("sensor: no recording is long enough to measure its noise")
    return {
        "noise": tuple(np.median(np.stack(noise), 0).tolist()),
        "rate_offset": tuple(np.stack(rates).std(0).tolist()),
        "gravity": (float(np.mean(forces)), float(np.std(forces))),
    }
