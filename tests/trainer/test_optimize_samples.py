"""Frames from a file: what is no row of real numbers is refused by its name, before anything is allocated."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.optimize.samples import frame_groups, read_frames


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (64 - (11 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


REFUSED = {
    "more than there is": (header(f"({10**13},)") + bytes(100), "declares 40000000000000 bytes"),
    "more than anybody has": (header(f"({2**62}, {2**62})") + bytes(100), "bytes for shape"),
    "a little more than there is": (header("(100, 4)") + bytes(1599), r"the file holds \d+ for it"),
    "a negative axis": (header("(-5, 3)") + bytes(100), r"shape \(-5, 3\)"),
    "one number": (npy(np.float32(3)), "array x is one number, expected a row a frame"),
    "text": (npy(np.array(["a", "b"])), "array x is of type <U1, expected real numbers"),
    "complex": (npy(np.ones((3, 2), complex)), "array x is of type complex128, expected real numbers"),
    "dates": (npy(np.array(["2020"], "datetime64[D]")), r"array x is of type datetime64\[D\], expected real numbers"),
    "records": (npy(np.zeros(3, [("a", "f4")])), "expected real numbers"),
    "beyond float32": (npy(np.full((3, 2), 1e300)), "input 0 holds 6 values that are not finite"),
    "a deep header": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not a file of plain arrays"),
    "a header of brackets": (b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, "not a file of plain arrays"),
}


@pytest.mark.parametrize(("data", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_row_of_numbers_is_refused_by_its_name(data: bytes, said: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "frames.npz", {"x": data})
    with pytest.raises(InputError, match=said) as told:
        read_frames(path)
    assert str(path) in told.value.message and "\n" not in told.value.message


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int16", "bool"])
def test_every_kind_of_real_number_is_read(dtype: str, tmp_path: Path) -> None:
    frames = read_frames(archive(tmp_path / "frames.npz", {"x": npy(np.ones((3, 2), dtype)), "y": npy(np.arange(3))}))
    assert frames.inputs[0].dtype == np.float32 and frames.inputs[0].tolist() == [[1.0, 1.0]] * 3
    assert frames.labels is not None and frames.labels.tolist() == [0, 1, 2]


def test_labels_beside_the_frames_are_one_a_frame(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels \(3, 1\) int64, expected \(3,\)"):
        read_frames(archive(tmp_path / "f.npz", {"x": npy(np.ones((3, 2))), "y": npy(np.ones((3, 1), np.int64))}))


def test_inputs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    members = {f"input{i}": npy(np.full((3, 2), i, np.float32)) for i in (0, 10, 2, 1)}
    found = read_frames(archive(tmp_path / "f.npz", members))
    assert [int(x[0, 0]) for x in found.inputs] == [0, 1, 2, 10]
    assert sorted(members) != ["input0", "input1", "input2", "input10"], "names alone sort otherwise"


def test_no_archive_and_an_archive_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "plain.npz").write_bytes(npy(np.ones((3, 2))))
    with pytest.raises(InputError, match="not a file of plain arrays"):
        read_frames(tmp_path / "plain.npz")
    with pytest.raises(InputError, match="not a file of plain arrays"):
        read_frames(tmp_path)
    with pytest.raises(InputError, match="it holds nothing"):
        read_frames(archive(tmp_path / "empty.npz", {}))
    with pytest.raises(InputError, match="no such file"):
        read_frames(tmp_path / "gone.npz")
    with zipfile.ZipFile(tmp_path / "more.npz", "w") as file:
        file.writestr("readme.txt", "by hand")
        file.writestr("x.npy", npy(np.ones((3, 2))))
    assert len(read_frames(tmp_path / "more.npz")) == 3


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = archive(tmp_path_factory.getbasetemp() / "damaged.npz", {"x": npy(np.ones((9, 2))), "y": npy(np.arange(9))})
    body = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body)
    try:
        found = read_frames(path)
    except InputError:
        return
    assert np.isfinite(found.inputs[0]).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_rows_of_the_same_bytes_share_a_number(values: list[int]) -> None:
    x = np.array(values, np.float32).reshape(-1, 1, 1)
    groups = frame_groups(x)
    assert ((groups[:, None] == groups) == (x[:, 0] == x[:, 0].T)).all()
    assert list(dict.fromkeys(groups.tolist())) == list(range(len(set(values))))
