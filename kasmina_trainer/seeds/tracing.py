"""The flow of any module as a graph of torch.fx, with names for the values that no module leaves.

A value that a module leaves has the module's path. A functional activation, an addition or a concatenation has the path
of the module whose ``forward`` computes it, and what it is: ``layer1.0.add``; the second of a kind is ``add_2``. The
calls of an activation that one ``forward`` uses several times are ``layer1.0.relu_1``, ``layer1.0.relu_2`` and so on.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from kasmina_trainer.seeds.site import SeedSite

INPUT = "input"
ACTIVATIONS = frozenset(
    {
        *("celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish"),
        *("prelu", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
    }
)
_ADDITIONS = frozenset({"add", "iadd"})
_JOINS = frozenset({"cat", "concat", "concatenate"})


class _Tracer(fx.Tracer):  # type: ignore[misc]
    """Torch's own modules, seed sites and the ``leaves`` stay whole."""

    def __init__(self, leaves: Collection[str] = ()) -> None:
        super().__init__()
        self.leaves = frozenset(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step of the flow."""
        if module_qualified_name in self.leaves or isinstance(m, SeedSite):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


@dataclass(frozen=True)
class Flow:
    """A traced module.

    Attributes:
        graph: Its operations in order.
        names: What each node is called; nodes that are no place for a seed are left out.
        whats: What each named node is: ``module``, ``activation``, ``addition``, ``join`` or ``input``.
    """

    graph: Any
    names: Mapping[Any, str]
    whats: Mapping[Any, str]

    def node(self, name: str) -> Any | None:
        """The node that a name stands for."""
        return next((node for node, known in self.names.items() if known == name), None)


def trace(model: nn.Module, *, leaves: Collection[str] = ()) -> Flow | None:
    """The flow of a module, or None where torch.fx cannot follow it.

    Args:
        model: Its class's own ``forward`` is traced, arguments with plain defaults left out; constants that it makes
            are kept on it as attributes.
        leaves: Paths of modules that stay whole, beside torch's own.
    """
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(model, concrete_args=left_out(model) or None)
    except Exception:  # whatever a foreign forward does with a value that is not there yet
        return None
    again = {path for path, calls in tracer.num_calls.items() if calls > 1}
    modules = dict(model.named_modules())
    names: dict[Any, str] = {}
    whats: dict[Any, str] = {}
    for node in graph.nodes:
        repeated = node.op == "call_module" and node.target in again
        owner = _owner(node).rpartition(".")[0] if repeated else _owner(node)
        if not node.users or any(owner == path or owner.startswith(f"{path}.") for path in again):
            continue
        if node.op == "call_module" and not repeated:
            names[node], whats[node] = str(node.target), "module"
        elif (what := _what(node, modules)) is not None:
            names[node] = _free(
                model, owner, INPUT if what == "input" else _word(node), names.values(), bare=not repeated
            )
            whats[node] = what
    return Flow(graph, names, whats)


def left_out(model: nn.Module) -> dict[str, Any]:
    """Arguments that keep their defaults: they choose the way through ``forward``, and no trace has two ways."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {
        p.name: p.default for p in parameters if p.default is None or isinstance(p.default, bool | int | float | str)
    }


def _owner(node: Any) -> str:
    """Path of the module whose forward a node belongs to; of a module's own node, that module."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return str(node.target) if node.op == "call_module" else path


def _what(node: Any, modules: Mapping[str, nn.Module]) -> str | None:
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":  # one module, called several times: each call of an activation is a place
        return "activation" if is_activation(modules[node.target]) else None
    if node.op not in ("call_function", "call_method"):
        return None
    word = _word(node)
    if word in ACTIVATIONS:
        return "activation"
    if word == "add":
        computed = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
        return "addition" if len(computed) == 2 else None
    return "join" if word in _JOINS else None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's activations without weights or state."""
    named = type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)
    return named and not isinstance(module, nn.PReLU)


def _word(node: Any) -> str:
    """``relu`` of ``torch.relu``, ``F.relu``, ``x.relu_()`` and ``self.relu(x)``."""
    if node.op == "call_module":
        return str(node.target).rpartition(".")[2]
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    word = str(name).strip("_")
    return "add" if word in _ADDITIONS else word


def _free(model: nn.Module, owner: str, base: str, taken: Collection[str], *, bare: bool) -> str:
    """A name that nothing at this place has: ``base`` (unless a module has that name), ``base_2`` and so on."""
    place = model.get_submodule(owner)
    for number in range(1, 10_000):
        leaf = base if bare and number == 1 else f"{base}_{number}"
        name = f"{owner}.{leaf}" if owner else leaf
        if name not in taken and not (hasattr(place, leaf) and not isinstance(place._modules.get(leaf), SeedSite)):
            return name
    raise AssertionError("ten thousand values of one kind in one forward")
