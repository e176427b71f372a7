"""The detector's scores against scikit-learn, and its nets: small, learnable, the same bytes from the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator import windows
from kasmina_trainer.ecg_detector.learning import score, softmax_of, train_pattern_net
from kasmina_trainer.ecg_detector.nets import BeatNet, PatternNet
from kasmina_trainer.ecg_detector.scores import agreement, auc, auc_by_class
from kasmina_trainer.training import TrainingSettings


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60))
def test_auc_is_that_of_scikit_learn_ties_included(rows: list[tuple[int, bool]]) -> None:
    scores, truth = [r[0] / 3 for r in rows], [r[1] for r in rows]
    if len(set(truth)) < 2:
        with pytest.raises(InputError, match="at least one of each"):
            auc(scores, truth)
    else:
        assert np.isclose(auc(scores, truth), roc_auc_score(truth, scores))


def test_auc_knows_right_wrong_and_chance() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=4000) < 0.3
    assert auc(truth + 0.0, truth) == 1.0 and auc(-1.0 * truth, truth) == 0.0
    assert abs(auc(rng.uniform(size=4000), truth) - 0.5) < 0.03
    with pytest.raises(InputError, match="expected two rows"):
        auc([1.0, float("nan")], [True, False])
    scores = np.eye(3)[[0, 1, 2, 1]]
    assert auc_by_class(scores, np.array([0, 1, 2, 1]), ("a", "b", "c")) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_beats_belong_together_within_150_ms_and_once() -> None:
    truth = np.arange(100, 5000, 300)
    moved = truth + np.random.default_rng(0).integers(-20, 21, len(truth))
    same = agreement(moved, truth, 360.0)
    assert same.f1 == 1.0 and abs(same.mean_offset_ms) < 60
    assert agreement(moved[1:], truth, 360.0).only_second == 1
    doubled = agreement(np.sort(np.concatenate([truth, truth + 30])), truth, 360.0)
    assert doubled.both == len(truth) and doubled.only_first == len(truth) and np.isclose(doubled.f1, 2 / 3)
    assert doubled.mean_offset_ms == 0.0
    assert agreement(truth + 150, truth, 360.0).f1 == 0.0
    assert agreement(truth[:0], truth[:0], 360.0).f1 == 1.0


def test_nets_are_small_and_take_their_windows() -> None:
    net = PatternNet().eval()
    assert sum(p.numel() for p in net.parameters()) < 48_000  # int8: below 64 kB with tables and headers
    assert net(torch.zeros(2, *PatternNet.input_shape)).shape == (2, 19)
    assert BeatNet().eval()(torch.zeros(2, *BeatNet.input_shape)).shape == (2, 2)


def test_a_short_training_parts_asystole_from_tachycardia_and_repeats_itself() -> None:
    """The whole figure is the benchmark's; here learning is seen to happen, and silence to score as chance."""
    names = ("asystole", "vt")
    train, _, test = (part.samples for part in windows.split(0, patients=(12, 1, 8), names=names))
    quick = TrainingSettings(steps=60, batch=12, learning_rate=6e-3, shift=0)
    net = train_pattern_net(train, classes=2, settings=quick)
    found = score(lambda x: softmax_of(net, x), test, names)
    assert found.macro_auc > 0.95 and "macro AUC" in found.lines()[0]
    one, again, other = (
        train_pattern_net(train, seed=n, classes=2, settings=replace(quick, steps=2)) for n in (0, 0, 1)
    )
    assert torch.equal(one.head.weight, again.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    flat = score(lambda x: np.ones((len(x), 2)), test, names)
    assert flat.macro_auc == 0.5
