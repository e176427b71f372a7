"""A look into a ``.tflite`` file without the flatbuffers package: which number types its tensors have.

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
    file = _File(data)
    try:
        model = file.follow(0)
        return frozenset(
            file.byte_field(tensor, _TYPE)
            for subgraph in file.tables(model, _SUBGRAPHS)
            for tensor in file.tables(subgraph, _TENSORS)
        )
    except struct.error as exc:
        raise ValueError(f"not a TFLite file: an offset leads out of its {len(data)} bytes") from exc


class _File:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._room = len(data)  # each table takes at least four bytes, so a file that loops runs out of room

    def follow(self, at: int) -> int:
        """Where an unsigned offset at ``at`` leads."""
        return at + int(self._unpack("<I", at))

    def tables(self, table: int, field: int) -> Iterator[int]:
        """The tables of a vector field."""
        place = self._place(table, field)
        if not place:
            return
        vector = self.follow(place)
        count = int(self._unpack("<I", vector))
        self._room -= 4 * count
        if self._room < 0:
            raise ValueError(f"not a TFLite file: more tables than {len(self._data)} bytes have room for")
        for i in range(count):
            yield self.follow(vector + 4 + 4 * i)

    def byte_field(self, table: int, field: int) -> int:
        """A one-byte field; 0 where the table leaves it out."""
        place = self._place(table, field)
        return int(self._unpack("<B", place)) if place else 0

    def _place(self, table: int, field: int) -> int:
        vtable = table - int(self._unpack("<i", table))
        size = int(self._unpack("<H", vtable))
        at = 4 + 2 * field
        offset = int(self._unpack("<H", vtable + at)) if at + 2 <= size else 0
        return table + offset if offset else 0

    def _unpack(self, kind: str, at: int) -> int:
        if at < 0:
            raise ValueError("not a TFLite file: an offset leads before its beginning")
        value: int = struct.unpack_from(kind, self._data, at)[0]
        return value
