"""One ONNX node on its way to PyTorch: its options, and what its inputs are by now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from kasmina_trainer.export.source.builder import GraphBuilder

Array = npt.NDArray[Any]
Made = Sequence[fx.Node | Array]


class Unsupported(Exception):  # noqa: N818 - it says what it says; callers make an InputError of it
    """An operator with options that cannot be taken; ``step`` says what to do."""

    def __init__(self, message: str, step: str = "Replace it in the network, or export from PyTorch.") -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Step:
    """One ONNX node with what its inputs are by now."""

    build: GraphBuilder
    inputs: tuple[str, ...]
    outputs: int
    options: Mapping[str, Any]
    fixed: MutableMapping[str, Array]
    nodes: Mapping[str, fx.Node]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int
    name: str
    origin: str

    def has(self, place: int) -> bool:
        """Whether input ``place`` is given."""
        return place < len(self.inputs) and bool(self.inputs[place])

    def array(self, place: int) -> Array:
        """Input ``place``, which must be constant."""
        if not self.has(place) or self.inputs[place] not in self.fixed:
            raise Unsupported(f"computes its input {place}, which must be constant")
        return self.fixed[self.inputs[place]]

    def ints(self, place: int, option: str) -> list[int] | None:
        """Whole numbers that stood in an option once and stand in an input since."""
        if option in self.options:
            found = self.options[option]
            return [int(v) for v in found] if not isinstance(found, int) else [found]
        return [int(v) for v in self.array(place).ravel()] if self.has(place) else None

    def tensor(self, place: int) -> torch.Tensor:
        """Input ``place`` as a constant tensor."""
        return torch.from_numpy(np.array(self.array(place), copy=True))

    def value(self, place: int) -> fx.Node:
        """Input ``place``, computed or constant."""
        name = self.inputs[place]
        if name in self.nodes:
            return self.nodes[name]
        return self.build.constant(self.tensor(place))

    def rank(self, place: int) -> int:
        """Axes of input ``place``."""
        return len(self.shape(place))

    def shape(self, place: int) -> tuple[int, ...]:
        """Shape of input ``place``."""
        name = self.inputs[place]
        found = self.fixed[name].shape if name in self.fixed else self.shapes.get(name)
        if found is None or any(n <= 0 for n in found):
            raise Unsupported("has an input of open shape", "Fix the shapes with --input-shape.")
        return tuple(found)

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[fx.Node]:
        """What a function gives, as the node's one output."""
        return [self.build.call(function, *args, origin=self.origin, **options)]

    def layer(self, module: nn.Module) -> list[fx.Node]:
        """What a layer gives on input 0, as the node's one output."""
        return [self.build.layer(module, self.value(0), name=self.name, origin=self.origin)]

    def text(self, option: str, default: str) -> str:
        """An option that is text."""
        found = self.options.get(option, default)
        return found.decode() if isinstance(found, bytes) else str(found)
