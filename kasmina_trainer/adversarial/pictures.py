"""Stacks of 28x28 grey pictures: what comes in is checked, what goes out is clipped and shaped like it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Images = npt.NDArray[np.float32]
Stack = npt.NDArray[Any]  # (N, 28, 28)

SIDE = 28


def stacked(x: Images) -> Images:
    """Pictures as one stack, not copied where that is possible.  # (N, 1, 28, 28) or (N, 28, 28) to (N, 28, 28)

    Raises:
        InputError: Another shape or type, or values outside [0, 1].
    """
    if x.ndim not in (3, 4) or x.shape[-2:] != (SIDE, SIDE) or (x.ndim == 4 and x.shape[1] != 1):
        raise InputError(f"pictures of shape {x.shape}: expected (N, 1, {SIDE}, {SIDE}) or (N, {SIDE}, {SIDE})")
    if x.dtype != np.float32:
        raise InputError(f"pictures of type {x.dtype}: expected float32", "Pass x.astype(np.float32).")
    if x.size and not (float(x.min()) >= 0.0 and float(x.max()) <= 1.0):
        raise InputError(f"pictures from {x.min():g} to {x.max():g}: expected 0 to 1", "Divide bytes by 255.")
    return x.reshape(-1, SIDE, SIDE)


def finished(values: Stack, x: Images) -> Images:
    """Values clipped to [0, 1], as float32, in the shape that the pictures came in."""
    clipped: Images = np.clip(values, 0.0, 1.0).astype(np.float32).reshape(x.shape)
    return clipped


def at_least_zero(name: str, value: float) -> float:
    """A strength that is a number and not negative.

    Raises:
        InputError: It is not.
    """
    if not (math.isfinite(value) and value >= 0.0):
        raise InputError(f"{name} {value!r}: expected a number of 0 or more")
    return value
