"""Follows every channel through a network, and learns which slices of which tensors carry it.

A slice is (tensor, axis, index). One forward pass of one frame ties together the slices that hold the same channel:
what a convolution writes, the normalisation behind it, both sides of an addition, what the next layer reads. Channels
that an unknown operation touches are protected, so that a network is pruned less rather than wrongly.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.coupling import Coupling, Labels, canonical_names
from kasmina_trainer.quantization.simulation import outputs_of
from kasmina_trainer.seeds.tracing import left_out

_POINTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
)  # fmt: skip
_SPATIAL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.Upsample,
)  # fmt: skip
_POINTWISE = frozenset(
    {"relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish",
     "hardsigmoid", "softplus", "clamp", "clip", "abs", "neg", "exp", "sqrt", "rsqrt", "square", "dropout",
     "contiguous", "clone", "detach", "float", "alias"}
)  # fmt: skip
_SPATIAL = frozenset(
    {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
     "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate", "upsample_nearest2d", "upsample_bilinear2d"}
)  # fmt: skip
_BINARY = frozenset(
    {"add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "maximum", "minimum", "where", "pow"}
)
_REDUCING = frozenset({"mean", "sum", "amax", "amin"})
_RESHAPING = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})


@dataclass(frozen=True)
class Flow:
    """What is known of a value: the axis that carries channels, and the element each one belongs to."""

    axis: int
    labels: Labels


@dataclass(frozen=True)
class Constant:
    """A tensor of the network's own that is read directly."""

    name: str


def couple(network: nn.Module, example: torch.Tensor) -> Coupling:
    """Follow the channels of a network.

    Args:
        network: In evaluation mode; it is not changed.
        example: One input.  # (1, C, ...)

    Raises:
        InputError: torch.fx cannot trace it, or traces something else than what it computes.
    """
    try:
        graph = network if isinstance(network, fx.GraphModule) else _traced(network)
    except Exception as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise InputError(
            f"{type(network).__name__} cannot be traced, so its channels cannot be followed: {reason[:200]}",
            "Write the network without branches on data, or zero weights with Magnitude, which needs no trace.",
        ) from exc
    follower = _Follower(graph, network)
    with torch.no_grad():
        answers = zip(outputs_of(follower.run(example)), outputs_of(network(example)), strict=False)
        if not all(torch.equal(a, b) or not torch.isfinite(b).all() for a, b in answers):
            raise InputError(
                f"{type(network).__name__} computes something else than its traced graph; channels would be lost",
                "Prune the module of module_for_export().",
            )
    return follower.found


def _traced(network: nn.Module) -> fx.GraphModule:
    """Arguments that have defaults keep them, as they do where the network is called with one input."""
    return fx.symbolic_trace(network, concrete_args=left_out(network) or None)


class _Follower(fx.Interpreter):  # type: ignore[misc]
    """Runs the graph once and keeps, beside every value, what its channels are."""

    def __init__(self, graph: fx.GraphModule, network: nn.Module) -> None:
        super().__init__(graph)
        self.found = Coupling()
        self._flows: dict[fx.Node, Flow | Constant | None] = {}
        self._values: dict[fx.Node, Any] = {}
        self._names = canonical_names(network)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._values[n] = value
        self._flows[n] = self._flow(n, value)
        return value

    # what comes out of a node

    def _flow(self, node: fx.Node, value: Any) -> Flow | Constant | None:
        if node.op == "placeholder":
            return self._kept(value)
        if node.op == "get_attr":
            name = self._names.get(id(value))
            return Constant(name) if name is not None else None
        if node.op == "output":
            self._protect_inputs(node)
            return None
        if not isinstance(value, torch.Tensor):
            if not _is_of_shape(node):
                self._protect_inputs(node)
            return None
        if node.op == "call_module":
            return self._of_module(node, self.fetch_attr(str(node.target)), value)
        return self._of_function(node, _name(node.target), value)

    def _of_module(self, node: fx.Node, module: nn.Module, value: torch.Tensor) -> Flow | None:
        flow = self._flow_of(node.args[0]) if node.args and not node.kwargs else None
        if isinstance(module, (_ConvNd, nn.Linear)):
            return self._weighted(node, module, value)
        if flow is None:
            return self._unknown(node)
        if isinstance(module, _BatchNorm) and flow.axis == 1:
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                self._bind(tensor, 0, flow.labels)
            return flow
        if isinstance(module, nn.PReLU) and flow.axis == 1:
            if module.num_parameters > 1:
                self._bind(module.weight, 0, flow.labels)
            return flow
        if isinstance(module, _POINTWISE_MODULES):
            return flow
        if isinstance(module, _SPATIAL_MODULES) and flow.axis == 1:
            return flow
        if isinstance(module, nn.Flatten):
            return self._reshaped(node, flow, value)
        return self._unknown(node)

    def _of_function(self, node: fx.Node, name: str, value: torch.Tensor) -> Flow | None:
        if name in _BINARY:
            return self._joined(node, value)
        if name == "cat":
            return self._concatenated(node, value)
        flow = self._flow_of(node.args[0]) if node.args else None
        if flow is None:
            return self._unknown(node)
        shape = self._values[node.args[0]].shape
        if name in _POINTWISE and value.shape == shape and len(node.all_input_nodes) == 1:
            return flow
        if name in _SPATIAL and flow.axis == 1 and value.shape[:2] == shape[:2]:
            return flow
        if name == "pad" and value.shape[flow.axis] == shape[flow.axis]:
            return flow
        if name in ("softmax", "log_softmax") and _dims(node, len(shape)) not in ((), (flow.axis,)):
            return flow
        if name in _RESHAPING and not _fixed_at(node, name, flow.axis):
            return self._reshaped(node, flow, value)
        if name in ("permute", "transpose"):
            axes = _moved(node, name, len(shape))
            return Flow(axes.index(flow.axis), flow.labels) if axes else self._unknown(node)
        if name in _REDUCING:
            dims = _dims(node, len(shape))
            if dims and flow.axis not in dims:
                kept = value.ndim == len(shape)
                return Flow(flow.axis if kept else flow.axis - sum(d < flow.axis for d in dims), flow.labels)
        return self._unknown(node)

    # rules

    def _weighted(self, node: fx.Node, layer: Any, value: torch.Tensor) -> Flow | None:
        """A convolution or linear layer: reads channels along one axis of its weight, writes them along another."""
        name = self._names.get(id(layer.weight))
        if name is None or len(node.args) != 1:  # a weight that is computed, as by a parametrization
            return self._unknown(node)
        groups = int(getattr(layer, "groups", 1))
        turned = isinstance(layer, _ConvTransposeNd)
        if turned and groups > 1:
            return self._unknown(node)
        axis = value.ndim - 1 if isinstance(layer, nn.Linear) else 1
        outputs = int(value.shape[axis])
        entry: torch.Tensor = self._values[node.args[0]]
        positions = entry[0, 0].numel() if turned else value[0].numel() // outputs
        self.found.work[name] = self.found.work.get(name, 0) + positions
        written = self.found.slot(name, 1 if turned else 0, outputs)
        self._bind(layer.bias, 0, written)
        flow = self._flow_of(node.args[0])
        if flow is not None and flow.axis != axis:
            self.found.protect(flow.labels)
            flow = None
        inputs = int(entry.shape[entry.ndim - 1 if isinstance(layer, nn.Linear) else 1])
        entering = self.found.fresh(inputs) if flow is None else flow.labels
        if flow is None:
            self.found.protect(entering)
        if groups == 1:
            self._read(name, 0 if turned else 1, entering)
        elif inputs == groups:  # depthwise: each channel is filtered alone, into one or several
            self.found.tie(written, np.repeat(entering, outputs // groups))
        else:  # every group loses the same places, so that the groups stay of equal width
            each = inputs // groups
            for start in range(0, inputs, each):
                self._read(name, 1, entering[start : start + each])
            for start in range(0, outputs, outputs // groups):
                self.found.tie(written[: outputs // groups], written[start : start + outputs // groups])
        return Flow(axis, written)

    def _joined(self, node: fx.Node, value: torch.Tensor) -> Flow | None:
        """Two values computed number by number; what both carry is one channel."""
        flows = [(n, self._flows.get(n)) for n in node.all_input_nodes if isinstance(self._values[n], torch.Tensor)]
        known = [
            (n, f) for n, f in flows
            if isinstance(f, Flow) and self._values[n].shape[f.axis] == value.shape[f.axis - self._values[n].ndim]
        ]  # fmt: skip
        if not known:
            return self._unknown(node)
        axis = known[0][1].axis - self._values[known[0][0]].ndim + value.ndim
        labels = known[0][1].labels
        for n, flow in flows:
            tensor: torch.Tensor = self._values[n]
            place = axis - value.ndim + tensor.ndim
            size = int(tensor.shape[place]) if place >= 0 else 1
            if isinstance(flow, Flow) and place == flow.axis and size == len(labels):
                self.found.tie(labels, flow.labels)
            elif isinstance(flow, Flow):
                self.found.protect(flow.labels)
                if size != 1:
                    self.found.protect(labels)
            elif isinstance(flow, Constant) and size == len(labels):
                self.found.tie(labels, self.found.slot(flow.name, place, size))
            elif size != 1:
                self.found.protect(labels)
        return Flow(axis, labels)

    def _concatenated(self, node: fx.Node, value: torch.Tensor) -> Flow | None:
        parts = node.args[0] if node.args else ()
        if not isinstance(parts, (tuple, list)) or not all(isinstance(p, fx.Node) for p in parts):
            return self._unknown(node)
        flows = [self._flow_of(p) for p in parts]
        axes = {flow.axis for flow in flows if flow is not None}
        along = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % value.ndim
        if len(axes) != 1 or (None in flows and along not in axes):
            return self._unknown(node)
        axis = axes.pop()
        labels = []
        for part, flow in zip(parts, flows, strict=True):
            if flow is None:
                labels.append(self.found.fresh(int(self._values[part].shape[axis])))
                self.found.protect(labels[-1])
            else:
                labels.append(flow.labels)
        if along == axis:
            return Flow(axis, np.concatenate(labels))
        for other in labels[1:]:
            self.found.tie(labels[0], other)
        return Flow(axis, labels[0])

    def _reshaped(self, node: fx.Node, flow: Flow, value: torch.Tensor) -> Flow | None:
        """A channel keeps its place, or its numbers are strung out one after the other."""
        shape = tuple(self._values[node.args[0]].shape)
        before = math.prod(shape[: flow.axis])
        for axis in range(value.ndim):
            if math.prod(value.shape[:axis]) == before and value.shape[axis] >= shape[flow.axis]:
                inner = int(value.shape[axis]) // shape[flow.axis]
                tails = [math.prod(shape[flow.axis + 1 : end]) for end in range(flow.axis + 1, len(shape) + 1)]
                if inner in tails and value.shape[axis] % shape[flow.axis] == 0:
                    return Flow(axis, np.repeat(flow.labels, inner))
        return self._unknown(node)

    def _unknown(self, node: fx.Node) -> Flow | None:
        self._protect_inputs(node)
        return None

    # bits

    def _read(self, name: str, axis: int, entering: Labels) -> None:
        self.found.reading.add((name, axis))
        self.found.tie(self.found.slot(name, axis, len(entering)), entering)

    def _bind(self, tensor: torch.Tensor | None, axis: int, labels: Labels) -> None:
        if tensor is None:
            return
        name = self._names.get(id(tensor))
        if name is None:
            self.found.protect(labels)
        else:
            self.found.tie(self.found.slot(name, axis, len(labels)), labels)

    def _kept(self, value: Any) -> Flow | None:
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return None
        labels = self.found.fresh(int(value.shape[1]))
        self.found.protect(labels)
        return Flow(1, labels)

    def _flow_of(self, argument: Any) -> Flow | None:
        flow = self._flows.get(argument) if isinstance(argument, fx.Node) else None
        return flow if isinstance(flow, Flow) else None

    def _protect_inputs(self, node: fx.Node) -> None:
        for n in node.all_input_nodes:
            flow = self._flow_of(n)
            if flow is not None:
                self.found.protect(flow.labels)


def _name(target: Any) -> str:
    """``relu`` for torch.relu, functional.relu, ``x.relu_()`` and torch.ops.aten.relu.default."""
    text = target if isinstance(target, str) else str(getattr(target, "__name__", target))
    return text.partition(".")[0].rstrip("_").removeprefix("_")


def _is_of_shape(node: fx.Node) -> bool:
    """Whether a node reads a size and no numbers."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target in (getattr, operator.getitem, operator.mul, operator.floordiv, operator.add, operator.sub)


def _dims(node: fx.Node, ndim: int) -> tuple[int, ...]:
    found = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    values = (found,) if isinstance(found, int) else found
    if not isinstance(values, Sequence) or not all(isinstance(v, int) for v in values):
        return ()
    return tuple(v % ndim for v in values)


def _fixed_at(node: fx.Node, name: str, axis: int) -> bool:
    """Whether a reshape writes a number of channels down: it would not hold for fewer."""
    if name not in ("view", "reshape"):
        return False
    given: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], Sequence) else node.args[1:]
    size = given[axis] if axis < len(given) else None
    return isinstance(size, int) and size != -1


def _moved(node: fx.Node, name: str, ndim: int) -> tuple[int, ...]:
    """Old axis at each new place; () where it is not written down."""
    given: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], Sequence) else node.args[1:]
    if not given or not all(isinstance(v, int) for v in given):
        return ()
    axes = [v % ndim for v in given]
    if name == "permute":
        return tuple(axes)
    order = list(range(ndim))
    order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return tuple(order)
