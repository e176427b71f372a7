"""Many outbox entries as one sealed, compressed block: what makes a record take a tenth of its length on the disk.

A block is Zstandard (RFC 8878) over lengths, times and payloads, each as a column, then sealed where there is a vault.
Its place (ids, stream, priority) is bound to it as associated data: a block cannot be moved, renamed or shortened.
docs/spec/outbox.md has the bytes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.safety.sealing import open_with, sealed_with
from kasmina_edge.safety.vault import Sealer

BLOCK_RECORDS = 512
BLOCK_BYTES = 512 * 1024
"""A block holds at most so many payload bytes, or one entry."""
PLAIN = 0
"""The key number of a block that is not sealed."""
MAX_RAW_BYTES = 1 << 28

MAX_STREAM_CHARACTERS = 128
PRIORITIES = range(-(1 << 31), 1 << 31)

_LEVEL = 1
"""On such records as small as level 12 and ten times as fast: 2 us each."""


class Waiting(NamedTuple):
    """An entry on its way into a block."""

    stream: str
    priority: int
    at_s: float
    payload: bytes


def waiting(stream: str, priority: int, at_s: float, payload: bytes) -> Waiting:
    """An entry that can be stored: one that cannot would keep back all that waits with it.

    Raises:
        InputError: Not a name, a priority or bytes.
    """
    if not isinstance(stream, str) or not 0 < len(stream) <= MAX_STREAM_CHARACTERS or not _encodable(stream):
        raise InputError(f"outbox: stream {stream!r:.80}, expected 1 to {MAX_STREAM_CHARACTERS} characters of Unicode")
    if not isinstance(priority, int) or priority not in PRIORITIES:
        raise InputError(f"outbox: priority {priority!r:.80}, expected a whole number of 32 bits")
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise InputError(f"outbox: a payload of type {type(payload).__name__}, expected bytes")
    return Waiting(stream, int(priority), at_s, bytes(payload))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@dataclass(frozen=True)
class Place:
    """What a block is bound to: its entries have the ids ``first_id`` to ``first_id + count - 1``."""

    first_id: int
    count: int
    stream: str
    priority: int

    def aad(self) -> bytes:
        """Associated data of this place."""
        return f"outbox block 1/{self.first_id}/{self.count}/{self.priority}/{self.stream}".encode()


def runs(entries: Iterable[Waiting], *, block_bytes: int, span_s: float) -> Iterator[list[Waiting]]:
    """Cut a sequence into what goes into one block each: one stream and priority, not too long, not too many hours."""
    run: list[Waiting] = []
    size, earliest, latest = 0, 0.0, 0.0
    for entry in entries:
        low, high = min(earliest, entry.at_s), max(latest, entry.at_s)
        if run and (
            entry[:2] != run[0][:2]
            or len(run) >= BLOCK_RECORDS
            or size + len(entry.payload) > block_bytes
            or high - low > span_s
        ):
            yield run
            run = []
        if not run:
            size, low, high = 0, entry.at_s, entry.at_s
        run.append(entry)
        size += len(entry.payload)
        earliest, latest = low, high
    if run:
        yield run


def pack(entries: Sequence[tuple[float, bytes]]) -> bytes:
    """Compress entries given as (time, payload); times are kept to the millisecond."""
    times = [round(at_s * 1000) for at_s, _ in entries]
    steps = [times[0], *(later - earlier for earlier, later in itertools.pairwise(times))]
    count = len(entries)
    lengths = struct.pack(f"<{count}I", *(len(payload) for _, payload in entries))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(
        b"".join((lengths, struct.pack(f"<{count}q", *steps), *(payload for _, payload in entries)))
    )


def unpack(packed: bytes, count: int) -> list[tuple[float, bytes]]:
    """Entries as (time, payload).

    Raises:
        TrustError: Not what `pack` made of ``count`` entries.
    """
    try:
        if zstandard.frame_content_size(packed) > MAX_RAW_BYTES:
            raise ValueError(f"grows beyond {MAX_RAW_BYTES} bytes")
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_RAW_BYTES)
        lengths = struct.unpack_from(f"<{count}I", raw)
        steps = struct.unpack_from(f"<{count}q", raw, 4 * count)
        if len(raw) != 12 * count + sum(lengths):
            raise ValueError(f"{len(raw)} bytes, its lengths say {12 * count + sum(lengths)}")
    except (zstandard.ZstdError, struct.error, ValueError) as exc:
        raise TrustError(f"outbox block of {count} entries: cannot be read ({exc})", breach="tamper") from exc
    found: list[tuple[float, bytes]] = []
    at, now_ms = 12 * count, 0
    for length, step in zip(lengths, steps, strict=True):
        now_ms += step
        found.append((now_ms / 1000, raw[at : at + length]))
        at += length
    return found


def close_block(packed: bytes, place: Place, sealer: Sealer | None) -> tuple[int, bytes]:
    """Number of the key and the bytes to store; plain where there is no vault."""
    if sealer is None:
        return PLAIN, packed
    sealed = sealer.seal(packed, place.aad())
    return sealed_with(sealed), sealed


def open_block(stored: bytes, key: int, place: Place, sealer: Sealer | None) -> list[tuple[float, bytes]]:
    """Entries as (time, payload).

    Raises:
        TrustError: With the breach ``tamper``: changed, or of another place, under a key that is there; such a block
            is lost. With none: its key is not at hand now, which says nothing about the block.
        StorageError: The vault cannot be read now.
    """
    if key == PLAIN:
        return unpack(stored, place.count)
    if sealer is None:
        raise TrustError(f"outbox block at {place.first_id}: sealed, and no vault was given")
    try:
        number = sealed_with(stored)
    except TrustError as exc:
        raise _changed(place, exc) from exc
    if number != key:
        raise TrustError(f"outbox block at {place.first_id}: names key {number}, not {key}", breach="tamper")
    try:
        opened = sealer.key(number)
    except TrustError as exc:
        raise TrustError(f"outbox block at {place.first_id}: {exc.message}", exc.next_step) from exc
    try:
        packed = open_with(opened, sealer.purpose, stored, place.aad())
    except TrustError as exc:
        raise _changed(place, exc) from exc
    return unpack(packed, place.count)


def _changed(place: Place, exc: TrustError) -> TrustError:
    return TrustError(f"outbox block at {place.first_id}: {exc.message}", exc.next_step, breach="tamper")
