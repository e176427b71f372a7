"""Deltas of one file against one parent: container ``KDL1``, in whichever of three codecs is smallest.

Layout (big-endian): magic ``KDL1``, codec (1 byte), SHA-256 of the parent (32), SHA-256 of the result (32), length of
the result (4), payload. Codecs:

* 0: one zstandard frame whose dictionary is the parent;
* 1, 2: instructions in the manner of bsdiff (Colin Percival, *Naive differences of executable code*, 2003), packed by
  zstandard (1) or LZMA (2): the number of steps, three integers a step, difference bytes, new bytes.

Applying needs numpy and zstandard; only making one needs ``bsdiff4``. Nothing longer than the signed length is ever
produced, and the result's digest is checked.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from dataclasses import dataclass
from typing import Any

import zstandard

from kasmina_edge.errors import BundleError, InputError

MAGIC = b"KDL1"
_HEADER = struct.Struct(">4sB32s32sI")
_ZSTD_PREFIX, _STEPS_ZSTD, _STEPS_LZMA = 0, 1, 2
_MAX_BSDIFF_BYTES = 32 * 1024 * 1024
_MAX_WINDOW_LOG = 30
_CONTROL_ALLOWANCE_BYTES = 64 * 1024
_LZMA_FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22, "lc": 0, "lp": 2, "pb": 0, "nice_len": 273, "depth": 1000}
]


@dataclass(frozen=True)
class DeltaHeader:
    """What a delta says about itself; digests are 64 hex digits."""

    codec: int
    parent: str
    result: str
    result_bytes: int


def read_header(delta: bytes) -> DeltaHeader:
    """Parse the 73 bytes in front.

    Raises:
        BundleError: Not a delta of this format.
    """
    if len(delta) < _HEADER.size:
        raise BundleError(f"delta: {len(delta)} bytes, a header alone has {_HEADER.size}")
    magic, codec, parent, result, result_bytes = _HEADER.unpack_from(delta)
    if magic != MAGIC:
        raise BundleError(f"delta: starts with {magic!r}, expected {MAGIC!r}")
    if codec > _STEPS_LZMA:
        raise BundleError(f"delta: codec {codec} is unknown, this version reads 0 to {_STEPS_LZMA}")
    return DeltaHeader(codec, parent.hex(), result.hex(), result_bytes)


def make_delta(parent: bytes, result: bytes) -> bytes:
    """The smallest delta that turns ``parent`` into ``result``; the same pair gives the same bytes.

    Raises:
        InputError: ``result`` is longer than 4 GiB, which the format cannot say.
    """
    delta = min(encodings(parent, result).values(), key=len)
    if apply_delta(parent, delta, result_bytes=len(result)) != result:  # pragma: no cover - a fault of a codec
        raise BundleError("delta: does not give the result back")
    return delta


def encodings(parent: bytes, result: bytes, *, steps_up_to_bytes: int = _MAX_BSDIFF_BYTES) -> dict[int, bytes]:
    """The delta in every codec that suits the pair, by codec number; raises as `make_delta` does.

    Looking for steps takes about 17 bytes of memory for each byte of the parent, so that files above
    ``steps_up_to_bytes`` get codec 0 alone.
    """
    if len(result) >= 1 << 32:
        raise InputError(f"delta: the result has {len(result)} bytes, at most {(1 << 32) - 1} fit")
    payloads = {_ZSTD_PREFIX: _pack_zstd(result, parent)}
    if max(len(parent), len(result)) <= steps_up_to_bytes:
        steps = _steps(parent, result)
        if len(steps) <= _stream_limit(len(result)):
            payloads[_STEPS_ZSTD] = _pack_zstd(steps)
            payloads[_STEPS_LZMA] = lzma.compress(steps, lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    digests = hashlib.sha256(parent).digest(), hashlib.sha256(result).digest()
    return {codec: _HEADER.pack(MAGIC, codec, *digests, len(result)) + payload for codec, payload in payloads.items()}


def apply_delta(parent: bytes, delta: bytes, *, result_bytes: int) -> bytes:
    """Rebuild the result.

    Args:
        parent: The file that the delta was made against.
        delta: What `make_delta` gave.
        result_bytes: Signed length of the result; nothing longer is ever produced.

    Raises:
        BundleError: Another parent (both digests are named), another length, damage, or a bomb.
    """
    header = read_header(delta)
    found = hashlib.sha256(parent).hexdigest()
    if found != header.parent:
        raise BundleError(f"delta: made against parent {header.parent[:12]}, this device holds {found[:12]}")
    if header.result_bytes != result_bytes:
        raise BundleError(f"delta: gives {header.result_bytes} bytes, {result_bytes} are signed")
    payload = delta[_HEADER.size :]
    if header.codec == _ZSTD_PREFIX:
        result = _unpack_zstd(payload, result_bytes, parent)
    elif header.codec == _STEPS_ZSTD:
        result = _follow(parent, _unpack_zstd(payload, _stream_limit(result_bytes)), result_bytes)
    else:
        result = _follow(parent, _unpack_lzma(payload, _stream_limit(result_bytes)), result_bytes)
    digest = hashlib.sha256(result).hexdigest()
    if len(result) != result_bytes or digest != header.result:
        raise BundleError(
            f"delta: gave {len(result)} bytes with sha256 {digest[:12]}, "
            f"expected {result_bytes} with {header.result[:12]}"
        )
    return result


def _stream_limit(result_bytes: int) -> int:
    """Most bytes of instructions for a result: each result byte once, and room for the steps."""
    return 2 * result_bytes + _CONTROL_ALLOWANCE_BYTES


# ---------------------------------------------------------------------------------------------- instructions


def _steps(parent: bytes, result: bytes) -> bytes:
    """Instructions: count, then (copy length, new length, seek) a step, differences, new bytes."""
    import bsdiff4.core
    import numpy as np

    control, difference, extra = (bytes(part) for part in bsdiff4.core.diff(parent, result))
    raw = np.frombuffer(control, dtype="<u8").reshape(-1, 3)
    magnitude = (raw & np.uint64((1 << 63) - 1)).astype(np.int64)
    values = np.where(raw >> np.uint64(63) == 1, -magnitude, magnitude)
    out = bytearray(_varint(len(values)))
    for column in range(3):
        for value in values[:, column].tolist():
            out += _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    return bytes(out) + difference + extra


def _follow(parent: bytes, stream: bytes, result_bytes: int) -> bytes:
    import numpy as np

    count, at = _read_varint(stream, 0)
    if count > len(stream):
        raise BundleError(f"delta: claims {count} steps in {len(stream)} bytes")
    columns: list[list[int]] = []
    for _ in range(3):
        column: list[int] = []
        for _ in range(count):
            value, at = _read_varint(stream, at)
            column.append(value >> 1 if not value & 1 else -((value + 1) >> 1))
        columns.append(column)
    copies, news, seeks = columns
    if min(copies, default=0) < 0 or min(news, default=0) < 0:
        raise BundleError("delta: a step has a negative length")
    if sum(copies) + sum(news) != result_bytes or len(stream) - at != result_bytes:
        raise BundleError(f"delta: its steps give {sum(copies) + sum(news)} bytes, {result_bytes} are signed")
    source = np.frombuffer(parent, np.uint8)
    difference = np.frombuffer(stream, np.uint8, count=sum(copies), offset=at)
    extra = np.frombuffer(stream, np.uint8, count=sum(news), offset=at + sum(copies))
    result = np.empty(result_bytes, np.uint8)
    old = new = used = added = 0
    for copy, fresh, seek in zip(copies, news, seeks, strict=True):
        if copy and not 0 <= old <= len(source) - copy:
            raise BundleError(f"delta: reads the parent at {old} + {copy}, it has {len(source)} bytes")
        if copy:
            result[new : new + copy] = source[old : old + copy] + difference[used : used + copy]
        result[new + copy : new + copy + fresh] = extra[added : added + fresh]
        new, used, added, old = new + copy + fresh, used + copy, added + fresh, old + copy + seek
    return bytes(result)


def _varint(value: int) -> bytes:
    """Seven bits a byte, low first; the high bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(stream: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(stream) and shift < 63:
        byte = stream[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError(f"delta: its instructions break off at byte {at}")


# ---------------------------------------------------------------------------------------------- compressors


def _pack_zstd(data: bytes, parent: bytes | None = None) -> bytes:
    prefix = _prefix(parent)
    window = min(_MAX_WINDOW_LOG, max(10, (len(data) + len(parent or b"")).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22,
        source_size=len(data),
        dict_size=len(parent or b""),
        window_log=window,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
        threads=0,
    )
    return zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(data)


def _unpack_zstd(payload: bytes, limit_bytes: int, parent: bytes | None = None) -> bytes:
    prefix = _prefix(parent)
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != zstandard.CONTENTSIZE_UNKNOWN and frame.content_size > limit_bytes:
            raise BundleError(f"delta: a frame of {frame.content_size} bytes, at most {limit_bytes} are accepted")
        stream = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << _MAX_WINDOW_LOG)
        return bytes(stream.decompress(payload, max_output_size=max(1, limit_bytes), allow_extra_data=False))
    except (zstandard.ZstdError, MemoryError, ValueError) as exc:
        raise BundleError(f"delta: damaged, or longer than the {limit_bytes} bytes that are signed ({exc})") from exc


def _prefix(parent: bytes | None) -> zstandard.ZstdCompressionDict | None:
    """The parent as raw dictionary content; zstandard takes none shorter than 8 bytes."""
    if parent is None or len(parent) < 8:
        return None
    return zstandard.ZstdCompressionDict(parent, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _unpack_lzma(payload: bytes, limit_bytes: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    try:
        data = stream.decompress(payload, max_length=limit_bytes + 1)
    except (lzma.LZMAError, EOFError, MemoryError) as exc:
        raise BundleError(f"delta: damaged ({exc})") from exc
    if len(data) > limit_bytes or not stream.eof or stream.unused_data:
        raise BundleError(f"delta: damaged, or longer than the {limit_bytes} bytes that its length allows")
    return data
