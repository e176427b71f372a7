"""What a blueprint may stand on: a named value inside a network, its shape, and the layer that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal, Self, SupportsIndex, overload

from kasmina_edge.errors import InputError

Shape = tuple[int, ...]
"""A shape without the batch."""


class Layout(StrEnum):
    """Which axis of a value carries the channels."""

    IMAGE = "image"
    SERIES = "series"
    TOKENS = "tokens"
    VECTOR = "vector"


SPELLED = {
    Layout.IMAGE: "(C, H, W)",
    Layout.SERIES: "(C, L)",
    Layout.TOKENS: "(L, D) tokens",
    Layout.VECTOR: "(C,)",
}
"""How each layout is written in messages."""
RANKS = {Layout.IMAGE: 3, Layout.SERIES: 2, Layout.TOKENS: 2, Layout.VECTOR: 1}
"""Axes of each layout, without the batch."""
_PLAIN = {3: Layout.IMAGE, 2: Layout.SERIES, 1: Layout.VECTOR}


@dataclass(frozen=True)
class Layer:
    """The convolution or linear layer whose output a port is; what a parallel branch has to copy.

    Attributes:
        kind: Which layer.
        inputs: Channels or features that enter.
        outputs: Channels or features that leave.
        kernel: Taps an axis; () of a linear layer, as the four after it.
        stride: Steps an axis.
        padding: Zeros on either side, an axis.
        dilation: Distance of taps, an axis.
        groups: Of a grouped convolution.
    """

    kind: Literal["conv1d", "conv2d", "linear"]
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class Port:
    """A value in the host where something may be added. As a sequence, it is its shape.

    Attributes:
        name: As the manifest will say it.
        shape: Without the batch.  # (C, H, W), (C, L), (L, D) or (C,)
        layout: Which axis carries the channels.
        layer: The layer that it leaves, and whose input a parallel branch reads; None: only series branches fit.
        input_shape: What enters that layer, without the batch.
        context: Shape of a second value that this port offers (cross-attention); None: none.

    Raises:
        InputError: Shape and layout do not go together.

    >>> port = Port.of((16, 8, 8), "s1")
    >>> port.rank, port.channels, port.positions, port[0]
    (3, 16, 64, 16)
    """

    name: str
    shape: Shape
    layout: Layout
    layer: Layer | None = None
    input_shape: Shape | None = None
    context: Shape | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != RANKS[self.layout] or min(self.shape) < 1:
            raise InputError(f"site {self.name}: expected a shape {SPELLED[self.layout]}, got {self.shape}")

    @property
    def rank(self) -> int:
        """Axes without the batch: 1, 2 or 3."""
        return len(self.shape)

    @property
    def channels(self) -> int:
        """Length of the channel axis."""
        return self.shape[-1] if self.layout is Layout.TOKENS else self.shape[0]

    @property
    def positions(self) -> int:
        """Places that carry channels: pixels, samples, tokens, or 1."""
        return prod(self.shape) // self.channels

    @property
    def channel_shape(self) -> Shape:
        """The shape with a batch of 1 in which each channel has one value.  # (1, C, 1, 1), (1, C, 1) or (1, 1, D)"""
        ones = [1] * (self.rank + 1)
        ones[2 if self.layout is Layout.TOKENS else 1] = self.channels
        return tuple(ones)

    def source(self) -> Port:
        """What enters the layer, as a port.

        Raises:
            InputError: This port leaves no layer.
        """
        if self.layer is None or self.input_shape is None:
            raise InputError(f"site {self.name} leaves no convolution or linear layer; a parallel branch has no input")
        return Port(f"{self.name}:input", self.input_shape, self.layout)

    def other(self) -> Port:
        """The second value that this port offers, as a port.

        Raises:
            InputError: It offers none.
        """
        if self.context is None:
            raise InputError(f"site {self.name} offers no second value to attend to")
        tokens = len(self.context) == 2 and self.layout is Layout.TOKENS
        layout = Layout.TOKENS if tokens else _layout_of(self.context)
        return Port(f"{self.name}:context", self.context, layout)

    @classmethod
    def of(cls, shape: Shape, name: str = "site") -> Self:
        """A port by shape alone: (C, H, W) is an image, (C, L) a series, (C,) a vector. Tokens have to be said.

        Raises:
            InputError: Another number of axes, or an empty one.
        """
        return cls(name, tuple(shape), _layout_of(tuple(shape)))

    def __len__(self) -> int:
        return len(self.shape)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shape)

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Shape: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | Shape:
        return self.shape[index]


def _layout_of(shape: Shape) -> Layout:
    if len(shape) not in _PLAIN or min(shape) < 1:
        raise InputError(f"expected a site of shape (C, H, W), (C, L) or (C,), got {shape}")
    return _PLAIN[len(shape)]
