"""What is drawn over a digit in MNIST-C: inverted stripes, a dotted line, a zigzag."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kasmina_trainer.adversarial.pictures import SIDE, Images, finished, stacked

_FADES_AT = 2.3
_STRIPE = 7
_TOOTH, _HEIGHT = 2.0, 2.0
_FROM, _TO = 2.0, 25.0
_ROWS, _TILT = SIDE - 1, 5
Point = tuple[float, float]  # column, row


def stripe(x: Images, *, seed: int = 0) -> Images:
    """The outer quarters of every picture inverted, left and right.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        seed: Not used: nothing here is drawn by chance.

    Raises:
        InputError: No pictures of this kind.
    """
    out = stacked(x).copy()
    for part in (slice(0, _STRIPE), slice(SIDE - _STRIPE, SIDE)):
        out[:, :, part] = 1 - out[:, :, part]
    return finished(out, x)


def dotted_line(x: Images, *, seed: int = 0) -> Images:
    """A dotted line from the left edge to the right one.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        seed: Chooses the heights at which it begins and ends.

    Raises:
        InputError: No pictures of this kind.
    """
    values = stacked(x)
    ends = np.random.default_rng(seed).integers(0, _ROWS, (len(values), 2))
    lines = np.stack([_dotted(int(a), int(b)) for a, b in ends]) if len(ends) else values
    return finished(values + lines, x)


def zigzag(x: Images, *, seed: int = 0) -> Images:
    """A zigzag from left to right, tilted a little.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        seed: Chooses its height and tilt.

    Raises:
        InputError: No pictures of this kind.
    """
    values = stacked(x)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, _ROWS, len(values))
    falls = rng.integers(-_TILT, _TILT, len(values))
    lines = [_zigzag(int(a), int(b)) for a, b in zip(starts, falls, strict=True)]
    return finished(values + np.stack(lines) if lines else values, x)


def stroke(begin: Point, end: Point) -> npt.NDArray[np.float64]:
    """A soft straight line between the columns of two points; white on it, and black from 1.5 rows away.

    Args:
        begin: Column and row of its left end.
        end: Of its right end; a line straight down is none at all.
    """
    drawn = np.zeros((SIDE, SIDE))
    if end[0] == begin[0]:
        return drawn
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    slope = (end[1] - begin[1]) / (end[0] - begin[0])
    away = np.abs(rows - (slope * (columns - begin[0]) + begin[1]))
    inside = (columns >= math.floor(begin[0])) & (columns < math.ceil(end[0])) & (away < _FADES_AT)
    drawn[inside] = np.clip(1 + np.log(1 - away[inside] / _FADES_AT), 0, 1)
    return drawn


@lru_cache(maxsize=_ROWS * _ROWS)
def _dotted(first: int, last: int) -> npt.NDArray[np.float32]:
    line = stroke((0.0, first), (SIDE - 1.0, last))
    line[:, np.arange(SIDE) % 4 < 2] = 0  # two columns on, two off
    return line.astype(np.float32)


@lru_cache(maxsize=_ROWS * 2 * _TILT)
def _zigzag(start: int, fall: int) -> npt.NDArray[np.float32]:
    drawn = np.zeros((SIDE, SIDE))
    points = _corners(start, fall)
    for begin, end in pairwise(points):
        drawn += stroke(begin, end)
    return np.clip(drawn, 0, 1).astype(np.float32)


def _corners(start: int, fall: int) -> list[Point]:
    """Where the zigzag turns: teeth along a straight line, turned as that line is."""
    turn = math.atan2(fall, _TO - _FROM)
    length = (_TO - _FROM) / math.cos(turn)
    flat: list[Point] = [(0.0, 0.0)]
    for tooth in range(int((length - _TOOTH) // (2 * _TOOTH)) + 1):
        flat.append(((2 * tooth + 1) * _TOOTH, _HEIGHT * (-1) ** tooth))
    whole = 2 * _TOOTH * (length // (2 * _TOOTH))
    if length != whole:
        flat.append((length, flat[-1][1] / (2 * (length - whole))))
    cos, sin = math.cos(turn), math.sin(turn)
    return [(_FROM + a * cos - b * sin, start + a * sin + b * cos) for a, b in flat]
