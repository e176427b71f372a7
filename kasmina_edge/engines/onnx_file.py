"""A look into an .onnx file: does it name files beside it? ONNX Runtime would read those, and nobody has signed them.

Only the lengths of the protobuf messages are followed (onnx.proto 1.20, https://protobuf.dev/programming-guides/encoding/),
so that a device needs no other library. What a tensor holds is not read.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_TAG = 2**32 - 1
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OP_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 4, 8, 13, 14
_CONTEXT = b"EPContext"
"""ONNX Runtime's operator for a provider's compiled model, which may lie in another file."""


def outside_part(data: bytes) -> str | None:
    """What the model keeps in another file: a tensor's name or an operator's, None when it is all in ``data``.

    Raises:
        ValueError: The bytes are no ONNX model.
    """
    pending = [("model", 0, len(data))]
    graphs = 0
    while pending:
        kind, start, end = pending.pop()
        children = _CHILDREN[kind]
        graphs += kind == "graph"
        outside, name = False, ""
        for field, wire, value, size in message_fields(data, start, end):
            if wire == _BYTES and field in children:
                pending.append((children[field], value, value + size))
            elif kind == "node" and field == _OP_TYPE and data[value : value + size] == _CONTEXT:
                return "the compiled part of an EPContext operator"
            elif kind == "tensor":
                outside |= field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)
                if field == _NAME and wire == _BYTES:
                    name = data[value : value + min(size, 80)].decode(errors="replace")
        if outside:
            return f"the tensor {name!r}"
    if not graphs:
        raise ValueError("it holds no graph")
    return None


def message_fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, value or where it begins, size) of each field of a message."""
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = tag >> 3, tag & 7
        if tag > _MAX_TAG or not field:
            raise ValueError("it is no protobuf message")
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield field, wire, value, 0
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:  # groups are older than ONNX
            raise ValueError("it is no protobuf message")
        if size > end - at:
            raise ValueError("it is cut off")
        yield field, wire, at, size
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it is no protobuf message")
