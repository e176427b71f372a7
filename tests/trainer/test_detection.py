"""Composed scenes, the detector, its training, and why boxes and scores need outputs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from kasmina_edge.contracts.postprocessing import Postprocessing
from kasmina_edge.engines.postprocessing import anchors_of, decode
from kasmina_edge.engines.tflite_graph import TfliteGraph
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import composed_scenes
from kasmina_trainer.datasets.composed_scenes import Scenes, Truth, compose, overlap_share, split_scenes
from kasmina_trainer.datasets.digits import load_digits
from kasmina_trainer.detection.network import DigitDetector, build_detector, postprocessing
from kasmina_trainer.detection.parity import judged, measured_boxes
from kasmina_trainer.detection.scoring import mean_average_precision
from kasmina_trainer.detection.training import (
    IGNORED,
    DetectorSettings,
    by_anchor,
    loss,
    targets,
    train_detector,
)

LABELS = tuple(str(digit) for digit in range(10))
POST = postprocessing(LABELS)
CONCATENATION, TRANSPOSE = 2, 39  # BuiltinOperator of TFLite's schema


@pytest.fixture(scope="module")
def scenes() -> tuple[Scenes, Scenes]:
    """A few scenes to learn from, and a few to judge by."""
    return split_scenes(96, 40, seed=1)


def ideal(truths: tuple[Truth, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Outputs of a detector that knows the places and is unsure of the rest; by name, the first axis counts scenes."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in POST.values()}
    for truth in truths:
        offsets, classes = targets(truth, POST)
        scores = rng.normal(-5.0, 1.1, (len(classes), 10))
        own = np.flatnonzero((classes >= 0) & (classes < 10))
        scores[own, classes[own]] = rng.normal(-0.5, 1.0, len(own))
        start = 0
        for level in POST.levels:
            rows = slice(start, start + level.anchors)
            start += level.anchors
            found[level.boxes].append(offsets[rows].reshape(level.rows, level.columns, -1))
            found[level.scores].append(scores[rows].reshape(level.rows, level.columns, -1))
    return {name: np.stack(parts) for name, parts in found.items()}


def in_eight_bits(values: np.ndarray) -> np.ndarray:
    """What an int8 tensor with one scale keeps of these values."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    return np.asarray((np.clip(np.round((values - low) / scale), 0, 255)) * scale + low)


def joined_in_eight_bits(outputs: Mapping[str, np.ndarray], post: Postprocessing) -> dict[str, np.ndarray]:
    """The same when boxes in pixels and scores in shares of 1 are concatenated, and so share one scale."""
    anchors, found, start = anchors_of(post), {}, 0
    for level in post.levels:
        own = anchors[start : start + level.anchors]
        start += level.anchors
        offsets, logits = outputs[level.boxes], outputs[level.scores]
        flat = offsets.reshape(len(offsets), -1, 4)
        pixels = np.empty_like(flat)
        pixels[..., :2] = 64 * (own[:, :2] + flat[..., :2] * post.centre_variance * own[:, 2:])
        pixels[..., 2:] = 64 * own[:, 2:] * np.exp(flat[..., 2:] * post.size_variance)
        shares = 1 / (1 + np.exp(-logits))
        both = in_eight_bits(np.concatenate([pixels.ravel(), shares.ravel()]))
        pixels, shares = both[: pixels.size].reshape(flat.shape) / 64, both[pixels.size :].reshape(logits.shape)
        back = np.empty_like(flat)
        back[..., :2] = (pixels[..., :2] - own[:, :2]) / (post.centre_variance * own[:, 2:])
        back[..., 2:] = np.log(np.maximum(pixels[..., 2:], 1e-3) / own[:, 2:]) / post.size_variance
        found[level.boxes] = back.reshape(offsets.shape)
        shares = np.clip(shares, 1e-6, 1 - 1e-6)
        found[level.scores] = np.log(shares / (1 - shares))
    return found


def test_scenes_are_drawn_from_the_seed_and_their_boxes_hold_ink(scenes: tuple[Scenes, Scenes]) -> None:
    learn, _ = scenes
    again, other = split_scenes(96, 40, seed=1)[0], split_scenes(96, 40, seed=2)[0]
    assert np.array_equal(learn.x, again.x) and not np.array_equal(learn.x, other.x)
    assert learn.x.dtype == np.float32 and learn.x.min() >= 0 and learn.x.max() <= 1
    assert learn.x.shape[1:] == composed_scenes.INPUT_SHAPE and learn.nhwc().shape == (96, 64, 64, 1)
    for x, truth in zip(learn.x, learn.truths, strict=True):
        assert 1 <= len(truth.labels) == len(truth.boxes) <= composed_scenes.MOST_DIGITS
        assert truth.boxes.min() >= 0 and truth.boxes.max() <= 1
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
        for i, box in enumerate(truth.boxes):
            assert overlap_share(box, [*truth.boxes[:i], *truth.boxes[i + 1 :]]) <= 0.05
            left, top, right, bottom = np.round(box * 64).astype(int)
            assert x[0, top:bottom, left:right].std() > 0.04, "something is drawn there"


def test_parts_share_no_handwriting_and_a_leak_is_refused(scenes: tuple[Scenes, Scenes]) -> None:
    learn, test = scenes
    assert not set(learn.sources) & set(test.sources)
    with pytest.raises(InputError, match="at least 10 are needed on either side"):
        split_scenes(4, 4, digits=load_digits().take(slice(0, 20)))
    with pytest.raises(InputError, match="0 scenes of 5 digits"):
        compose(load_digits().take(slice(0, 5)), 0, seed=0)


def test_targets_decode_to_the_truth_and_every_object_has_an_anchor(scenes: tuple[Scenes, Scenes]) -> None:
    anchors = anchors_of(POST)
    for truth in scenes[0].truths:
        offsets, classes = targets(truth, POST)
        own = np.flatnonzero((classes >= 0) & (classes < 10))
        boxes = decode(offsets[own].astype(np.float64), anchors[own], POST)
        distances = np.abs(boxes[:, None] - truth.boxes[None]).max(2)
        assert distances.min(1).max() < 1e-5, "every anchor that stands for an object has its box"
        assert distances.min(0).max() < 1e-5, "every object has one"
        assert (classes[own] == truth.labels[distances.argmin(1)]).all()
        assert set(np.unique(classes)) <= {IGNORED, *range(11)}
    offsets, classes = targets(Truth(np.zeros((0, 4)), np.zeros(0, np.int64)), POST)
    assert (classes == 10).all() and not offsets.any()


def test_maps_come_in_the_order_of_the_anchors() -> None:
    network = build_detector(width=4).eval()
    with torch.no_grad():
        outputs = network(torch.rand(2, 1, 64, 64))
        boxes, scores = by_anchor(outputs, 10)
    assert boxes.shape == (2, POST.anchors, 4) and scores.shape == (2, POST.anchors, 10)
    # anchor 5 of the first grid: row 0, column 2, second size
    assert torch.equal(boxes[1, 5], outputs[0][1, 4:8, 0, 2]) and torch.equal(scores[0, 5], outputs[1][0, 10:20, 0, 2])
    assert tuple(POST.values()) == DigitDetector.output_names
    assert sum(p.numel() for p in build_detector().parameters()) < 100_000


def test_the_loss_falls_towards_the_truth_and_ignores_what_does_not_count(scenes: tuple[Scenes, Scenes]) -> None:
    truths = scenes[0].truths[:4]
    right = [torch.from_numpy(np.moveaxis(v, -1, 1)) for v in ideal(truths, np.random.default_rng(0)).values()]
    wanted = [targets(t, POST) for t in truths]
    offsets = torch.from_numpy(np.stack([o for o, _ in wanted])).double()
    classes = torch.from_numpy(np.stack([c for _, c in wanted]))
    good = loss(right, offsets, classes, kinds=10, box_weight=1.0)
    bad = loss([v + 1.0 for v in right], offsets, classes, kinds=10, box_weight=1.0)
    assert float(good) < float(bad)
    ignored = torch.full_like(classes, IGNORED)
    assert float(loss(right, offsets, ignored, kinds=10, box_weight=1.0)) == 0.0


def test_training_is_repeatable_and_keeps_to_its_deadline(scenes: tuple[Scenes, Scenes]) -> None:
    learn, _ = scenes
    brief = DetectorSettings(steps=3, batch=8)
    state = torch.get_rng_state()
    one, two = (train_detector(learn, labels=LABELS, seed=5, settings=brief, width=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state) and not one.training
    seen: list[tuple[int, int]] = []
    stopped = train_detector(
        learn, labels=LABELS, settings=brief, deadline_s=0.0, clock=lambda: 1.0, on_step=lambda *at: seen.append(at)
    )
    assert not seen and isinstance(stopped, DigitDetector)
    with pytest.raises(InputError, match="8 scenes: a batch has 32"):
        train_detector(learn.take(slice(0, 8)), labels=LABELS)


def test_outputs_of_their_own_survive_eight_bits_and_a_joined_head_does_not() -> None:
    truths = compose(load_digits(), 60, seed=4).truths
    outputs = ideal(truths, np.random.default_rng(1))
    before = judged(outputs, truths, POST)
    apart = judged({name: in_eight_bits(values) for name, values in outputs.items()}, truths, POST)
    joined = judged(joined_in_eight_bits(outputs, POST), truths, POST)
    own = mean_average_precision(before)
    assert 0.8 < own < 0.99
    assert abs(own - mean_average_precision(apart)) < 0.01
    assert own - mean_average_precision(joined) > 0.03
    assert len(np.unique(joined.scores)) <= 8 < 40 < len(np.unique(apart.scores))


def test_the_exported_file_has_an_output_and_a_scale_for_each_and_no_concatenation() -> None:
    from kasmina_edge.hardware_simulator.edgetpu_map import map_edgetpu
    from kasmina_trainer.export import flatbuffer, tflite
    from kasmina_trainer.export.judging import Judge
    from kasmina_trainer.export.layout import as_app, float_outputs

    learn, test = split_scenes(24, 12, seed=3)
    network = build_detector(width=4).train()
    with torch.no_grad():  # so that the norms know the scenes, and no layer is dead
        for _ in range(20):
            network(torch.from_numpy(learn.x))
    network.eval()
    app = as_app(network, (1, 64, 64, 1), output_names=network.output_names)
    reference = float_outputs(app, test.nhwc())
    judge = Judge(reference, app.output_names, measured_boxes(test.truths, POST), "boxes")
    made = tflite.export_tflite(network, calibration=learn.nhwc(), held_out=test.nhwc(), judge=judge)
    assert [t.shape for t in made.outputs] == [(1, 8, 8, 8), (1, 8, 8, 20), (1, 4, 4, 8), (1, 4, 4, 20)]
    scales = [t.scale for t in made.outputs]
    assert all(t.dtype == "int8" and t.scale for t in made.outputs) and len(set(scales)) >= 3
    assert scales[0] is not None and scales[1] is not None and scales[1] > 3 * scales[0]
    kinds = {operator.kind for operator in TfliteGraph(made.data).operators}
    assert kinds and not kinds & {CONCATENATION, TRANSPOSE}
    assert not flatbuffer.float_operators(flatbuffer.parse(made.data))
    assert map_edgetpu(made.data).maps_whole


@pytest.mark.slow
def test_a_trained_detector_keeps_its_precision_in_int8() -> None:
    import benchmarks.detection as bench

    figures: dict[str, Any] = {row["name"]: row for row in bench.rows(quick=True)}
    assert all(row["ok"] for row in figures.values()), figures
