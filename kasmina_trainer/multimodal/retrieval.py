"""Finding texts by pictures and pictures by texts: ranks, recall, and classes by prompts. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Embeddings = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recall:
    """How often the right answer is among the first ones, as shares of 0 to 1.

    Attributes:
        to_text: Pictures ask, texts answer; by how many answers are looked at.
        to_image: Texts ask, pictures answer.
        ways: Answers to choose from.
    """

    to_text: Mapping[int, float]
    to_image: Mapping[int, float]
    ways: int

    @property
    def first(self) -> float:
        """R@1, mean of both ways."""
        return (self.to_text[1] + self.to_image[1]) / 2

    def __str__(self) -> str:
        ways = [f"{name} {', '.join(f'R@{k} {v:.1%}' for k, v in side.items())}" for name, side in self._sides()]
        return f"{'; '.join(ways)} of {self.ways}"

    def _sides(self) -> tuple[tuple[str, Mapping[int, float]], ...]:
        return ("picture to text", self.to_text), ("text to picture", self.to_image)


def unit(x: npt.NDArray[Any]) -> Embeddings:
    """Vectors of length 1; a vector of zeros stays one.  # (..., E)"""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    found: Embeddings = (x / np.where(length == 0.0, 1.0, length)).astype(np.float32)
    return found


def recall(images: Embeddings, texts: Embeddings, *, at: Sequence[int] = (1, 5), asking: int | None = None) -> Recall:
    """Recall both ways; the i-th text belongs to the i-th picture, and a tie counts as lost.

    Args:
        images: Of any length.  # (N, E)
        texts: Likewise.  # (N, E)
        at: How many answers are looked at; 1 or more.
        asking: Only the first so many ask, and all may answer; None: all ask.

    Raises:
        InputError: Other numbers of pictures and texts, or none; numbers that are not finite; or a count below 1.
    """
    if images.shape != texts.shape or images.ndim != 2 or not len(images):
        raise InputError(f"pictures {images.shape} and texts {texts.shape}: expected as many of each, and some")
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        raise InputError("recall: not all numbers of the embeddings are finite", "Look for a loss that diverged.")
    if min(at, default=0) < 1 or (asking is not None and asking < 1):
        raise InputError(f"recall at {list(at)}, {asking} asking: expected 1 or more each")
    scores = unit(images) @ unit(texts).T
    to_text, to_image = ranks(scores)[:asking], ranks(scores.T)[:asking]
    return Recall(
        {k: float((to_text <= k).mean()) for k in at}, {k: float((to_image <= k).mean()) for k in at}, len(images)
    )


def found_first(images: Embeddings, texts: Embeddings) -> npt.NDArray[np.bool_]:
    """Which questions find their answer at once: the pictures', then the texts'; for paired comparisons.  # (2N,)"""
    scores = unit(images) @ unit(texts).T
    found: npt.NDArray[np.bool_] = np.concatenate([ranks(scores), ranks(scores.T)]) == 1
    return found


def mean_recall(found: Sequence[Recall]) -> Recall:
    """The mean over galleries of one size.

    Raises:
        InputError: No gallery, or galleries of different sizes.
    """
    if not found or len({each.ways for each in found}) != 1:
        raise InputError(f"galleries of {[each.ways for each in found]}: expected some, of one size")
    first = found[0]
    return Recall(
        {k: float(np.mean([each.to_text[k] for each in found])) for k in first.to_text},
        {k: float(np.mean([each.to_image[k] for each in found])) for k in first.to_image},
        first.ways,
    )


def ranks(scores: Scores) -> npt.NDArray[np.int64]:
    """The place of the right answer, the diagonal, in each row; 1 is the best, and equals stand before it.  # (N,)

    What is no number stands before everything, and is behind everything where it is the right answer itself.

    >>> ranks(np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)).tolist()
    [1, 2]
    """
    own = np.diagonal(scores)[:, None]
    at_least: npt.NDArray[np.int64] = (~(scores < own)).sum(1).astype(np.int64)
    return at_least


def class_vectors(prompts: Sequence[Embeddings]) -> Embeddings:
    """One vector a class from its prompts' embeddings: their mean, of unit length.  # K of (P, E) to (K, E)

    Raises:
        InputError: A class without prompts.
    """
    if not prompts or any(not len(each) for each in prompts):
        raise InputError(f"prompts of {[len(each) for each in prompts]} texts: expected at least one a class")
    return unit(np.stack([unit(each).mean(0) for each in prompts]))


def nearest(images: Embeddings, classes: Embeddings) -> npt.NDArray[np.int64]:
    """The class whose vector is nearest to each picture.  # (N, E) and (K, E) to (N,)"""
    found: npt.NDArray[np.int64] = (unit(images) @ unit(classes).T).argmax(1).astype(np.int64)
    return found
