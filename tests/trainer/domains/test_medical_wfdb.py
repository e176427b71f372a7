"""Recordings as WFDB files: our bytes by the format's own text, read back by a small reader here and by `wfdb`."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator.course import Mark
from kasmina_trainer.datasets.medical_simulator.noise import Converter
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES
from kasmina_trainer.datasets.medical_simulator.recording import record
from kasmina_trainer.datasets.medical_simulator.wfdb_files import CODES, header, packed, signals, write_record

# What wfdb 4.3.1 writes for `MARKS`: wfdb.wrann("g", "atr", np.array([0, 36, 36, 5000, 5100, 144000]),
# list("+NV+V") + ['"'], aux_note=["(N", "", "", "(VT", "", "odd"])
WRANN = "007002fc284e2404001400ec00006413007003fc28565400641400ec0200941e005803fc6f6464000000"
MARKS = [
    Mark(0.0, "+", "(N"),
    Mark(0.1, "N"),
    Mark(0.1, "V"),
    Mark(5000 / 360, "+", "(VT"),
    Mark(5100 / 360, "V"),
    Mark(400.0, '"', "odd"),
]


def test_our_bytes_are_those_of_wfdbs_writer() -> None:
    assert packed(MARKS, 360.0).hex() == WRANN


def unpacked(data: bytes) -> list[tuple[int, int, str]]:
    """Sample, code and note of each mark; written from annot(5), not from our writer."""
    words = struct.unpack(f"<{len(data) // 2}H", data)
    found: list[tuple[int, int, str]] = []
    at = i = 0
    while words[i]:
        code, low = words[i] >> 10, words[i] & 1023
        i += 1
        if code == 59:
            at += (words[i] << 16 | words[i + 1]) if words[i] < 2**15 else (words[i] << 16 | words[i + 1]) - 2**32
            i += 2
        elif code == 63:
            note = b"".join(struct.pack("<H", word) for word in words[i : i + (low + 1) // 2])[:low]
            found[-1] = (*found[-1][:2], note.decode())
            i += (low + 1) // 2
        else:
            at += low
            found.append((at, code, ""))
    assert i == len(words) - 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_marks_and_signals_come_back(name: str, tmp_path: Path) -> None:
    found = record(patient(1, 3), name, seed=2, leads=("II", "V1"))
    head, data, marks = write_record(found, tmp_path, "one")
    assert [code for _, code, _ in unpacked(marks.read_bytes())] == [CODES[mark.symbol] for mark in found.marks]
    for (at, _, note), mark in zip(unpacked(marks.read_bytes()), found.marks, strict=True):
        assert at == round(mark.at_s * 360) and note == mark.note
    back = np.frombuffer(data.read_bytes(), "<i2").reshape(-1, 2).T / 200.0
    assert np.array_equal(back, found.signal)
    lines = head.read_text().splitlines()
    assert lines[0] == "one 2 360 3600" and len(lines) == 6
    for row, line in zip(found.converter.counts(found.signal), lines[1:3], strict=True):
        parts = line.split()
        assert parts[:5] == ["one.dat", "16", "200(0)/mV", "12", "0"] and int(parts[5]) == row[0]
        assert (int(parts[6]) - int(row.astype(int).sum())) % 65536 == 0


def test_long_gaps_and_odd_notes_are_written_as_the_format_says() -> None:
    marks = [Mark(0.0, "+", "(N"), Mark(1023 / 360, "N"), Mark(2047 / 360, "V"), Mark(400.0, "+", "(VT")]
    assert packed(marks, 360.0) == b"".join(
        [
            struct.pack("<HH", 28 << 10, 63 << 10 | 2) + b"(N",
            struct.pack("<H", 1 << 10 | 1023),
            struct.pack("<HHHH", 59 << 10, 0, 1024, 5 << 10),
            struct.pack("<HHHH", 59 << 10, (144000 - 2047) >> 16, (144000 - 2047) & 0xFFFF, 28 << 10),
            struct.pack("<H", 63 << 10 | 3) + b"(VT\0",
            b"\0\0",
        ]
    )


def test_marks_that_no_reader_would_understand_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no code"):
        packed([Mark(0.0, "Z")], 360.0)
    with pytest.raises(InputError, match="expected time order"):
        packed([Mark(1.0, "N"), Mark(0.5, "N")], 360.0)
    with pytest.raises(InputError, match="take it for a definition"):  # wfdb drops it
        packed([Mark(0.0, '"', "long QT")], 360.0)
    with pytest.raises(InputError, match="at most 255"):
        packed([Mark(1.0, "N", "x" * 256)], 360.0)
    with pytest.raises(InputError, match="record name"):
        write_record(record(patient(0, 0)), tmp_path, "../up")


def test_files_name_nobody() -> None:
    """Two patients' headers differ in no more than numbers of the signal."""
    one, other = (header(record(patient(5, n), "af"), "r").decode() for n in (1234567, 7654321))
    assert "1234567" not in one and "7654321" not in other
    assert re.sub(r" 12 0 -?\d+ -?\d+ 0 ", "", one) == re.sub(r" 12 0 -?\d+ -?\d+ 0 ", "", other)


def test_wfdb_reads_what_we_write(tmp_path: Path) -> None:
    """The oracle, where it is installed (pip install wfdb); the format's text is held by the tests above without it."""
    wfdb = pytest.importorskip("wfdb", reason="wfdb is not installed: pip install wfdb runs the reader's own check")
    for number, name in enumerate(NAMES):
        found = record(patient(2, number), name, seed=1, converter=Converter(16, 1000.0))
        write_record(found, tmp_path, name)
        read, marks = wfdb.rdrecord(str(tmp_path / name)), wfdb.rdann(str(tmp_path / name), "atr")
        assert read.fs == 360 and tuple(read.sig_name) == found.leads and set(read.units) == {"mV"}
        assert np.abs(read.p_signal.T - found.signal).max() < 1e-9
        assert list(marks.symbol) == [mark.symbol for mark in found.marks]
        assert [note.rstrip("\0") for note in marks.aux_note] == [mark.note for mark in found.marks]
        assert marks.sample.tolist() == [round(mark.at_s * 360) for mark in found.marks]
        sums = wfdb.rdrecord(str(tmp_path / name), physical=False).calc_checksum()
        assert [told % 65536 for told in read.checksum] == sums


def test_signals_are_little_endian_and_interleaved() -> None:
    found = record(patient(0, 1), leads=("I", "V6"))
    counts = found.converter.counts(found.signal)
    assert signals(found)[:4] == struct.pack("<hh", counts[0, 0], counts[1, 0])
