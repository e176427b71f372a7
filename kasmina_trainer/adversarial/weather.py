"""Light and weather of MNIST-C: brightness, fog and spattered mud."""

from __future__ import annotations

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.blur import smoothed
from kasmina_trainer.adversarial.pictures import SIDE, Images, Stack, at_least_zero, finished, stacked

FIELD = 256
"""Side of the fog that is drawn for a picture, which sees one corner of it."""
_AT_ONCE = 8
_FIRST_SWING = 100.0
MUD = 63 / 255
_DROP = 0.8


def brightness(x: Images, light: float = 0.5, *, seed: int = 0) -> Images:
    """The same light added everywhere.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        light: In units of full scale; 0 changes nothing.
        seed: Not used: nothing here is drawn.

    Raises:
        InputError: No pictures of this kind, or less light than before.
    """
    return finished(stacked(x) + np.float32(at_least_zero("light", light)), x)


def fog(x: Images, weight: float = 3.0, decay: float = 1.4, *, seed: int = 0) -> Images:
    """A veil of cloud, another for each picture, and the contrast that is left under it.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        weight: Of the fog, as a multiple of full scale; 0 changes nothing.
        decay: How quickly detail fades from one halving of the scale to the next; above 1.
        seed: Chooses the clouds.

    Raises:
        InputError: No pictures of this kind, a negative weight, or a decay of 1 or less.
    """
    values = stacked(x)
    at_least_zero("fog", weight)
    if not decay > 1.0:
        raise InputError(f"decay {decay!r}: expected more than 1")
    rng = np.random.default_rng(seed)
    out = np.empty(values.shape, np.float32)
    for start in range(0, len(values) if weight else 0, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        brightest = part.max((1, 2), keepdims=True)
        veil = np.float32(weight) * clouds(len(part), decay, rng)
        out[start : start + _AT_ONCE] = (part + veil) * brightest / (brightest + np.float32(weight))
    return finished(out if weight else values, x)


def clouds(count: int, decay: float, rng: np.random.Generator, *, seen: int = SIDE) -> Stack:
    """A corner of fractal clouds from 0 to 1 by midpoint displacement on a torus (Fournier, Fussell, Carpenter 1982).

    Args:
        count: How many.
        decay: The swing of a displacement is the square of a number that is divided by this at every halving.
        rng: Draws the displacements.
        seen: Side of the corner, even, at most `FIELD`; the darkest and the brightest place may lie outside it.
    """
    field = np.zeros((count, 1, 1), np.float32)
    swing = _FIRST_SWING
    for doublings in range(FIELD.bit_length() - 1, 0, -1):
        most = np.float32(swing * swing)

        def displaced(four: Stack, most: np.float32 = most) -> Stack:
            return four / 4 + most * (2 * rng.random(four.shape, dtype=np.float32) - 1)

        below = field + np.roll(field, -1, 1)
        middles = displaced(below + np.roll(below, -1, 2))
        tops = displaced(middles + np.roll(middles, 1, 1) + (field + np.roll(field, -1, 2)))
        lefts = displaced(middles + np.roll(middles, 1, 2) + below)
        parts = (field, tops, lefts, middles)
        if doublings == 1:
            low = np.min([part.min((1, 2)) for part in parts], 0)[:, None, None]
            high = np.max([part.max((1, 2)) for part in parts], 0)[:, None, None]
            parts = tuple(part[:, : seen // 2, : seen // 2] for part in parts)  # type: ignore[assignment]
        side = parts[0].shape[1]
        field = np.empty((count, 2 * side, 2 * side), np.float32)
        for at, part in enumerate(parts):
            field[:, at // 2 :: 2, at % 2 :: 2] = part
        swing /= decay
    veiled: Stack = (field - low) / (high - low)
    return veiled


def spatter(
    x: Images, mean: float = 0.65, deviation: float = 0.3, blur: float = 1.0, threshold: float = 0.65,
    drop_blur: float = 1.5, *, seed: int = 0,
) -> Images:  # fmt: skip
    """Drops of dark mud on the lens.

    Args:
        x: Pictures in [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        mean: Of the liquid before it is blurred.
        deviation: Likewise.
        blur: Of the liquid, pixels; a wider one gives fewer and larger drops.
        threshold: What counts as liquid; above the liquid everywhere, nothing changes.
        drop_blur: Of the drops' outline, pixels.
        seed: Chooses the drops.

    Raises:
        InputError: No pictures of this kind, or a negative deviation or blur.
    """
    values = stacked(x)
    rng = np.random.default_rng(seed)
    liquid = _smoothed_both(rng.normal(mean, at_least_zero("deviation", deviation), values.shape), blur)
    drops = _smoothed_both((liquid > threshold).astype(np.float64), drop_blur)
    drops[drops < _DROP] = 0.0
    return finished(values * (1 - drops) + MUD * drops, x)


def _smoothed_both(values: Stack, sigma: float) -> Stack:
    return smoothed(smoothed(values, sigma, axis=1), sigma, axis=2)
