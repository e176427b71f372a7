"""Formal languages whose entropy is known exactly: probabilistic automata that write one character a step.

Every automaton here is *unifilar*: state and character give the next state. Its entropy rate is then the mean, over the
states' stationary shares, of the entropy of a state's next character (Shannon 1948, theorem 5), and the probability of
any text from a known state is a product. No language model can do better in the long run than that rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Text = npt.NDArray[np.uint8]
"""Characters as indices into an alphabet.  # (N,)"""


@dataclass(frozen=True)
class Texts:
    """A text in three parts that do not overlap.

    Attributes:
        train: Characters as indices into ``alphabet``, uint8.  # (N,)
        validation: Likewise.
        test: Likewise.
        alphabet: The characters.
    """

    train: Text
    validation: Text
    test: Text
    alphabet: str


@dataclass(frozen=True, eq=False)
class Automaton:
    """A probabilistic automaton over characters.

    Attributes:
        alphabet: Its characters, each once.
        chance: Of each character in each state; rows sum to 1.  # (S, A)
        then: The state after it; anything where the chance is 0.  # (S, A)

    >>> coin = Automaton("ht", np.array([[0.5, 0.5]]), np.array([[0, 0]]))
    >>> coin.entropy_bits
    1.0
    """

    alphabet: str
    chance: npt.NDArray[np.float64]
    then: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        states, letters = self.chance.shape
        if len(set(self.alphabet)) != letters or letters != len(self.alphabet) or self.then.shape != (states, letters):
            raise InputError(
                f"automaton: {len(self.alphabet)} characters, chances {self.chance.shape}, states {self.then.shape}"
            )
        if self.chance.min() < 0 or not np.allclose(self.chance.sum(1), 1.0, atol=1e-12):
            raise InputError(f"automaton: the chances of a state sum to {self.chance.sum(1).min():g}, expected 1")
        if self.then.min() < 0 or self.then.max() >= states:
            raise InputError(f"automaton: a next state {self.then.max()}, there are {states}")

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The stationary share of each state; unique, as every state of these languages reaches every other.  # (S,)"""
        states = len(self.chance)
        moves = np.zeros((states, states))
        np.add.at(moves, (np.arange(states)[:, None], self.then), self.chance)
        equations = np.vstack([moves.T - np.eye(states), np.ones((1, states))])
        wanted = np.append(np.zeros(states), 1.0)
        found: npt.NDArray[np.float64] = np.linalg.lstsq(equations, wanted, rcond=None)[0]
        return found

    @property
    def entropy_bits(self) -> float:
        """Entropy rate, bits a character."""
        safe = np.where(self.chance > 0, self.chance, 1.0)
        return float(self.shares @ -(self.chance * np.log2(safe)).sum(1))

    def write(self, count: int, seed: int | np.random.Generator = 0) -> Text:
        """A text of ``count`` characters that begins in state 0.  # (count,)"""
        rng = np.random.default_rng(seed)
        edges = [[*np.cumsum(row)[:-1].tolist()] for row in self.chance]
        then = self.then.tolist()
        last = [int(np.flatnonzero(row > 0)[-1]) for row in self.chance]
        text, state = np.empty(count, np.uint8), 0
        for i, draw in enumerate(rng.random(count).tolist()):
            letter = min(bisect_right(edges[state], draw), last[state])
            text[i] = letter
            state = then[state][letter]
        return text

    def bits(self, text: Text) -> npt.NDArray[np.float64]:
        """What each character of a text that begins in state 0 costs the language itself: -log2 of its chance.  # (N,)

        Raises:
            InputError: The language never writes this text; the message says where.
        """
        chance, then, state = self.chance.tolist(), self.then.tolist(), 0
        found = np.empty(len(text))
        for i, letter in enumerate(text.tolist()):
            likely = chance[state][letter] if letter < len(self.alphabet) else 0.0
            if likely <= 0:
                raise InputError(f"text: character {i} cannot stand there")
            found[i] = -math.log2(likely)
            state = then[state][letter]
        return found

    def texts(self, seed: int = 0, *, train: int = 200_000, validation: int = 20_000, test: int = 50_000) -> Texts:
        """Three texts from streams of their own, each begun in state 0."""
        streams = np.random.default_rng(seed).spawn(3)
        parts = [self.write(n, stream) for n, stream in zip((train, validation, test), streams, strict=True)]
        return Texts(parts[0], parts[1], parts[2], self.alphabet)


def bracket_language(*, kinds: int = 2, depth: int = 4, opening: float = 0.5) -> Automaton:
    """Balanced brackets of several kinds, nested up to a depth: a Dyck language cut off, one state a stack.

    A closing bracket must fit the one that was opened last, so a model has to remember a stack. With nothing open a
    bracket is opened for certain, at full depth one is closed for certain, and in between ``opening`` is the chance;
    kinds are equally likely.

    Args:
        kinds: Of brackets, 1 to 4.
        depth: Most brackets open at once, 1 to 6.
        opening: Chance to open another, above 0 and below 1.

    Raises:
        InputError: A number outside its range.

    >>> round(bracket_language().entropy_bits, 4)
    1.25
    """
    if not (1 <= kinds <= 4 and 1 <= depth <= 6 and 0 < opening < 1):
        raise InputError(f"brackets: kinds {kinds} of 1 to 4, depth {depth} of 1 to 6, opening {opening} in (0, 1)")
    stacks = [stack for size in range(depth + 1) for stack in product(range(kinds), repeat=size)]
    number = {stack: i for i, stack in enumerate(stacks)}
    chance, then = np.zeros((len(stacks), 2 * kinds)), np.zeros((len(stacks), 2 * kinds), np.int64)
    for stack, i in number.items():
        opens = 1.0 if not stack else 0.0 if len(stack) == depth else opening
        for kind in range(kinds):
            if opens > 0:
                chance[i, kind], then[i, kind] = opens / kinds, number[(*stack, kind)]
        if stack:
            chance[i, kinds + stack[-1]], then[i, kinds + stack[-1]] = 1.0 - opens, number[stack[:-1]]
    return Automaton("([{<"[:kinds] + ")]}>"[:kinds], chance, then)


def reber_language() -> Automaton:
    """The embedded Reber grammar (Reber 1967; Cleeremans et al. 1989), word after word, every fork with equal chances.

    The last letter but one of a word repeats its second, over the whole inner word: what a model must not forget.

    >>> reber_language().alphabet
    'BTSXPVE'
    """
    inner: dict[int, tuple[tuple[str, int], ...]] = {
        0: (("T", 1), ("P", 2)),
        1: (("S", 1), ("X", 3)),
        2: (("T", 2), ("V", 4)),
        3: (("X", 2), ("S", 5)),
        4: (("P", 3), ("V", 5)),
    }
    alphabet = "BTSXPVE"
    arrows: dict[int, list[tuple[str, int]]] = {0: [("B", 1)], 1: [("T", 2), ("P", 10)]}
    for first, second in ((2, "T"), (10, "P")):  # first: B, first + 1 to + 5: the inner word, + 6: E, + 7: the letter
        arrows[first] = [("B", first + 1)]
        for state, forks in inner.items():
            arrows[first + 1 + state] = [(letter, first + 1 + after) for letter, after in forks]
        arrows[first + 6] = [("E", first + 7)]
        arrows[first + 7] = [(second, 18)]
    arrows[18] = [("E", 0)]
    chance, then = np.zeros((19, len(alphabet))), np.zeros((19, len(alphabet)), np.int64)
    for state, ways in arrows.items():
        for letter, after in ways:
            chance[state, alphabet.index(letter)] = 1.0 / len(ways)
            then[state, alphabet.index(letter)] = after
    return Automaton(alphabet, chance, then)
