"""1,911 real pictures with names: the emoji of Twemoji, 32x32 in colour, from the package ``emoji-datasource-twitter``.

Graphics by Twitter, Inc. and other contributors (Twemoji), CC BY 4.0, https://github.com/jdecked/twemoji; names and
groups by the Unicode Consortium in Cal Henderson's emoji-data (MIT). Downloaded where they are used, never shipped. The
sheet of 256 colours is read; transparent places become grey.

What differs by gender, age, skin, hair or direction alone is one group, and a group is never in two parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned.drawing import SIDE, Pictures
from kasmina_trainer.datasets.captioned.grammar import FIELDS
from kasmina_trainer.datasets.captioned.indexed_png import read_indexed
from kasmina_trainer.datasets.captioned.pairs import Pairs, Part
from kasmina_trainer.datasets.captioned.words import words_of
from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read
from kasmina_trainer.datasets.idx import Splits

KIND = 2
"""What the codes of an emoji begin with; its number follows in two fields."""
PARTS: Mapping[Part, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
PACKAGE = Package(
    client="npm",
    name="emoji-datasource-twitter",
    version="16.0.0",
    archives=("f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",),
    max_archive_bytes=80_000_000,
    max_content_bytes=120_000_000,
    members=(
        Member(
            "emoji.json",
            "package/emoji.json",
            "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
            1_313_457,
        ),
        Member(
            "sheet-32.png",
            "package/img/twitter/sheets-256/32.png",
            "179a0b9e7e4c537f167f11e17be3ebbbec232b7ab54b43590ffe9bef87283b7a",
            1_331_669,
        ),
    ),
)
_CELL, _BORDER = SIDE + 2, 1
_GROUND = 0.5
_DROPPED = frozenset({"200D", "FE0F", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"})
"""Joiner, variation, signs of gender and direction, and kinds of hair."""
_PERSON, _SKIN = "1F9D1", re.compile(r"1F3F[B-F]")
_PEOPLE = frozenset({"1F468", "1F469", "1F474", "1F475", "1F9D3", "1F466", "1F467", "1F9D2", "1F476", "1F471"})
_PEOPLE_WORDS = frozenset({"man", "men", "woman", "women", "mans", "womans", "person", "people", "male", "female"})
_SAME = (
    ("1F385", "1F936", "1F9D1-200D-1F384"),
    ("1F934", "1F478", "1FAC5"),
    ("1F57A", "1F483"),
    ("1F935", "1F470"),
    ("1F46B", "1F46C", "1F46D", "1F9D1-200D-1F91D-200D-1F9D1"),
)
"""Unicode's own gender variants that no rule of spelling finds: Santa, royalty, dancers, weddings, holding hands."""


@dataclass(frozen=True)
class Emoji:
    """One of them.

    Attributes:
        code: Its code points, ``1F468-200D-1F33E``.
        name: In lower case.
        category: Such as ``Food & Drink``.
        group: Number of its group of variants.
        place: Column and row of the sheet.
    """

    code: str
    name: str
    category: str
    group: int
    place: tuple[int, int]


def load_emoji(
    seed: int = 0, *, folder: Path | None = None, downloaded: Download | None = by_client
) -> dict[Part, Pairs]:
    """Pictures and names in three parts; groups of variants are never in two of them.

    Args:
        seed: Chooses which groups are where.
        folder: Where the files lie; the cache's ``emoji`` when left out.
        downloaded: Gets the package when files are missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, no npm here, or a damaged download.
        LinkError: The registry cannot be reached.
    """
    files = read(PACKAGE, folder or cache_folder() / "emoji", downloaded=downloaded)
    every = read_table(files["emoji.json"], where="emoji.json")
    sheet = read_indexed(files["sheet-32.png"], where="sheet-32.png")
    parts = split_by_group([each.group for each in every], seed)
    return {part: _pairs(every, rows, sheet) for part, rows in parts.items()}


def emoji_splits(seed: int = 0, *, folder: Path | None = None, downloaded: Download | None = by_client) -> Splits:
    """The same pictures with Unicode's category as the label: the set as a task for a classifier.

    Raises:
        InputError: As `load_emoji`.
        LinkError: Likewise.
    """
    pairs = load_emoji(seed, folder=folder, downloaded=downloaded)
    files = read(PACKAGE, folder or cache_folder() / "emoji", downloaded=None)
    category = [CATEGORIES.index(each.category) for each in read_table(files["emoji.json"], where="emoji.json")]
    parts = {
        part: (own.pictures, np.array([category[a * 128 + b] for a, b in own.codes[:, 1:3].tolist()], np.int64))
        for part, own in pairs.items()
    }
    return Splits(parts["train"], parts["validation"], parts["test"], CATEGORIES)


def read_table(data: bytes, *, where: str) -> tuple[Emoji, ...]:
    """The package's list, in its order, with groups of variants.

    Raises:
        InputError: Not the list that it should be.
    """
    try:
        rows: list[dict[str, Any]] = [row for row in json.loads(data) if row["has_img_twitter"]]
        codes, names = [str(row["unified"]) for row in rows], [str(row["name"]).lower() for row in rows]
        groups = variant_groups(codes, names)
        return tuple(
            Emoji(code, name, str(row["category"]), group, (int(row["sheet_x"]), int(row["sheet_y"])))
            for row, code, name, group in zip(rows, codes, names, groups, strict=True)
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{where}: not a list of emoji ({exc})") from exc


def variant_groups(codes: Sequence[str], names: Sequence[str]) -> list[int]:
    """A number each, equal for variants of one thing: by their code points without what tells people apart, and by
    their names without the words that do.

    >>> variant_groups(["1F468-200D-1F33E", "1F969", "1F469-200D-1F33E"], ["male farmer", "steak", "female farmer"])
    [0, 1, 0]
    """
    owner: dict[object, int] = {}
    parent = list(range(len(codes)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    said = {code: index for index, same in enumerate(_SAME) for code in same}
    for i, (code, name) in enumerate(zip(codes, names, strict=True)):
        words = frozenset(words_of(name)) - _PEOPLE_WORDS
        keys: list[object] = [("code", _bare(code))]
        keys += [("name", words)] if words else []
        keys += [("same", said[code])] if code in said else []
        for key in keys:
            first, other = sorted((root(owner.setdefault(key, i)), root(i)))
            parent[other] = first
    return [root(i) for i in range(len(codes))]


def split_by_group(groups: Sequence[int], seed: int) -> dict[Part, npt.NDArray[np.int64]]:
    """Rows of each part, by `PARTS`; a group's rows stay together."""
    rng = np.random.default_rng((seed, 11))
    numbers = np.asarray(groups, np.int64)
    order = rng.permutation(np.unique(numbers))
    ends = (np.cumsum(list(PARTS.values())) * len(order)).round().astype(int)
    pieces = np.split(order, ends[:-1])
    return {part: np.flatnonzero(np.isin(numbers, own)) for part, own in zip(PARTS, pieces, strict=True)}


def _bare(code: str) -> tuple[str, ...]:
    """Code points in order, people as one of them."""
    points = code.split("-")
    kept = [point for point in points if point not in _DROPPED and not _SKIN.fullmatch(point)] or points
    if not _PEOPLE.isdisjoint(kept) or _PERSON in kept:
        return (_PERSON, *(point for point in kept if point not in _PEOPLE and point != _PERSON))
    return tuple(kept)


def _pairs(every: Sequence[Emoji], rows: npt.NDArray[np.int64], sheet: npt.NDArray[np.uint8]) -> Pairs:
    codes = np.full((len(rows), len(FIELDS)), -1, np.int8)
    codes[:, 0] = KIND
    codes[:, 1], codes[:, 2] = rows // 128, rows % 128
    pictures = np.stack([_picture(sheet, every[i].place) for i in rows])
    return Pairs(pictures, tuple(every[i].name for i in rows), codes, codes)


def _picture(sheet: npt.NDArray[np.uint8], place: tuple[int, int]) -> Pictures:
    """One picture on grey.  # (3, 32, 32)

    Raises:
        InputError: It lies outside the sheet.
    """
    left, top = (_CELL * at + _BORDER for at in place)
    cell = sheet[top : top + SIDE, left : left + SIDE].astype(np.float32) / np.float32(255.0)
    if cell.shape != (SIDE, SIDE, 4):
        raise InputError(f"sheet of {sheet.shape[1]}x{sheet.shape[0]}: no picture at column {place[0]}, row {place[1]}")
    opacity = cell[:, :, 3:]
    found: Pictures = (cell[:, :, :3] * opacity + _GROUND * (1 - opacity)).transpose(2, 0, 1)
    return found
