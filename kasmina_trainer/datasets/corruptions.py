"""What goes wrong with a camera: noise, a lens out of focus, washed-out contrast. Pure numpy, seeded.

The kinds follow Hendrycks and Dietterich 2019 (ImageNet-C: Gaussian noise, defocus blur, contrast) at sizes that fit
16x16 images. Values stay in [0, 1], shapes and float32 stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Images = npt.NDArray[np.float32]
NCHW_AXES = (-2, -1)
NHWC_AXES = (-3, -2)


def noise(x: Images, *, deviation: float = 0.25, seed: int = 0) -> Images:
    """Additive Gaussian noise of a dim scene; ``deviation`` in units of full scale."""
    grain = np.random.default_rng(seed).normal(0.0, deviation, x.shape)
    return np.clip(x + grain, 0.0, 1.0).astype(np.float32)


def blur(
    x: Images, *, width: int = 7, shape: Literal["box", "disc"] = "box", axes: tuple[int, int] = NCHW_AXES
) -> Images:
    """A lens out of focus: each point spreads over a box or a disc.

    Args:
        x: Images of any leading shape.
        width: Odd width of the spot, pixels.
        shape: A full box, or the circle of confusion inside it.
        axes: Height and width axes: `NCHW_AXES` or `NHWC_AXES`.

    Raises:
        InputError: The width is even, or wider than the image.
    """
    height, across = x.shape[axes[0]], x.shape[axes[1]]
    if width < 1 or width % 2 == 0 or width > min(height, across):
        raise InputError(f"blur width {width}: expected an odd number up to {min(height, across)}")
    spot = _spot(width, shape)
    reach = width // 2
    padding = [(0, 0)] * x.ndim
    for axis in axes:
        padding[axis % x.ndim] = (reach, reach)
    padded = np.pad(x.astype(np.float64), padding)
    out = np.zeros(x.shape)
    for row in range(width):
        for column in range(width):
            window: list[slice] = [slice(None)] * x.ndim
            window[axes[0] % x.ndim] = slice(row, row + height)
            window[axes[1] % x.ndim] = slice(column, column + across)
            out += spot[row, column] * padded[tuple(window)]
    blurred: Images = np.clip(out, 0.0, 1.0).astype(np.float32)
    return blurred


def contrast(x: Images, *, share: float = 0.3, haze: float = 0.4) -> Images:
    """Washed out: only ``share`` of the contrast is left, on top of a veil of ``haze``."""
    veiled: Images = np.clip(x * share + haze, 0.0, 1.0).astype(np.float32)
    return veiled


_KINDS: dict[str, Callable[[Images, int, tuple[int, int]], Images]] = {
    "noise": lambda x, seed, axes: noise(x, seed=seed),
    "blur": lambda x, seed, axes: blur(x, axes=axes),
    "contrast": lambda x, seed, axes: contrast(x),
}
KINDS = tuple(_KINDS)


def corrupt(x: Images, kind: str, *, seed: int = 0, axes: tuple[int, int] = NCHW_AXES) -> Images:
    """One of `KINDS` at its default strength.

    Raises:
        InputError: No such kind.
    """
    if kind not in _KINDS:
        raise InputError(f"corruption {kind!r}: expected one of {', '.join(KINDS)}")
    return _KINDS[kind](x, seed, axes)


def _spot(width: int, shape: str) -> npt.NDArray[np.float64]:
    if shape == "box":
        spot = np.ones((width, width))
    else:
        at = np.arange(width) - width // 2
        spot = (at[:, None] ** 2 + at[None, :] ** 2 <= (width / 2) ** 2).astype(np.float64)
    normed: npt.NDArray[np.float64] = spot / spot.sum()
    return normed
