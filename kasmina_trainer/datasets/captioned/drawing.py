"""Flat shapes on a dim ground, 32x32 in colour, drawn from signed distances; whole batches at once.

Lengths are pixels, angles radians, colours red, green, blue in [0, 1]. A shape's own coordinates have length 1 at its
radius, x to the right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Canvas = npt.NDArray[Any]  # float32 throughout
Pictures = npt.NDArray[np.float32]

SIDE = 32
PICTURE_SHAPE = (3, SIDE, SIDE)
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (0.98, 0.92, 0.10),
    "green": (0.10, 0.75, 0.15),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.12, 0.25, 0.95),
    "purple": (0.58, 0.15, 0.80),
    "white": (0.97, 0.97, 0.97),
}
TEXTURES = ("plain", "striped", "dotted")
_DARKER = 0.35
_PERIOD = 4.0


@dataclass(frozen=True)
class Objects:
    """One object a picture.

    Attributes:
        shape: Index into `SHAPES`.  # (N,)
        colour: Index into `COLOURS`.  # (N,)
        texture: Index into `TEXTURES`.  # (N,)
        x: Centre, pixels from the left.  # (N,)
        y: Centre, pixels from the top.  # (N,)
        radius: Pixels.  # (N,)
        turn: Angle by which it is turned.  # (N,)
    """

    shape: npt.NDArray[np.int64]
    colour: npt.NDArray[np.int64]
    texture: npt.NDArray[np.int64]
    x: Array
    y: Array
    radius: Array
    turn: Array


def ground(count: int, rng: np.random.Generator) -> Canvas:
    """Grey grounds, each of one brightness with a slope across it.  # (N, 3, 32, 32)"""
    level = rng.uniform(0.05, 0.3, (count, 1, 1, 1)).astype(np.float32)
    slope = rng.uniform(-0.1, 0.1, (count, 2, 1, 1)).astype(np.float32)
    across = np.linspace(-1.0, 1.0, SIDE, dtype=np.float32)
    shade = level + slope[:, :1] * across[None, None, None, :] + slope[:, 1:] * across[None, None, :, None]
    return np.repeat(np.clip(shade, 0.0, 0.4), 3, axis=1)


def paint(canvas: Canvas, objects: Objects, rng: np.random.Generator) -> Canvas:
    """The canvas with an object on each picture; its colour and texture vary a little.  # (N, 3, 32, 32)"""
    count = len(objects.shape)
    rows, columns = (np.mgrid[0:SIDE, 0:SIDE] + 0.5).astype(np.float32)
    cover = np.zeros((count, SIDE, SIDE), np.float32)
    x, y, radius, turn = (v.astype(np.float32) for v in (objects.x, objects.y, objects.radius, objects.turn))
    for index, distance in enumerate(SHAPES.values()):
        those = np.flatnonzero(objects.shape == index)
        if len(those):
            dx, dy = columns[None] - x[those, None, None], rows[None] - y[those, None, None]
            cos, sin = np.cos(turn[those])[:, None, None], np.sin(turn[those])[:, None, None]
            size = radius[those, None, None]
            far = distance((dx * cos + dy * sin) / size, (dy * cos - dx * sin) / size)
            cover[those] = np.clip(0.5 - far * size, 0.0, 1.0)
    shade = np.where(_dark(objects.texture, rng), np.float32(_DARKER), np.float32(1.0))
    tint = np.array(list(COLOURS.values()))[objects.colour] + rng.uniform(-0.06, 0.06, (count, 3))
    tint = np.clip(tint * rng.uniform(0.85, 1.0, (count, 1)), 0.0, 1.0).astype(np.float32)
    painted: Canvas = canvas + cover[:, None] * (tint[:, :, None, None] * shade[:, None] - canvas)
    return painted


def finished(canvas: Canvas, rng: np.random.Generator) -> Pictures:
    """Pictures as a camera would hold them: a little noise, 256 steps.  # (N, 3, 32, 32) in [0, 1]"""
    noise = rng.standard_normal(canvas.shape, np.float32) * np.float32(0.02)
    found: Pictures = np.rint(np.clip(canvas + noise, 0.0, 1.0) * np.float32(255.0)) / np.float32(255.0)
    return found


def _dark(texture: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Where a texture is dark.  # (N, 32, 32)"""
    phase = rng.uniform(0.0, _PERIOD, (len(texture), 2, 1))
    across = np.arange(SIDE) + 0.5
    wave = (across[None, None] + phase) % _PERIOD < _PERIOD / 2
    striped = np.broadcast_to(wave[:, 0, None, :], (len(texture), SIDE, SIDE))
    dotted = wave[:, 0, None, :] & wave[:, 1, :, None]
    kind = texture[:, None, None]
    dark: npt.NDArray[np.bool_] = ((kind == 1) & striped) | ((kind == 2) & dotted)
    return dark


def _star(u: Canvas, v: Canvas) -> Canvas:
    angle = np.abs((np.arctan2(u, -v) + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
    along, beside = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    inner_x, inner_y = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
    edge = math.hypot(1.0 - inner_x, inner_y)
    found: Canvas = ((along - 1.0) * inner_y + beside * (1.0 - inner_x)) / edge
    return found


def _heart(u: Canvas, v: Canvas) -> Canvas:
    lobes = np.hypot(np.abs(u) - 0.43, v + 0.32) - 0.5
    point = np.maximum((np.abs(u) + v - 0.92) * math.sqrt(0.5), -v - 0.32)
    found: Canvas = np.minimum(lobes, point)
    return found


def _cross(u: Canvas, v: Canvas) -> Canvas:
    upright = np.maximum(np.abs(u) - 0.3, np.abs(v) - 0.95)
    found: Canvas = np.minimum(upright, np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3))
    return found


SHAPES: dict[str, Callable[[Canvas, Canvas], Canvas]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.92,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.8,
    "triangle": lambda u, v: np.maximum(v - 0.6, 0.866 * np.abs(u) - 0.5 * v - 0.5),
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.22,
    "heart": _heart,
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.8 - np.hypot(u - 0.5, v + 0.1)),
}
"""Signed distance in units of the radius, negative inside, by name."""
