"""Blurs of MNIST-C: looking through structured glass, and moving while the shutter is open."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from kasmina_trainer.adversarial.pictures import SIDE, Images, Stack, at_least_zero, finished, stacked

_TRUNCATED_AT = 4.0


def smoothed(values: Stack, sigma: float, *, axis: int, edge: Literal["edge", "constant"] = "edge") -> Stack:
    """A Gaussian along one axis, cut off at four standard deviations.

    Args:
        values: (N, H, W).
        sigma: Standard deviation, pixels; 0 changes nothing.
        axis: 1 down the columns, 2 along the rows.
        edge: What lies beyond the picture: its last pixel, or black.
    """
    reach = int(_TRUNCATED_AT * at_least_zero("blur", sigma) + 0.5)
    if reach == 0:
        return values
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padding = [(0, 0), (0, 0), (0, 0)]
    padding[axis] = (reach, reach)
    padded = np.pad(values, padding, mode=edge)
    length = values.shape[axis]
    out = np.zeros(values.shape, np.float64)
    for at, weight in enumerate(weights):
        out += weight * np.take(padded, range(at, at + length), axis)
    return out


def glass_blur(x: Images, sigma: float = 0.7, reach: int = 1, passes: int = 2, *, seed: int = 0) -> Images:
    """Pixels that trade places with near ones, between two blurs.

    The blur runs down the columns alone: that is what the published code does to a picture without a colour axis.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        sigma: Of either blur, pixels.
        reach: Furthest a pixel goes in one swap, pixels.
        passes: How often all pixels are visited; with 0 and a ``sigma`` of 0 nothing changes.
        seed: Chooses the swaps.

    Raises:
        InputError: No pictures of this kind, or a negative strength.
    """
    values = smoothed(stacked(x), sigma, axis=1)
    reach, passes = int(at_least_zero("reach", reach)), int(at_least_zero("passes", passes))
    rng = np.random.default_rng(seed)
    pixels = np.array(values.reshape(-1, SIDE * SIDE).T, dtype=np.float32, order="C")  # a pixel's row is contiguous
    count = pixels.shape[1]
    picture = np.arange(count)
    for _ in range(passes if reach else 0):
        for row in range(SIDE - reach, reach, -1):
            for column in range(SIDE - reach, reach, -1):
                moves = rng.integers(-reach, reach, (2, count))
                moves *= rng.integers(0, 2, count)  # every other pixel stays
                here = row * SIDE + column
                there = here + moves[0] * SIDE + moves[1]
                held = pixels[here].copy()
                pixels[here] = pixels[there, picture]
                pixels[there, picture] = held
    return finished(smoothed(pixels.T.reshape(-1, SIDE, SIDE), sigma, axis=1), x)


def motion_blur(x: Images, reach: float = 10.0, sigma: float = 3.0, *, seed: int = 0) -> Images:
    """A trail to one side of every point, in a direction up to 45 degrees from the row, another for each picture.

    Weights and whole-pixel steps are those of ImageMagick's motion blur, which the published code calls.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        reach: Half the number of steps, pixels.
        sigma: How the trail fades, pixels; towards 0 nothing changes.
        seed: Chooses the directions.

    Raises:
        InputError: No pictures of this kind, or a negative strength.
    """
    values = stacked(x)
    steps = np.arange(2 * math.ceil(at_least_zero("reach", reach)) + 1)
    if at_least_zero("trail", sigma) == 0.0:
        return finished(values, x)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angles = np.random.default_rng(seed).uniform(-math.pi / 4, math.pi / 4, len(values))
    picture = np.arange(len(values))[:, None, None]
    out = np.zeros(values.shape, np.float32)
    for step, weight in zip(steps, weights, strict=True):
        down, right = (np.ceil(step * part(angles) - 0.5).astype(np.intp) for part in (np.sin, np.cos))
        rows = np.clip(np.arange(SIDE) + down[:, None], 0, SIDE - 1)
        columns = np.clip(np.arange(SIDE) + right[:, None], 0, SIDE - 1)
        out += np.float32(weight) * values[picture, rows[:, :, None], columns[:, None, :]]
    return finished(out, x)
