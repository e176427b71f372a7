"""An n-gram model of characters: what a language model has to beat.

Counts of every context up to ``order - 1`` characters, mixed from the shortest to the longest with the weights of
Witten and Bell 1991 ("method C"): the more different characters followed a context, the more the shorter one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.toy.language import Text

_Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Level:
    """Contexts of one length: codes of (context, character) and of the context, each sorted, with their counts."""

    pairs: _Codes
    pair_counts: npt.NDArray[np.int64]
    contexts: _Codes
    context_counts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]


class NGram:
    """Counts of a training text.

    Args:
        text: Indices into an alphabet.  # (N,)
        letters: Length of the alphabet, up to 256.
        order: Characters of a gram, the predicted one among them; 1 to 8.

    Raises:
        InputError: A text shorter than ``order``, a character outside the alphabet, or grams too long to be numbered.

    >>> model = NGram(np.array([0, 1] * 50, np.uint8), letters=2, order=2)
    >>> bool(model.bits(np.array([0, 1, 0, 1], np.uint8)).max() < 0.05)
    True
    """

    def __init__(self, text: Text, *, letters: int, order: int = 5) -> None:
        if not 1 <= order <= 8 or not 1 <= letters <= 256 or order * math.log2(max(2, letters)) > 62:
            raise InputError(f"n-gram of order {order} over {letters} characters: expected at most 8, 256 and 62 bits")
        self.letters, self.order = letters, order
        self._check(text)
        self._levels = [self._count(text, length) for length in range(order)]

    def bits(self, text: Text) -> npt.NDArray[np.float64]:
        """What each character costs, from number ``order - 1`` on; those before it have no whole context.

        Raises:
            InputError: As of the class.
        """
        return -np.log2(self.chances(text))

    def chances(self, text: Text) -> npt.NDArray[np.float64]:
        """The chance that the model gave each character, as `bits`."""
        self._check(text)
        start = self.order - 1
        found = np.full(len(text) - start, 1.0 / self.letters)
        for length, level in enumerate(self._levels):
            pairs, contexts = (codes[start - length :] for codes in self._codes(text, length))
            count, kinds = (
                _look(contexts, level.contexts, level.context_counts),
                _look(contexts, level.contexts, level.kinds),
            )
            hits = _look(pairs, level.pairs, level.pair_counts)
            seen = count > 0
            found[seen] = (hits[seen] + kinds[seen] * found[seen]) / (count[seen] + kinds[seen])
        return found

    def _check(self, text: Text) -> None:
        if text.ndim != 1 or len(text) < self.order or int(text.min()) < 0 or int(text.max()) >= self.letters:
            found = f"smallest {int(text.min())}, largest {int(text.max())}" if text.size else "none"
            raise InputError(
                f"n-gram: characters {text.shape}, {found}; expected {self.order} or more, from 0 to {self.letters - 1}"
            )

    def _codes(self, text: Text, length: int) -> tuple[_Codes, _Codes]:
        """Numbers of (context, character) and of the context, for every character from number ``length`` on."""
        wide, count = text.astype(np.int64), len(text) - length
        contexts = np.zeros(count, np.int64)
        for back in range(length):
            contexts = contexts * self.letters + wide[back : back + count]
        return contexts * self.letters + wide[length:], contexts

    def _count(self, text: Text, length: int) -> _Level:
        pairs, pair_counts = np.unique(self._codes(text, length)[0], return_counts=True)
        owners = pairs // self.letters
        contexts, first = np.unique(owners, return_index=True)
        counts = np.add.reduceat(pair_counts, first)
        return _Level(pairs, pair_counts, contexts, counts, np.diff(np.append(first, len(owners))))


def _look(wanted: _Codes, known: _Codes, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Values of the codes that are known, 0 for the others."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: npt.NDArray[np.int64] = np.where(known[at] == wanted, values[at], 0)
    return found
