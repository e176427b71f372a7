"""Brevitas as an oracle: its per-channel weight quantizers round as ours do, at 8 and at 4 bits."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from worlds import venvs

from kasmina_trainer.quantization.rounding import rounded_weight, weight_scale

REQUIREMENTS = (
    "--no-deps",  # torch and numpy are those of the tests
    "brevitas==0.13.4",
    "dependencies==2.0.1",
    "onnxoptimizer==0.4.2",
    "unfoldNd==0.2.3",
)
SHAPES = ((8, 3, 3, 3), (6, 1, 5, 5), (10, 64))

ORACLE = """
import json, sys
import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import Int8WeightPerChannelFloat

found = []
for seed, (shape, bits) in enumerate(json.loads(sys.argv[1])):
    weight = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32))
    options = dict(bias=False, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits)
    if len(shape) == 4:
        layer = QuantConv2d(shape[1], shape[0], tuple(shape[2:]), **options)
    else:
        layer = QuantLinear(shape[1], shape[0], **options)
    layer.weight.data.copy_(weight)
    rounded = layer.quant_weight()
    found.append({"scale": rounded.scale.reshape(-1).tolist(), "value": rounded.value.reshape(-1).tolist()})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_brevitas_rounds_weights_as_we_do() -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip(f"the oracle's wheels are for Python 3.11, this is {sys.version_info[0]}.{sys.version_info[1]}")
    python = venvs.python_of("brevitas", *REQUIREMENTS)
    cases = [(shape, bits) for shape in SHAPES for bits in (8, 4)]
    run = venvs.run_python(python, "-c", ORACLE, json.dumps(cases))
    assert run.returncode == 0, run.stderr
    for seed, ((shape, bits), theirs) in enumerate(zip(cases, json.loads(run.stdout.splitlines()[-1]), strict=True)):
        weight = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32))
        scale = weight_scale(weight, bits).reshape(-1).numpy()
        np.testing.assert_allclose(theirs["scale"], scale, rtol=1e-6)
        ours = rounded_weight(weight, bits).numpy()
        steps = np.rint(ours.reshape(len(scale), -1) / scale[:, None])
        their_steps = np.rint(np.reshape(theirs["value"], (len(scale), -1)) / scale[:, None])
        assert np.array_equal(steps, their_steps)
        assert np.abs(steps).max() == 2 ** (bits - 1) - 1
