"""How near one picture is to another: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.pictures import Images, Stack

_REACH, _SIGMA = 5, 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2


def psnr(x: Images, reference: Images) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, decibels, for a full scale of 1; infinite where both are equal.

    Args:
        x: Pictures.  # (N, ...)
        reference: What they should be.  # (N, ...)

    Raises:
        InputError: Different shapes.
    """
    a, b = _pair(x, reference)
    error = ((a - b) ** 2).reshape(len(a), -1).mean(1)
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float64] = -10 * np.log10(error)
    return found


def ssim(x: Images, reference: Images) -> npt.NDArray[np.float64]:
    """Structural similarity of each picture, -1 to 1, for a full scale of 1 (Wang, Bovik, Sheikh, Simoncelli 2004).

    Means, variances and covariance are taken under a Gaussian of 11 x 11 pixels and 1.5 pixels of deviation, wherever
    it lies wholly inside the picture, and the index is averaged over these places.

    Args:
        x: Pictures of 11 x 11 pixels at least.  # (N, 1, H, W) or (N, H, W)
        reference: What they should be, of the same shape.

    Raises:
        InputError: Different shapes, or smaller pictures.
    """
    a, b = _pair(x, reference)
    a, b = (part.reshape(-1, *part.shape[-2:]) for part in (a, b))
    if min(a.shape[1:]) <= 2 * _REACH or len(a) != len(x):
        raise InputError(
            f"pictures of shape {x.shape}: expected one channel and at least {2 * _REACH + 1} pixels a side"
        )
    mean_a, mean_b = _local(a), _local(b)
    spread_a, spread_b = _local(a * a) - mean_a**2, _local(b * b) - mean_b**2
    both = _local(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + _LUMINANCE) / (mean_a**2 + mean_b**2 + _LUMINANCE)
    alike *= (2 * both + _CONTRAST) / (spread_a + spread_b + _CONTRAST)
    found: npt.NDArray[np.float64] = alike.mean((1, 2))
    return found


def _pair(x: Images, reference: Images) -> tuple[Stack, Stack]:
    if x.shape != reference.shape or x.ndim < 2:
        raise InputError(f"pictures {x.shape} against {reference.shape}: expected equal shapes (N, ...)")
    return x.astype(np.float64), reference.astype(np.float64)


def _local(values: Stack) -> Stack:
    weights = np.exp(-0.5 * (np.arange(-_REACH, _REACH + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        length = values.shape[axis] - 2 * _REACH
        values = sum(w * np.take(values, range(at, at + length), axis) for at, w in enumerate(weights))
    return values
