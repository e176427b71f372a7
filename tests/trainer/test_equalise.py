"""Equalisation keeps the function to the bit, evens what is uneven, and knows what it must not touch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_trainer.quantization.calibration import calibrated
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.equalise import equalise, pairs
from kasmina_trainer.quantization.folding import folded_graph, weighted_layers
from kasmina_trainer.quantization.sensitivity import measure_bits
from kasmina_trainer.quantization.simulation import answers, observe_points, rounding_points

FRAMES = np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 1)).astype(np.float32)


class Chain(nn.Module):
    """Convolution, depthwise, pointwise, pooled or flattened, linear."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, *, pooled: bool = True) -> None:
        super().__init__()
        self.conv, self.dw, self.pw = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 12, 1)
        self.act1, self.act2, self.act3 = act(), act(), act()
        self.pooled = pooled
        self.head = nn.Linear(12 if pooled else 12 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act3(self.pw(self.act2(self.dw(self.act1(self.conv(x))))))
        return self.head(x.mean((2, 3), keepdim=True).flatten(1) if self.pooled else x.flatten(1))


def build(seed: int = 0, **options: object) -> Chain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Chain(**options).eval()  # type: ignore[arg-type]


def unbalance(net: Chain, seed: int = 0) -> None:
    """Another net with the same function whose channels differ by up to 2^12."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        factor = torch.from_numpy(np.exp2(rng.integers(-6, 7, 8))).float()
        net.conv.weight *= factor[:, None, None, None]
        net.conv.bias *= factor
        net.dw.weight /= factor[:, None, None, None]
        factor = torch.from_numpy(np.exp2(rng.integers(-6, 7, 12))).float()
        net.pw.weight *= factor[:, None, None, None]
        net.pw.bias *= factor
        net.head.weight /= factor.repeat_interleave(net.head.in_features // 12)


def int8_error(graph: torch.fx.GraphModule) -> float:
    seen = observe_points(graph, FRAMES, rounding_points(graph, FRAMES))
    return measure_bits(graph, calibrated(seen, QuantizeConfig(headroom=0, calibration="minmax")), {}, FRAMES)[0]


@pytest.mark.parametrize("pooled", [True, False])
def test_the_function_stays_to_the_bit_and_an_uneven_net_gains(pooled: bool) -> None:
    net = build(pooled=pooled)
    unbalance(net)
    graph = folded_graph(net)
    even, done = equalise(graph)
    assert [(p.first, p.second) for p in done] == [("conv", "dw"), ("dw", "pw"), ("pw", "head")]
    assert np.array_equal(answers(even, FRAMES)[0], answers(graph, FRAMES)[0])
    assert int8_error(even) < 0.2 * int8_error(graph)
    assert np.array_equal(answers(graph, FRAMES)[0], answers(net, FRAMES)[0])


def test_an_even_net_is_left_nearly_alone() -> None:
    graph = folded_graph(build(1))
    even, done = equalise(graph)
    again, nothing = equalise(even)
    assert max(p.largest_exponent for p in done) <= 4
    assert max(p.largest_exponent for p in nothing) <= 1
    assert int8_error(even) < 3 * int8_error(graph)
    assert np.array_equal(answers(again, FRAMES)[0], answers(graph, FRAMES)[0])


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    net = build()
    with torch.no_grad():
        net.conv.weight[3] = 0
    even, _ = equalise(folded_graph(net))
    assert all(bool(torch.isfinite(layer.weight).all()) for layer in weighted_layers(even).values())


def test_a_relu6_is_a_barrier_unless_no_frame_reaches_its_bend() -> None:
    graph = folded_graph(build(act=nn.ReLU6))
    assert not [p for p in pairs(graph) if p.first in ("conv", "dw", "pw")]
    assert len(equalise(graph, FRAMES)[1]) == 3
    loud, done = equalise(graph, FRAMES * 1000)
    assert ("conv", "dw") not in [(p.first, p.second) for p in done]
    assert np.array_equal(answers(loud, FRAMES * 1000)[0], answers(graph, FRAMES * 1000)[0])


class Averaged(nn.Module):
    """A mean of features, not of places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.flatten(1).unflatten(1, (8, 8)))).mean(-1))


LAST_AXIS = {
    "a row of the picture": nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Linear(8, 3)),
    "a channel's places": nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 3)),
    "means of features": Averaged(),
    "features in groups": nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("what", LAST_AXIS)
def test_a_layer_that_reads_another_axis_than_the_channels_is_no_pair(what: str) -> None:
    net = copy.deepcopy(LAST_AXIS[what]).eval()
    first = next(m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    with torch.no_grad():
        first.weight *= torch.exp2(torch.arange(len(first.weight))).reshape(-1, *[1] * (first.weight.ndim - 1))
    graph = folded_graph(net)
    even, done = equalise(graph)
    assert not done
    assert np.array_equal(answers(even, FRAMES)[0], answers(graph, FRAMES)[0])


class Shared(nn.Module):
    """A residual: what is read twice must keep its size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(1, 1, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.c(torch.relu(torch.tanh(self.b(x)) + x))


def test_forks_and_bends_are_not_crossed() -> None:
    assert not list(pairs(folded_graph(Shared().eval())))


class Seeded(nn.Module):
    """A seed site between two layers, and a block that is one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.s1, self.b = nn.Conv2d(1, 4, 1), nn.Identity(), nn.Conv2d(4, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.block(torch.relu(self.b(self.s1(torch.relu(self.a(x)))))))


def test_what_flows_through_a_seed_site_keeps_its_size() -> None:
    graph = folded_graph(Seeded().eval())
    everything = [(p.first, p.second) for p in pairs(graph)]
    assert everything == [("a", "b"), ("b", "block.0"), ("block.0", "block.2"), ("block.2", "c")]
    kept = [(p.first, p.second) for p in pairs(graph, sites=("s1", "block"))]
    assert kept == [("block.0", "block.2")]
