"""How well scores part one class from the rest, and how well found beats agree with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive outscores a negative, ties half (Mann and Whitney 1947).

    Args:
        scores: Higher means more likely.  # (N,)
        positive: What is.  # (N,)

    Raises:
        InputError: Other shapes, a score that is not a number, or only one of the two kinds.

    >>> auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if values.ndim != 1 or values.shape != truth.shape or np.isnan(values).any():
        raise InputError(f"AUC of scores {values.shape} and truths {truth.shape}: expected two rows of numbers alike")
    ups, downs = int(truth.sum()), int((~truth).sum())
    if not ups or not downs:
        raise InputError(f"AUC of {ups} positives and {downs} negatives: expected at least one of each")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # ranks from 1, ties share their mean
    return float((rank[place][truth].sum() - ups * (ups + 1) / 2) / (ups * downs))


def auc_by_class(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, float]:
    """AUC of each class against all others.

    Args:
        scores: One column a class; `probabilities`, or anything that can be compared from row to row.  # (N, C)
        labels: Places in ``names``.  # (N,)
        names: Of the classes.

    Raises:
        InputError: As `auc`; or not one column a class, or a label that is no place.
    """
    if scores.ndim != 2 or scores.shape != (len(labels), len(names)):
        raise InputError(f"scores {scores.shape}, {len(labels)} labels, {len(names)} names: expected (N, C), N and C")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(names)):
        raise InputError(f"labels {int(labels.min())} to {int(labels.max())}: expected 0 to {len(names) - 1}")
    return {name: auc(scores[:, i], labels == i) for i, name in enumerate(names)}


def probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax of each row: what one window says of all classes, so that windows can be compared.  # (N, C)

    >>> probabilities(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    raised = np.exp(np.asarray(logits, np.float64) - np.max(logits, 1, keepdims=True))
    found: npt.NDArray[np.float64] = raised / raised.sum(1, keepdims=True)
    return found


@dataclass(frozen=True)
class Agreement:
    """How found beats agree with others'.

    Attributes:
        both: Found by both.
        only_first: Found by the first alone.
        only_second: Found by the second alone.
        mean_offset_ms: First minus second, of those found by both.
    """

    both: int
    only_first: int
    only_second: int
    mean_offset_ms: float

    @property
    def f1(self) -> float:
        """Twice what both found over what each found; 1 when there is nothing to find and nothing was found."""
        each = 2 * self.both + self.only_first + self.only_second
        return 2 * self.both / each if each else 1.0


def agreement(
    first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], rate_hz: float, *, within_ms: float = 150.0
) -> Agreement:
    """Beats of two lists that belong together: nearest in time, each used once, as ANSI/AAMI EC57 (150 ms).

    Args:
        first: Samples, rising.
        second: Samples, rising.
        rate_hz: Samples a second.
        within_ms: Farther apart are two beats.

    Raises:
        InputError: A rate or reach that is not above 0, or beats out of order.
    """
    if not (0 < rate_hz < math.inf and 0 < within_ms < math.inf):
        raise InputError(f"beats within {within_ms!r} ms at {rate_hz!r} Hz: expected numbers above 0")
    if (np.diff(first) < 0).any() or (np.diff(second) < 0).any():
        raise InputError(f"{len(first)} and {len(second)} beats: not in the order of time", "Sort them.")
    reach = within_ms * rate_hz / 1000.0
    i = j = 0
    offsets: list[float] = []
    while i < len(first) and j < len(second):
        offset = float(first[i]) - float(second[j])
        if abs(offset) > reach:
            i, j = (i + 1, j) if offset < 0 else (i, j + 1)
            continue
        nearer_first = i + 1 < len(first) and abs(float(first[i + 1]) - float(second[j])) < abs(offset)
        nearer_second = j + 1 < len(second) and abs(float(first[i]) - float(second[j + 1])) < abs(offset)
        if nearer_first and not nearer_second:
            i += 1
        elif nearer_second and not nearer_first:
            j += 1
        else:
            offsets.append(offset)
            i, j = i + 1, j + 1
    both = len(offsets)
    mean = float(np.mean(offsets)) * 1000.0 / rate_hz if offsets else 0.0
    return Agreement(both, len(first) - both, len(second) - both, mean)
