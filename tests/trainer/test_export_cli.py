"""``kasmina-trainer export MODEL``: three different nets for a Coral, and every way to be refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import sources
from worlds.bundles import make_bundle

from kasmina_edge.bundle import read_file
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines import open_engine, self_test
from kasmina_trainer.cli import exported, main
from kasmina_trainer.export import documents, flatbuffer, mapping, report
from kasmina_trainer.quantization import QuantizeConfig


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A desk key of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def frames_file(path: Path, kind: str, count: int = 160, *, labels: bool = True, scale: float = 1.0) -> Path:
    x = sources.frames(kind, count) * np.float32(scale)
    arrays: dict[str, Any] = {"x": x}
    if labels:
        with torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim > 2 else x))
            arrays["y"] = sources.network(kind)(given).argmax(1).numpy()
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["plain", "residual", "ecg"])
def test_three_nets_for_a_coral(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All operators int8 from border to border, all map, both engines agree with torch, and the papers say so."""
    model = sources.save_pt2(sources.network(kind), tmp_path / f"My {kind}.pt2", sources.SHAPES[kind])
    data = frames_file(tmp_path / "frames.npz", kind)
    call = ["export", str(model), "--profile", "coral", "--calibration", str(data), "--out", str(tmp_path / "out")]
    assert main([*call, "--require-mapping", "--minimum-agreement", "0.9", "--json"]) == 0, capsys.readouterr().err
    value = json.loads(capsys.readouterr().out)
    bundle = read_file(Path(value["file"]))
    assert bundle.id == f"my-{kind} 1.0.0" and bundle.manifest.profile == "coral"
    parsed = flatbuffer.parse(bundle.files["model.tflite"])
    assert flatbuffer.float_operators(parsed) == ()
    inputs, outputs = flatbuffer.border(parsed)
    assert {t.dtype for t in (*inputs, *outputs)} == {"int8"}
    found = mapping.report(bundle.files["model.tflite"], load_profile("coral"))
    assert found is not None and found.whole and found.on_tpu == found.operators == value["mapping"]["operators"] > 3
    assert f"{found.operators} of {found.operators} operators map" in bundle.manifest.provenance["edgetpu"]
    app = (1, *sources.frames(kind, 1).shape[1:])
    assert bundle.manifest.inputs[0].shape == app and bundle.manifest.head == "classification"
    for entry in bundle.manifest.models:
        assert entry.parity is not None and entry.parity.samples == 40
        assert (entry.parity.float_accuracy or 0) == 1.0 and (entry.parity.accuracy or 0) >= 0.9
        profile = load_profile("x86-cpu").model_copy(update={"engines": (entry.engine,)})
        with open_engine(bundle, profile) as engine:
            assert self_test(engine, bundle, timed_runs=1).ok
    card = Path(value["card"]).read_text()
    assert card == documents.markdown(bundle.files[documents.PATH]) and "| model.tflite | accuracy |" in card
    assert f"network: My {kind}.pt2, " in card and "GraphModule" not in card and "classes apart, made from" in card
    estimate, told = value["estimate"], value["quantization"]
    assert estimate["fits"] and estimate["latency_ms"] > 0 and "band" in estimate
    assert told["agreement"] == bundle.model_for("litert").parity.top1_agreement  # type: ignore[union-attr]
    assert sum(ms for _, ms in told["latency_ms"]) <= estimate["latency_ms"]
    assert told["hurts"] or "layers not measured" in " ".join(told["notes"])


@pytest.mark.slow
def test_an_onnx_with_two_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No labels, two outputs of different range: each keeps its scale and has its own numbers."""
    program = torch.onnx.export(
        sources.network("heads"), (torch.zeros(1, 12),), dynamo=True, verbose=False, output_names=["place", "share"]
    )
    assert program is not None
    program.save(tmp_path / "heads.onnx")
    data = frames_file(tmp_path / "frames.npz", "heads", labels=False)
    call = ["export", str(tmp_path / "heads.onnx"), "--profile", "x86-cpu", "--calibration", str(data)]
    assert main([*call, "--out", str(tmp_path), "--name", "two"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "least cosine similarity" in printed and "every fourth of the file (40) held out" in printed
    bundle = read_file(tmp_path / "two-1.0.0.kasmina")
    assert [o.name for o in bundle.manifest.outputs] == ["place", "share"] and bundle.manifest.head == "other"
    lite = bundle.model_for("litert")
    wide, narrow = (t.scale or 0.0 for t in lite.outputs)
    assert wide > 50 * narrow and narrow == pytest.approx(1 / 256, rel=0.05)
    for entry in bundle.manifest.models:
        assert entry.parity is not None
        assert [o.name for o in entry.parity.outputs] == ["place", "share"]
        assert entry.parity.outputs[0].max_abs_difference > entry.parity.outputs[1].max_abs_difference
        assert set(bundle.arrays(entry.selftest.file)) == {"input_input", "output_output0", "output_output1"}


@pytest.mark.parametrize(
    ("more", "sentence", "step"),
    [
        ([], "int8 ranges need frames, and none were named", "--calibration FILE.npz"),
        (["--calibration", "none.npz"], "none.npz: no such file", "np.savez"),
        (["--calibration", "FRAMES", "--weights", "6"], "--weights 6: expected 8, 4 or float", ""),
        (["--calibration", "FRAMES", "--weights", "float"], "is an Edge TPU, which runs full-int8", "--weights 8"),
        (["--calibration", "FRAMES", "--weights", "4"], "is an Edge TPU and computes with 8", "Use 8 bits"),
        (["--calibration", "FRAMES", "--profile", "corall"], "corall", "coral"),
        (["--calibration", "FRAMES", "--layout", "nchw"], "--layout nchw", ""),
        (["--calibration", "FRAMES", "--labels", "a,b"], "2 names, y runs to 3", "a name a class"),
        (["--calibration", "FRAMES", "--input-shape", "1,x"], "--input-shape 1,x", ""),
        (["--calibration", "FRAMES", "--input-shape", "1,3,8,8"], "exported for inputs (1, 1, 16, 16)", ""),
        (["--calibration", "FRAMES", "--captured", "x.npz"], "belong to a checkpoint", ""),
        (["--calibration", "FEW"], "12 frames, at least 16", "some hundred frames"),
        (["--calibration", "OTHER"], "expected (N, 16, 16, 1) or (N, 1, 16, 16)", ""),
        (["--calibration", "NAN"], "frame 0 and 39 others hold values that are not finite", "Leave these frames out"),
        (["--calibration", "FRAMES", "--held-out", "SCALED"], "held-out frames from", "Scale both"),
        (["--calibration", "WHOLE"], "x is uint8, floats are expected", "float32"),
    ],
)
def test_mistakes_get_one_sentence_and_a_step(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plain_file: Path,
    more: list[str],
    sentence: str,
    step: str,
) -> None:
    files = {
        "FRAMES": lambda p: frames_file(p, "plain", 40),
        "FEW": lambda p: frames_file(p, "plain", 16),
        "OTHER": lambda p: frames_file(p, "ecg", 40, labels=False),
        "SCALED": lambda p: frames_file(p, "plain", 40, scale=255),
        "NAN": lambda p: np.savez(p, x=np.full((40, 16, 16, 1), np.nan, np.float32)) or p,
        "WHOLE": lambda p: np.savez(p, x=np.zeros((40, 16, 16, 1), np.uint8)) or p,
    }
    arguments = [str(files[m](tmp_path / f"{m}.npz")) if m in files else m for m in more]
    assert main(["export", str(plain_file), *arguments, "--out", str(tmp_path)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert sentence in printed and step in printed and "Traceback" not in printed


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.pt2"
    return sources.save_pt2(sources.network("plain"), path, sources.SHAPES["plain"])


@pytest.mark.parametrize(("flash_bytes", "told"), [(2_097_152, "of 2.1 MB, fits"), (1_000, "of 1.0 kB, DOES NOT FIT")])
def test_a_microcontroller_says_how_long_and_whether_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flash_bytes: int, told: str
) -> None:
    text = (Path(__file__).resolve().parents[2] / "profiles" / "stm32l4r5.toml").read_text()
    text = re.sub(r"(?m)^aliases.*$", "", text).replace('name = "stm32l4r5"', 'name = "tiny"', 1)
    (tmp_path / "tiny.toml").write_text(
        re.sub(r"(?m)^flash_bytes = .*$", f"flash_bytes = {flash_bytes}", text, count=1)
    )
    monkeypatch.setenv("KASMINA_PROFILES", str(tmp_path))
    bundle = make_bundle(profile="tiny")
    rows = dict(exported.estimate_rows(bundle))
    assert rows["  flash"].endswith(told) and rows["  RAM"].endswith("fits")
    assert re.fullmatch(r"[0-9.]+ ms ± [0-9]+ % on tiny", rows["estimated"])
    value = exported.estimate_value(bundle)
    assert value is not None and value["fits"] == told.endswith(", fits")
    assert "nothing: " in dict(exported.estimate_rows(make_bundle(profile="nobody")))["estimated"]


def test_the_layer_that_hurts_is_named() -> None:
    """A layer whose weights have one outlier a channel is the one that eight bits hurt; without it, it is not."""
    shown = {}
    for outlier in (0.0, 60.0):
        module = sources.network("heads").body
        assert isinstance(module, torch.nn.Sequential)
        with torch.no_grad():
            module[2].weight[:, 0] += outlier
        x = sources.frames("heads", 64)
        x[:, 0] = 0.0
        config = QuantizeConfig(bias_correction="none")
        found = report._layers(report.Exported(module, x, x, None), config)
        worst = report._costs(found, {"0": 8, "2": 8})
        shown[outlier] = {effect.layer: effect.distance for effect in worst}
        assert all(effect.bits == 8 for effect in worst)
    assert shown[60.0]["2"] > 3 * shown[0.0]["2"] and shown[60.0]["2"] > shown[60.0]["0"]


def test_no_empty_line_before_an_error(tmp_path: Path, plain_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = frames_file(tmp_path / "frames.npz", "ecg", 40, labels=False)
    assert main(["export", str(plain_file), "--calibration", str(data), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(str(data))


def test_an_operation_that_no_device_has_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = sources.save_pt2(sources.network("sorting"), tmp_path / "sorting.pt2", (1, 12))
    data = frames_file(tmp_path / "frames.npz", "sorting", labels=False)
    assert main(["export", str(model), "--calibration", str(data), "--out", str(tmp_path)]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "topk (sources.py, line" in printed and "torch.topk(" in printed and "iterated maximum" in printed
