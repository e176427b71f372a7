"""Tensors and operations of an ``.onnx`` file while it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.onnx_graph import Constant, Node
from kasmina_edge.hardware_simulator.onnx_operators import Description, described
from kasmina_edge.hardware_simulator.workload import BITS, Shape

MISFITS = (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError)
"""What a node raises that lacks an operand or an attribute."""


@dataclass
class Value:
    """A tensor while the file is read.

    Attributes:
        name: Its name in the file.
        shape: In ONNX's layout.
        dtype: A key of `BITS`.
        constant: It stands in the file.
        image: Its second axis is the channels.
        numbers: Where they are known.
        writer: The operation that writes it; None: fed or constant.
    """

    name: str
    shape: Shape
    dtype: str
    constant: bool = False
    image: bool = False
    numbers: tuple[float, ...] | None = None
    writer: Draft | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes, 4-bit numbers packed two a byte."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)

    @property
    def channels_last(self) -> Shape:
        """Its shape with the channels last, where it is an image; a signal counts as an image one pixel high."""
        shape = self.shape
        if not self.image or len(shape) < 3:
            return shape
        return (shape[0], *((1,) if len(shape) == 3 else ()), *shape[2:], shape[1])


@dataclass
class Draft:
    """An operation while the file is read.

    Attributes:
        node: As it stands in the file.
        inputs: What it reads, constants included.
        outputs: What it writes; absent ones are left out.
        place: Where it stands, for messages: ``op 3 Conv``.
        activation: Of a Relu or Clip that became part of it.
    """

    node: Node
    inputs: list[Value]
    outputs: list[Value]
    place: str
    activation: str = ""

    @property
    def description(self) -> Description:
        """What its kind makes of it.

        Raises:
            BundleError: It lacks an operand or an attribute that its kind needs.
        """
        try:
            return described(self.node, self.inputs, self.outputs)
        except MISFITS as exc:
            raise misfit(self.place) from exc


def misfit(place: str) -> BundleError:
    """The error for a node that raised one of `MISFITS`."""
    return BundleError(
        f"{place}: its inputs, outputs and attributes do not fit together",
        "Run onnx.checker.check_model on the model; it is damaged, or its exporter is wrong.",
    )


def constant_value(name: str, constant: Constant) -> Value:
    """A tensor that stands in the file."""
    return Value(name, constant.shape, constant.dtype, constant=True, numbers=constant.values)
