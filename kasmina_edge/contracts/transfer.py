"""How a device reads a long file from the controller: one small request a chunk, answered with a status and bytes.

A request is canonical JSON on the device's ``req`` topic, with correlation data and a response topic; a response is
``KCH1``, one status byte, offset and total length (two big-endian 64-bit numbers), then the chunk. The device chooses
offsets, so a transfer that lost its link goes on where it stopped, and the controller keeps no state of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.errors import InputError, KasminaError

MAX_CHUNK_BYTES = 128 * 1024
MAX_REQUEST_BYTES = 2048
ChunkStatus = Literal["ok", "absent", "busy"]

_MAGIC = b"KCH1"
_HEADER = struct.Struct(">4sBQQ")
_CODES: dict[ChunkStatus, int] = {"ok": 0, "absent": 1, "busy": 2}
_NAMES = {code: name for name, code in _CODES.items()}


class ChunkRequest(Contract):
    """Device to controller: ``length`` bytes of ``path`` from ``offset`` on.

    Attributes:
        place: ``metadata`` (by file name) or ``targets`` (by hash-prefixed path), as in TUF URLs.
    """

    format: Literal[1] = 1
    place: Literal["metadata", "targets"]
    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-][A-Za-z0-9._@/%-]*$", max_length=512)]
    offset: Annotated[int, Field(ge=0, le=2**40)]
    length: Annotated[int, Field(ge=1, le=MAX_CHUNK_BYTES)] = MAX_CHUNK_BYTES

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed request is the caller's fault."""
        return InputError


@dataclass(frozen=True)
class ChunkResponse:
    """Controller to device.

    Attributes:
        status: ``absent`` is the controller's word that it has no such file; ``busy`` asks to come back later.
        total_bytes: Length of the whole file.
    """

    status: ChunkStatus
    offset: int
    total_bytes: int
    data: bytes = b""

    def to_bytes(self) -> bytes:
        """The message's payload.

        >>> ChunkResponse.from_bytes(ChunkResponse("ok", 0, 5, b"hello").to_bytes(), where="rsp").data
        b'hello'
        """
        return _HEADER.pack(_MAGIC, _CODES[self.status], self.offset, self.total_bytes) + self.data

    @classmethod
    def from_bytes(cls, payload: bytes, *, where: str) -> ChunkResponse:
        """Parse a payload.

        Raises:
            InputError: Too short or too long, not of this form, or the chunk reaches past the end it announces.
        """
        if not _HEADER.size <= len(payload) <= _HEADER.size + MAX_CHUNK_BYTES:
            raise InputError(
                f"{where}: {len(payload)} bytes, a chunk has {_HEADER.size} to {_HEADER.size + MAX_CHUNK_BYTES}"
            )
        magic, code, offset, total = _HEADER.unpack_from(payload)
        data = payload[_HEADER.size :]
        status = _NAMES.get(code)
        if magic != _MAGIC or status is None:
            raise InputError(f"{where}: not a chunk (starts with {payload[:5]!r})")
        if offset + len(data) > total or (status != "ok" and data):
            raise InputError(f"{where}: {len(data)} bytes from {offset} on, in a file of {total} ({status})")
        return cls(status, offset, total, data)
