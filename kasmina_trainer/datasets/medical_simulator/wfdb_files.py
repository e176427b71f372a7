"""Recordings as files that every ECG program reads: header, format 16 and MIT annotations, byte by byte our own.

Formats: PhysioNet's header(5), signal(5) and annot(5) pages. A record is three files: ``NAME.hea`` (text), ``NAME.dat``
(16-bit steps, little-endian, one of each lead in turn) and ``NAME.atr`` (16-bit words: a code in the upper six bits,
the samples since the last mark in the lower ten). The header's comments say what was made to happen and that it is
synthetic; there are no names, dates or numbers of people in it, as there are no people.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_edge.storage import as_storage_error, write_durable
from kasmina_trainer.datasets.medical_simulator.course import Mark
from kasmina_trainer.datasets.medical_simulator.recording import Recording

CODES = {
    "N": 1,
    "L": 2,
    "R": 3,
    "V": 5,
    "A": 8,
    "E": 10,
    "j": 11,
    "s": 18,
    '"': 22,
    "+": 28,
    "[": 32,
    "]": 33,
    "x": 37,
}
"""Of the symbols that the simulator writes, in annot(5)."""
_SKIP, _AUX = 59, 63
_LONGEST_GAP = 1023
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def write_record(recording: Recording, folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Write a recording; gives the paths of header, signals and annotations.

    Args:
        recording: What to write.
        folder: Made if missing.
        name: Letters, digits, ``_`` and ``-``.

    Raises:
        InputError: Another kind of name.
        StorageError: The disk refused; then no header is left that would name a record without its files.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"record name {name!r}: expected 1 to 40 letters, digits, _ or -")
    head, rows, marks = (folder / f"{name}.{ending}" for ending in ("hea", "dat", "atr"))
    files = {
        rows: signals(recording),
        marks: packed(recording.marks, recording.rate_hz),
        head: header(recording, name),  # last: without it there is no record
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        head.unlink(missing_ok=True)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc
    for path, data in files.items():
        write_durable(path, data)
    return head, rows, marks


def header(recording: Recording, name: str) -> bytes:
    """The text of ``NAME.hea``."""
    converter = recording.converter
    counts = converter.counts(recording.signal)  # (leads, N)
    lines = [f"{name} {len(counts)} {_exactly(recording.rate_hz)} {counts.shape[1]}"]
    for lead, row in zip(recording.leads, counts, strict=True):
        checksum = (int(row.astype(np.int64).sum()) + 2**15) % 2**16 - 2**15
        lines.append(
            f"{name}.dat 16 {_exactly(converter.per_mv)}(0)/mV {converter.bits} 0 {int(row[0])} {checksum} 0 {lead}"
        )
    noise = "none" if recording.snr_db is None else f"{recording.snr_db:g} dB below sinus rhythm"
    lines += ["# synthetic", f"# pattern: {recording.pattern}", f"# noise: {noise}"]
    return ("\n".join(lines) + "\n").encode("ascii")


def _exactly(value: float) -> str:
    """All of its digits and no exponent, which not every reader takes."""
    return np.format_float_positional(value, trim="-")


def signals(recording: Recording) -> bytes:
    """The bytes of ``NAME.dat``."""
    return np.ascontiguousarray(recording.converter.counts(recording.signal).T, "<i2").tobytes()


def packed(marks: Sequence[Mark], rate_hz: float) -> bytes:
    """The bytes of ``NAME.atr``: marks in annot(5)'s MIT format.

    Args:
        marks: In time order.
        rate_hz: Samples a second.

    Raises:
        InputError: Out of order or no moment at all, a symbol without a code, a note of more than 255 ASCII characters,
            or one at sample 0.

    >>> packed([Mark(0.1, "N")], 360.0).hex()
    '24040000'
    """
    out, last = bytearray(), 0
    for mark in marks:
        if not 0 <= mark.at_s * rate_hz < 2**31:
            raise InputError(
                f"mark {mark.symbol!r} at {mark.at_s} s: expected 0 to {2**31 / rate_hz:.0f} s, in time order"
            )
        at = round(mark.at_s * rate_hz)
        if mark.symbol not in CODES:
            raise InputError(f"mark {mark.symbol!r} at {mark.at_s:.3f} s: no code; there are {' '.join(CODES)}")
        if at < last:
            raise InputError(f"mark {mark.symbol!r} at sample {at} follows one at {last}: expected time order")
        if at == 0 and mark.symbol == '"':
            raise InputError(f"note {mark.note!r} at sample 0: readers take it for a definition", "Set it later.")
        gap, last = at - last, at
        if gap > _LONGEST_GAP:
            out += struct.pack("<HHH", _SKIP << 10, gap >> 16, gap & 0xFFFF)
            gap = 0
        out += struct.pack("<H", CODES[mark.symbol] << 10 | gap)
        if mark.note:
            if len(mark.note) > 255 or not mark.note.isascii():
                raise InputError(
                    f"note of {len(mark.note)} characters at {mark.at_s:.3f} s: expected at most 255, ASCII"
                )
            note = mark.note.encode("ascii")
            out += struct.pack("<H", _AUX << 10 | len(note)) + note + b"\0" * (len(note) % 2)
    return bytes(out + b"\0\0")
