"""Captioned coloured shapes: one object or two, in combinations of which some are never seen in training.

What is held out are pairs of colour and shape. Eight of the 64 pairs are for validation and sixteen for testing; every
colour and every shape is in five training pairs. A picture of a part shows pairs of that part alone, so a network that
names a held-out picture has put a known colour and a known shape together for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned.drawing import (
    COLOURS,
    SHAPES,
    SIDE,
    TEXTURES,
    Objects,
    Pictures,
    finished,
    ground,
    paint,
)
from kasmina_trainer.datasets.captioned.grammar import (
    FIELDS,
    PLACES,
    RELATIONS,
    SIZES,
    Codes,
    caption,
    short_caption,
)
from kasmina_trainer.datasets.captioned.pairs import Pairs, Part, joined
from kasmina_trainer.datasets.idx import Splits

Pair = tuple[int, int]
GALLERY = 100
_DIAGONALS: dict[Part, range] = {"validation": range(1), "test": range(1, 3), "train": range(3, 8)}
_CENTRES = np.array([(16.0, 16.0), (10.0, 10.0), (22.0, 10.0), (10.0, 22.0), (22.0, 22.0)])
_BLOCK = 1024
_RADII = ((4.5, 6.0), (8.0, 9.5))


@dataclass(frozen=True)
class CaptionedShapes:
    """The set.

    Args:
        seed: Chooses which pairs of colour and shape are held out.
    """

    seed: int = 0

    @cached_property
    def pairs(self) -> dict[Part, tuple[Pair, ...]]:
        """Colour and shape, by their indices, of each part: 40, 8 and 16 pairs, none in two parts."""
        rng = np.random.default_rng((self.seed, 1))
        colours, shapes = rng.permutation(len(COLOURS)), rng.permutation(len(SHAPES))
        found: dict[Part, tuple[Pair, ...]] = {}
        for part, steps in _DIAGONALS.items():
            turned = [(colours, np.roll(shapes, -step)) for step in steps]
            found[part] = tuple((int(c), int(s)) for own, others in turned for c, s in zip(own, others, strict=True))
        return found

    def combinations(self, part: Part) -> Codes:
        """Everything that a full caption of this part can say, each once.  # (K, 8), `grammar.FIELDS`

        One object: pair, size, texture, place. Two: both pairs, and how the first lies to the second.
        """
        own = self.pairs[part]
        one = [
            (0, *pair, size, texture, place, -1, -1)
            for pair in own
            for size in range(len(SIZES))
            for texture in range(len(TEXTURES))
            for place in range(len(PLACES))
        ]
        two = [
            (1, *first, -1, -1, relation, *second)
            for first in own
            for second in own
            if first != second
            for relation in range(len(RELATIONS))
        ]
        return np.array(one + two, np.int8)

    def draw(self, part: Part, count: int, *, seed: int, short: float = 0.0) -> Pairs:
        """Random pairs; one object and two equally often.

        Args:
            part: Which combinations.
            count: How many pairs.
            seed: Chooses combinations, pictures and wordings; other seeds give fresh ones.
            short: Share of captions that name colour or shape alone; only of pictures with one object.

        Raises:
            InputError: Fewer than one pair, or a share outside 0 to 1.
        """
        if count < 1 or not 0.0 <= short <= 1.0:
            raise InputError(f"{count} pairs, {short} of them short: expected at least 1, and a share of 0 to 1")
        rng = np.random.default_rng((self.seed, 2, list(_DIAGONALS).index(part), seed))
        every = self.combinations(part)
        kinds = [np.flatnonzero(every[:, 0] == kind) for kind in (0, 1)]
        chosen = np.where(rng.random(count) < 0.5, rng.choice(kinds[0], count), rng.choice(kinds[1], count))
        return pictured(every[chosen], rng, short=short)

    def gallery(self, part: Part, *, seed: int, ways: int = GALLERY) -> Pairs:
        """Pairs of ``ways`` different combinations, half of them with two objects: each picture has one right caption.

        Raises:
            InputError: The part has fewer combinations.
        """
        rng = np.random.default_rng((self.seed, 3, list(_DIAGONALS).index(part), seed))
        every = self.combinations(part)
        kinds = [np.flatnonzero(every[:, 0] == kind) for kind in (0, 1)]
        counts = (ways - ways // 2, ways // 2)
        if any(count > len(kind) for count, kind in zip(counts, kinds, strict=True)):
            raise InputError(f"a gallery of {ways}: {part} has {len(kinds[0])} and {len(kinds[1])} combinations")
        chosen = np.concatenate([rng.choice(k, n, replace=False) for k, n in zip(kinds, counts, strict=True)])
        return pictured(every[chosen], rng)

    def hard_gallery(self, part: Part, *, seed: int, ways: int = GALLERY) -> Pairs:
        """A gallery whose second half are twins of the first: one object has another colour or another shape.

        Twins may be of any part, those of training among them, so nothing is told by which pairs there can be.
        """
        own = self.gallery(part, seed=seed, ways=ways // 2)
        rng = np.random.default_rng((self.seed, 4, list(_DIAGONALS).index(part), seed))
        return joined([own, pictured(twins(own.codes, rng), rng)])


def shape_splits(seed: int, rows: tuple[int, int, int] = (2000, 500, 1000)) -> Splits:
    """Pictures of one object with its shape as the label: the set as a task for a classifier.

    Args:
        seed: Chooses what is held out, and the pictures.
        rows: Of training, validation and test, before pictures of two objects are left out.
    """
    shapes, parts = CaptionedShapes(seed), []
    for part, count in zip(("train", "validation", "test"), rows, strict=True):
        drawn = shapes.draw(cast(Part, part), count, seed=0)
        single = drawn.at(np.flatnonzero(drawn.codes[:, 0] == 0))
        parts.append((single.pictures, single.codes[:, 2].astype(np.int64)))
    return Splits(parts[0], parts[1], parts[2], tuple(SHAPES))


def twins(codes: Codes, rng: np.random.Generator) -> Codes:
    """The same combinations with one colour or one shape changed.  # (N, 8) to the same"""
    found = codes.copy()
    for row in found:
        second = row[0] == 1 and rng.random() < 0.5
        field = (7 if second else 2) if rng.random() < 0.5 else (6 if second else 1)
        count = len(SHAPES) if field in (2, 7) else len(COLOURS)
        row[field] = (row[field] + rng.integers(1, count)) % count
    return found


def pictured(codes: Codes, rng: np.random.Generator, *, short: float = 0.0) -> Pairs:
    """Pictures and captions of these combinations.  # (N, 8), `grammar.FIELDS`

    Raises:
        InputError: Codes of another shape.
    """
    if codes.ndim != 2 or codes.shape[1] != len(FIELDS):
        raise InputError(f"codes of shape {codes.shape}: expected (N, {len(FIELDS)})")
    pictures = [_pictures(codes[i : i + _BLOCK], rng) for i in range(0, len(codes), _BLOCK)]
    captions, said = [], []
    for row in codes:
        brief = short > 0.0 and row[0] == 0 and rng.random() < short
        text, says = short_caption(row, rng) if brief else (caption(row, rng), row)
        captions.append(text)
        said.append(says)
    return Pairs(np.concatenate(pictures), tuple(captions), codes.copy(), np.array(said, np.int8))


def _pictures(codes: Codes, rng: np.random.Generator) -> Pictures:
    count = len(codes)
    canvas = ground(count, rng)
    single = codes[:, 0] == 0
    centres = _CENTRES[np.where(single, codes[:, 5], 0)] + rng.uniform(-1.5, 1.5, (count, 2))
    offsets = _beside(codes[:, 5], rng)
    first = np.where(single[:, None], centres, SIDE / 2 - offsets)
    canvas = paint(canvas, _objects(codes[:, 1], codes[:, 2], codes, single, first, rng), rng)
    both = np.flatnonzero(~single)
    if len(both):
        second = _objects(codes[both, 6], codes[both, 7], codes[both], single[both], SIDE / 2 + offsets[both], rng)
        canvas[both] = paint(canvas[both], second, rng)
    return finished(canvas, rng)


def _beside(relation: Codes, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Half the way from the first object to the second.  # (N, 2), x to the right and y down"""
    apart, askew = rng.uniform(6.5, 8.5, len(relation)), rng.uniform(-4.0, 4.0, len(relation))
    beside = relation == 0
    return np.stack([np.where(beside, apart, askew), np.where(beside, askew, apart)], 1)


def _objects(
    colour: Codes,
    shape: Codes,
    codes: Codes,
    single: npt.NDArray[np.bool_],
    centres: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Objects:
    """Objects as they are drawn; beside another one, size and texture are free, and nobody speaks of them."""
    count = len(codes)
    low, high = np.array(_RADII)[np.where(single, codes[:, 3], 0)].T
    texture = np.where(single, codes[:, 4], rng.integers(len(TEXTURES), size=count))
    return Objects(
        shape=shape.astype(np.int64),
        colour=colour.astype(np.int64),
        texture=texture.astype(np.int64),
        x=centres[:, 0],
        y=centres[:, 1],
        radius=rng.uniform(low, high) + np.where(single, 0.0, 0.5),
        turn=rng.uniform(-0.2, 0.2, count),
    )
