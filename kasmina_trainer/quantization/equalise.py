"""Cross-layer equalisation: channels of like ranges on both sides of a ReLU (Nagel et al. 2019).

A positive factor passes a ReLU, so a channel may be made smaller in one layer and larger in the next without changing
the function. Factors are rounded to powers of two: float32 then computes the very same answers, to the bit, where no
number becomes too small for its exponent.

With one weight scale a channel the first layer's weights gain nothing; what gains is the activation between the two,
which has one scale for all channels, and the second layer's weights, whose channels read inputs of one size.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from kasmina_trainer.quantization.folding import Weighted, is_depthwise, weighted_layers
from kasmina_trainer.quantization.ranges import Array
from kasmina_trainer.quantization.simulation import observe_points

SWEEPS = 20
LARGEST_EXPONENT = 24
_BEND = 6.0
_CHANNELS_LAST = 0
_POOLS = frozenset({torch.max_pool2d, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d})
_STRAIGHT_FUNCTIONS = frozenset(
    {torch.relu, functional.relu, torch.relu_, torch.flatten, torch.max_pool2d, functional.max_pool2d,
     functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.dropout, torch.mean, functional.leaky_relu}
)  # fmt: skip
_STRAIGHT_METHODS = frozenset({"relu", "relu_", "mean", "flatten", "contiguous"})
_STRAIGHT_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity, nn.Dropout,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.Dropout2d,
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing but channel-wise, positively homogeneous steps between them.

    Attributes:
        first: Module name; its output channels are scaled.
        second: Module name; its input channels are scaled back.
        steps: Names of the graph's nodes between them.
        largest_exponent: Of the factors that were applied, the size of the largest power of two; 0 before.
    """

    first: str
    second: str
    steps: tuple[str, ...]
    largest_exponent: int = 0


def equalise(
    graph: fx.GraphModule, frames: Array | None = None, *, sites: Sequence[str] = ()
) -> tuple[fx.GraphModule, tuple[Pair, ...]]:
    """A graph that computes the same with channel ranges as even as powers of two can make them.

    Args:
        graph: As `folded_graph` gives it; it is not changed.
        frames: Calibration frames. A ReLU6 between two layers is a barrier, for a factor does not pass its upper bend;
            where no value of these frames reaches the bend, it becomes a ReLU.  # (N, ..., C)
        sites: Names of seed sites; what flows through them keeps its size, for a graft reads it.

    Returns:
        The new graph, and the pairs that were equalised.
    """
    even = copy.deepcopy(graph)
    if frames is not None:
        _relieve(even, frames)
    found = tuple(pairs(even, sites=sites))
    layers = weighted_layers(even)
    exponents = _exponents(layers, found)
    done = []
    for pair in found:
        steps = exponents[pair.first]
        _scale_outputs(layers[pair.first], torch.exp2(-steps))
        _scale_inputs(layers[pair.second], torch.exp2(steps))
        done.append(Pair(pair.first, pair.second, pair.steps, int(steps.abs().max())))
    even.recompile()
    return even, tuple(done)


def pairs(graph: fx.GraphModule, *, sites: Sequence[str] = ()) -> Iterator[Pair]:
    """The pairs of a graph, in order of computation; each layer is used once in it.

    Args:
        graph: As `folded_graph` gives it.
        sites: Names of seed sites; no pair lies across the border of one.
    """
    layers = weighted_layers(graph)
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    for node in graph.graph.nodes:
        first = str(node.target)
        if node.op != "call_module" or first not in layers or uses[first] != 1:
            continue
        steps: list[str] = []
        at, inside, rank = node, _sites_of(node, sites), _rank_behind(layers[first])
        while len(at.users) == 1:
            at = next(iter(at.users))
            target = str(at.target)
            if at.op == "call_module" and _sites_of(at, sites) != inside:
                break
            if at.op == "call_module" and target in layers:
                if uses[target] == 1 and _fits(layers[first], layers[target], rank):
                    yield Pair(first, target, tuple(steps))
                break
            passed = _rank_passed(graph, at, rank)
            if passed is None:
                break
            rank = passed
            steps.append(at.name)


def _sites_of(node: fx.Node, sites: Sequence[str]) -> tuple[str, ...]:
    return tuple(s for s in sites if str(node.target) == s or str(node.target).startswith(s + "."))


def _exponents(layers: dict[str, Weighted], found: tuple[Pair, ...]) -> dict[str, torch.Tensor]:
    """Power of two by which each output channel of each first layer is divided.

    Nagel et al. 2019, equation 11, swept over all pairs until nothing moves: dividing channel i by
    ``sqrt(range1_i / range2_i)`` makes both ranges equal.
    """
    total = {p.first: torch.zeros_like(_output_ranges(layers[p.first])) for p in found}
    scaled = {p.first: copy.deepcopy(layers[p.first]) for p in found} | {
        p.second: copy.deepcopy(layers[p.second]) for p in found
    }
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in found:
            one = _output_ranges(scaled[pair.first])
            two = _input_ranges(scaled[pair.second], len(one))
            used = (one > 0) & (two > 0)
            step = torch.where(used, 0.5 * torch.log2(one.clamp(min=1e-30) / two.clamp(min=1e-30)), 0.0)
            _scale_outputs(scaled[pair.first], torch.exp2(-step))
            _scale_inputs(scaled[pair.second], torch.exp2(step))
            total[pair.first] += step
            moved = max(moved, float(step.abs().max()))
        if moved < 1e-3:
            break
    return {name: value.round().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT) for name, value in total.items()}


def _output_ranges(layer: Weighted) -> torch.Tensor:
    """Largest magnitude of each output channel's weights.  # (C_out,)"""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.abs().amax((0, 2, 3))
    return weight.abs().flatten(1).amax(1)


def _input_ranges(layer: Weighted, channels: int) -> torch.Tensor:
    """Largest magnitude of the weights that read each input channel.  # (C_in,)"""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.abs().flatten(1).amax(1)
    if is_depthwise(layer):
        return weight.abs().reshape(channels, -1).amax(1)
    if isinstance(layer, nn.Linear):
        return weight.abs().reshape(len(weight), channels, -1).amax((0, 2))
    return weight.abs().transpose(0, 1).flatten(1).amax(1)


def _scale_outputs(layer: Weighted, factor: torch.Tensor) -> None:
    with torch.no_grad():
        shape = [1] * layer.weight.ndim
        shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0] = len(factor)
        layer.weight.mul_(factor.reshape(shape))
        if layer.bias is not None:
            layer.bias.mul_(factor)


def _scale_inputs(layer: Weighted, factor: torch.Tensor) -> None:
    with torch.no_grad():
        weight = layer.weight
        if is_depthwise(layer):
            each = factor.repeat_interleave(len(weight) // len(factor))
            weight.mul_(each.reshape(-1, *[1] * (weight.ndim - 1)))
        elif isinstance(layer, nn.Linear):
            weight.mul_(factor.repeat_interleave(weight.shape[1] // len(factor)))
        else:
            shape = [1] * weight.ndim
            shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1] = len(factor)
            weight.mul_(factor.reshape(shape))


def _rank_behind(first: Weighted) -> int:
    """Axes of a layer's answer, the batch's among them, channels second; `_CHANNELS_LAST` for a linear layer's."""
    if isinstance(first, nn.Linear):
        return _CHANNELS_LAST
    return 3 if isinstance(first, nn.Conv1d) else 4


def _fits(first: Weighted, second: Weighted, rank: int) -> bool:
    """Whether every input of the second layer belongs to one output channel of the first.

    A linear layer reads the last axis: that is channels behind another one, and behind a convolution only where all
    that is left is one row a frame.
    """
    if isinstance(first, nn.Linear):
        return isinstance(second, nn.Linear) and second.in_features == first.out_features
    if isinstance(first, nn.ConvTranspose2d) and first.groups != 1:
        return False
    if isinstance(second, nn.Linear):
        return rank == 2 and second.in_features % first.out_channels == 0
    if rank == 2 or second.in_channels != first.out_channels:
        return False
    return second.groups == 1 or is_depthwise(second)


def _rank_passed(graph: fx.GraphModule, node: fx.Node, rank: int) -> int | None:
    """Axes behind a step that a positive factor of a channel passes, channels apart and in order; None: it does not."""
    step = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    known = isinstance(step, _STRAIGHT_MODULES) if step is not None else _is_straight_call(node)
    if not known:
        return None
    if isinstance(step, (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)):
        return rank if rank == 3 else None
    if isinstance(step, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)) or node.target in _POOLS:
        return rank if rank == 4 else None
    if node.target in ("mean", torch.mean):
        return _rank_after_mean(node, rank)
    if isinstance(step, nn.Flatten) or node.target in ("flatten", torch.flatten):
        ends = (step.start_dim, step.end_dim) if isinstance(step, nn.Flatten) else _flattened(node)
        return 2 if ends[0] == 1 and ends[1] in (-1, rank - 1) and rank != _CHANNELS_LAST else None
    return rank


def _is_straight_call(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _STRAIGHT_METHODS
    return node.op == "call_function" and node.target is not operator.getitem and node.target in _STRAIGHT_FUNCTIONS


def _flattened(node: fx.Node) -> tuple[object, object]:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return start, node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)


def _rank_after_mean(node: fx.Node, rank: int) -> int | None:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if rank == _CHANNELS_LAST or not isinstance(axes, (tuple, list)):
        return None
    if not all(isinstance(a, int) and -rank <= a < rank and a % rank >= 2 for a in axes):
        return None
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return rank if keep else rank - len(axes)


def _relieve(graph: fx.GraphModule, frames: Array) -> None:
    """Turn each ReLU6 whose bend no frame reaches into a ReLU, in place."""
    bent = [
        node
        for node in graph.graph.nodes
        if node.target is functional.relu6
        or (node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.ReLU6))
    ]
    seen = observe_points(graph, frames, [n.name for n in bent]) if bent else {}
    for node in bent:
        if node.name in seen and seen[node.name].high < _BEND:
            with graph.graph.inserting_after(node):
                straight = graph.graph.call_function(functional.relu, (node.args[0],))
            node.replace_all_uses_with(straight)
            graph.graph.erase_node(node)
    graph.recompile()
