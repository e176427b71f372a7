"""How a waist moves: where it is and how it is turned, as smooth functions of time, and what a perfect sensor reads.

Axes of the world: x forward, y left, z up. The phone's own, upright at the waist as UCI HAPT's users wore it: x up, y
to the left, z to the back. Specific force is acceleration less gravity, turned into the phone's axes; the rate is what
turns one attitude into the next. Both are taken from the same path, so they agree with each other as in a real sensor.

Sizes follow what was measured on UCI HAPT: steps of 1.77 +- 0.12 a second on the level, 1.64 +- 0.16 up and 1.79 +-
0.19 down stairs, and the standard deviation of every channel by activity (tests/trainer/domains/test_imu.py compares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float64]
GRAVITY_M_S2 = 9.80665
FINE = 2
"""Paths are laid at so many times the sensor's rate, and averaged down to it."""


@dataclass(frozen=True)
class Gait:
    """A way to walk.

    Attributes:
        step_hz: Steps a second.
        lift_m: Half of the waist's rise and fall with each step.
        surge_m: Half of its way forward and back within a step.
        sway_m: Half of its way from side to side within a stride of two steps.
        impact_m: The same as ``lift_m`` for twice and three times the frequency: how hard a foot lands.
        turn_rad: Half of the pelvis' turn about the vertical within a stride.
        roll_rad: Half of its tilt to the sides within a stride.
        pitch_rad: Half of its nod within a step.
        climb_m_s: How fast the waist rises.
    """

    step_hz: float
    lift_m: float
    surge_m: float
    sway_m: float
    impact_m: float
    turn_rad: float
    roll_rad: float
    pitch_rad: float
    climb_m_s: float = 0.0


@dataclass(frozen=True)
class Posture:
    """How the waist is held: nod forward and tilt to the left in radians, height over the floor in metres."""

    pitch_rad: float
    roll_rad: float
    height_m: float


@dataclass
class Path:
    """Where a waist is and how it is turned, at `FINE` times a sensor's rate.

    Attributes:
        place: x, y, z of the world in metres.  # (3, N)
        angles: Turn, nod and tilt in radians, applied in this order.  # (3, N)
    """

    place: Signal
    angles: Signal


def walk(gait: Gait, upright: Posture, seconds: float, rate_hz: float, rng: np.random.Generator) -> Path:
    """Steps whose length and strength vary by some percent from stride to stride."""
    count = round(seconds * rate_hz) * FINE
    time = np.arange(count) / (rate_hz * FINE)
    pace = 1 + 0.03 * _slowly(count, rate_hz, rng)
    strength = 1 + 0.15 * _slowly(count, rate_hz, rng)
    phase = 2 * math.pi * gait.step_hz * np.cumsum(pace) / (rate_hz * FINE) + rng.uniform(0, 2 * math.pi)
    offsets = rng.uniform(0, 2 * math.pi, 4)
    harmonics = sum(np.cos(k * phase + offsets[k - 2]) / k for k in (2, 3))
    lift = gait.lift_m * np.cos(phase) + gait.impact_m * harmonics
    place = np.stack(
        [
            gait.surge_m * strength * np.sin(phase + 0.5),
            gait.sway_m * strength * (np.sin(phase / 2) + 0.2 * np.sin(1.5 * phase + offsets[2])),
            lift * strength + gait.climb_m_s * time,
        ]
    )
    angles = np.stack(
        [
            gait.turn_rad * strength * np.sin(phase / 2 + 0.8),
            upright.pitch_rad
            + gait.pitch_rad * strength * (np.sin(phase + 1.1) + 0.4 * np.sin(2 * phase + offsets[3])),
            upright.roll_rad + gait.roll_rad * strength * np.sin(phase / 2 + 2.0),
        ]
    )
    return Path(place, angles)


def hold(posture: Posture, seconds: float, rate_hz: float, rng: np.random.Generator, *, restless: float = 1.0) -> Path:
    """A posture with breath and balance: sway of millimetres, a degree or so of drift."""
    count = round(seconds * rate_hz) * FINE
    place = np.stack([0.002 * restless * _slowly(count, rate_hz, rng) for _ in range(3)])
    place[2] += posture.height_m
    angles = np.stack([0.02 * restless * _slowly(count, rate_hz, rng) for _ in range(3)])
    angles[1] += posture.pitch_rad
    angles[2] += posture.roll_rad
    return Path(place, angles)


def change(
    before: Posture, after: Posture, seconds: float, rate_hz: float, rng: np.random.Generator, bow: float
) -> Path:
    """From one posture to another along a path of least jerk (Flash and Hogan 1985), bowing forward on the way."""
    count = round(seconds * rate_hz) * FINE
    u = np.linspace(0.0, 1.0, count)
    share = u**3 * (10 - 15 * u + 6 * u**2)
    still = hold(Posture(0.0, 0.0, 0.0), seconds, rate_hz, rng, restless=2.0)
    swell = np.sin(math.pi * u) ** 2
    still.place[2] += before.height_m + (after.height_m - before.height_m) * share
    still.place[0] += 0.15 * bow * swell
    still.angles[0] += rng.normal(0.0, 0.3) * swell
    still.angles[1] += before.pitch_rad + (after.pitch_rad - before.pitch_rad) * share + bow * swell
    still.angles[2] += before.roll_rad + (after.roll_rad - before.roll_rad) * share
    return still


def attitude(angles: Signal) -> Signal:
    """Rotations from the phone's axes, worn upright, to the world's.  # (3, N) to (N, 3, 3)"""
    turn, pitch, roll = angles
    zero, one = np.zeros_like(turn), np.ones_like(turn)

    def matrix(rows: list[list[Signal]]) -> Signal:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    about_z = matrix([[np.cos(turn), -np.sin(turn), zero], [np.sin(turn), np.cos(turn), zero], [zero, zero, one]])
    about_y = matrix([[np.cos(pitch), zero, np.sin(pitch)], [zero, one, zero], [-np.sin(pitch), zero, np.cos(pitch)]])
    about_x = matrix([[one, zero, zero], [zero, np.cos(roll), -np.sin(roll)], [zero, np.sin(roll), np.cos(roll)]])
    worn = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # the phone's x is up, its z to the back
    found: Signal = about_z @ about_y @ about_x @ worn
    return found


def truth(path: Path, mount: Signal, rate_hz: float) -> Signal:
    """What a perfect sensor reads: specific force in g, rate in rad/s.

    Args:
        path: At `FINE` times the rate.
        mount: How the phone sits on the belt, from its axes to those worn upright.  # (3, 3)
        rate_hz: Of the sensor.

    Returns:
        Averages over each sample's time.  # (6, N)
    """
    dt = 1.0 / (rate_hz * FINE)
    turned = attitude(path.angles) @ mount
    second = np.gradient(np.gradient(path.place, dt, axis=1), dt, axis=1)
    second[2] += GRAVITY_M_S2
    force = np.einsum("nij,in->jn", turned, second) / GRAVITY_M_S2
    rate = rates(turned, dt)
    fine = np.concatenate([force, rate])
    averaged: Signal = fine.reshape(6, -1, FINE).mean(2)
    return averaged


def rates(turned: Signal, dt: float) -> Signal:
    """Rate of turn in the turning axes, from each attitude to the next.  # (N, 3, 3) to (3, N)"""
    between = np.swapaxes(turned[:-1], 1, 2) @ turned[1:]
    trace = np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1.0, 1.0)
    angle = np.arccos(trace)
    scale = np.where(angle > 1e-6, angle / np.maximum(2 * np.sin(angle), 1e-12), 0.5)
    axis = np.stack(
        [between[:, 2, 1] - between[:, 1, 2], between[:, 0, 2] - between[:, 2, 0], between[:, 1, 0] - between[:, 0, 1]]
    )
    found = axis * scale / dt
    whole: Signal = np.concatenate([found, found[:, -1:]], 1)
    return whole


def _slowly(count: int, rate_hz: float, rng: np.random.Generator) -> Signal:
    """A smooth random function of about variance 1 that changes over a second or so."""
    knots = max(4, math.ceil(count / (rate_hz * FINE)) + 3)
    values = rng.normal(0.0, 1.0, knots)
    at = np.linspace(1.0, knots - 2.0, count)
    i = np.floor(at).astype(np.intp)
    t = at - i
    i = np.clip(i, 1, knots - 3)
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )  # the uniform cubic B-spline: acceleration is continuous
    found: Signal = sum(w * values[i + k - 1] for k, w in enumerate(weights)) * 1.45  # type: ignore[assignment]
    return found
