"""Scalars for TensorBoard, written by hand: its own package brings a web server and is only needed to look at them.

An event file is a row of TFRecords (length, payload, and a masked CRC-32C of each); the payload is the protocol buffer
``tensorflow.Event``, of which wall time, step and simple scalar values are used (tensorflow/core/util/event.proto and
framework/summary.proto).
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kasmina_edge.storage import as_storage_error
from kasmina_trainer.evolve.events import Event, Listener

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK = 0xA282EAD8
_UNFIT = re.compile(r"[^A-Za-z0-9_./@+,-]+")


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes (RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def record(payload: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def scalar_event(wall_s: float, step: int, values: dict[str, float]) -> bytes:
    """The payload for some values at one step.

    Args:
        wall_s: Seconds since 1970.
        step: 0 or more.
        values: By tag.
    """
    summary = b"".join(
        _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items()
    )
    return b"\x09" + struct.pack("<d", wall_s) + b"\x10" + _varint(step) + _field(5, summary)


@contextmanager
def scalars(folder: Path, *, wall: Callable[[], float] = time.time) -> Iterator[Listener]:
    """A listener that writes every figure of every event into one new file.

    Tags are ``NAME/FIGURE``: the loss of every step, the score of every candidate, the gate's figures.

    Args:
        folder: What TensorBoard's ``--logdir`` names; made when missing.
        wall: Seconds since 1970.

    Raises:
        StorageError: The disk refused.
    """
    began = wall()
    path = folder / f"events.out.tfevents.{int(began):010d}.kasmina"
    with _told_of(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    try:
        with _told_of(path):
            file.write(record(b"\x09" + struct.pack("<d", began) + _field(3, b"brain.Event:2")))
            file.flush()

        def tell(event: Event) -> None:
            values = {f"{_tag(event.name)}/{k}": float(v) for k, v in event.values.items() if math.isfinite(v)}
            if values:
                with _told_of(path):
                    file.write(record(scalar_event(wall(), event.step, values)))

        yield tell
    finally:
        with _told_of(path):
            file.close()


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What the disk refuses here is told with the file's name; what goes wrong elsewhere in a growth is not."""
    try:
        yield
    except OSError as exc:
        raise as_storage_error(exc, path) from exc


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tag(name: str) -> str:
    return _UNFIT.sub("_", name.replace(" + ", "+")).strip("_") or "run"
