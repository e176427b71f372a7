"""Mean average precision at an overlap of a half, as PASCAL VOC has measured it since 2010: all points, no 11 steps.

Every detection goes to the object of its class that it overlaps most; the first one to reach an object (by score) is
right, a second one is wrong, and so is an overlap below the threshold (Everingham et al. 2010, section 4.2; VOC
development kit 2010). Boxes are in shares of the picture, without the kit's extra pixel.

Matching looks at one scene at a time, so `Judged` is made once and `mean_average_precision` may be asked again with
scenes weighted otherwise: that is what a bootstrap over scenes does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.engines.postprocessing import Detection
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.composed_scenes import Truth

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
IOU = 0.5


@dataclass(frozen=True)
class Judged:
    """Every detection of a set of scenes, judged; by falling score.

    Attributes:
        scenes: Which scene each belongs to.  # (D,)
        classes: Its class.  # (D,)
        right: Whether it found an object that nothing better had found.  # (D,)
        scores: 0 to 1.  # (D,)
        objects: How many objects of each class every scene has.  # (N, classes)
    """

    scenes: Counts
    classes: Counts
    right: npt.NDArray[np.bool_]
    scores: Floats
    objects: Counts


def iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of every pair.  # (N, 4), (M, 4) to (N, M); left, top, right, bottom"""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others))
    union = areas[:, None] + other_areas[None, :] - shared
    shares: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def judge(
    found: Sequence[Sequence[Detection]], truths: Sequence[Truth], classes: int, *, threshold: float = IOU
) -> Judged:
    """Which detections are right.

    Args:
        found: Of every scene, in any order.
        truths: Of every scene.
        classes: How many there are.
        threshold: Least intersection over union.

    Raises:
        InputError: Not one list of detections a scene, or a class beyond ``classes``.
    """
    if len(found) != len(truths) or not truths:
        raise InputError(f"detections of {len(found)} scenes and truth of {len(truths)}: expected one each, and some")
    objects = np.zeros((len(truths), classes), np.int64)
    rows: list[tuple[int, int, bool, float]] = []
    for scene, (some, truth) in enumerate(zip(found, truths, strict=True)):
        labels = [d.label_index for d in some] + truth.labels.tolist()
        if labels and not 0 <= min(labels) <= max(labels) < classes:
            raise InputError(f"scene {scene}: classes {min(labels)} to {max(labels)}, expected 0 to {classes - 1}")
        np.add.at(objects[scene], truth.labels, 1)
        ordered = sorted(some, key=lambda d: -d.score)
        overlaps = iou(np.array([d.box for d in ordered]).reshape(-1, 4), truth.boxes.reshape(-1, 4))
        taken: set[int] = set()
        for detection, row in zip(ordered, overlaps, strict=True):
            row = np.where(truth.labels == detection.label_index, row, -1.0)
            best = int(row.argmax()) if len(row) else -1
            right = best >= 0 and bool(row[best] >= threshold) and best not in taken
            if right:
                taken.add(best)
            rows.append((scene, detection.label_index, right, detection.score))
    rows.sort(key=lambda r: -r[3])
    return Judged(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.int64),
        np.array([r[2] for r in rows], np.bool_),
        np.array([r[3] for r in rows], np.float64),
        objects,
    )


def average_precisions(judged: Judged, weights: Counts | None = None) -> Floats:
    """Average precision of every class; NaN where no scene holds an object of it.  # (classes,)

    Args:
        judged: The detections.
        weights: How often each scene counts; once when left out.  # (N,)
    """
    weights = np.ones(len(judged.objects), np.int64) if weights is None else weights
    totals = weights @ judged.objects
    found = np.full(judged.objects.shape[1], np.nan)
    for label in np.flatnonzero(totals):
        own = judged.classes == label
        times = weights[judged.scenes[own]]
        right = np.cumsum(times * judged.right[own])
        given = np.cumsum(times)
        recall = right / totals[label]
        precision = np.divide(right, given, out=np.zeros(len(given)), where=given > 0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        found[label] = float((np.diff(recall, prepend=0.0) * envelope).sum())
    return found


def mean_average_precision(judged: Judged, weights: Counts | None = None) -> float:
    """Mean of `average_precisions` over the classes that are there.

    Raises:
        InputError: No scene that counts holds an object.
    """
    found = average_precisions(judged, weights)
    there = found[~np.isnan(found)]
    if not len(there):
        raise InputError(
            f"{len(judged.objects)} scenes hold no object: there is nothing to find", "Give scenes with some."
        )
    return float(there.mean())


def loss_interval(
    before: Judged, after: Judged, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of mAP lost from ``before`` to ``after``, paired over scenes, in shares of 1.

    Args:
        before: Detections of one network.
        after: Those of another on the same scenes.
        seed: Draws the scenes.
        resamples: How many draws.
        level: Share of the draws inside the interval (percentile method, Efron and Tibshirani 1993). A draw without
            any object does not count.

    Raises:
        InputError: Not the same scenes, or no object in any.
    """
    count = len(before.objects)
    if len(after.objects) != count:
        raise InputError(f"{count} and {len(after.objects)} scenes: the two are not paired")
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        if before.objects.any() and not (weights @ before.objects).any():
            continue
        losses.append(mean_average_precision(before, weights) - mean_average_precision(after, weights))
    low, high = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
