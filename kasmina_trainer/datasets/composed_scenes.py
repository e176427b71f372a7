"""Scenes to detect in: real handwritten digits pasted at random places and sizes on textured backgrounds, with boxes.

Each digit is cut to its ink, scaled with its own aspect ratio, and blended lighter or darker than what lies below it.
Backgrounds mix smooth clouds, gratings, bare strokes that are no digits, and grain. Everything is drawn from the seed.
A part of a split uses images of digits that no other part uses (its writers may be the same); backgrounds differ as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Digits, Images, Labels, load_digits, require_disjoint, stratified_order

SIDE = 64
INPUT_SHAPE = (1, SIDE, SIDE)  # (C, H, W)
HEIGHTS = (14.0, 30.0)
"""Heights of the digits, pixels."""
MOST_DIGITS = 4
TEST_SHARE = 0.3
INK = 0.2
"""Grey from which a pixel belongs to a digit's box."""
_TRIES = 20
_OVERLAP = 0.05

Boxes = npt.NDArray[np.float64]
Picture = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What a scene shows.

    Attributes:
        boxes: Left, top, right, bottom of each object in shares of the scene.  # (M, 4)
        labels: Their classes.  # (M,)
    """

    boxes: Boxes
    labels: Labels


@dataclass(frozen=True)
class Scenes:
    """Some scenes.

    Attributes:
        x: Pictures in [0, 1].  # (N, 1, 64, 64)
        truths: What each shows.
        sources: Digests of the handwriting that was used.
    """

    x: Images
    truths: tuple[Truth, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.truths)

    def nhwc(self) -> Images:
        """The scenes as a device sees them.  # (N, 64, 64, 1)"""
        return np.ascontiguousarray(np.moveaxis(self.x, 1, -1))

    def take(self, rows: slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(self.x[rows], self.truths[rows], self.sources)


def split_scenes(train: int, test: int, *, seed: int = 0, digits: Digits | None = None) -> tuple[Scenes, Scenes]:
    """Scenes to learn from, and scenes of other images of digits to judge by.

    Args:
        train: How many scenes to learn from.
        test: How many to judge by.
        seed: Chooses which digit goes where, and draws the scenes.
        digits: Handwriting with the digest of each source; scikit-learn's 1,797 when left out. MNIST's do as well:
            ``Digits(x, y, image_digests(x))``.

    Raises:
        InputError: Fewer than one scene, or too few digits.
    """
    known = load_digits() if digits is None else digits
    order = stratified_order(known.y, seed)
    cut = round(len(known) * TEST_SHARE)
    if cut < 10 or len(known) - cut < 10:
        raise InputError(f"{len(known)} digits: at least 10 are needed on either side")
    held, learned = known.take(order[:cut]), known.take(order[cut:])
    parts = compose(learned, train, seed=2 * seed), compose(held, test, seed=2 * seed + 1)
    require_disjoint({"train": parts[0].sources, "test": parts[1].sources})
    return parts


def compose(digits: Digits, count: int, *, seed: int) -> Scenes:
    """Scenes with one to four digits each.

    Args:
        digits: Handwriting; images of any size with white ink on black.
        count: How many scenes.
        seed: Equal seeds give equal scenes.

    Raises:
        InputError: ``count`` is below 1, or there are no digits.
    """
    if count < 1 or not len(digits):
        raise InputError(f"{count} scenes of {len(digits)} digits: at least one of each is needed")
    rng = np.random.default_rng(seed)
    inks = [_cut(image[0].astype(np.float64)) for image in digits.x]
    x = np.empty((count, 1, SIDE, SIDE), np.float32)
    truths, used = [], set[int]()
    for row in range(count):
        rows = rng.integers(0, len(digits), int(rng.integers(1, MOST_DIGITS + 1)))
        x[row, 0], boxes, placed = _scene([inks[i] for i in rows], rng)
        truths.append(Truth(boxes, digits.y[rows[placed]]))
        used.update(int(i) for i in rows)
    return Scenes(x, tuple(truths), tuple(digits.sources[i] for i in sorted(used)))


def resized(image: Picture, height: int, width: int) -> Picture:
    """Bilinear with half-pixel centres.  # (H, W) to (height, width)"""
    for axis, wanted in ((0, height), (1, width)):
        side = image.shape[axis]
        at = (np.arange(wanted) + 0.5) * side / wanted - 0.5
        low = np.clip(np.floor(at), 0, side - 1).astype(np.intp)
        share = np.clip(at - low, 0.0, 1.0)
        if axis == 0:
            share = share[:, None]
        image = np.take(image, low, axis) * (1 - share) + np.take(image, np.minimum(low + 1, side - 1), axis) * share
    return image


def overlap_share(box: Boxes, others: Sequence[Boxes]) -> float:
    """Largest share of the smaller box that ``box`` and another have in common."""
    worst = 0.0
    for other in others:
        across = min(box[2], other[2]) - max(box[0], other[0])
        down = min(box[3], other[3]) - max(box[1], other[1])
        if across > 0 and down > 0:
            smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
            worst = max(worst, across * down / smaller)
    return worst


def _cut(image: Picture) -> Picture:
    """A digit without its empty border."""
    ink = image >= INK
    if not ink.any():
        return image
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scene(inks: Sequence[Picture], rng: np.random.Generator) -> tuple[Picture, Boxes, list[int]]:
    """A picture, the boxes of the digits that found a place, and which of ``inks`` those are."""
    picture = _background(rng)
    boxes: list[Boxes] = []
    placed = []
    for i, ink in enumerate(inks):
        height = rng.uniform(*HEIGHTS)
        width = float(np.clip(height * ink.shape[1] / ink.shape[0] * rng.uniform(0.85, 1.15), 5.0, 30.0))
        tall, wide = round(height), round(width)
        for _ in range(_TRIES):
            top, left = int(rng.integers(0, SIDE - tall + 1)), int(rng.integers(0, SIDE - wide + 1))
            box = np.array([left, top, left + wide, top + tall], np.float64) / SIDE
            if overlap_share(box, boxes) <= _OVERLAP:
                _paste(picture[top : top + tall, left : left + wide], resized(ink, tall, wide), rng)
                boxes.append(box)
                placed.append(i)
                break
    grain = rng.normal(0.0, rng.uniform(0.0, 0.04), picture.shape)
    return np.clip(picture + grain, 0.0, 1.0), np.array(boxes), placed


def _paste(below: Picture, ink: Picture, rng: np.random.Generator) -> None:
    """Blend a digit into the picture, lighter or darker than what lies there."""
    mean = float(below.mean())
    lighter = rng.uniform() < 0.5 if 0.35 < mean < 0.65 else mean < 0.5
    target = min(1.0, mean + rng.uniform(0.45, 0.8)) if lighter else max(0.0, mean - rng.uniform(0.45, 0.8))
    below += np.clip(ink, 0.0, 1.0) * (target - below)


def _background(rng: np.random.Generator) -> Picture:
    """Clouds, a grating, and a few bare strokes."""
    picture = np.full((SIDE, SIDE), rng.uniform(0.1, 0.9))
    for cells in (3, 8):
        picture += rng.uniform(0.0, 0.15) * resized(rng.normal(0.0, 1.0, (cells, cells)), SIDE, SIDE)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 9)
    grating = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
    picture += rng.uniform(0.0, 0.08) * grating
    for _ in range(int(rng.integers(0, 3))):
        _stroke(picture, x, y, rng)
    clipped: Picture = np.clip(picture, 0.0, 1.0)
    return clipped


def _stroke(picture: Picture, x: Picture, y: Picture, rng: np.random.Generator) -> None:
    """A straight line of a digit's thickness that runs across the picture."""
    angle, at = rng.uniform(0, np.pi), rng.uniform(-0.2, 1.2)
    distance = np.abs(x * np.cos(angle) + y * np.sin(angle) - at) * SIDE
    cover = np.clip(rng.uniform(1.0, 2.0) - distance, 0.0, 1.0)
    picture += cover * rng.uniform(-0.4, 0.4)
