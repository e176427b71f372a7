"""int8, int4 and float layers in one file: stored so, computed so by LiteRT, and the layers found again by weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from kasmina_edge.engines.tflite_file import INT4, tensor_types
from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.float_tflite import FloatNetwork, convert
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.quantization import Prepared, QuantizeConfig, prepare
from kasmina_trainer.quantization.folding import folded_graph
from kasmina_trainer.quantization.simulation import Simulation, answers, point_values, rounding_points

FRAMES = np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 3)).astype(np.float32)
FLOAT32 = 0


class Net(nn.Module):
    """A convolution, a residual depthwise block, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.dw, self.pw = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.pw(torch.relu(self.dw(x))) + x)
        return self.head(x.mean((2, 3), keepdim=True).flatten(1))


@dataclass(frozen=True)
class World:
    prepared: Prepared
    network: FloatNetwork
    float_answers: np.ndarray
    make: Callable[[dict[str, int]], bytes]


@pytest.fixture(scope="module")
def world() -> World:
    """One net, converted once; ``make`` quantizes it with widths by layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net()
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():  # every other channel between dw and pw is 64 times too large
        net.dw.weight[::2] *= 64
        net.dw.bias[::2] *= 64
        net.pw.weight[:, ::2] /= 64
    prepared = prepare(net.eval(), QuantizeConfig(equalize=True, headroom=0), FRAMES)
    network = convert(prepared.module, (1, 8, 8, 3))
    observed = quantization.observe(lambda: quantization.watch(network.data, FRAMES, network.activations))
    border = (*network.inputs, *network.outputs)
    ranges = quantization.versions(observed, QuantizeConfig(headroom=0), border=border)["minmax"]

    def make(bits: dict[str, int]) -> bytes:
        with quiet():
            widths = quantization.tensor_bits(network.data, prepared.module, {**prepared.bits, **bits})
            return quantization.quantize(network.data, ranges, widths)

    return World(prepared, network, answers(net, FRAMES)[0], make)


def run(data: bytes) -> np.ndarray:
    """A file's answers in real units; float borders pass as they are."""
    with quiet():
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
    entry, leave = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for frame in FRAMES:
        value = frame[None]
        if entry["dtype"] == np.int8:
            scale, zero = entry["quantization"]
            value = np.clip(np.rint(value / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], value)
        interpreter.invoke()
        answer = interpreter.get_tensor(leave["index"])[0].astype(np.float32)
        scale, zero = leave["quantization"]
        found.append((answer - zero) * scale if leave["dtype"] == np.int8 else answer)
    return np.stack(found)


def error(world: World, data: bytes) -> float:
    wanted = world.float_answers
    return float(((run(data) - wanted) ** 2).mean() / wanted.var())


def test_layers_are_found_by_their_weights_and_points_by_their_values(world: World) -> None:
    graph, network = world.prepared.module, world.network
    assert set(quantization.layer_tensors(network.data, graph)) == {"conv", "dw", "pw", "head"}
    points = rounding_points(graph, FRAMES)  # type: ignore[arg-type]
    ranges = {name: (-1.0 - i, 1.0 + i) for i, name in enumerate(points)}
    carried = quantization.carried_ranges(network.data, network.activations, graph, ranges, FRAMES)  # type: ignore[arg-type]
    assert set(carried.values()) == set(ranges.values())
    assert carried[network.inputs[0]] == ranges["x"] and carried[network.outputs[0]] == ranges["head"]


def test_what_equalisation_moved_is_found_again(world: World) -> None:
    before, after = world.prepared.before, world.prepared.module
    assert before is not None
    flow = np.moveaxis(point_values(before, FRAMES, ["relu_1"])["relu_1"], 1, -1)
    moved = quantization.moved_values(before, after, flow, FRAMES)
    assert moved is not None and moved.shape == flow.shape and not np.allclose(moved, flow)
    assert np.array_equal(np.log2(moved[flow > 0] / flow[flow > 0]) % 1, np.zeros((flow > 0).sum()))
    assert quantization.moved_values(before, after, flow + 1, FRAMES) is None


def test_four_bits_are_stored_and_computed_by_litert(world: World) -> None:
    eight, four = world.make({}), world.make({"conv": 4, "pw": 4, "head": 4})
    assert INT4 not in tensor_types(eight) and INT4 in tensor_types(four)
    assert len(eight) - len(four) >= (16 * 27 + 16 * 16 + 6 * 16) // 2
    assert np.isfinite(run(four)).all()
    assert error(world, eight) < 0.005 < error(world, four) < 0.2
    assert FLOAT32 not in tensor_types(four)


def test_the_file_computes_what_the_simulation_says(world: World) -> None:
    bits = {"conv": 4, "dw": 8, "pw": 4, "head": 4}
    graph = world.prepared.module
    rounded = Simulation(graph, bits, {}).answers(FRAMES)[0]  # type: ignore[arg-type]
    found = run(world.make(bits))
    distance = ((found - rounded) ** 2).mean() / rounded.var()
    assert distance < 0.2 * error(world, world.make(bits))


class Again(nn.Module):
    """A convolution that is used twice, and another one of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 6)
        self.twin = copy.deepcopy(self.both)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.both(torch.relu(self.both(torch.relu(self.first(x))))))
        return self.head(torch.relu(self.twin(x)).mean((2, 3)))


@pytest.mark.parametrize(("bits", "fours"), [({"both": 4}, 2), ({"twin": 4}, 1), ({"both": 4, "twin": 4}, 3)])
def test_a_layer_that_is_used_twice_has_its_width_at_both_places(bits: dict[str, int], fours: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = folded_graph(Again().eval())
    with quiet():
        network = convert(graph, (1, 8, 8, 3))
        widths = quantization.tensor_bits(network.data, graph, bits)
        observed = quantization.observe(lambda: quantization.watch(network.data, FRAMES, network.activations))
        made = quantization.quantize(network.data, quantization.free_ranges(observed, headroom=0), widths)
    assert len(widths) == fours
    graph_of = flatbuffer.parse(made).subgraphs[0]
    assert sum(graph_of.tensors[int(op.inputs[1])].type == INT4 for op in graph_of.operators) == fours


def test_a_float_layer_stays_float_between_int8_ones(world: World) -> None:
    mixed = world.make({"pw": 32})
    assert FLOAT32 in tensor_types(mixed)
    assert error(world, mixed) < 0.005
    assert world.make({"pw": 32}) == mixed


def test_what_no_engine_has_is_refused_by_name(world: World) -> None:
    with pytest.raises(InputError, match="tensor t9: 5 bits asked, expected 4, 8 or 32"):
        quantization.quantize(world.network.data, {}, {"t9": 5})
    other = Net().eval()
    with pytest.raises(KasminaError, match="layer conv: 4 bits asked, the converted file has no operator with its"):
        quantization.tensor_bits(world.network.data, other, {"conv": 4})
    assert quantization.tensor_bits(world.network.data, other, {"conv": 8}) == {}


def test_the_default_is_the_plain_int8_recipe() -> None:
    from ai_edge_quantizer import recipe

    from kasmina_trainer.quantization import tflite

    assert tflite.recipe({}) == recipe.static_wi8_ai8()
    assert len(tflite.recipe({"t1": 4, "t2": 32})) == 4
