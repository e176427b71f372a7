"""Affine kinds of MNIST-C: shear, scale, rotate and translate, by one bilinear warp about the middle of the picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.pictures import SIDE, Images, Stack, at_least_zero, finished, stacked

MIDDLE = (SIDE - 1) / 2
_Linear = tuple[tuple[float, float], tuple[float, float]]


def warped(values: Stack, across: tuple[float, float, float], down: tuple[float, float, float]) -> Stack:
    """Every pixel read where an affine map says, bilinearly; beyond the picture it is black.

    Args:
        values: (N, 28, 28).
        across: Column that is read, ``a * column + b * row + c``.
        down: Row that is read, likewise.
    """
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    from_column = across[0] * columns + across[1] * rows + across[2]
    from_row = down[0] * columns + down[1] * rows + down[2]
    left, top = np.floor(from_column), np.floor(from_row)
    out = np.zeros(values.shape, np.float64)
    for row, weight_down in ((top, 1 - (from_row - top)), (top + 1, from_row - top)):
        for column, weight_across in ((left, 1 - (from_column - left)), (left + 1, from_column - left)):
            inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
            places = (np.clip(row, 0, SIDE - 1).astype(np.intp), np.clip(column, 0, SIDE - 1).astype(np.intp))
            out += np.where(inside, weight_down * weight_across, 0.0) * values[:, places[0], places[1]]
    return out


def shear(x: Images, angle: float = 0.4, *, seed: int = 0) -> Images:
    """Slanted digits, half of them to either side.

    A row is read at a height that shrinks with the cosine of the angle, as in scikit-image's affine map of that time,
    so that digits grow a little taller too.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        angle: Radians, below a quarter turn; 0 changes nothing.
        seed: Chooses the sides.

    Raises:
        InputError: No pictures of this kind, or an angle outside 0 to a quarter turn.
    """
    if not 0.0 <= angle < math.pi / 2:
        raise InputError(f"shear of {angle!r} radians: expected 0 to {math.pi / 2:.4f}")
    return _both_ways(x, angle, seed, lambda a: ((1.0, -math.sin(a)), (0.0, math.cos(a))))


def rotate(x: Images, angle: float = 0.4, *, seed: int = 0) -> Images:
    """Turned digits, half of them to either side.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        angle: Radians; 0 changes nothing.
        seed: Chooses the sides.

    Raises:
        InputError: No pictures of this kind, or a negative angle.
    """
    at_least_zero("angle", angle)
    return _both_ways(x, angle, seed, lambda a: ((math.cos(a), -math.sin(a)), (math.sin(a), math.cos(a))))


def scale(x: Images, size: float = 0.7, *, seed: int = 0) -> Images:
    """Smaller digits.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        size: Of a digit, as a multiple of what it was; 1 changes nothing.
        seed: Not used: nothing here is drawn.

    Raises:
        InputError: No pictures of this kind, or a size that is not above 0.
    """
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"size {size!r}: expected a number above 0")
    return finished(_about_middle(stacked(x), ((1 / size, 0.0), (0.0, 1 / size))), x)


def translate(x: Images, pixels: float = 3.0, *, seed: int = 0) -> Images:
    """Digits moved along both axes, each of the four ways a quarter of them.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        pixels: Along either axis; 0 changes nothing.
        seed: Chooses the ways.

    Raises:
        InputError: No pictures of this kind, or a negative distance.
    """
    values = stacked(x)
    at_least_zero("distance", pixels)
    ways = np.random.default_rng(seed).integers(0, 2, (len(values), 2)) * 2 - 1
    out = np.empty(values.shape)
    for right in (-1, 1):
        for below in (-1, 1):
            chosen = (ways == (right, below)).all(1)
            out[chosen] = warped(values[chosen], (1.0, 0.0, right * pixels), (0.0, 1.0, below * pixels))
    return finished(out, x)


def _both_ways(x: Images, angle: float, seed: int, linear: Callable[[float], _Linear]) -> Images:
    values = stacked(x)
    mirrored: npt.NDArray[np.bool_] = np.random.default_rng(seed).integers(0, 2, len(values)) == 1
    out = np.empty(values.shape)
    for chosen, signed in ((~mirrored, angle), (mirrored, -angle)):
        out[chosen] = _about_middle(values[chosen], linear(signed))
    return finished(out, x)


def _about_middle(values: Stack, linear: _Linear) -> Stack:
    """The middle of the picture stays where it is."""
    across, down = ((a, b, MIDDLE * (1 - a - b)) for a, b in linear)
    return warped(values, across, down)
