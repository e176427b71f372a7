"""FlatBuffers written without the flatbuffers package: tables and vectors as values, laid out once and in order.

Every offset of the format leads forward, so a breadth-first walk writes a table, then what it points to, and fills the
offsets in (https://flatbuffers.dev/internals/). Equal values give equal bytes; nothing is shared between two tables.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_ALIGNED = 16  # of a vector's first element: TFLite asks it of constants


@dataclass(frozen=True)
class Scalar:
    """A number of a table: its struct code and its value."""

    code: str
    value: float


@dataclass(frozen=True)
class Packed:
    """A vector of numbers or bytes.

    Attributes:
        count: Of elements.
        data: Little-endian.
    """

    count: int
    data: bytes


@dataclass(frozen=True)
class Table:
    """Fields by number; what is not there has its default."""

    fields: Mapping[int, Value]


Value = Scalar | Packed | Table | Sequence["Table"]


def ints(values: Iterable[int], code: str = "i") -> Packed:
    """A vector of integers."""
    listed = list(values)
    return Packed(len(listed), struct.pack(f"<{len(listed)}{code}", *listed))


def floats(values: Iterable[float]) -> Packed:
    """A vector of 32-bit floating-point numbers."""
    listed = list(values)
    return Packed(len(listed), struct.pack(f"<{len(listed)}f", *listed))


def text(value: str) -> Packed:
    """A string, with the zero byte that the format wants behind it."""
    raw = value.encode()
    return Packed(len(raw), raw + b"\0")


def write_flat(root: Table, identifier: bytes) -> bytes:
    """The file.

    Args:
        root: Its outermost table.
        identifier: Four bytes that tell what it is.
    """
    out = bytearray(struct.pack("<I4s", 0, identifier))
    waiting: deque[tuple[int, Value]] = deque([(0, root)])
    while waiting:
        slot, value = waiting.popleft()
        if isinstance(value, Table):
            at, more = _table(out, value)
        elif isinstance(value, Packed):
            at, more = _packed(out, value), []
        else:
            assert not isinstance(value, Scalar)
            at, more = _vector(out, value)
        struct.pack_into("<I", out, slot, at - slot)
        waiting.extend(more)
    return bytes(out)


def _pad(out: bytearray, to: int, ahead: int = 0) -> None:
    out.extend(bytes(-(len(out) + ahead) % to))


def _table(out: bytearray, table: Table) -> tuple[int, list[tuple[int, Value]]]:
    count = max(table.fields, default=-1) + 1
    sizes = {n: struct.calcsize(v.code) if isinstance(v, Scalar) else 4 for n, v in table.fields.items()}
    places: dict[int, int] = {}
    at = 4
    for number in sorted(sizes, key=lambda n: (-sizes[n], n)):  # the widest first: no gaps but one
        at += -at % sizes[number]
        places[number] = at
        at += sizes[number]
    vtable_bytes = 4 + 2 * count
    _pad(out, 8, ahead=vtable_bytes)
    vtable = len(out)
    out.extend(struct.pack(f"<HH{count}H", vtable_bytes, at, *(places.get(n, 0) for n in range(count))))
    start = len(out)
    out.extend(bytes(at))
    struct.pack_into("<i", out, start, start - vtable)
    more: list[tuple[int, Value]] = []
    for number, place in places.items():
        value = table.fields[number]
        if isinstance(value, Scalar):
            whole = value.value if value.code in "fd" else int(value.value)
            struct.pack_into(f"<{value.code}", out, start + place, whole)
        else:
            more.append((start + place, value))
    return start, more


def _packed(out: bytearray, vector: Packed) -> int:
    _pad(out, _ALIGNED, ahead=4)
    at = len(out)
    out.extend(struct.pack("<I", vector.count) + vector.data)
    return at


def _vector(out: bytearray, tables: Sequence[Table]) -> tuple[int, list[tuple[int, Value]]]:
    _pad(out, 4)
    at = len(out)
    out.extend(struct.pack("<I", len(tables)) + bytes(4 * len(tables)))
    return at, [(at + 4 + 4 * i, table) for i, table in enumerate(tables)]
