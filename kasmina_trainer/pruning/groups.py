"""Channels that have to go together, as groups: the unit in which a network can be made smaller."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.coupling import Coupling, Slot, canonical_names
from kasmina_trainer.pruning.following import couple
from kasmina_trainer.pruning.frames import runs_on
from kasmina_trainer.seeds import SeededNetwork

Channel = tuple[tuple[str, int, tuple[int, ...]], ...]
"""One channel: the places (tensor, axis, indices) that vanish with it."""


@dataclass(frozen=True)
class Group:
    """Channels of one kind: each takes the same number of places from the same tensors.

    Attributes:
        name: The first tensor that writes them, without ``.weight``; unique in a network.
        channels: In order of their place in that tensor.
        reading: Those of their axes along which a layer reads them.
    """

    name: str
    channels: tuple[Channel, ...]
    reading: frozenset[Slot]

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def places(self) -> dict[Slot, int]:
        """Numbers along each axis that one channel takes."""
        return {(tensor, axis): len(indices) for tensor, axis, indices in self.channels[0]}


@dataclass(frozen=True)
class Structure:
    """What can be taken out of a network, and what each weight costs.

    Attributes:
        groups: In order of flow.
        work: Multiplications one frame for each number of a weight, by tensor.
        sizes: Shapes of those weights.
    """

    groups: tuple[Group, ...]
    work: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def channels(self) -> int:
        """All channels that may go."""
        return sum(len(group) for group in self.groups)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers, one frame."""
        return sum(int(np.prod(self.sizes[name])) * count for name, count in self.work.items())


def channel_groups(network: nn.Module, example: torch.Tensor) -> tuple[Group, ...]:
    """The channels of a network that may be taken out, in groups.

    Channels of the network's inputs and outputs are in none of them, nor are those that an operation touches which is
    not known to treat channels apart.

    Args:
        network: In evaluation mode; it is not changed.
        example: Inputs; the first one is used.  # (N, C, ...)

    Raises:
        InputError: The network cannot be traced, or does not take the example.
    """
    return read_structure(network, example).groups


def read_structure(network: nn.Module, example: torch.Tensor) -> Structure:
    """As `channel_groups`, with what each weight costs.

    Raises:
        InputError: As `channel_groups`, the network does not run on the example, or it is a host under its seeds.
    """
    if isinstance(network, SeededNetwork):
        raise InputError(
            "channels of a frozen host cannot go from under its seeds: its digest would change",
            "Prune host_copy() or module_for_export(), and attach seeds to what is left.",
        )
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with runs_on(network, example):
            coupling = couple(network, example[:1])
    finally:
        for module, mode in training:
            module.training = mode
    state = {name: value for value, name in _tensors(network)}
    sizes = {name: tuple(state[name].shape) for name in coupling.work}
    return Structure(_grouped(coupling), dict(coupling.work), sizes)


def dropped_places(groups: Sequence[Group], drop: Mapping[str, Sequence[int]]) -> dict[Slot, set[int]]:
    """Every index that goes, by tensor and axis.

    Raises:
        InputError: No such group or channel, or nothing of a group would be left.
    """
    by_name = {group.name: group for group in groups}
    found: dict[Slot, set[int]] = defaultdict(set)
    for name, channels in drop.items():
        if name not in by_name:
            raise InputError(f"no group of channels is called {name!r}; there are {', '.join(by_name) or 'none'}")
        group, wanted = by_name[name], set(channels)
        if not wanted <= set(range(len(group))):
            raise InputError(f"group {name}: channel {max(wanted)} of {len(group)}")
        if len(wanted) >= len(group):
            raise InputError(f"group {name}: all {len(group)} channels would go, 1 must stay")
        for place in wanted:
            for tensor, axis, indices in group.channels[place]:
                found[tensor, axis].update(indices)
    return dict(found)


def _grouped(coupling: Coupling) -> tuple[Group, ...]:
    protected = coupling.protected_roots()
    channels: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for (tensor, axis), labels in coupling.slots.items():
        for index, element in enumerate(labels.tolist()):
            root = coupling.root(element)
            if root not in protected:
                channels[root].append((tensor, axis, index))
    kinds: dict[tuple[tuple[str, int, int], ...], list[Channel]] = defaultdict(list)
    for places in channels.values():
        by_slot: dict[Slot, list[int]] = defaultdict(list)
        for tensor, axis, index in places:
            by_slot[tensor, axis].append(index)
        kind = tuple((tensor, axis, len(indices)) for (tensor, axis), indices in by_slot.items())
        kinds[kind].append(tuple((tensor, axis, tuple(indices)) for (tensor, axis), indices in by_slot.items()))
    groups: list[Group] = []
    taken: set[str] = set()
    for kind, members in kinds.items():
        stem = kind[0][0].removesuffix(".weight")
        name, count = stem, 2
        while name in taken:
            name, count = f"{stem}#{count}", count + 1
        taken.add(name)
        members.sort(key=lambda channel: channel[0][2])
        reading = frozenset((t, a) for t, a, _ in kind if (t, a) in coupling.reading)
        if len(members) > 1:
            groups.append(Group(name, tuple(members), reading))
    return tuple(groups)


def _tensors(network: nn.Module) -> list[tuple[torch.Tensor, str]]:
    names = canonical_names(network)
    found = [*network.parameters(), *network.buffers()]
    return [(value, names[id(value)]) for value in found]
