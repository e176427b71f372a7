"""Texts to numbers of pieces, as BERT's uncased vocabularies want them: longest first (Devlin et al. 2019)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

MOST_PIECES = 128
"""Of a text, with both marks around it; the rest is cut off."""
_MOST_LETTERS = 100
_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPieces:
    """A vocabulary at work.

    Args:
        vocabulary: Number of each piece; a piece inside a word begins with ``##``.

    Raises:
        InputError: One of the four marks is missing.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        missing = [mark for mark in _MARKS if mark not in vocabulary]
        if missing:
            raise InputError(f"vocabulary of {len(vocabulary)} pieces: has no {', '.join(missing)}")
        self._known = vocabulary
        self._pad, self._unknown, self._first, self._last = (vocabulary[mark] for mark in _MARKS)

    def numbers(self, text: str) -> list[int]:
        """A text's pieces between both marks, at most 128."""
        pieces = [number for word in _words(text) for number in self._pieces(word)]
        return [self._first, *pieces[: MOST_PIECES - 2], self._last]

    def batch(self, texts: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of several texts, filled up to the longest, and 1 where they are not filling.  # (N, L) twice"""
        rows = [self.numbers(text) for text in texts]
        longest = max(map(len, rows), default=0)
        numbers = np.full((len(rows), longest), self._pad, np.int64)
        real = np.zeros_like(numbers)
        for i, row in enumerate(rows):
            numbers[i, : len(row)], real[i, : len(row)] = row, 1
        return numbers, real

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MOST_LETTERS:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            lead = "##" if start else ""
            for end in range(len(word), start, -1):
                number = self._known.get(lead + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return [self._unknown]
        return found


def _words(text: str) -> list[str]:
    """Words and single signs of punctuation, in small letters without accents."""
    spaced: list[str] = []
    for letter in text:
        if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
            spaced.append(" ")
        elif letter in "\0\ufffd" or unicodedata.category(letter).startswith("C"):
            continue
        elif any(low <= ord(letter) <= high for low, high in _IDEOGRAPHS):
            spaced.append(f" {letter} ")
        else:
            spaced.append(letter)
    bare = "".join(c for c in unicodedata.normalize("NFD", "".join(spaced)) if unicodedata.category(c) != "Mn").lower()
    return "".join(f" {letter} " if _is_punctuation(letter) else letter for letter in bare).split()


def _is_punctuation(letter: str) -> bool:
    plain = "!" <= letter <= "/" or ":" <= letter <= "@" or "[" <= letter <= "`" or "{" <= letter <= "~"
    return plain or unicodedata.category(letter).startswith("P")
