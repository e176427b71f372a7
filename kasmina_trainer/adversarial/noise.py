"""Noise of light and of the sensor: shot noise and impulse noise of MNIST-C."""

from __future__ import annotations

import math

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.pictures import Images, finished, stacked


def shot_noise(x: Images, photons: float = 3.0, *, seed: int = 0) -> Images:
    """Light that arrives in countable portions: a Poisson count of each pixel.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        photons: Mean count of a white pixel; infinitely many leave the picture as it is.
        seed: Chooses the counts.

    Raises:
        InputError: No pictures of this kind, or no photon at all.
    """
    values = stacked(x)
    if not photons > 0:
        raise InputError(f"{photons} photons at full scale: expected more than 0")
    if math.isinf(photons):
        return finished(values, x)
    return finished(np.random.default_rng(seed).poisson(values * np.float64(photons)) / photons, x)


def impulse_noise(x: Images, share: float = 0.17, *, seed: int = 0) -> Images:
    """Dead and hot pixels: a share of all, half of them black and half white.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        share: Of the pixels, 0 to 1.
        seed: Chooses them.

    Raises:
        InputError: No pictures of this kind, or a share outside 0 to 1.
    """
    values = stacked(x)
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share {share!r} of the pixels: expected 0 to 1")
    rng = np.random.default_rng(seed)
    broken = rng.random(values.shape) < share
    white = rng.random(values.shape) < 0.5
    return finished(np.where(broken, white, values), x)
