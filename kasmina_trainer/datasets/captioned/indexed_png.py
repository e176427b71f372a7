"""PNG files of 256 colours, as sprite sheets are published: one palette, 8 bits a pixel, lines without filters.

PNG, third edition (W3C 2025), colour type 3. Other kinds are refused, so this is no general reader.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

_MAGIC = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
MOST_PIXELS = 64_000_000


def read_indexed(data: bytes, *, where: str) -> npt.NDArray[np.uint8]:
    """Colours and opacity of every pixel.  # (H, W, 4): red, green, blue, alpha

    Args:
        data: The whole file.
        where: Its name, for messages.

    Raises:
        InputError: No PNG, damaged, another colour type or depth, interlaced, with line filters, or too large.
    """
    try:
        parts = _chunks(data)
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
        if (depth, colour, interlaced) != (8, _PALETTE, 0) or width * height > MOST_PIXELS:
            raise InputError(f"{where}: {width}x{height}, depth {depth}, colour type {colour}; expected 8 bits, type 3")
        size = (width + 1) * height
        unpacked = zlib.decompressobj()
        lines = unpacked.decompress(parts[b"IDAT"], size)
        if len(lines) != size or unpacked.decompress(unpacked.unconsumed_tail, 1):
            raise InputError(f"{where}: the lines unpack to another length than {size} bytes")
        rows = np.frombuffer(lines, np.uint8).reshape(height, width + 1)
        if rows[:, 0].any():
            raise InputError(f"{where}: {int((rows[:, 0] != 0).sum())} of {height} lines are filtered, expected none")
        palette = np.full((256, 4), 255, np.uint8)
        palette[: len(parts[b"PLTE"]) // 3, :3] = np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)
        opacity = parts.get(b"tRNS", b"")
        palette[: len(opacity), 3] = np.frombuffer(opacity, np.uint8)
    except (struct.error, KeyError, ValueError, zlib.error) as exc:
        raise InputError(f"{where}: not a whole PNG file ({exc})") from exc
    found: npt.NDArray[np.uint8] = palette[rows[:, 1:]]
    return found


def _chunks(data: bytes) -> dict[bytes, Any]:
    """What each kind of chunk holds, put together in order; every check sum is checked."""
    if not data.startswith(_MAGIC):
        raise ValueError(f"it begins with {data[:8].hex() or 'nothing'}")
    parts: dict[bytes, bytes] = {}
    at = len(_MAGIC)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (told,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        if zlib.crc32(name + body) != told:
            raise ValueError(f"chunk at byte {at} has check sum {zlib.crc32(name + body):08x}, not {told:08x}")
        parts[name] = parts.get(name, b"") + body
        at += 12 + length
    return parts
