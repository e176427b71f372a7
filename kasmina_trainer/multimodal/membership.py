"""Can somebody tell whose pairs a turn was fitted to? Two attacks, with intervals, beside the bound that privacy gives.

`loss attack`: a pair that fits well was a member (Yeom, Giacomelli, Fredrikson and Jha 2018). `likelihood attack`: fits
on random halves show how well this very pair fits when it is a member and when it is not; the ratio of the two normal
densities is the score (LiRA: Carlini et al. 2022, arXiv:2112.03570). Every fit is attacked with all others as shadows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.multimodal.privacy_accountant import most_area, most_hits
from kasmina_trainer.multimodal.private_align import PrivateTurn

Array = npt.NDArray[Any]
Fit = Callable[[Array, Array, int], PrivateTurn]
"""Pictures, texts and a number of its own to a turn; the number chooses the noise, if any."""
FALSE_ALARMS = 0.01
_RESAMPLED = 200
_SIDES = 0.025


@dataclass(frozen=True)
class Leak:
    """How well members were told from outsiders.

    Attributes:
        area: Under the curve; 0.5 is guessing, 1 is knowing.
        area_range: 95 % interval, pairs drawn anew.
        hits: Share of members that are named at ``false_alarms``.
        hits_range: 95 % interval, pairs drawn anew.
        false_alarms: Share of outsiders that are named.
        most_area: What no attack can exceed; None without privacy.
        most_hits: Likewise.
    """

    area: float
    area_range: tuple[float, float]
    hits: float
    hits_range: tuple[float, float]
    false_alarms: float
    most_area: float | None
    most_hits: float | None

    def __str__(self) -> str:
        low, high = self.area_range
        few, many = self.hits_range
        bound = "" if self.most_area is None else f"; at most {self.most_area:.3f} and {self.most_hits:.1%}"
        return (
            f"area {self.area:.3f} ({low:.3f} to {high:.3f}), {self.hits:.1%} ({few:.1%} to {many:.1%}) named at "
            f"{self.false_alarms:.0%} false alarms{bound}"
        )


def attack(
    images: Array, texts: Array, fit: Fit, *, fits: int = 32, seed: int = 0, false_alarms: float = FALSE_ALARMS
) -> dict[str, Leak]:
    """Both attacks on fits to random halves of these pairs: every pair is a member of a fit with a chance of one half.

    Args:
        images: Embeddings of pictures.  # (N, E)
        texts: Embeddings of their texts.  # (N, E)
        fit: What is attacked; called with 0, 1, ... besides.
        fits: How many, at least 8.
        seed: Chooses the halves and the resampling.
        false_alarms: Share of outsiders that may be named.

    Returns:
        "loss" and "likelihood".

    Raises:
        InputError: Fewer than 8 fits or pairs, other texts, a share outside 0 to 1, or scores that are not finite.
    """
    if images.shape != texts.shape:
        raise InputError(f"pictures {images.shape} and texts {texts.shape}: expected as many of each, of one width")
    if fits < 8 or len(images) < 8 or not 0 < false_alarms < 1:
        raise InputError(f"{fits} fits to {len(images)} pairs, {false_alarms} false alarms: expected 8, 8, and a share")
    rng = np.random.default_rng(seed)
    inside = rng.random((fits, len(images))) < 0.5
    turns = [fit(images[rows], texts[rows], i) for i, rows in enumerate(inside)]
    mu = max((turn.cost.mu for turn in turns if turn.cost is not None), default=None)
    open_turns = any(turn.cost is None for turn in turns)
    fitting = np.stack([how_well(turn, images, texts) for turn in turns])
    scores = {"loss": fitting, "likelihood": likelihoods(fitting, inside)}
    return {
        name: judged(found, inside, mu=None if open_turns else mu, seed=seed, false_alarms=false_alarms)
        for name, found in scores.items()
    }


def how_well(turn: PrivateTurn, images: Array, texts: Array) -> Array:
    """Minus the squared distance between a text and its turned picture: the loss that the fit made small.  # (N,)"""
    found: Array = -((images @ turn.matrix.T - texts) ** 2).sum(1)
    return found


def likelihoods(fitting: Array, inside: Array) -> Array:
    """Log-likelihood ratio of "member" over "outsider" for each fit and pair, from all other fits.  # (F, N) twice

    Each pair has its own two means; the spread is that of all pairs' fits about them, as Carlini et al. advise where
    shadows are few.
    """
    found = np.zeros_like(fitting)
    whole = {side: (inside == side) for side in (True, False)}
    for target in range(len(fitting)):
        centres, spread = {}, {}
        for side, chosen in whole.items():
            used = chosen.copy()
            used[target] = False
            count = np.maximum(used.sum(0), 1)
            centres[side] = np.where(used, fitting, 0.0).sum(0) / count
            apart = np.where(used, fitting - centres[side], 0.0)
            spread[side] = float((apart**2).sum() / max(1, used.sum() - used.shape[1])) + 1e-30
        found[target] = 0.5 * (
            (fitting[target] - centres[False]) ** 2 / spread[False]
            - (fitting[target] - centres[True]) ** 2 / spread[True]
        )
    return found


def judged(scores: Array, inside: Array, *, mu: float | None, seed: int, false_alarms: float = FALSE_ALARMS) -> Leak:
    """What scores say of membership, all fits together; the intervals draw pairs anew, with all of their scores.

    Args:
        scores: Higher says "member".  # (F, N)
        inside: Who was one.  # (F, N) bool
        mu: Of each fit; None without privacy.
        seed: Chooses what is drawn.
        false_alarms: Share of outsiders that may be named.

    Raises:
        InputError: Scores that are not finite, or nobody on one of the two sides.
    """
    if not np.isfinite(scores).all():
        raise InputError(
            f"membership: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite",
            "They would look like guessing. Check the embeddings and the fits.",
        )
    if not inside.any() or inside.all():
        raise InputError(f"membership: {int(inside.sum())} of {inside.size} are members, expected some and not all")
    area, hits = _area(scores[inside], scores[~inside]), _hits(scores[inside], scores[~inside], false_alarms)
    rng = np.random.default_rng((seed, 1))
    drawn = []
    for _ in range(_RESAMPLED):
        rows = rng.integers(0, scores.shape[1], scores.shape[1])
        some, who = scores[:, rows], inside[:, rows]
        drawn.append((_area(some[who], some[~who]), _hits(some[who], some[~who], false_alarms)))
    low, high = np.quantile(np.array(drawn), [_SIDES, 1 - _SIDES], axis=0)
    return Leak(
        area,
        (float(low[0]), float(high[0])),
        hits,
        (float(low[1]), float(high[1])),
        false_alarms,
        None if mu is None else most_area(mu),
        None if mu is None else most_hits(mu, false_alarms),
    )


def _area(members: Array, others: Array) -> float:
    """Chance that a member's score is above an outsider's, a draw counting half (Mann and Whitney 1947)."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, members, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(others))


def _hits(members: Array, others: Array, false_alarms: float) -> float:
    """Share of members above the score that so few outsiders exceed."""
    allowed = int(false_alarms * len(others))
    limit = np.partition(others, len(others) - 1 - allowed)[len(others) - 1 - allowed]
    return float((members > limit).mean())
