"""A network that computes in torch what its quantized file will: weights rounded a layer, activations where the file
has a tensor.

A convolution, linear layer or addition that only a ReLU reads is fused with it in the file, so the rounding stands
behind the ReLU; what only moves or picks values (reshape, flatten, max-pooling) keeps the range of what it reads. All
else is rounded behind itself. Integer arithmetic inside an operator is not imitated: a file's answers are judged by
running the file.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from kasmina_trainer.quantization.folding import channel_axis, only_int8, weighted_layers
from kasmina_trainer.quantization.ranges import Array, Observed, Range, Ranges, observe
from kasmina_trainer.quantization.rounding import ActivationRounding, WeightRounding

BATCH = 64
PREFIX = "rounding_"

_KEEP_METHODS = frozenset({"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"})
_KEEP_FUNCTIONS = frozenset(
    {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.max_pool2d,
     functional.max_pool2d, functional.dropout, operator.getitem}
)  # fmt: skip
_KEEP_MODULES = (nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)
_RELU_FUNCTIONS = frozenset({torch.relu, functional.relu, functional.relu6, torch.relu_})
_RELU_MODULES = (nn.ReLU, nn.ReLU6)
_FUSED_FUNCTIONS = frozenset({operator.add, operator.iadd, torch.add, operator.sub, torch.sub})


def to_tensor(frames: Array, device: torch.device | str = "cpu") -> torch.Tensor:
    """Channels-last frames as the network takes them.  # (N, ..., C) to (N, C, ...)"""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1), dtype=np.float32)).to(device)


def outputs_of(answer: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an answer: itself, or what a tuple, list or dict holds, in order."""
    if isinstance(answer, torch.Tensor):
        return (answer,)
    parts = answer.values() if isinstance(answer, Mapping) else answer
    return tuple(tensor for part in parts for tensor in outputs_of(part))


def answers(module: nn.Module, frames: Array) -> tuple[Array, ...]:
    """All outputs of a module to channels-last frames, in batches, without gradients.  # each (N, ...)"""
    parts: list[tuple[Array, ...]] = []
    with torch.no_grad():
        for start in range(0, len(frames), BATCH):
            found = outputs_of(module(to_tensor(frames[start : start + BATCH])))
            parts.append(tuple(t.numpy() for t in found))
    return tuple(np.concatenate(group) for group in zip(*parts, strict=True))


def rounding_points(graph: fx.GraphModule, example: Array) -> tuple[str, ...]:
    """Names of the nodes behind which a quantized file has a tensor of its own, in order of computation.

    Args:
        graph: As `folded_graph` gives it.
        example: One frame or more.  # (N, ..., C)
    """
    values = next(_values(graph, example[:1]))
    found = []
    for node in graph.graph.nodes:
        if node.name not in values or node.op in ("output", "get_attr") or _keeps(graph, node):
            continue
        users = list(node.users)
        if len(users) == 1 and _is_relu(graph, users[0]) and _can_fuse(graph, node):
            continue
        found.append(str(node.name))
    return tuple(found)


def observe_points(graph: fx.GraphModule, frames: Array, points: Sequence[str]) -> dict[str, Observed]:
    """What calibration shows at the points of a float graph."""
    wanted = set(points)
    return observe(lambda: ({n: v for n, v in found.items() if n in wanted} for found in _values(graph, frames)))


def point_values(graph: fx.GraphModule, frames: Array, points: Sequence[str]) -> dict[str, Array]:
    """The values of some nodes on at most one batch of frames, channels first."""
    found = next(_values(graph, frames))
    return {name: found[name] for name in points if name in found}


class Simulation:
    """A graph with roundings put in; the graph it was made of is left alone.

    Args:
        graph: As `folded_graph` gives it.
        bits: Width of each weighted layer, by module name; 32 leaves it alone.
        ranges: Of each rounding point, by node name.
        learn: Whether the ranges' ends are parameters.

    Attributes:
        module: What computes.
        weights: The rounding of each weighted layer, by module name.
        activations: The rounding behind each point, by node name.
    """

    def __init__(self, graph: fx.GraphModule, bits: Mapping[str, int], ranges: Ranges, *, learn: bool = False) -> None:
        self.module: fx.GraphModule = copy.deepcopy(graph)
        self.weights: dict[str, WeightRounding] = {}
        self.activations: dict[str, ActivationRounding] = {}
        for name, layer in weighted_layers(self.module).items():
            self.weights[name] = WeightRounding(bits.get(name, 8), channel_axis(layer))
            parametrize.register_parametrization(layer, "weight", self.weights[name])
        for node in list(self.module.graph.nodes):
            if node.name in ranges:
                self._round_behind(node, ranges[node.name], learn)
        self.module.graph.lint()
        self.module.recompile()
        self.module.eval()

    @property
    def ranges(self) -> dict[str, Range]:
        """Range of every point as it stands."""
        return {name: rounding.found for name, rounding in self.activations.items()}

    def answers(self, frames: Array) -> tuple[Array, ...]:
        """All outputs to channels-last frames."""
        return answers(self.module, frames)

    def observe(self, frames: Array) -> dict[str, Observed]:
        """What reaches each rounding, all others at work."""
        return observe(lambda: self._arrivals(frames))

    def float_state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers under their names in the graph that this was made of, unrounded, on the CPU."""
        state = {}
        for name, value in self.module.state_dict().items():
            if not name.startswith(PREFIX):
                state[name.replace(".parametrizations.weight.original", ".weight")] = value.detach().cpu().clone()
        return state

    def _round_behind(self, node: fx.Node, found: Range, learn: bool) -> None:
        rounding = ActivationRounding(found, learn=learn)
        self.activations[node.name] = rounding
        place = PREFIX + node.name
        self.module.add_submodule(place, rounding)
        graph = self.module.graph
        with graph.inserting_after(node):
            behind = graph.call_module(place, (node,))
        node.replace_all_uses_with(behind, lambda user: user is not behind)

    def _arrivals(self, frames: Array) -> Iterator[dict[str, Array]]:
        caught: dict[str, Array] = {}
        hooks = []
        for name, rounding in self.activations.items():

            def note(_module: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                caught[name] = args[0].detach().cpu().numpy()

            hooks.append(rounding.register_forward_pre_hook(note))
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                for start in range(0, len(frames), BATCH):
                    self.module(to_tensor(frames[start : start + BATCH], device))
                    yield dict(caught)
        finally:
            for hook in hooks:
                hook.remove()


def layer_bits(module: nn.Module, bits_of: Callable[..., int]) -> dict[str, int]:
    """Width of every weighted layer.

    Args:
        module: Traced or not.
        bits_of: `QuantizeConfig.bits`: takes a name and whether the layer is depthwise.
    """
    return {name: bits_of(name, depthwise=only_int8(layer)) for name, layer in weighted_layers(module).items()}


def _values(graph: fx.GraphModule, frames: Array) -> Iterator[dict[str, Array]]:
    """Float values of every node, batch by batch."""
    with torch.no_grad():
        for start in range(0, len(frames), BATCH):
            watcher = _Watcher(graph)
            watcher.run(to_tensor(frames[start : start + BATCH]))
            yield watcher.values


class _Watcher(fx.Interpreter):  # type: ignore[misc]
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach().numpy().copy()  # a ReLU may work in place
        return value


def _called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _keeps(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _KEEP_METHODS
    if node.op == "call_function":
        return node.target in _KEEP_FUNCTIONS
    return isinstance(_called(graph, node), _KEEP_MODULES)


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.target in _RELU_FUNCTIONS or isinstance(_called(graph, node), _RELU_MODULES)


def _can_fuse(graph: fx.GraphModule, node: fx.Node) -> bool:
    called = _called(graph, node)
    return node.target in _FUSED_FUNCTIONS or (called is not None and called in weighted_layers(graph).values())
