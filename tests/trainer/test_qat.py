"""Training against the rounding: the quantizer's own numbers, repairs what rounding breaks, same seed same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization import QuantizeConfig, prepare
from kasmina_trainer.quantization.bias_correction import correct_biases
from kasmina_trainer.quantization.calibration import calibrated
from kasmina_trainer.quantization.folding import folded_graph, weighted_layers
from kasmina_trainer.quantization.qat import divergence
from kasmina_trainer.quantization.rounding import (
    ActivationRounding,
    clipped_weight,
    rounded,
    rounded_weight,
    weight_scale,
)
from kasmina_trainer.quantization.sensitivity import measure_bits
from kasmina_trainer.quantization.simulation import Simulation, answers, observe_points, rounding_points

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0, 1, (4, 1, 8, 8)).astype(np.float32)


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of four kinds.  # (N, 8, 8, 1), (N,)"""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = CENTRES[y] + rng.normal(0, 2.2, (count, 1, 8, 8)).astype(np.float32)
    return np.moveaxis(x, 1, -1).copy(), y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.dw = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.pw, self.head = nn.Conv2d(12, 16, 1, bias=False), nn.Linear(16 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.pw(torch.relu(self.dw(x)) + x))
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Net()
    x, y = blobs(512, 1)
    frames, labels = torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(y)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for i in range(60):
        rows = slice(64 * (i % 8), 64 * (i % 8) + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(frames[rows]), labels[rows]).backward()
        optimizer.step()
    return module.eval()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.floats(1e-6, 1e4))
def test_weights_are_rounded_as_ai_edge_quantizer_rounds_them(seed: int, bits: int, size: float) -> None:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as theirs

    weight = (np.random.default_rng(seed).normal(0, 1, (3, 5)) * size).astype(np.float32)
    low, high = weight.min(1, keepdims=True), weight.max(1, keepdims=True)
    zero, scale = theirs.tensor_zp_scale_from_min_max(low, high, bits, True, qtyping.QuantGranularity.CHANNELWISE)
    ours = weight_scale(torch.from_numpy(weight), bits).numpy()
    assert np.array_equal(ours, scale.astype(np.float32))
    params = qtyping.UniformQuantParams(num_bits=bits, quantized_dimension=0, scale=scale, zero_point=zero)
    stored = theirs.uniform_quantize(weight, params)
    found = rounded_weight(torch.from_numpy(weight), bits).numpy()
    assert np.array_equal(np.rint(found / ours), stored)


def test_the_gradient_passes_straight_and_stops_where_values_are_cut() -> None:
    x = torch.tensor([-3.0, 0.26, 9.0], requires_grad=True)
    rounded(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]
    x.grad = None
    rounding = ActivationRounding((-1.0, 4.0), learn=True)
    rounding(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
    assert float(rounding.high.grad) > 0.9  # type: ignore[arg-type]


def test_cutting_4_bit_weights_lowers_their_error_and_never_raises_it() -> None:
    weight = torch.from_numpy(RNG.standard_t(3, (6, 200)).astype(np.float32))
    plain = ((rounded_weight(weight, 4) - weight) ** 2).sum(1)
    cut = clipped_weight(weight, 4)
    error = ((rounded_weight(cut, 4) - weight) ** 2).sum(1)
    assert bool((error <= plain).all()) and float(error.sum()) < 0.8 * float(plain.sum())
    even = torch.tensor([[7.0, -7.0, 3.0, 0.0]])
    assert torch.equal(clipped_weight(even, 4), even)


def test_rounding_points_stand_where_a_file_has_tensors(net: nn.Module) -> None:
    graph = folded_graph(net)
    assert not [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert rounding_points(graph, blobs(2, 0)[0]) == ("x", "relu", "relu_1", "add", "relu_2", "head")


def test_a_simulation_at_32_bits_with_wide_open_points_is_the_network(net: nn.Module) -> None:
    graph, frames = folded_graph(net), blobs(64, 2)[0]
    widths = dict.fromkeys(weighted_layers(graph), 32)
    open_net = Simulation(graph, widths, {})
    assert np.array_equal(open_net.answers(frames)[0], answers(graph, frames)[0])
    ranges = calibrated(observe_points(graph, frames, rounding_points(graph, frames)), QuantizeConfig(headroom=0))
    eight, four = (measure_bits(graph, ranges, dict.fromkeys(widths, b), frames)[0] for b in (8, 4))
    assert 0 < 20 * eight < four < 0.1


def test_training_repairs_what_4_bits_break_and_the_control_does_not(net: nn.Module) -> None:
    x, held = blobs(512, 1)[0], blobs(512, 9)[0]
    config = QuantizeConfig(
        method="qat", per_layer={"pw": 4, "head": 4}, headroom=0, clip_weights=False, qat_steps=60,
        distillation=1.0, seed=3,
    )  # fmt: skip
    graph = folded_graph(net)
    wanted = torch.from_numpy(answers(graph, held)[0])

    def distance(rate: float) -> float:
        done = prepare(net, config.model_copy(update={"qat_rate": rate}), x, (x, None))
        assert done.bits == {"conv": 8, "dw": 8, "pw": 4, "head": 4}
        assert set(done.ranges) == set(rounding_points(graph, x)) and "steps against the rounding" in done.notes[0]
        found = Simulation(done.module, done.bits, done.ranges).answers(held)[0]  # type: ignore[arg-type]
        return float(divergence(torch.from_numpy(found), wanted))

    ranges = calibrated(observe_points(graph, x, rounding_points(graph, x)), config)
    before = float(divergence(torch.from_numpy(Simulation(graph, config.per_layer, ranges).answers(held)[0]), wanted))
    assert distance(3e-4) < 0.5 * before
    assert distance(1e-12) > 0.9 * before


@pytest.mark.parametrize("learn", [True, False])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(net: nn.Module, learn: bool) -> None:
    x, y = blobs(96, 4)
    config = QuantizeConfig(method="qat", qat_steps=6, learn_ranges=learn)

    def made(seed: int) -> tuple[bytes, dict[str, tuple[float, float]]]:
        state = torch.random.get_rng_state()
        done = prepare(net, config.model_copy(update={"seed": seed}), x, (x, y))
        assert torch.equal(torch.random.get_rng_state(), state)
        return b"".join(v.numpy().tobytes() for v in done.module.state_dict().values()), dict(done.ranges)

    assert made(0) == made(0) != made(1)


def test_biases_take_up_the_mean_error_of_rounding(net: nn.Module) -> None:
    x, _ = blobs(256, 5)
    graph = folded_graph(net)
    bits = {"conv": 4, "dw": 4, "pw": 4, "head": 4}
    ranges = calibrated(observe_points(graph, x, rounding_points(graph, x)), QuantizeConfig(headroom=0))

    def shift(module: torch.fx.GraphModule) -> float:
        found = Simulation(module, bits, ranges).answers(x)[0] - answers(graph, x)[0]
        return float(np.abs(found.mean(0)).max())

    corrected, taken = correct_biases(graph, bits, ranges, x)
    assert shift(corrected) < 0.05 * shift(graph)
    assert list(taken) == list(bits) and min(taken.values()) > 0
    assert weighted_layers(corrected)["pw"].bias is not None


def test_what_cannot_be_trained_is_refused_with_its_reason(net: nn.Module) -> None:
    x, y = blobs(64, 6)
    qat = QuantizeConfig(method="qat", qat_steps=2)
    with pytest.raises(InputError, match=r"64 frames and 60 labels"):
        prepare(net, qat, x, (x, y[:60]))
    with pytest.raises(InputError, match=r"distillation 0\.5 leaves 0\.5 of it to labels, 0 given"):
        prepare(net, qat, x, (x, None))
    for wrong, said in (
        (y + 1, r"from 1 to 4; the network has 4 classes, 0 to 3"),
        (y - 1, "from -1 to 2"),
        (y / 2, "float64"),
    ):
        with pytest.raises(InputError, match=said):
            prepare(net, qat, x, (x, wrong))
    assert prepare(net, qat, x, (x, y.astype(np.int32))).notes
    with pytest.raises(InputError, match=r"per_layer\.hed: no such layer among the 4"):
        prepare(net, QuantizeConfig(per_layer={"hed": 32}), x)
    frozen = Net().eval().requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the network may learn"):
        prepare(frozen, qat, x, (x, y))
    with torch.no_grad():
        frozen.pw.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer pw: 1 of 192 numbers of parameter pw\.weight are not finite"):
        prepare(frozen, QuantizeConfig(), x)


class Forking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if bool(x.sum() > 0) else -self.conv(x)


def test_a_network_that_cannot_be_traced_is_only_refused_where_tracing_is_needed() -> None:
    frames = blobs(16, 7)[0]
    module = Forking().eval()
    assert prepare(module, QuantizeConfig(), frames).module is module
    with pytest.raises(InputError, match="Forking cannot be traced"):
        prepare(module, QuantizeConfig(equalize=True), frames)


def test_the_number_of_threads_changes_no_byte(net: nn.Module) -> None:
    x, y = blobs(200, 8)
    config = QuantizeConfig(method="qat", qat_steps=3, equalize=True, bias_correction="all", weight_bits=4)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            done = prepare(net, config, x, (x, y))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        found.append([v.numpy().tobytes() for v in done.module.state_dict().values()])
    assert found[0] == found[1]
