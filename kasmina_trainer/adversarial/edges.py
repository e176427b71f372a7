"""Canny edges of MNIST-C: the outline of a digit in place of the digit (Canny 1986)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kasmina_trainer.adversarial.blur import smoothed
from kasmina_trainer.adversarial.pictures import Images, Stack, at_least_zero, finished, stacked

_AT_ONCE = 2048
Mask = npt.NDArray[np.bool_]


def canny_edges(x: Images, sigma: float = 1.0, low: float = 0.1, high: float = 0.2, *, seed: int = 0) -> Images:
    """White where an edge is, black elsewhere.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        sigma: Of the blur before, pixels.
        low: Least slope of an edge that hangs on to a stronger one; slopes are Sobel's, up to 4 for a step of 1.
        high: Least slope of an edge by itself.
        seed: Not used: nothing here is drawn by chance.

    Raises:
        InputError: No pictures of this kind, or a negative setting.
    """
    values = stacked(x)
    for name, value in (("blur", sigma), ("low threshold", low), ("high threshold", high)):
        at_least_zero(name, value)
    parts = [
        _edges(values[at : at + _AT_ONCE].astype(np.float64), sigma, low, high)
        for at in range(0, len(values), _AT_ONCE)
    ]
    return finished(np.concatenate(parts) if parts else values, x)


def _edges(values: Stack, sigma: float, low: float, high: float) -> Mask:
    blurred, present = values, np.ones((1, *values.shape[1:]))
    for axis in (1, 2):
        blurred = smoothed(blurred, sigma, axis=axis, edge="constant")
        present = smoothed(present, sigma, axis=axis, edge="constant")
    down, across = _slopes(blurred / (present + np.finfo(float).eps))
    steep = np.hypot(down, across)
    ridge = _is_ridge(steep, down, across) & (steep > 0)
    ridge[:, [0, -1]] = False
    ridge[:, :, [0, -1]] = False
    return _kept(ridge & (steep >= high), ridge & (steep >= low))


def _slopes(values: Stack) -> tuple[Stack, Stack]:
    """Sobel's differences down and across; beyond the picture its pixels are mirrored."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="symmetric")
    down = padded[:, 2:] - padded[:, :-2]
    across = padded[:, :, 2:] - padded[:, :, :-2]
    return (
        down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:],
        across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:],
    )


def _is_ridge(steep: Stack, down: Stack, across: Stack) -> Mask:
    """Nowhere is it steeper just before or just behind, in the direction of the slope."""
    size_down, size_across = np.abs(down), np.abs(across)
    upright = size_down >= size_across
    larger = np.where(upright, size_down, size_across)
    share = np.where(upright, size_across, size_down) / np.where(larger > 0, larger, 1.0)
    row_step, column_step = np.where(down >= 0, 1, -1), np.where(across >= 0, 1, -1)
    padded = np.pad(steep, ((0, 0), (1, 1), (1, 1)))
    picture, rows, columns = np.ogrid[: steep.shape[0], 1 : steep.shape[1] + 1, 1 : steep.shape[2] + 1]
    out = np.ones(steep.shape, bool)
    for way in (1, -1):
        straight = padded[
            picture, rows + way * np.where(upright, row_step, 0), columns + way * np.where(upright, 0, column_step)
        ]
        diagonal = padded[picture, rows + way * row_step, columns + way * column_step]
        out &= diagonal * share + straight * (1 - share) <= steep
    return out


def _kept(strong: Mask, weak: Mask) -> Mask:
    """Weak edges that hang together with a strong one, by any of eight neighbours."""
    while True:
        grown = strong
        for axis in (1, 2):
            padded = np.pad(grown, [(1, 1) if at == axis else (0, 0) for at in range(3)])
            length = grown.shape[axis]
            grown = (
                padded.take(range(length), axis)
                | padded.take(range(1, length + 1), axis)
                | padded.take(range(2, length + 2), axis)
            )
        grown &= weak
        if np.array_equal(grown, strong):
            return strong
        strong = grown
