"""Which slices of which tensors carry the same channel: a union-find over (tensor, axis, index)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import nn

Labels = npt.NDArray[np.int64]
Slot = tuple[str, int]
"""A tensor of the network's state and one of its axes."""


@dataclass
class Coupling:
    """What one pass has taught.

    Attributes:
        slots: First element of every axis that carries channels; its other elements follow.
        parents: Union-find over elements.
        protected: Elements that must stay.
        reading: Axes along which a layer reads channels; all others write or scale them.
        work: Multiplications one frame for each number of a weight.
    """

    slots: dict[Slot, Labels] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)
    protected: set[int] = field(default_factory=set)
    reading: set[Slot] = field(default_factory=set)
    work: dict[str, int] = field(default_factory=dict)

    def slot(self, name: str, axis: int, length: int) -> Labels:
        """The elements of an axis."""
        if (name, axis) not in self.slots:
            self.slots[name, axis] = self.fresh(length)
        return self.slots[name, axis]

    def fresh(self, length: int) -> Labels:
        """New elements, tied to nothing."""
        first = len(self.parents)
        self.parents.extend(range(first, first + length))
        return np.arange(first, first + length)

    def root(self, element: int) -> int:
        """The element that stands for all that are tied to it."""
        while self.parents[element] != element:
            self.parents[element] = self.parents[self.parents[element]]
            element = self.parents[element]
        return element

    def tie(self, a: Labels, b: Labels) -> None:
        """Tie elements pairwise."""
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            one, other = sorted((self.root(left), self.root(right)))
            self.parents[other] = one

    def protect(self, labels: Labels) -> None:
        """Keep elements, and what is tied to them, now or later."""
        self.protected.update(labels.tolist())

    def protected_roots(self) -> set[int]:
        """Roots that must stay."""
        return {self.root(element) for element in self.protected}


def canonical_names(network: nn.Module) -> dict[int, str]:
    """The first name of every tensor of the state, by identity: tied weights have several."""
    names: dict[int, str] = {}
    for source in (network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)):
        for name, value in source:
            names.setdefault(id(value), name)
    return names
