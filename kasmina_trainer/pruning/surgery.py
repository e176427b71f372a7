"""Takes channels out of a network for good: every tensor that holds them becomes smaller, and so does the file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kasmina_trainer.pruning.coupling import Slot
from kasmina_trainer.pruning.groups import Group, dropped_places


def without(network: nn.Module, groups: Sequence[Group], drop: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy that lacks some channels.

    It computes what the network would compute if every layer ignored those channels.

    Args:
        network: It is not changed.
        groups: Of this very network.
        drop: Channels by the name of their group.

    Raises:
        InputError: No such group or channel, or nothing of a group would be left.
    """
    smaller = copy.deepcopy(network)
    take_out(smaller, groups, drop)
    return smaller


def take_out(network: nn.Module, groups: Sequence[Group], drop: Mapping[str, Sequence[int]]) -> None:
    """As `without`, in the network itself: its layers get new tensors, all of them or, where that fails, none."""
    places = dropped_places(groups, drop)
    depth = {name: m.out_channels // m.in_channels for name, m in network.named_modules() if _is_depthwise(m)}
    made: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for name, value in _owned(network):
            if id(value) not in made:
                cuts = {axis: indices for (tensor, axis), indices in places.items() if tensor == name}
                if cuts:
                    made[id(value)] = _shortened(value, cuts)
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for key, old in store.items():
                if old is not None and id(old) in made:
                    store[key] = made[id(old)]  # type: ignore[assignment]
    for name, module in network.named_modules():
        _fit(module, depth.get(name))


def silenced(network: nn.Module, groups: Sequence[Group], drop: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of full size whose layers ignore some channels: what `without` must equal."""
    chosen = dropped_places(groups, drop)
    reading: set[Slot] = set().union(*(group.reading for group in groups))
    deaf = copy.deepcopy(network)
    with torch.no_grad():
        for name, value in _owned(deaf):
            for axis in range(value.ndim):
                if (name, axis) in chosen and (name, axis) in reading:
                    value.index_fill_(axis, torch.tensor(sorted(chosen[name, axis])), 0.0)
    return deaf


def _owned(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _shortened(value: torch.Tensor, cuts: Mapping[int, set[int]]) -> torch.Tensor:
    short = value.detach()
    for axis, gone in cuts.items():
        stays = torch.tensor([i for i in range(value.shape[axis]) if i not in gone], device=value.device)
        short = short.index_select(axis, stays)
    short = short.contiguous()
    return nn.Parameter(short, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else short


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def _fit(module: Any, depth: int | None) -> None:
    """Set a layer's own idea of its width to that of its weights."""
    if isinstance(module, _ConvNd):
        outputs, inputs = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        module.out_channels = int(module.weight.shape[outputs])
        if depth is not None:
            module.in_channels = module.groups = module.out_channels // depth
        else:
            module.in_channels = int(module.weight.shape[inputs]) * (1 if inputs == 0 else module.groups)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = (int(n) for n in module.weight.shape)
    elif isinstance(module, _BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = int(module.weight.numel())
