"""Places for seeds in any module: the values of its flow, read from a trace, or else from what its modules return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Layout, Port, Shape
from kasmina_trainer.seeds.admission import check_runs, frozen_copy
from kasmina_trainer.seeds.layouts import Axis, axes_of, axis_of_module, layer_of, layout_of
from kasmina_trainer.seeds.tracing import INPUT, Flow, is_activation, trace

MOST_SITES = 4
_FUSED = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
_SILENT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.Unflatten)

_ACTIVATION, _BLOCK, _LAYER = {"activation"}, {"addition", "block"}, {"norm", "layer", "join"}
_PREFERRED = ((_ACTIVATION, _BLOCK), (_BLOCK, _ACTIVATION), (_LAYER, _LAYER))  # each: in maps and vectors, in tokens

Example = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class FoundPort(Port):
    """A port, and what it is in the host.

    Attributes:
        what: ``input``, ``layer`` (convolution, linear, embedding), ``norm``, ``activation``, ``addition``, ``join``,
            or ``block``: any other module.
    """

    what: str = "block"


@dataclass(frozen=True)
class Value:
    """What left a module in one pass, or why it can carry no seed."""

    shape: Shape | None
    reason: str = ""
    input_shape: Shape | None = None
    axis: Axis | None = None


def find_ports(model: nn.Module, example: Example) -> tuple[FoundPort, ...]:
    """Every value of a network that a branch may be added to, in order of flow.

    Those are the input, what convolutions, linear layers, norms, activations and other modules leave, functional
    activations, residual additions and concatenations. A module that runs more than once offers none, nor does anything
    inside torch's own encoder layers and attention (see `fused_owner`).

    Args:
        model: Any module; a frozen copy of it is run and traced by torch.fx. One that cannot be traced is read by its
            modules' outputs alone.
        example: One batch, or one for each argument.
    """
    host = frozen_copy(model)
    args = as_arguments(example, host)
    check_runs(host, args)
    flow = trace(host)
    shapes = None if flow is None else _shapes(host, flow, args)
    if flow is None or shapes is None:
        return _ports_of_modules(host, read_modules(host, args))
    return _ports_of_flow(host, flow, args, shapes)


def choose_ports(ports: Sequence[FoundPort], *, most: int = MOST_SITES) -> tuple[FoundPort, ...]:
    """Where seeds go when nobody says: early places pay most, and one of each shape is enough to choose from.

    The first activation of each shape; among tokens the first block or residual addition, as the activations there are
    inside the wide part of a block. A host that has none of these is taken at its additions or activations, and then at
    its layers. Maps of one pixel, as inside a squeeze, are left to hosts that have no others.

    Args:
        ports: As `find_ports` gives them.
        most: Number of places.
    """
    for fits in _PREFERRED:
        offered = ports[:-1] if fits[0] is _LAYER else ports  # the last layer is the answer
        candidates = [port for port in offered if port.what in fits[port.layout is Layout.TOKENS]]
        wide = [port for port in candidates if port.layout is not Layout.IMAGE or port.positions > 1]
        chosen: dict[tuple[Layout, Shape], FoundPort] = {}
        for port in wide or candidates:
            chosen.setdefault((port.layout, port.shape), port)
        if chosen:
            return tuple(chosen.values())[:most]
    return ()


def as_arguments(example: Example, model: nn.Module) -> tuple[torch.Tensor, ...]:
    """An example as the arguments of ``forward``, on the model's device.

    Raises:
        InputError: It is neither a tensor nor a tuple of tensors, or holds no row.
    """
    given = example if isinstance(example, tuple) else (example,)
    wrong = next((x for x in given if not isinstance(x, torch.Tensor)), None)
    if wrong is not None or not given:
        held = "an empty tuple" if not given else f"a {type(wrong).__name__}"
        raise InputError(
            f"example: expected a tensor or a tuple of tensors, got {held}",
            "Pass one batch, or a tuple of one for each argument; wrap a host that takes anything else.",
        )
    if any(x.ndim == 0 or len(x) == 0 for x in given):
        raise InputError(
            f"example: expected batches of 1 row or more, got shapes {', '.join(str(tuple(x.shape)) for x in given)}"
        )
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    return tuple(x.to(device) for x in given)


def fused_owner(modules: Mapping[str, nn.Module], path: str) -> str | None:
    """Path of the layer of torch around a module that may run fused; None where there is none.

    Encoder layers and attention read the weights of what they hold and pass it by, so that no site in them is run.

    Args:
        modules: The host's, by path; the host itself is ``""``.
        path: Of the module.
    """
    parts = path.split(".")
    above = (".".join(parts[:number]) for number in range(len(parts)))
    return next((owner for owner in above if isinstance(modules.get(owner), _FUSED)), None)


def other_batch(args: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same rows in a batch of another size."""
    return tuple(x[:1] if len(x) > 1 else torch.cat([x, x]) for x in args)


def read_modules(host: nn.Module, args: Sequence[torch.Tensor]) -> dict[str, list[Value]]:
    """What left each module in one pass, by path, in order of flow; one entry a call."""
    values: dict[str, list[Value]] = {}
    axes: dict[int, Axis | None] = {}
    alive: list[torch.Tensor] = []  # so that no number of a value is given twice
    hooks = []
    for path, module in host.named_modules():
        if not path:
            continue

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any, path: str = path) -> None:
            source = next((x for x in inputs if isinstance(x, torch.Tensor)), None)
            axis = axis_of_module(module)
            if isinstance(output, torch.Tensor):
                if axis is None:
                    axis = axes.get(id(output), axes.get(id(source)))
                alive.append(output)
                axes[id(output)] = axis
            values.setdefault(path, []).append(_value(output, source, axis))

        hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            host(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return values


def port_of_module(path: str, module: nn.Module, value: Value) -> FoundPort | None:
    """The port behind a module, by what was seen to leave it; None where no blueprint could stand."""
    if value.shape is None:
        return None
    axis = value.axis
    if axis is None and len(value.shape) > 1:
        axis = "first"
    layout = layout_of(value.shape, axis)
    if layout is None:
        return None
    return FoundPort(
        path, value.shape, layout, layer_of(module), _source_shape(module, value.input_shape), what=_what(module)
    )


def _ports_of_modules(host: nn.Module, values: Mapping[str, Sequence[Value]]) -> tuple[FoundPort, ...]:
    modules = dict(host.named_modules())
    found = []
    for path, seen in values.items():
        module = modules[path]
        if fused_owner(modules, path) is not None:
            continue
        if len(seen) == 1 and _is_place(module) and (port := port_of_module(path, module, seen[0])) is not None:
            found.append(port)
    return tuple(found)


def _ports_of_flow(
    host: nn.Module, flow: Flow, args: Sequence[torch.Tensor], first: Mapping[Any, Shape]
) -> tuple[FoundPort, ...]:
    modules = dict(host.named_modules())
    second = _shapes(host, flow, other_batch(args)) or first  # some hosts know one size of batch alone
    axes = axes_of(flow.graph, modules, first)
    found = []
    for node, name in flow.names.items():
        shape = first.get(node)
        if shape is None or second.get(node) != shape or not 1 <= len(shape) <= 3 or min(shape) < 1:
            continue
        layout = layout_of(shape, axes[node])
        if layout is None:
            continue
        what = flow.whats[node]
        if what != "module":
            found.append(FoundPort(name, shape, layout, what=what))
        elif _is_place(modules[name]) and fused_owner(modules, name) is None:
            module = modules[name]
            entered = next((first[a] for a in node.args if isinstance(a, fx.Node) and a in first), None)
            source = _source_shape(module, entered)
            found.append(FoundPort(name, shape, layout, layer_of(module), source, what=_what(module)))
    return tuple(found)


class _Watch(fx.Interpreter):  # type: ignore[misc]
    """Runs a graph and notes the shapes of its tensors."""

    def __init__(self, host: nn.Module, flow: Flow, rows: int) -> None:
        super().__init__(host, graph=flow.graph)
        self.rows = rows
        self.shapes: dict[Any, Shape] = {}

    def run_node(self, n: Any) -> Any:
        """One step of the flow."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.dtype is torch.float32 and value.dim() and len(value) == self.rows:
            self.shapes[n] = tuple(value.shape[1:])
        return value


def _shapes(host: nn.Module, flow: Flow, args: Sequence[torch.Tensor]) -> dict[Any, Shape] | None:
    """Shapes in a traced flow; None where it cannot be run: arguments that were left out, for one, change the way."""
    watch = _Watch(host, flow, len(args[0]))
    try:
        with torch.no_grad():
            watch.run(*(x.clone() for x in args))
    except Exception:  # whatever the host's operations raise
        return None
    return watch.shapes


def _value(output: Any, source: torch.Tensor | None, axis: Axis | None) -> Value:
    if not isinstance(output, torch.Tensor):
        return Value(None, f"a {type(output).__name__}")
    if output.dtype is not torch.float32:
        return Value(None, str(output.dtype).removeprefix("torch."))
    shape = tuple(output.shape[1:])
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        return Value(None, f"the shape {tuple(output.shape)}")
    return Value(shape, "", None if source is None else tuple(source.shape[1:]), axis)


def _source_shape(module: nn.Module, shape: Shape | None) -> Shape | None:
    return shape if layer_of(module) is not None else None


def _is_place(module: nn.Module) -> bool:
    """Whether what leaves a module is a value of its own: not of a pool or dropout, nor of a group of other modules."""
    if isinstance(module, _SILENT) or type(module).__module__ == "torch.nn.modules.pooling":
        return False
    return not any(True for _ in module.children()) or type(module).__module__.startswith(
        "torch.nn.modules.transformer"
    )


def _what(module: nn.Module) -> str:
    home = type(module).__module__
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding):
        return "layer"
    if home in ("torch.nn.modules.batchnorm", "torch.nn.modules.normalization", "torch.nn.modules.instancenorm"):
        return "norm"
    if is_activation(module) or isinstance(module, nn.PReLU):
        return "activation"
    return "block"


__all__ = [
    "INPUT", "MOST_SITES", "Example", "FoundPort", "Value", "as_arguments", "choose_ports", "find_ports",
    "fused_owner", "other_batch", "port_of_module", "read_modules",
]  # fmt: skip
