"""Weights that an .onnx keeps beside it: read from its own folder, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_export_sources import N, answers, floats
from worlds import sources

from kasmina_edge.errors import InputError
from kasmina_trainer.export.source import load_source, side_files
from kasmina_trainer.export.source.side_files import whole_model


def beside(folder: Path, *, place: str = "weights.bin") -> Path:
    """A model whose one matrix lies in a file beside it; ``place`` is what the model says of it afterwards."""
    folder.mkdir(exist_ok=True)
    model = sources.onnx_model([N("MatMul", ["x", "w"], ["y"])], {"w": floats(64, 64)}, [1, 64], ["y"])
    onnx.save_model(model, folder / "e.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    if place != "weights.bin":
        told = onnx.load(folder / "e.onnx", load_external_data=False)
        told.graph.initializer[0].external_data[0].value = place
        (folder / "e.onnx").write_bytes(told.SerializeToString())
    return folder / "e.onnx"


def test_weights_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    """As torch.onnx.export writes them by default; the digest covers them."""
    path = beside(tmp_path)
    source = load_source(path)
    x = torch.randn(1, 64)
    (mine,) = answers(source.module, x)
    weights = np.fromfile(tmp_path / "weights.bin", np.float32).reshape(64, 64)
    assert np.allclose(mine, x.numpy() @ weights, atol=1e-4)
    assert set(source.beside) == {"weights.bin"} and source.beside["weights.bin"] in source.provenance
    assert onnx.load_from_string(whole_model(path)).graph.initializer[0].raw_data == weights.tobytes()
    weights[0, 0] += 1
    weights.tofile(tmp_path / "weights.bin")
    assert load_source(path).beside != source.beside and load_source(path).digest == source.digest


@pytest.mark.parametrize(
    "place", ["../weights.bin", "/etc/hostname", "in/weights.bin", "..", "a\\b", "", "x:y", "n" * 300]
)
def test_no_other_folder_is_read(tmp_path: Path, place: str) -> None:
    """The file would fit: it lies where the name says."""
    path = beside(tmp_path / "in", place=place)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "in" / "weights.bin").read_bytes())
    with pytest.raises(InputError, match="only a file in the model's own folder is read") as told:
        load_source(path)
    assert "external_data=False" in told.value.next_step


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "pipe", "short", "huge"])
def test_side_files_that_are_none_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, side = beside(tmp_path), tmp_path / "weights.bin"
    data = side.read_bytes()
    side.unlink()
    told = {
        "missing": "not beside it", "link": "cannot be read", "folder": "no plain file", "pipe": "no plain file",
        "short": "needs 16384 bytes; it names 16384 from byte 0 of weights.bin, which has 16383",
        "huge": "at most 1[0-9]{4} are read",
    }  # fmt: skip
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        side.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        side.mkdir()
    elif kind == "pipe":
        os.mkfifo(side)
    elif kind == "short":
        side.write_bytes(data[:-1])
    elif kind == "huge":
        side.write_bytes(data)
        monkeypatch.setattr(side_files, "MAX_WHOLE_BYTES", len(data))
    with pytest.raises(InputError, match=told[kind]):
        load_source(path)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "4"), ("length", "9" * 30), ("length", "8")])
def test_places_that_do_not_fit_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = beside(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"whole number of bytes|needs 16384 bytes"):
        load_source(path)


def test_a_constant_operator_does_not_reach_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would read it from the working folder."""
    secret = tmp_path / "cwd" / "weights.bin"
    secret.parent.mkdir()
    floats(64, 64).tofile(secret)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[64, 64], data_location=1)
    tensor.external_data.add(key="location", value="weights.bin")
    nodes = [N("Constant", [], ["w"], value=tensor), N("MatMul", ["x", "w"], ["y"])]
    model = sources.onnx_model(nodes, {}, [1, 64], ["y"])
    (tmp_path / "e.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(secret.parent)
    with pytest.raises(InputError, match="not beside it"):
        load_source(tmp_path / "e.onnx")
    secret.rename(tmp_path / "weights.bin")
    assert load_source(tmp_path / "e.onnx").beside
