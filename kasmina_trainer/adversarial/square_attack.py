"""The Square attack: random squares, kept when they hurt; it sees answers alone, never a gradient.

Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv:1912.00049), the L-infinity form, written from the paper.
Anything that answers pictures with scores can be attacked, a deployed int8 file among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.attacks import Attacked, check_answers, check_attack
from kasmina_trainer.datasets.digits import Images, Labels

Scores = Callable[[Images], npt.NDArray[np.float32]]
"""Pictures (N, C, H, W) to one score a class (N, classes)."""
Price = Callable[[Images], npt.NDArray[Any]]
"""Pictures to one number each that an adaptive attacker wants small besides.  # (N,)"""

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries out of 10,000 after which the squares are half as large, by the paper."""
_NOMINAL = 10_000
FIRST_SHARE = 0.8
"""The paper's for MNIST."""


def square_attack(
    scores: Scores, x: Images, y: Labels, epsilon: float, *, queries: int = 500, first_share: float = FIRST_SHARE,
    seed: int = 0, price: Price | None = None, weight: float = 0.0,
) -> Attacked:  # fmt: skip
    """Random search among pictures whose pixels are all moved by ``epsilon``.

    Args:
        scores: The target; asked about every picture that still stands at once.
        x: In [0, 1].  # (N, C, H, W)
        y: True labels.  # (N,)
        epsilon: Most that a pixel moves, in units of full scale.
        queries: Most answers a picture may cost, the clean one included; at least 2.
        first_share: Of the picture's area that the first squares cover.
        seed: Of everything that is drawn.
        price: What an adaptive attacker keeps small besides: a detector's score. It goes on after the network is
            fooled, as long as queries are left, and the last picture kept is the one with the lowest margin and price.
        weight: Of the price against the margin between the true class and the best other one.

    Raises:
        InputError: As `check_attack` and `check_answers`, or fewer than two queries.
    """
    check_attack(x, y, epsilon)
    if queries < 2 or not 0 < first_share <= 1:
        raise InputError(f"{queries} queries, first share {first_share}: expected at least 2, and above 0 up to 1")
    rng = np.random.default_rng(seed)
    x = np.asarray(x, np.float32)
    answers = scores(x)
    check_answers(answers, y)
    right = answers.argmax(1) == y
    asked = np.ones(len(x), np.int64)
    best = np.array(x, np.float32)
    fooled = np.zeros(len(x), bool)
    lowest = np.full(len(x), np.inf)
    search = _Search(x, y, epsilon, scores, price, weight)
    for turn in range(1, queries):
        standing = np.flatnonzero(right & ~(fooled & (price is None)))
        if not len(standing):
            break
        if turn == 1:
            tried = search.striped(standing, rng)
        else:
            share = first_share / 2 ** sum(turn > at * queries / _NOMINAL for at in _HALVED_AT)
            tried = search.squared(best[standing], standing, share, rng)
        loss, wrong = search.judged(tried, standing)
        asked[standing] += 1
        keep = loss < lowest[standing]
        if price is not None:
            keep &= wrong | ~fooled[standing]  # once the network is fooled, it stays so
        rows = standing[keep]
        best[rows], lowest[rows] = tried[keep], loss[keep]
        fooled[rows] = wrong[keep]
    return Attacked(best, right, fooled, asked)


def margins(scores: npt.NDArray[np.float32], y: Labels) -> npt.NDArray[np.float64]:
    """Score of the true class less the best other one; below 0 is a wrong answer.  # (N, classes), (N,) to (N,)"""
    rows = np.arange(len(y))
    others = scores.astype(np.float64)
    true = others[rows, y].copy()
    others[rows, y] = -np.inf
    found: npt.NDArray[np.float64] = true - others.max(1)
    return found


class CountedScores:
    """A target that counts what it is asked.

    Args:
        scores: The target.

    Attributes:
        asked: Pictures it answered so far.
    """

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self.asked = 0

    def __call__(self, x: Images) -> npt.NDArray[np.float32]:
        """(N, C, H, W) to (N, classes)."""
        self.asked += len(x)
        return self._scores(x)


class _Search:
    """The moves of the attack and how they are judged."""

    def __init__(
        self, x: Images, y: Labels, epsilon: float, scores: Scores, price: Price | None, weight: float
    ) -> None:
        self.x, self.y, self.epsilon, self.scores = x, y, np.float32(epsilon), scores
        self.price, self.weight = price, weight

    def judged(self, tried: Images, rows: npt.NDArray[np.intp]) -> tuple[Any, npt.NDArray[np.bool_]]:
        answers = self.scores(tried)
        margin = margins(answers, self.y[rows])
        wrong = answers.argmax(1) != self.y[rows]  # of equal scores an app sees the first, which int8 files often give
        if self.price is None:
            return margin, wrong
        return np.maximum(margin, 0) + self.weight * self.price(tried), wrong

    def striped(self, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> Images:
        """Every column moved up or down as a whole."""
        clean = self.x[rows]
        signs = rng.choice([-self.epsilon, self.epsilon], (*clean.shape[:2], 1, clean.shape[3]))
        moved: Images = np.clip(clean + signs, 0, 1).astype(np.float32)
        return moved

    def squared(self, best: Images, rows: npt.NDArray[np.intp], share: float, rng: np.random.Generator) -> Images:
        """One square of each picture moved up or down anew, against the clean picture."""
        clean = self.x[rows]
        count, channels, height, width = clean.shape
        side = min(max(1, round(math.sqrt(share * height * width))), height, width)
        tops, lefts = (rng.integers(0, length - side + 1, count) for length in (height, width))
        signs = rng.choice([-self.epsilon, self.epsilon], (count, channels, 1, 1))
        down = np.arange(height)[:, None] - tops[:, None, None]
        across = np.arange(width) - lefts[:, None, None]
        inside = ((down >= 0) & (down < side) & (across >= 0) & (across < side))[:, None]
        return np.where(inside, np.clip(clean + signs, 0, 1), best).astype(np.float32)
