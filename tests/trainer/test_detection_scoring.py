"""Mean average precision against worked examples, and the parity of two forms of a detector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.engines.postprocessing import Detection
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.composed_scenes import Truth
from kasmina_trainer.detection.network import DigitDetector, postprocessing
from kasmina_trainer.detection.parity import detections, measured_boxes, shared_boxes
from kasmina_trainer.detection.scoring import (
    average_precisions,
    iou,
    judge,
    loss_interval,
    mean_average_precision,
)

LABELS = tuple("0123456789")
LEFT, MIDDLE, RIGHT = (0.0, 0.0, 0.2, 0.4), (0.4, 0.0, 0.6, 0.4), (0.8, 0.0, 1.0, 0.4)


def truth(*objects: tuple[tuple[float, float, float, float], int]) -> Truth:
    """A scene with these boxes and labels."""
    return Truth(np.array([box for box, _ in objects]).reshape(-1, 4), np.array([n for _, n in objects], np.int64))


def saw(box: tuple[float, float, float, float], label: int, score: float) -> Detection:
    """A detection."""
    return Detection(str(label), label, score, box)


def test_a_worked_example_of_one_class() -> None:
    truths = [truth((LEFT, 0), (RIGHT, 0)), truth((LEFT, 0))]
    found = [
        [saw(LEFT, 0, 0.9), saw(MIDDLE, 0, 0.8), saw(RIGHT, 0, 0.7)],
        [saw(LEFT, 0, 0.6)],
    ]
    # right, wrong, right, right: precision 1, 1/2, 2/3, 3/4 at recall 1/3, 1/3, 2/3, 1; envelope 1, 3/4, 3/4, 3/4
    assert average_precisions(judge(found, truths, 1))[0] == pytest.approx(1 / 3 + 2 / 3 * 0.75)


def test_a_second_box_on_an_object_another_class_and_a_loose_box_are_wrong() -> None:
    truths = [truth((LEFT, 0), (RIGHT, 1))]
    loose = (0.0, 0.0, 0.2, 0.85)  # overlap 0.4 / 0.85 = 0.47
    found = [[saw(LEFT, 0, 0.5), saw(LEFT, 0, 0.9), saw(RIGHT, 0, 0.8), saw(RIGHT, 1, 0.3), saw(loose, 0, 0.95)]]
    judged = judge(found, truths, 3)
    assert judged.right.tolist() == [False, True, False, False, True]
    assert average_precisions(judged)[:2] == pytest.approx([0.5, 1.0])
    assert np.isnan(average_precisions(judged)[2]), "no object of this class"
    assert mean_average_precision(judged) == pytest.approx(0.75)
    assert average_precisions(judge(found, truths, 3, threshold=0.45))[0] == pytest.approx(1.0)


def test_a_class_without_detection_counts_as_nothing() -> None:
    assert mean_average_precision(judge([[saw(LEFT, 0, 0.5)]], [truth((LEFT, 0), (RIGHT, 1))], 2)) == 0.5
    assert mean_average_precision(judge([[]], [truth((LEFT, 0))], 1)) == 0.0


def test_scenes_without_objects_have_no_precision_and_no_part_in_an_interval() -> None:
    empty = judge([[saw(LEFT, 0, 0.5)]], [truth()], 2)
    with pytest.raises(InputError, match="1 scenes hold no object"):
        mean_average_precision(empty)
    with pytest.raises(InputError, match="no object"):
        loss_interval(empty, empty, seed=0, resamples=3)
    truths = [truth(), truth((LEFT, 0))]
    good, bad = judge([[], [saw(LEFT, 0, 0.5)]], truths, 1), judge([[], []], truths, 1)
    assert loss_interval(good, bad, seed=0, resamples=50) == (1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_are_repeated_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = (LEFT, MIDDLE, RIGHT)
    truths = [truth(*[(places[i], int(rng.integers(0, 2))) for i in range(3)]) for _ in range(4)]
    found = [
        [saw(places[int(rng.integers(0, 3))], int(rng.integers(0, 2)), float(rng.uniform())) for _ in range(4)]
        for _ in truths
    ]
    weights = rng.integers(0, 3, 4)
    if not weights.any():
        weights[0] = 1
    repeated = [i for i, times in enumerate(weights) for _ in range(times)]
    expected = judge([found[i] for i in repeated], [truths[i] for i in repeated], 2)
    judged = judge(found, truths, 2)
    assert mean_average_precision(judged, weights) == pytest.approx(mean_average_precision(expected))
    assert 0 <= mean_average_precision(judged) <= 1


def test_overlap_of_worked_boxes() -> None:
    a, b = np.array([LEFT]), np.array([LEFT, (0.1, 0.0, 0.3, 0.4), RIGHT, (0.0, 0.0, 0.0, 0.0)])
    assert iou(a, b)[0] == pytest.approx([1.0, 1 / 3, 0.0, 0.0])


def test_the_interval_of_a_loss_holds_it_and_knows_no_loss_from_some() -> None:
    truths = [truth((LEFT, 0), (RIGHT, 0)) for _ in range(80)]
    good = judge([[saw(LEFT, 0, 0.9), saw(RIGHT, 0, 0.8)] for _ in truths], truths, 1)
    half = judge([[saw(LEFT, 0, 0.9)] + ([saw(RIGHT, 0, 0.8)] if i % 2 else []) for i in range(80)], truths, 1)
    assert loss_interval(good, good, seed=0, resamples=50) == (0.0, 0.0)
    low, high = loss_interval(good, half, seed=0, resamples=200)
    assert 0.15 < low < 0.25 < high < 0.35
    with pytest.raises(InputError, match="80 and 1 scenes"):
        loss_interval(good, judge([[]], [truth((LEFT, 0))], 1), seed=0)


def test_detections_that_do_not_fit_the_scenes_are_refused() -> None:
    with pytest.raises(InputError, match="detections of 1 scenes and truth of 2"):
        judge([[]], [truth(), truth()], 1)
    with pytest.raises(InputError, match="classes 3 to 3, expected 0 to 1"):
        judge([[saw(LEFT, 3, 0.5)]], [truth()], 2)


def test_shared_boxes_are_paired_one_to_one() -> None:
    assert shared_boxes([[]], [[]]) == 1.0
    assert shared_boxes([[saw(LEFT, 0, 0.9)]], [[]]) == 0.0
    two = [saw(LEFT, 0, 0.9), saw(LEFT, 0, 0.8)]
    assert shared_boxes([two], [[saw(LEFT, 0, 0.5)]]) == pytest.approx(2 / 3)
    assert shared_boxes([[saw(LEFT, 0, 0.9)]], [[saw(LEFT, 1, 0.9)]]) == 0.0


def test_parity_of_equal_and_of_shaken_outputs() -> None:
    post = postprocessing(LABELS)
    rng = np.random.default_rng(0)
    shapes = {"boxes-8": (8, 8, 8), "scores-8": (8, 8, 20), "boxes-16": (4, 4, 8), "scores-16": (4, 4, 20)}
    sides = {name: rng.normal(-3.0 if "scores" in name else 0.0, 1.2, (6, *s)) for name, s in shapes.items()}
    assert tuple(post.values()) == DigitDetector.output_names
    truths = [
        Truth(np.array([d.box for d in some]).reshape(-1, 4), np.array([d.label_index for d in some], np.int64))
        for some in detections(sides, post)
    ]
    floats = list(sides.values())
    measured = measured_boxes(truths, post)
    agreement, own, float_side = measured(floats, floats)
    assert agreement == 1.0 and own == float_side > 0.5
    shaken = [value + rng.normal(0, 0.8, value.shape) for value in floats]
    agreement, own, again = measured(floats, shaken)
    assert agreement < 0.9 and own < float_side == again
