"""``bundle map`` and deploy's line about the Edge TPU, as people and machines see them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from worlds.bundles import make_bundle

from kasmina_edge.bundle import pack
from kasmina_edge.cli import main
from kasmina_edge.fleet.repository import Repository

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Read = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "digits-1.0.0.kasmina"
    path.write_bytes(pack(Repository.desk(tmp_path / "desk", clock=time.time).sign_bundle(make_bundle())))
    return path


def test_deploy_says_what_maps_and_how_long_it_would_take(bundle: Path, tmp_path: Path, capsys: Read) -> None:
    assert main(["deploy", str(bundle), "--profile", "coral", "--data", str(tmp_path / "data")]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = next(line for line in lines if "on coral" in line)
    assert "9 of 9 ops map to the Edge TPU, estimated 0.4 ms, band unknown, faster than every anchor (2.1 ms)" in said
    assert "engine" in lines[lines.index(said) - 1]


def test_other_targets_say_nothing_about_it(bundle: Path, tmp_path: Path, capsys: Read) -> None:
    assert main(["deploy", str(bundle), "--profile", "x86-cpu", "--data", str(tmp_path / "data")]) == 0
    assert "Edge TPU" not in capsys.readouterr().out
    assert main(["deploy", str(bundle), "--profile", "coral", "--data", str(tmp_path / "other"), "--json"]) == 0
    mapping = json.loads(capsys.readouterr().out)["mapping"]
    assert mapping["mapped"] == mapping["operations"] == 9 and mapping["maps_whole"] and mapping["latency_ms"] > 0


def test_the_table_of_a_bundle_and_of_a_bare_file(bundle: Path, capsys: Read) -> None:
    for path in (bundle, GOLDEN / "digits.tflite"):
        assert main(["bundle", "map", str(path), "--profile", "coral"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "9 of 9 ops map to the Edge TPU in 1 part" in out and "depthwise_conv_2d" in out
        assert "0 B streamed" in out and "faster than every anchor" in out
        assert main(["bundle", "map", str(path), "--profile", "coral-dev-board", "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert value["profile"] == "coral-dev-board" and value["table"][0]["operator"] == "PAD"
        assert value["segments"] == [{"where": "edgetpu", "first": 0, "last": 8}]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--profile", "x86-cpu"], 2, "expected edgetpu"),
        (["--profile", "koral"], 2, "no profile is called"),
        (["--compiler"], 4, "edgetpu_compiler is not on PATH"),
    ],
)
def test_wrong_calls(
    arguments: list[str], code: int, word: str, capsys: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bundle", "map", str(GOLDEN / "digits.tflite"), *arguments]) == code
    assert word in " ".join(capsys.readouterr().err.split())


def test_files_that_are_no_models(tmp_path: Path, capsys: Read) -> None:
    (tmp_path / "noise.tflite").write_bytes(b"\x00\x01\x02\x03TFL3" + b"\xff" * 64)
    assert main(["bundle", "map", str(tmp_path / "noise.tflite")]) == 1
    assert "points outside of itself" in capsys.readouterr().err
    assert main(["bundle", "map", str(tmp_path / "nothing.tflite")]) == 2
    assert "cannot be read" in capsys.readouterr().err
