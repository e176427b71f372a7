"""Which axis of a value carries the channels: told by the layers it comes from, or by those it goes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from kasmina_trainer.blueprints.port import Layer, Layout, Shape

Axis = Literal["first", "last"]
_FIRST = (_ConvNd, _BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm)
_LAST = (nn.Linear, nn.Embedding, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder)
_RESHAPES = frozenset({"reshape", "view", "unflatten", "getitem", "getattr", "unbind", "chunk", "split", "mean", "sum"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "batch_norm", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"})


def axis_of_module(module: nn.Module) -> Axis | None:
    """Where a layer leaves its channels; None: where they were."""
    if isinstance(module, _FIRST):
        return "first"
    if isinstance(module, _LAST) or (isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1):
        return "last"
    return None


def layout_of(shape: Shape, axis: Axis | None) -> Layout | None:
    """The layout of a value; None where no blueprint could name its channels: maps with the channels last."""
    if len(shape) == 1:
        return Layout.VECTOR
    if len(shape) == 2 and axis is not None:
        return Layout.SERIES if axis == "first" else Layout.TOKENS
    return Layout.IMAGE if len(shape) == 3 and axis == "first" else None


def axes_of(graph: Any, modules: Mapping[str, nn.Module], shapes: Mapping[Any, Shape]) -> dict[Any, Axis | None]:
    """The channel axis of every value of a traced graph, None where nothing tells it.

    Args:
        graph: Of torch.fx.
        modules: The host's, by path.
        shapes: Of the values that are tensors, without the batch.
    """
    wanted: dict[Any, Axis | None] = {}
    for node in reversed(list(graph.nodes)):
        asked = (_asked(user, node, modules, shapes, wanted) for user in node.users)
        wanted[node] = next((axis for axis in asked if axis is not None), None)
    found: dict[Any, Axis | None] = {}
    for node in graph.nodes:
        given = _given(node, modules, shapes, found)
        if given is None:
            given = wanted[node]
        if given is None and node.op == "placeholder":
            given = "first"
        found[node] = given
    return found


def layer_of(module: nn.Module) -> Layer | None:
    """What a parallel branch has to know of a layer; None for anything but plain convolutions and linear layers."""
    if isinstance(module, nn.Linear):
        return Layer("linear", module.in_features, module.out_features)
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.padding_mode != "zeros":
        return None
    padding = module.padding
    if isinstance(padding, str):
        spread = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(s % 2 for s in spread):
            return None
        padding = tuple(0 if padding == "valid" else s // 2 for s in spread)
    return Layer(
        "conv1d" if isinstance(module, nn.Conv1d) else "conv2d",
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(padding),
        tuple(module.dilation),
        module.groups,
    )


def _given(
    node: Any, modules: Mapping[str, nn.Module], shapes: Mapping[Any, Shape], found: Mapping[Any, Axis | None]
) -> Axis | None:
    """What a node's own kind and what it reads say."""
    if node.op == "call_module":
        told = axis_of_module(modules[node.target])
        if told is not None:
            return told
    sources = [a for a in node.all_input_nodes if a in shapes]
    if node not in shapes or not sources:
        return None
    word = _word(node)
    if word in _CONVOLUTIONS:
        return "first"
    if word == "linear":
        return "last"
    if word in ("permute", "transpose"):
        return _moved(node, found[sources[0]], len(shapes[sources[0]]))
    if word == "flatten":
        return found[sources[0]] if len(shapes[node]) > 1 else None
    if word in _RESHAPES:
        return None
    return next((found[a] for a in sources if len(shapes[a]) == len(shapes[node]) and found[a] is not None), None)


def _asked(
    user: Any,
    node: Any,
    modules: Mapping[str, nn.Module],
    shapes: Mapping[Any, Shape],
    wanted: Mapping[Any, Axis | None],
) -> Axis | None:
    """What whoever reads a value expects of it."""
    if user.op == "call_module":
        told = axis_of_module(modules[user.target])
        if told is not None:
            return told
    word = _word(user)
    if word in _CONVOLUTIONS:
        return "first"
    if word == "linear":
        return "last"
    if user not in shapes or node not in shapes or word in _RESHAPES or word == "flatten":
        return None
    if word in ("permute", "transpose"):
        return _moved(user, wanted[user], len(shapes[node]), back=True)
    return wanted[user] if len(shapes[user]) == len(shapes[node]) else None


def _moved(node: Any, axis: Axis | None, rank: int, *, back: bool = False) -> Axis | None:
    """Where a permutation puts the channel axis; with ``back``, where it came from."""
    if axis is None:
        return None
    numbers = [a for a in node.args[1:] if isinstance(a, int)] or [
        n for a in node.args[1:] if isinstance(a, tuple | list) for n in a if isinstance(n, int)
    ]
    order = list(range(rank + 1))
    numbers = [n % (rank + 1) for n in numbers]
    if _word(node) == "transpose" and len(numbers) == 2:
        order[numbers[0]], order[numbers[1]] = order[numbers[1]], order[numbers[0]]
    elif len(numbers) == rank + 1:
        order = numbers
    else:
        return None
    channel = 1 if axis == "first" else rank
    place = order[channel] if back else order.index(channel)
    if rank == 1:
        return axis
    return "first" if place == 1 else "last" if place == rank else None


def _word(node: Any) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_")
