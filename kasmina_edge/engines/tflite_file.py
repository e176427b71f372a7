"""A look into a ``.tflite`` file without the flatbuffers package: the reader, and which number types its tensors have.

The layout is FlatBuffers' (https://flatbuffers.dev/internals/): little-endian offsets, tables whose fields are found
through a vtable. Field numbers and type codes are those of TFLite's schema.fbs. Every offset is checked against the
length, and no more tensors are read than the file has room for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

IDENTIFIER = b"TFL3"
INT4 = 17
"""``TensorType.INT4`` of schema.fbs: two values a byte."""
_SUBGRAPHS, _TENSORS, _TYPE = 2, 0, 1


def tensor_types(data: bytes) -> frozenset[int]:
    """The ``TensorType`` codes of all tensors of all subgraphs; 0 is float32, 9 int8, 17 int4.

    Raises:
        ValueError: Not a TFLite file, cut off, or an offset leads out of it.
    """
    if data[4:8] != IDENTIFIER:
        raise ValueError("not a TFLite file: bytes 4 to 8 are not TFL3")
    file = FlatFile(data)
    try:
        model = file.follow(0)
        return frozenset(
            file.scalar(tensor, _TYPE, "<B")
            for subgraph in file.tables(model, _SUBGRAPHS)
            for tensor in file.tables(subgraph, _TENSORS)
        )
    except struct.error as exc:
        raise ValueError(f"not a TFLite file: an offset leads out of its {len(data)} bytes") from exc


class FlatFile:
    """Reads tables and their fields in place; whatever leads out of the file is a ``struct.error``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._room = len(data)  # each table takes at least four bytes, so a file that loops runs out of room

    def follow(self, at: int) -> int:
        """Where an unsigned offset at ``at`` leads."""
        return at + self._unpack("<I", at)

    def field(self, table: int, number: int) -> int | None:
        """Where a table's field lies; None where it has its default."""
        vtable = table - self._unpack("<i", table)
        at = 4 + 2 * number
        if at + 2 > self._unpack("<H", vtable):
            return None
        offset = self._unpack("<H", vtable + at)
        return table + offset if offset else None

    def scalar(self, table: int, number: int, kind: str) -> int:
        """A number field; its default, 0, where the table leaves it out."""
        place = self.field(table, number)
        return 0 if place is None else self._unpack(kind, place)

    def tables(self, table: int, number: int) -> Iterator[int]:
        """The tables of a vector field."""
        start, length = self._vector(table, number)
        self._room -= 4 * length
        if self._room < 0:
            raise struct.error("more tables than the file has room for")
        for i in range(length):
            yield self.follow(start + 4 * i)

    def numbers(self, table: int, number: int) -> tuple[int, ...]:
        """The 32-bit integers of a vector field."""
        start, length = self._vector(table, number)
        return struct.unpack_from(f"<{length}i", self.data, start) if length else ()

    def _vector(self, table: int, number: int) -> tuple[int, int]:
        """Where a vector's elements begin, and how many of at least four bytes there are."""
        place = self.field(table, number)
        if place is None:
            return 0, 0
        start = self.follow(place)
        length = self._unpack("<I", start)
        if 4 * length > len(self.data):
            raise struct.error("a vector longer than the file")
        return start + 4, length

    def _unpack(self, kind: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset leads before the beginning")
        value: int = struct.unpack_from(kind, self.data, at)[0]
        return value
