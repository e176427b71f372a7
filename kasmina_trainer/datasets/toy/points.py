"""Points of the plane and of higher spaces whose right answers are known: spirals, spheres, parity, checkerboards.

Each part of a set is drawn from its own random stream, so no point is in two of them. Coordinates have no unit; all are
near [-1, 1]. Every set says how well the best classifier there could be does, where that can be computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Labels, Samples
from kasmina_trainer.datasets.idx import Splits

Points = npt.NDArray[np.float64]
Rows = tuple[int, int, int]
"""How many points the training, validation and test part have."""
ROWS: Rows = (4000, 1000, 4000)

SPIRAL_TURNS = 1.5
SPIRAL_NOISE = 0.02
SPHERE_NOISE = 0.05
SPHERE_RADII = (0.7, 1.0)
GAP = 0.1


def two_spirals(
    seed: int = 0, *, rows: Rows = ROWS, turns: float = SPIRAL_TURNS, noise: float = SPIRAL_NOISE
) -> Splits:
    """Two arms that wind around each other (Lang and Witbrock 1988), evenly along their length.  # x (N, 2)

    Args:
        seed: Draws places and noise.
        rows: Points of training, validation and test.
        turns: How often each arm goes around; 0.25 to 5.
        noise: Standard deviation of each coordinate. Arms lie ``1 / (2 turns)`` apart, 0.33 by default.

    Raises:
        InputError: A number outside its range.
    """
    _within("turns", turns, 0.25, 5.0)
    _within("noise", noise, 0.0, 1.0)

    def draw(count: int, rng: np.random.Generator) -> Samples:
        y = _evenly(count, 2, rng)
        radius = np.sqrt(rng.uniform(0.01, 1.0, count))  # length along an arm grows about with the square
        angle = 2 * math.pi * turns * radius + math.pi * y
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return _sample(x + rng.normal(0.0, noise, x.shape), y)

    return _splits(draw, seed, rows, ("first", "second"))


def concentric_spheres(
    seed: int = 0,
    *,
    rows: Rows = ROWS,
    dimensions: int = 10,
    radii: tuple[float, ...] = SPHERE_RADII,
    noise: float = SPHERE_NOISE,
) -> Splits:
    """Shells around one centre, told apart by nothing but their radius (Gilmer et al. 2018).  # x (N, D)

    Args:
        seed: Draws places and noise.
        rows: Points of training, validation and test.
        dimensions: Of the space, 2 to 1000.
        radii: One shell a class, rising.
        noise: Standard deviation of the radius; `sphere_accuracy` says what that leaves.

    Raises:
        InputError: A number outside its range.
    """
    _within("dimensions", dimensions, 2, 1000)
    _within("noise", noise, 0.0, 1.0)
    if len(radii) < 2 or not all(0 < a < b < math.inf for a, b in pairwise(radii)):
        raise InputError(f"radii {radii}: expected at least two, above 0 and rising")

    def draw(count: int, rng: np.random.Generator) -> Samples:
        y = _evenly(count, len(radii), rng)
        direction = rng.normal(0.0, 1.0, (count, dimensions))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = np.array(radii)[y] + rng.normal(0.0, noise, count)
        return _sample(direction * radius[:, None], y)

    return _splits(draw, seed, rows, tuple(f"r={radius:g}" for radius in radii))


def sphere_accuracy(radii: tuple[float, ...] = SPHERE_RADII, noise: float = SPHERE_NOISE) -> float:
    """Accuracy of the best classifier on `concentric_spheres`: lines half-way between equally frequent normal radii.

    Raises:
        InputError: A number outside its range.

    >>> round(sphere_accuracy((0.7, 1.0), 0.05), 5)
    0.99865
    """
    _within("noise", noise, 0.0, 1.0)
    if len(radii) < 2 or not all(0 < a < b < math.inf for a, b in pairwise(radii)):
        raise InputError(f"radii {radii}: expected at least two, above 0 and rising")
    if noise == 0:
        return 1.0
    tails = [math.erfc((b - a) / (2 * noise) / math.sqrt(2)) / 2 for a, b in pairwise(radii)]
    return 1.0 - 2 * sum(tails) / len(radii)


def parity(seed: int = 0, *, rows: Rows = ROWS, bits: int = 4, gap: float = GAP) -> Splits:
    """XOR of N signs: class 1 where an odd number of coordinates is negative.  # x (N, bits)

    Args:
        seed: Draws the points.
        rows: Points of training, validation and test.
        bits: Coordinates, 2 to 12; each sign alone says nothing about the class.
        gap: Coordinates are uniform with ``|x|`` from ``gap`` to 1, 0 to below 1; the classes do not touch.

    Raises:
        InputError: A number outside its range.
    """
    _within("bits", bits, 2, 12)
    _within("gap", gap, 0.0, 0.99)

    def draw(count: int, rng: np.random.Generator) -> Samples:
        negative = rng.integers(0, 2, (count, bits))
        x = np.where(negative == 1, -1.0, 1.0) * rng.uniform(gap, 1.0, (count, bits))
        return _sample(x, negative.sum(1) % 2)

    return _splits(draw, seed, rows, ("even", "odd"))


def checkerboard(seed: int = 0, *, rows: Rows = ROWS, squares: int = 4, gap: float = GAP) -> Splits:
    """Squares of two colours in [-1, 1] x [-1, 1].  # x (N, 2)

    Args:
        seed: Draws the points.
        rows: Points of training, validation and test.
        squares: Squares a side, 2 to 16.
        gap: Share of a square's side that stays free between neighbours, 0 to below 1; the classes do not touch.

    Raises:
        InputError: A number outside its range.
    """
    _within("squares", squares, 2, 16)
    _within("gap", gap, 0.0, 0.99)

    def draw(count: int, rng: np.random.Generator) -> Samples:
        square = rng.integers(0, squares, (count, 2))
        inside = gap / 2 + (1 - gap) * rng.uniform(0.0, 1.0, (count, 2))
        return _sample((square + inside) * (2.0 / squares) - 1.0, square.sum(1) % 2)

    return _splits(draw, seed, rows, ("dark", "light"))


def _splits(
    draw: Callable[[int, np.random.Generator], Samples], seed: int, rows: Rows, labels: tuple[str, ...]
) -> Splits:
    if min(rows) < len(labels):
        raise InputError(f"rows {rows}: expected at least {len(labels)}, one a class, in every part")
    streams = np.random.default_rng(seed).spawn(3)
    parts = [draw(count, stream) for count, stream in zip(rows, streams, strict=True)]
    return Splits(parts[0], parts[1], parts[2], labels)


def _evenly(count: int, classes: int, rng: np.random.Generator) -> Labels:
    """Classes in equal shares, shuffled."""
    labels: Labels = rng.permutation(np.arange(count, dtype=np.int64) % classes)
    return labels


def _sample(x: Points, y: npt.NDArray[np.integer]) -> Samples:
    return x.astype(np.float32), y.astype(np.int64)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} {value:g}: expected {low:g} to {high:g}")
