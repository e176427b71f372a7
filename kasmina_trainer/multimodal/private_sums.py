"""Sums over private pairs with Gaussian noise: what one pair can change is bounded in whole numbers, not in floats.

A sum of floats depends on its order and may move by more than its mathematics says (Casacuberta, Shoemate, Vadhan and
Wagaman 2022, arXiv:2207.10635), and the last bits of a noisy float tell what was below the noise (Mironov 2012). So
vectors are cut down to a grid of 2^-16 towards zero, which makes none of them longer; sums of their products are exact;
and the noise is rounded to the same grid, so that every value that may leave is on it with or without a given pair.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Adjacency = Literal["add-or-remove", "replace"]
"""Data sets are neighbours when one has a pair more, or when one pair of each is another; the latter costs double."""
Entropy = Callable[[int], bytes]
"""So many random bytes; `os.urandom` wherever the pairs are really private."""
Vectors = npt.NDArray[Any]
Sums = npt.NDArray[np.float64]

GRID = 2.0**-16
MOST_PAIRS = 2**20
"""A product of two coordinates has 32 bits, so sums of so many are exact in a double's 53."""
_HALF = 2.0**-54


def seeded(seed: int) -> Entropy:
    """Bytes that come again: for tests and for measuring. Whoever knows the seed can take the noise off again."""
    return np.random.default_rng(seed).bytes


def on_grid(x: Vectors) -> Sums:
    """Vectors in whole steps of the grid, none longer than 1; longer ones are shortened.  # (N, E) to (N, E)

    Raises:
        InputError: Not (N, E), numbers that are not finite, or more vectors than sums are exact for.
    """
    values = np.asarray(x, np.float64)
    if values.ndim != 2 or not values.shape[1] or len(values) > MOST_PAIRS:
        raise InputError(f"private vectors of shape {values.shape}: expected (N, E), at most {MOST_PAIRS} of them")
    if not np.isfinite(values).all():
        raise InputError("private vectors: not all numbers are finite")
    peak = np.abs(values).max(1, keepdims=True, initial=0.0)
    even = values / np.where(peak == 0, 1.0, peak)  # a square of what is left neither overflows nor vanishes
    length = peak * np.linalg.norm(even, axis=1, keepdims=True)
    whole: Sums = np.trunc(values / np.maximum(length * (1 + 1e-12), 1.0) / GRID)
    return whole


def noisy_cross(texts: Sums, images: Sums, sigma: float, entropy: Entropy) -> Sums:
    """Sum of the outer products of pairs, with noise on every entry.  # (N, E) and (N, D) to (E, D)

    Args:
        texts: By `on_grid`.
        images: By `on_grid`.
        sigma: Standard deviation; one pair moves the sum by at most 1 in Frobenius norm.
        entropy: Where the noise comes from.
    """
    exact = texts.T @ images
    noise = gaussian(exact.size, entropy).reshape(exact.shape) * sigma
    return _left(exact, noise)


def noisy_square(images: Sums, sigma: float, entropy: Entropy) -> Sums:
    """Sum of the outer products of vectors with themselves, with symmetric noise.  # (N, D) to (D, D)

    Entries off the diagonal stand twice in the Frobenius norm and are drawn once, so theirs is 1/sqrt(2) of the noise.

    Args:
        images: By `on_grid`.
        sigma: Standard deviation on the diagonal; one vector moves the sum by at most 1 in Frobenius norm.
        entropy: Where the noise comes from.
    """
    exact = images.T @ images
    width = len(exact)
    drawn = np.triu(gaussian(exact.size, entropy).reshape(width, width))
    noise = drawn * np.where(np.eye(width, dtype=bool), 1.0, math.sqrt(0.5)) * sigma
    return _left(exact, noise + np.triu(noise, 1).T)


def gaussian(count: int, entropy: Entropy) -> Sums:
    """Unit normal numbers from bytes (Box and Muller 1958); the chance of what 53 bits cut off is below 1e-16 each.

    Args:
        count: How many.
        entropy: Asked once.
    """
    half = (count + 1) // 2
    drawn = np.frombuffer(entropy(16 * half), "<u8").reshape(2, half) >> np.uint64(11)
    share = drawn.astype(np.float64) * 2.0**-53 + _HALF
    far, angle = np.sqrt(-2 * np.log(share[0])), 2 * math.pi * share[1]
    found: Sums = np.concatenate([far * np.cos(angle), far * np.sin(angle)])[:count]
    return found


def reach(adjacency: Adjacency, *, square: float = 0.0) -> float:
    """L2 sensitivity of a cross sum, together with a square sum of weight ``square``.

    Adding a pair moves the first by at most 1 and the second by ``square``. Replacing one moves the first by at most 2,
    the second by at most sqrt(2) times its weight: squares are never opposite.

    Raises:
        InputError: Another adjacency, or a weight below 0.
    """
    if adjacency not in ("add-or-remove", "replace") or not (math.isfinite(square) and square >= 0):
        raise InputError(f"adjacency {adjacency!r}, weight {square!r}: expected add-or-remove or replace, 0 or above")
    return math.hypot(1.0, square) if adjacency == "add-or-remove" else math.hypot(2.0, math.sqrt(2) * square)


def _left(exact: Sums, noise: Sums) -> Sums:
    """What leaves, in units of 1: the sum and its noise, both in whole steps."""
    step = GRID * GRID
    found: Sums = (exact + np.rint(noise / step)) * step
    return found


OS_ENTROPY: Entropy = os.urandom
