"""A detector before and after quantization: the boxes that both give, and the mean average precision of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelIO, ModelTensor
from kasmina_edge.contracts.postprocessing import Postprocessing
from kasmina_edge.engines.postprocessing import BoxReader, Detection
from kasmina_trainer.datasets.composed_scenes import Truth
from kasmina_trainer.detection.scoring import IOU, Judged, iou, judge, mean_average_precision

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

SCORED_FROM = 0.05
"""Score from which a box counts in mean average precision; the manifest's threshold is for apps."""


def detections(
    outputs: Outputs, post: Postprocessing, *, score_threshold: float | None = None
) -> list[tuple[Detection, ...]]:
    """Boxes of every scene from real-valued outputs, decoded by the device's own code.

    Args:
        outputs: By the names of ``post``; the first axis counts scenes.
        post: The manifest's post-processing.
        score_threshold: Instead of the manifest's.
    """
    names = list(post.values())
    pairs = []
    for name in names:
        shape = (1, *outputs[name].shape[1:])
        pairs.append((ModelIO(name=name, shape=shape), ModelTensor(name=name, shape=shape, dtype="float32")))
    reader = BoxReader(post, pairs, score_threshold=score_threshold)
    count = len(outputs[names[0]])
    return [reader([outputs[name][i : i + 1] for name in names]) for i in range(count)]


def shared_boxes(
    found: Sequence[Sequence[Detection]], others: Sequence[Sequence[Detection]], *, threshold: float = IOU
) -> float:
    """Share of the boxes of both sides that the other side gives too: same class, overlap of at least ``threshold``.

    Pairs are made one to one, by falling score of ``found``; 1 where neither side gives any.
    """
    paired = total = 0
    for mine, theirs in zip(found, others, strict=True):
        total += len(mine) + len(theirs)
        if not mine or not theirs:
            continue
        overlaps = iou(np.array([d.box for d in mine]), np.array([d.box for d in theirs]))
        free = [True] * len(theirs)
        for detection, row in zip(mine, overlaps, strict=True):
            fits = [
                (float(row[j]), -j)
                for j, other in enumerate(theirs)
                if free[j] and other.label_index == detection.label_index and row[j] >= threshold
            ]
            if fits:
                free[-max(fits)[1]] = False
                paired += 2
    return paired / total if total else 1.0


def measured_boxes(
    truths: Sequence[Truth], post: Postprocessing
) -> Callable[[Sequence[Array], Sequence[Array]], tuple[float, float, float]]:
    """What `export_bundle` asks of a detector's answers.

    Args:
        truths: What the held-out scenes show.
        post: The manifest's post-processing.

    Returns:
        A function of the float network's outputs and a file's, each in the order of ``post.values()``, the first axis
        counting scenes. It gives the share of boxes that both give (from the manifest's threshold up), and the mAP of
        the file and of the float network (boxes from `SCORED_FROM` up).
    """

    def measured(floats: Sequence[Array], answers: Sequence[Array]) -> tuple[float, float, float]:
        sides = [dict(zip(post.values(), side, strict=True)) for side in (answers, floats)]
        found, expected = (detections(side, post) for side in sides)
        accuracies = [mean_average_precision(judged(side, truths, post)) for side in sides]
        return shared_boxes(found, expected), accuracies[0], accuracies[1]

    return measured


def judged(outputs: Outputs, truths: Sequence[Truth], post: Postprocessing) -> Judged:
    """Detections from `SCORED_FROM` up, judged; arguments as `detections` and `measured_boxes`."""
    return judge(detections(outputs, post, score_threshold=SCORED_FROM), truths, len(post.labels))
