"""An ``.onnx`` file as plain values: nodes, attributes, shapes; of constants their sizes and short lists of integers.

Fields are those of onnx.proto 1.20; only lengths are followed, so a device needs no protobuf. Every byte is looked at
at most twice, graphs inside graphs go eight deep, and no weights are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from kasmina_edge.engines.onnx_file import message_fields
from kasmina_edge.errors import BundleError

Shape = tuple[int, ...]
OpenShape = tuple[int | str, ...]
MAX_DEPTH = 8
MAX_RANK = 8
MAX_ELEMENTS = 1 << 40
MAX_KNOWN = 1024
"""Integers that are read of a constant: shapes, axes, sizes."""
_BYTES, _FIXED32 = 2, 5
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "int16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "int32", 13: "int64", 16: "float16", 17: "int8", 18: "int8", 19: "int8", 20: "int8",
    21: "int4", 22: "int4", 23: "int4",
}  # fmt: skip
"""``TensorProto.DataType`` as the type of `BITS` that takes as much room."""
_INTEGERS = {2: "B", 3: "b", 5: "h", 6: "i", 7: "q", 9: "B"}


@dataclass(frozen=True)
class Constant:
    """A tensor that stands in the file.

    Attributes:
        shape: Its axes.
        dtype: A key of `BITS`.
        values: Its numbers where they are few; None otherwise.
    """

    shape: Shape
    dtype: str
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        kind: ``op_type``.
        inputs: Names; "" where an optional one is absent.
        outputs: Names.
        ints: Attributes of one or several integers.
        texts: Attributes of text.
        constant: An attribute that is a tensor, of ``Constant`` and ``ConstantOfShape``.
        graphs: Attributes that are graphs.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ints: dict[str, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    constant: Constant | None = None
    graphs: dict[str, Graph] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution.

    Attributes:
        name: Its own.
        nodes: The operations.
        constants: Initializers by name.
        inputs: What is fed, by name: type and axes; a text where an axis is open.
        outputs: What comes out, the same.
        told: What the file says about values in between, the same.
    """

    name: str
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: dict[str, tuple[str, OpenShape | None]]
    outputs: dict[str, tuple[str, OpenShape | None]]
    told: dict[str, tuple[str, OpenShape | None]]


def read_graph(data: bytes) -> Graph:
    """The main graph of a model.

    Raises:
        ValueError: The bytes are no ONNX model, or are cut off; the message says where.
        BundleError: Graphs stand too deep in each other, or a shape is beyond all limits.
    """
    try:
        for number, wire, at, size in message_fields(data, 0, len(data)):
            if number == 7 and wire == _BYTES:
                return _graph(data, at, at + size, 0)
    except (struct.error, OverflowError) as exc:
        raise ValueError(str(exc)) from exc
    raise ValueError("it holds no graph")


def _graph(data: bytes, at: int, end: int, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise BundleError(f"an ONNX model with graphs more than {MAX_DEPTH} deep in each other")
    name, nodes = "", []
    constants: dict[str, Constant] = {}
    values: dict[int, dict[str, tuple[str, OpenShape | None]]] = {11: {}, 12: {}, 13: {}}
    for number, wire, start, size in message_fields(data, at, end):
        if wire != _BYTES:
            continue
        if number == 1:
            nodes.append(_node(data, start, start + size, depth))
        elif number == 2:
            name = _text(data, start, size)
        elif number == 5:
            key, constant = _tensor(data, start, start + size)
            constants[key] = constant
        elif number in values:
            key, told = _value(data, start, start + size)
            values[number][key] = told
    fed = {key: told for key, told in values[11].items() if key not in constants}
    return Graph(name, tuple(nodes), constants, fed, values[12], values[13])


def _node(data: bytes, at: int, end: int, depth: int) -> Node:
    kind, inputs, outputs = "", [], []
    node = Node("", (), ())
    constant = None
    for number, wire, start, size in message_fields(data, at, end):
        if wire != _BYTES:
            continue
        if number == 1:
            inputs.append(_text(data, start, size))
        elif number == 2:
            outputs.append(_text(data, start, size))
        elif number == 4:
            kind = _text(data, start, size)
        elif number == 5:
            constant = _attribute(data, start, start + size, node, depth) or constant
    return Node(kind, tuple(inputs), tuple(outputs), node.ints, node.texts, constant, node.graphs)


def _attribute(data: bytes, at: int, end: int, node: Node, depth: int) -> Constant | None:
    """Put an attribute into a node's tables; one that is a tensor is returned."""
    name, ints, text, graph, constant = "", [], None, None, None
    for number, wire, start, size in message_fields(data, at, end):
        if number == 1:
            name = _text(data, start, size)
        elif number in (3, 8):
            ints += _signed(data, wire, start, size)
        elif number == 4:
            text = _text(data, start, size)
        elif number == 5 and wire == _BYTES:
            _, constant = _tensor(data, start, start + size)
        elif number == 6 and wire == _BYTES:
            graph = (start, start + size)
    if ints:
        node.ints[name] = tuple(ints)
    if text is not None:
        node.texts[name] = text
    if graph is not None:
        node.graphs[name] = _graph(data, *graph, depth + 1)
    if name == "value_ints" and ints:
        return Constant((len(ints),), "int64", tuple(ints) if len(ints) <= MAX_KNOWN else None)
    if name == "value_int" and ints:
        return Constant((), "int64", (ints[0],))
    return constant


def _tensor(data: bytes, at: int, end: int) -> tuple[str, Constant]:
    name, code, raw = "", 0, None
    dims: list[int] = []
    listed: list[int] = []
    for number, wire, start, size in message_fields(data, at, end):
        if number == 1:
            dims += _signed(data, wire, start, size)
        elif number == 2:
            code = start
        elif number in (5, 7) and len(listed) <= MAX_KNOWN and size <= 10 * MAX_KNOWN:
            listed += _signed(data, wire, start, size)
        elif number == 8:
            name = _text(data, start, size)
        elif number == 9:
            raw = (start, size)
    shape = checked(tuple(dims), name)
    count, values = math.prod(shape), None
    if count <= MAX_KNOWN and code in _INTEGERS:
        if raw is not None:
            letter = _INTEGERS[code]
            if raw[1] == count * struct.calcsize(f"<{letter}"):
                values = struct.unpack_from(f"<{count}{letter}", data, raw[0])
        elif len(listed) == count:
            values = tuple(listed)
    elif count <= MAX_KNOWN and code == 1 and raw is not None and raw[1] == 4 * count:
        values = struct.unpack_from(f"<{count}f", data, raw[0])
    return name, Constant(shape, TYPES.get(code, "float32"), values)


def _value(data: bytes, at: int, end: int) -> tuple[str, tuple[str, OpenShape | None]]:
    name = ""
    told: tuple[str, OpenShape | None] = ("float32", None)
    for number, wire, start, size in message_fields(data, at, end):
        if number == 1:
            name = _text(data, start, size)
        elif number == 2 and wire == _BYTES:
            for inner, inner_wire, inner_at, inner_size in message_fields(data, start, start + size):
                if inner == 1 and inner_wire == _BYTES:
                    told = _tensor_type(data, inner_at, inner_at + inner_size, name)
    return name, told


def _tensor_type(data: bytes, at: int, end: int, name: str) -> tuple[str, OpenShape | None]:
    code, shape = 1, None
    for number, wire, start, size in message_fields(data, at, end):
        if number == 1:
            code = start
        elif number == 2 and wire == _BYTES:
            shape = tuple(_axes(data, start, start + size))
    if shape is not None and len(shape) > MAX_RANK:
        raise BundleError(f"{name!r} has {len(shape)} axes, at most {MAX_RANK} are read")
    return TYPES.get(code, "float32"), shape


def _axes(data: bytes, at: int, end: int) -> Iterator[int | str]:
    for number, wire, start, size in message_fields(data, at, end):
        if number == 1 and wire == _BYTES:
            axis: int | str = ""
            for inner, inner_wire, inner_at, inner_size in message_fields(data, start, start + size):
                if inner == 1 and not inner_wire:
                    axis = inner_at
                elif inner == 2:
                    axis = _text(data, inner_at, inner_size)
            yield axis


def checked(shape: Shape, name: str) -> Shape:
    """The shape, if it can be one.

    Raises:
        BundleError: An axis is negative, there are too many, or too many elements.
    """
    if len(shape) > MAX_RANK or any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise BundleError(
            f"{name!r}: shape {shape[: MAX_RANK + 1]}; no axis is negative, there are at most {MAX_RANK}, and "
            f"{MAX_ELEMENTS} elements"
        )
    return shape


def _signed(data: bytes, wire: int, at: int, size: int) -> list[int]:
    """One varint, or a packed list of them, as signed 64-bit numbers."""
    if wire == 0:
        return [_sign(at)]
    if wire != _BYTES:
        return []
    found, value, shift = [], 0, 0
    for byte in data[at : at + size]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(_sign(value))
            value = shift = 0
        elif shift > 63:
            raise ValueError("a number of more than ten bytes")
    return found


def _sign(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _text(data: bytes, at: int, size: int) -> str:
    return data[at : at + size].decode(errors="replace")
