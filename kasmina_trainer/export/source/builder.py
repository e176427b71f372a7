"""Puts a network together, node by node, as a `torch.fx.GraphModule` whose generated code holds only names made here.

Convolutions, linear layers and normalisations with constant weights become PyTorch's own layers, so that everything
that looks for layers (folding, equalisation, widths by layer name) finds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")


class GraphBuilder:
    """Collects nodes and constants; `finish` gives the module."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self._taken: set[str] = set()
        self._constants: dict[int, fx.Node] = {}
        self._kept: list[torch.Tensor] = []

    def input(self) -> fx.Node:
        """The network's one input."""
        return self.graph.placeholder("x")

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A fixed tensor; the same object gives the same node."""
        known = self._constants.get(id(value))
        if known is not None:
            return known
        name = self.unique("constant")
        self.root.register_buffer(name, value)
        self._kept.append(value)  # so that its id stays its own
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_after(first):  # before everything that may read it
            node = self.graph.get_attr(name)
        self._constants[id(value)] = node
        return node

    def call(self, function: Callable[..., Any], *args: Any, origin: str = "", **options: Any) -> fx.Node:
        """What ``function`` gives; ``origin`` says where it stood in the user's file, for messages."""
        node = self.graph.call_function(function, args, options)
        node.meta["stack_trace"] = origin
        return node

    def layer(self, module: nn.Module, at: fx.Node, *, name: str = "", origin: str = "") -> fx.Node:
        """What a layer gives, under a name as near to ``name`` as Python allows."""
        own = self.unique(name or type(module).__name__.lower())
        self.root.add_module(own, module)
        node = self.graph.call_module(own, (at,))
        node.meta["stack_trace"] = origin
        return node

    def unique(self, wanted: str) -> str:
        """A name that nothing else has, of letters, digits and underscores."""
        stem = _UNSAFE.sub("_", wanted).strip("_")[:60] or "part"
        stem = f"layer_{stem}" if not stem[0].isalpha() or hasattr(nn.Module, stem) else stem
        name, count = stem, 2
        while name in self._taken:
            name, count = f"{stem}_{count}", count + 1
        self._taken.add(name)
        return name

    def finish(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """The module; one output comes as a tensor, several as a tuple."""
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        made = fx.GraphModule(self.root, self.graph).eval()
        made.graph.eliminate_dead_code()
        made.delete_all_unused_submodules()
        made.graph.lint()
        made.recompile()
        return made


def convolution(
    weight: torch.Tensor, bias: torch.Tensor | None, *, stride: Sequence[int], padding: Sequence[int] | str,
    dilation: Sequence[int], groups: int,
) -> nn.Module:  # fmt: skip
    """`nn.Conv1d` or `nn.Conv2d` with these weights.  # (O, I / groups, [H,] W)"""
    kinds: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d}
    axes = weight.ndim - 2

    def each(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(values) if len(values) == axes else tuple(values) * axes

    made: nn.Module = kinds[weight.ndim](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        each(stride),
        padding if isinstance(padding, str) else each(padding),
        each(dilation),
        groups,
        bias is not None,
    )
    return with_values(made, weight=weight, bias=bias)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """`nn.Linear` with these weights.  # (O, I)"""
    return with_values(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight=weight, bias=bias)


def normalization(
    rank: int, mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    eps: float,
) -> nn.Module:  # fmt: skip
    """Batch normalisation of (N, C), (N, C, L) or (N, C, H, W), with fixed statistics."""
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    made: nn.Module = kinds[rank](len(mean), eps=eps)
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    with_values(
        made,
        weight=ones if weight is None else weight,
        bias=zeros if bias is None else bias,
        running_mean=mean,
        running_var=variance,
    )
    return made.eval()


def with_values(module: nn.Module, **values: torch.Tensor | None) -> nn.Module:
    """Copy tensors into a layer's parameters and buffers of the same names; None leaves one out."""
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(module, name).copy_(value)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
