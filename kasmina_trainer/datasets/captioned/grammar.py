"""What a caption says of a picture: several wordings, synonyms, and either object of a pair first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.captioned.drawing import COLOURS, SHAPES, TEXTURES

Codes = npt.NDArray[np.int8]

FIELDS = ("kind", "colour", "shape", "size", "texture", "place", "colour2", "shape2")
"""What a row of codes holds. ``kind`` is 0 for one object and 1 for two, whose ``place`` is how the first lies to the
second; -1: not said, or not there."""
SIZES = ("small", "big")
PLACES = ("centre", "top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "above")

_SIZES = (("small", "little", "tiny"), ("big", "large", "huge"))
_TEXTURES = (("plain", "solid"), ("striped", "stripy"), ("dotted", "spotted"))
_PLACES = (
    ("in the centre", "in the middle"),
    ("at the top left", "in the upper left corner"),
    ("at the top right", "in the upper right corner"),
    ("at the bottom left", "in the lower left corner"),
    ("at the bottom right", "in the lower right corner"),
)
_RELATIONS = (("left of", "to the left of"), ("above", "over"))
_TURNED = (("right of", "to the right of"), ("below", "under"))
_ONE = (
    "a {size} {texture} {colour} {shape} {place}",
    "{place} there is a {size} {colour} {shape} and it is {texture}",
    "the {texture} {shape} {place} is {size} and {colour}",
    "{colour} {shape} {size} and {texture} {place}",
)
_BARE = ("a {colour} {shape}", "one {shape} which is {colour}")
_COLOURS, _SHAPES = tuple(COLOURS), tuple(SHAPES)


def caption(codes: Codes, rng: np.random.Generator) -> str:
    """A caption that says everything in a row of codes.  # (8,)

    >>> caption(np.array([0, 0, 5, 0, 1, 0, -1, -1], np.int8), np.random.default_rng(1))
    'in the middle there is a little red ring and it is stripy'
    """
    kind, colour, shape, size, texture, place, colour2, shape2 = (int(code) for code in codes)
    if kind:
        first = f"a {_COLOURS[colour]} {_SHAPES[shape]}"
        second = f"a {_COLOURS[colour2]} {_SHAPES[shape2]}"
        if rng.random() < 0.5:
            return f"{first} {_one_of(_RELATIONS[place], rng)} {second}"
        return f"{second} {_one_of(_TURNED[place], rng)} {first}"
    return _one_of(_ONE, rng).format(
        colour=_COLOURS[colour],
        shape=_SHAPES[shape],
        size=_one_of(_SIZES[size], rng),
        texture=_one_of(_TEXTURES[texture], rng),
        place=_one_of(_PLACES[place], rng),
    )


def short_caption(codes: Codes, rng: np.random.Generator) -> tuple[str, Codes]:
    """A caption of one object that names colour, shape or both, and the codes of what it says.  # (8,)"""
    said = np.full(len(FIELDS), -1, np.int8)
    said[0] = 0
    choice = int(rng.integers(3))
    if choice != 1:
        said[1] = codes[1]
    if choice != 0:
        said[2] = codes[2]
    colour, shape = _COLOURS[codes[1]], _SHAPES[codes[2]]
    if choice == 0:
        return f"something {colour}", said
    if choice == 1:
        return f"a {shape}", said
    return _one_of(_BARE, rng).format(colour=colour, shape=shape), said


def is_true(said: Codes, codes: Codes) -> npt.NDArray[np.bool_]:
    """Which captions are true of which pictures.  # (N, 8) and (M, 8) to (N, M)"""
    found: npt.NDArray[np.bool_] = ((said[:, None] == -1) | (said[:, None] == codes[None])).all(2)
    return found


def _one_of(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


assert len(_TEXTURES) == len(TEXTURES) and len(_PLACES) == len(PLACES)
