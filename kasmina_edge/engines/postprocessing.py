"""A detector's raw outputs as labelled boxes: activation, decoding, non-maximum suppression. Deterministic, numpy only.

Decoding is that of SSD (Liu et al. 2016): an anchor's centre moves by offset x variance x size, its size grows by
exp(offset x variance). Suppression is greedy and a class at a time; equal scores are taken in the order of anchors.
Scores of 8-bit outputs are compared as whole numbers and looked up in a table, so that a frame without objects costs
one comparison a value; only the anchors that pass are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelIO, ModelTensor
from kasmina_edge.contracts.postprocessing import BOX_VALUES, Postprocessing
from kasmina_edge.errors import EngineError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MAX_GROWTH = 4.0
"""Largest exponent of a size: 54 times an anchor is more than any frame."""
FEW = 96
"""Up to so many boxes, comparing them one by one is quicker than numpy."""

_BACK = "Roll back to the previous bundle."


@dataclass(frozen=True, slots=True)
class Detection:
    """One object.

    Attributes:
        label: Its class.
        label_index: The class by index.
        score: 0 to 1.
        box: Left, top, right, bottom in shares of the input's width and height, 0 to 1.
    """

    label: str
    label_index: int
    score: float
    box: tuple[float, float, float, float]

    def pixels(self, width: float, height: float) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in a picture of this size.

        Args:
            width: Of the picture that was resized to the input; any unit.
            height: Of the same.

        >>> Detection("cup", 0, 0.9, (0.25, 0.5, 0.75, 1.0)).pixels(640, 480)
        (160.0, 240.0, 480.0, 480.0)
        """
        left, top, right, bottom = self.box
        return left * width, top * height, right * width, bottom * height


def anchors_of(post: Postprocessing) -> Floats:
    """Every anchor: centre y, centre x, height, width, in shares of the input.  # (N, 4)"""
    grids = []
    for level in post.levels:
        y = (np.arange(level.rows) + 0.5) / level.rows
        x = (np.arange(level.columns) + 0.5) / level.columns
        grid = np.empty((level.rows, level.columns, len(level.sizes), BOX_VALUES))
        grid[..., 0], grid[..., 1] = y[:, None, None], x[None, :, None]
        grid[..., 2:] = np.array(level.sizes)
        grids.append(grid.reshape(-1, BOX_VALUES))
    return np.concatenate(grids)


def decode(offsets: Floats, anchors: Floats, post: Postprocessing) -> Floats:
    """Boxes from offsets: left, top, right, bottom, not yet cut at the frame.  # (N, 4), (N, 4) to (N, 4)"""
    sizes = anchors[:, 2:]
    centres = anchors[:, :2] + offsets[:, :2] * post.centre_variance * sizes
    halves = sizes * np.exp(np.minimum(offsets[:, 2:] * post.size_variance, MAX_GROWTH)) / 2
    return np.concatenate([(centres - halves)[:, ::-1], (centres + halves)[:, ::-1]], axis=1)


def suppressed(boxes: Floats, classes: npt.NDArray[np.intp], iou_threshold: float, most: int) -> list[int]:
    """Greedy non-maximum suppression, a class at a time.

    Args:
        boxes: Left, top, right, bottom, the best first.  # (N, 4)
        classes: Their classes.  # (N,)
        iou_threshold: Overlap above which the worse of two boxes of a class is dropped.
        most: How many are kept at most.

    Returns:
        Rows that stay, the best first.
    """
    if len(boxes) > FEW:
        return _suppressed_many(boxes, classes, iou_threshold, most)
    kept: list[int] = []
    known: dict[int, list[tuple[float, float, float, float, float]]] = {}
    for row, ((left, top, right, bottom), label) in enumerate(zip(boxes.tolist(), classes.tolist(), strict=True)):
        area = (right - left) * (bottom - top)
        better = known.setdefault(label, [])
        for x0, y0, x1, y1, other in better:
            across, down = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
            if across > 0 and down > 0 and across * down > iou_threshold * (area + other - across * down):
                break
        else:
            better.append((left, top, right, bottom, area))
            kept.append(row)
            if len(kept) == most:
                break
    return kept


def _suppressed_many(boxes: Floats, classes: npt.NDArray[np.intp], iou_threshold: float, most: int) -> list[int]:
    """As `suppressed`, a kept box against all that follow at once."""
    count = len(boxes)
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top)
    alive = np.ones(count, bool)
    kept: list[int] = []
    for row in range(count):
        if not alive[row]:
            continue
        kept.append(row)
        if len(kept) == most:
            break
        after = slice(row + 1, count)
        across = np.minimum(right[after], right[row]) - np.maximum(left[after], left[row])
        down = np.minimum(bottom[after], bottom[row]) - np.maximum(top[after], top[row])
        shared = np.maximum(across, 0.0) * np.maximum(down, 0.0)
        overlaps = shared > iou_threshold * (areas[after] + areas[row] - shared)
        alive[after] &= ~(overlaps & (classes[after] == classes[row]))
    return kept


class BoxReader:
    """Turns the raw outputs of one model file into boxes.

    Args:
        post: The manifest's post-processing.
        outputs: Each output as the app and as the model sees it, in the order in which answers come.
        score_threshold: Instead of the manifest's; in an evaluation every box counts.

    Raises:
        ValueError: The outputs are not those that ``post`` describes.
    """

    def __init__(
        self,
        post: Postprocessing,
        outputs: Sequence[tuple[ModelIO, ModelTensor]],
        *,
        score_threshold: float | None = None,
    ) -> None:
        post.require_outputs((io.name, io.dtype, math.prod(io.shape)) for io, _ in outputs)
        self._post = post
        threshold = post.score_threshold if score_threshold is None else score_threshold
        places = {io.name: i for i, (io, _) in enumerate(outputs)}
        anchors, start = anchors_of(post), 0
        together: dict[tuple[str, str], list[npt.NDArray[np.intp]]] = {}
        for level in post.levels:
            together.setdefault((level.boxes, level.scores), []).append(np.arange(start, start + level.anchors))
            start += level.anchors
        self._levels: list[_Level] = []
        for (boxes, scores), rows in together.items():
            numbers = np.concatenate(rows)
            self._levels.append(
                _Level(
                    anchors[numbers],
                    numbers,
                    places[boxes],
                    _affine(outputs[places[boxes]][1]),
                    places[scores],
                    _picker(outputs[places[scores]][1], post, threshold),
                )
            )
        self._names = post.labels
        self._width = post.scores_an_anchor
        self._skip = int(post.background)

    def __call__(self, raws: Sequence[Array]) -> tuple[Detection, ...]:
        """The objects of one frame, the best first; a box of which nothing lies in the frame is none.

        Args:
            raws: Every output in the model's own numbers, as `Result.raw_outputs`.

        Raises:
            EngineError: A score, or an offset of a box that counts, is not a number.
        """
        found = [level.candidates(raws, self._width, self._skip) for level in self._levels]
        scores = np.concatenate([part.scores for part in found])
        if not len(scores):
            return ()
        anchors = np.concatenate([part.anchors for part in found])
        classes = np.concatenate([part.classes for part in found])
        order = np.lexsort((classes, anchors, -scores))[: self._post.maximum_candidates]
        boxes = decode(
            np.concatenate([part.offsets for part in found])[order],
            np.concatenate([part.places for part in found])[order],
            self._post,
        )
        if not np.isfinite(boxes).all():
            raise EngineError("a box's offsets are not numbers", _BACK)
        np.clip(boxes, 0.0, 1.0, out=boxes)
        scores, classes = scores[order], classes[order]
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        if not seen.all():  # nothing of it lies in the frame
            boxes, scores, classes = boxes[seen], scores[seen], classes[seen]
        kept = suppressed(boxes, classes, self._post.iou_threshold, self._post.maximum_detections)
        names = self._names
        return tuple(
            Detection(names[index], index, score, (left, top, right, bottom))
            for index, score, (left, top, right, bottom) in zip(
                classes[kept].tolist(), scores[kept].tolist(), boxes[kept].tolist(), strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class _Candidates:
    scores: Floats  # (M,)
    classes: npt.NDArray[np.intp]  # (M,)
    anchors: npt.NDArray[np.intp]  # (M,) numbers
    places: Floats  # (M, 4)
    offsets: Floats  # (M, 4)


Pick = Callable[[Array], tuple[npt.NDArray[np.intp], Floats]]
"""Flat places of the scores that pass, and what they are as shares of 1."""


@dataclass(frozen=True, slots=True)
class _Level:
    places: Floats  # (A, 4)
    numbers: npt.NDArray[np.intp]  # (A,)
    boxes_at: int
    real: tuple[float, int] | None
    scores_at: int
    pick: Pick

    def candidates(self, raws: Sequence[Array], width: int, skip: int) -> _Candidates:
        """What passes on this level; ``skip`` columns of ``width`` are no class."""
        flat, scores = self.pick(raws[self.scores_at])
        rows, classes = np.divmod(flat, width)
        if skip:
            real = classes >= skip
            rows, classes, scores = rows[real], classes[real] - skip, scores[real]
        offsets = raws[self.boxes_at].reshape(-1, BOX_VALUES)[rows].astype(np.float64)
        if self.real is not None:
            scale, zero = self.real
            offsets = (offsets - zero) * scale
        return _Candidates(scores, classes, self.numbers[rows], self.places[rows], offsets)


def _affine(tensor: ModelTensor) -> tuple[float, int] | None:
    return None if tensor.scale is None else (tensor.scale, tensor.zero_point or 0)


def _picker(tensor: ModelTensor, post: Postprocessing, threshold: float) -> Pick:
    width = post.scores_an_anchor
    if post.activation == "softmax":
        return _softmax_picker(_affine(tensor), width, threshold)
    shares = _sigmoid if post.activation == "sigmoid" else _as_they_are
    if tensor.scale is not None and tensor.dtype in ("int8", "uint8"):
        return _table_picker(np.dtype(tensor.dtype), tensor.scale, tensor.zero_point or 0, shares, threshold)
    real = _affine(tensor)

    def pick(raw: Array) -> tuple[npt.NDArray[np.intp], Floats]:
        scores = _numbers(shares(_real(raw, real).ravel()))
        flat = np.flatnonzero(scores >= threshold)
        return flat, scores[flat]

    return pick


def _table_picker(
    dtype: np.dtype[Any], scale: float, zero: int, shares: Callable[[Floats], Floats], threshold: float
) -> Pick:
    """Scores of 8-bit outputs: a comparison of whole numbers, then a table."""
    info = np.iinfo(dtype)
    steps: Floats = np.arange(info.min, info.max + 1, dtype=np.float64)
    table = shares((steps - zero) * scale)  # rising
    passing = int(np.searchsorted(table, threshold))  # the first step that passes
    if passing == len(table):
        nothing = np.empty(0, np.intp), np.empty(0)
        return lambda raw: nothing
    least = np.array(info.min + passing, dtype)

    def pick(raw: Array) -> tuple[npt.NDArray[np.intp], Floats]:
        values = raw.ravel()
        flat = (values >= least).nonzero()[0]
        return flat, table[values[flat].astype(np.intp) - info.min]

    return pick


def _softmax_picker(real: tuple[float, int] | None, width: int, threshold: float) -> Pick:
    def pick(raw: Array) -> tuple[npt.NDArray[np.intp], Floats]:
        logits = _real(raw, real).reshape(-1, width)
        with np.errstate(invalid="ignore"):
            shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        _numbers(shares)
        flat = np.flatnonzero(shares >= threshold)
        return flat, shares.ravel()[flat]

    return pick


def _real(raw: Array, real: tuple[float, int] | None) -> Floats:
    values = raw.astype(np.float64)
    return values if real is None else (values - real[1]) * real[0]


def _numbers(scores: Floats) -> Floats:
    """The same; what is not a number passes no threshold and would look like an empty frame."""
    if np.isnan(scores).any():
        raise EngineError("a score is not a number", _BACK)
    return scores


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        shares: Floats = 1.0 / (1.0 + np.exp(-x))
    return shares


def _as_they_are(x: Floats) -> Floats:
    return x
