"""Pictures with their texts, in parts; the same for drawn and for real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned.drawing import Pictures
from kasmina_trainer.datasets.captioned.grammar import Codes, is_true
from kasmina_trainer.datasets.captioned.words import Texts, encode

Part = Literal["train", "validation", "test"]
Rows = Sequence[int] | npt.NDArray[np.int64] | slice


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures and a text of each.

    Attributes:
        pictures: In [0, 1].  # (N, 3, 32, 32) float32
        captions: One a picture.
        codes: What is in each picture, by `grammar.FIELDS`.  # (N, 8) int8
        said: What each caption says of it; -1 where it is silent.  # (N, 8) int8
    """

    pictures: Pictures
    captions: tuple[str, ...]
    codes: Codes
    said: Codes

    def __post_init__(self) -> None:
        lengths = (len(self.pictures), len(self.captions), len(self.codes), len(self.said))
        if len(set(lengths)) != 1:
            raise InputError(f"pairs: {lengths} pictures, captions, codes and sayings; expected one of each a pair")

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def texts(self) -> Texts:
        """The captions as a network takes them.  # (N, 192, 16)"""
        return encode(self.captions)

    @property
    def truth(self) -> npt.NDArray[np.bool_]:
        """Which caption (row) is true of which picture (column).  # (N, N)"""
        return is_true(self.said, self.codes)

    def at(self, rows: Rows) -> Pairs:
        """Some of the pairs, in the order asked for."""
        chosen = np.arange(len(self))[rows]
        captions = tuple(self.captions[i] for i in chosen)
        return Pairs(self.pictures[chosen], captions, self.codes[chosen], self.said[chosen])

    def seen(self, pictures: Pictures) -> Pairs:
        """The same captions with other pictures of the same things."""
        return replace(self, pictures=pictures)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Several lots of pairs behind each other.

    Raises:
        InputError: None of them.
    """
    if not parts:
        raise InputError("pairs: none to join")
    return Pairs(
        np.concatenate([part.pictures for part in parts]),
        tuple(caption for part in parts for caption in part.captions),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.said for part in parts]),
    )
