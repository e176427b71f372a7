"""A tree of seeds in an int8 TFLite and an ONNX file: three levels, and what PyTorch adds is what the files add."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_trainer.blueprints.conformance import perturb
from kasmina_trainer.export import judging, onnx, parity, tflite
from kasmina_trainer.export.judging import Judge
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.nesting import NestedBranch
from kasmina_trainer.seeds import attach_seeds

LEAF = {"name": "x", "blueprint": "depthwise"}
TREE = {
    "children": [
        {"name": "a", "blueprint": "se"},
        {"name": "edge", "blueprint": "nested-seed", "settings": {"children": [
            {"name": "left", "blueprint": "adapter"},
            {"name": "inner", "blueprint": "nested-seed", "settings": {"children": [LEAF]}},
        ]}},
    ],
}  # fmt: skip
SHAPE = (8, 8, 3)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


@pytest.mark.slow
def test_a_tree_of_three_levels_is_in_both_files() -> None:
    torch.manual_seed(3)
    host = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 12)).eval()
    network = attach_seeds(host, ["1"], example=torch.zeros(1, 3, 8, 8))
    network.graft("1", "nested-seed", config=TREE, seed=1)
    branch = network.site("1").branch
    assert isinstance(branch, NestedBranch)
    perturb(branch, size=1.0)
    frames = np.random.default_rng(0).normal(size=(96, *SHAPE)).astype(np.float32)
    learn, held = frames[:64], frames[64:]
    grown = network.module_for_export()
    bare = as_app(copy.deepcopy(host), (1, *SHAPE), channels_last=True)
    app = as_app(grown, (1, *SHAPE), channels_last=True)
    whole, before = float_outputs(app, held)[0], float_outputs(bare, held)[0]
    given = {
        "calibration": learn,
        "held_out": held,
        "judge": Judge([whole], app.output_names, judging.resemblance, judging.ALIKE),
        "channels_last": True,
    }
    lite = tflite.export_tflite(grown, sites=["1"], **given)
    assert set(lite.sites) == {"1"}
    twin = onnx.export_onnx(grown, **given)
    added = whole - before
    assert float(np.abs(added).max()) > 0.5
    for found in (parity.litert_outputs(lite.data, held)[0], parity.onnx_outputs(twin.data, held)[0]):
        assert cosine(np.asarray(found).reshape(whole.shape) - before, added) > 0.98
        assert cosine(np.roll(np.asarray(found).reshape(whole.shape), 1, 0) - before, added) < 0.9  # it can fail
