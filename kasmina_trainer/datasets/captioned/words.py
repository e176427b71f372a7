"""Texts as numbers without a vocabulary: each word is the set of its letter trigrams, hashed into bins.

After Bojanowski et al. 2017 (arXiv:1607.04606): a word is the sum of its parts, so a word that was never seen still has
a place, and its relatives' places are near. What a network takes is (BINS, WORDS) of 0 and 1, channels first; both
values are exact in int8, and the first convolution over one word is the sum of the trigrams' embeddings.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Texts = npt.NDArray[np.float32]

BINS = 192
WORDS = 16
"""Words of a text that are read; what comes after them is left out."""
TEXT_SHAPE = (BINS, WORDS)
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words_of("A red ring, top-left")
    ['a', 'red', 'ring', 'top', 'left']
    """
    return _WORD.findall(text.lower())


@lru_cache(maxsize=20_000)
def bins_of(word: str) -> tuple[int, ...]:
    """Bins of a word's trigrams, its beginning and end marked; CRC-32 chooses them, alike on every machine.

    >>> bins_of("ring") == bins_of("ring"), len(bins_of("ring"))
    (True, 4)
    """
    marked = f"<{word}>"
    grams = {marked[i : i + 3] for i in range(len(marked) - 2)}
    return tuple(sorted({zlib.crc32(gram.encode()) % BINS for gram in grams}))


def encode(texts: Sequence[str]) -> Texts:
    """Texts as a network takes them: 1 in the bins of each word, 0 elsewhere.  # (N, BINS, WORDS)

    Raises:
        InputError: A text has no word.
    """
    found = np.zeros((len(texts), *TEXT_SHAPE), np.float32)
    for row, text in enumerate(texts):
        words = words_of(text)
        if not words:
            raise InputError(f"text {row} is {text!r}: it has no word")
        for place, word in enumerate(words[:WORDS]):
            found[row, list(bins_of(word)), place] = 1.0
    return found
