"""The command line of the trainer: one sentence and a next step when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

from kasmina_edge.bundle import read_file
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.errors import InputError
from kasmina_trainer.checkpoints import load_checkpoint, save_host
from kasmina_trainer.cli import main
from kasmina_trainer.cli.app import app
from kasmina_trainer.cli.captured import read_captured
from kasmina_trainer.datasets.digits import Samples, to_nhwc

runner = CliRunner()


@pytest.fixture
def out(tmp_path: Path, trained_host: nn.Module) -> Path:
    """A folder that holds a trained host."""
    save_host(tmp_path / "host.checkpoint", trained_host, metadata={"seed": 0})
    return tmp_path


@pytest.fixture
def captures(tmp_path: Path, captured: Samples) -> Path:
    """Labelled captures as the controller writes them."""
    path = tmp_path / "captured.npz"
    np.savez(path, x=to_nhwc(captured[0]), y=captured[1])
    return path


def test_help_needs_no_torch():
    code = (
        "import sys; from kasmina_trainer.cli import main; assert main(['--help']) == 0;"
        "assert main(['evolve', '--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    for verb in ("train", "evolve", "export", "demo", "Exit codes"):
        assert verb in done.stdout


def test_train_writes_a_host(tmp_path: Path):
    result = runner.invoke(app, ["train", "--out", str(tmp_path / "b"), "--steps", "8", "--seed", "2", "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["sites"] == ["s1", "s2", "s3", "s4"] and 40_000 < value["parameters"] < 60_000
    back = load_checkpoint(Path(value["file"]))
    assert back.metadata["seed"] == 2 and back.metadata["sizes"]["probes"] >= 200


def test_train_speaks_to_people(tmp_path: Path):
    result = runner.invoke(app, ["train", "--out", str(tmp_path), "--steps", "2"])
    assert result.exit_code == 0
    assert "seed sites s1, s2, s3, s4" in result.stdout and "337 digits it has never seen" in result.stdout


def test_evolve_grows_from_captures(out: Path, captures: Path):
    result = runner.invoke(
        app, ["evolve", "--captured", str(captures), "--out", str(out), "--no-rival", "--steps", "60", "--json"]
    )
    value = json.loads(result.stdout)
    assert result.exit_code == 0, value
    assert value["accepted"] and value["rows"][1]["target"] > value["rows"][0]["target"] + 0.2
    saved = load_checkpoint(out / "grown.checkpoint")
    assert [g.site for g in saved.grafts] == ["s1", "s2"] and saved.metadata["captured"] == 200


def test_a_refused_growth_exits_with_1_and_says_why(out: Path):
    result = runner.invoke(
        app,
        ["evolve", "--simulated", "blur", "--blueprint", "no-op", "--no-rival", "--out", str(out), "--sites", "s1, s3"],
    )
    assert result.exit_code == 1
    assert "refused: gain: lower 95 % bound 0.000" in result.stdout.replace("\n", " ")
    saved = load_checkpoint(out / "grown.checkpoint")
    assert [g.site for g in saved.grafts] == ["s1", "s3"]
    assert saved.acceptance is not None and not saved.acceptance.accepted


@pytest.mark.parametrize(
    ("arguments", "sentence", "step"),
    [
        (["evolve"], "no labelled captures were named", "--captured FILE"),
        (["evolve", "--captured", "missing.npz"], "missing.npz: no such file", "kasmina-edge"),
        (["evolve", "--simulated", "fog"], "corruption 'fog'", ""),
        (["evolve", "--simulated", "blur", "--blueprint", "deptwise"], "no blueprint is called", "depthwise"),
        (
            ["evolve", "--simulated", "blur", "--host", "nowhere"],
            "nowhere: no such checkpoint",
            "kasmina-trainer train",
        ),
        (["evolve", "--simulated", "blur", "--minutes", "0"], "0.0 minutes", ""),
        (["export", "--checkpoint", "nowhere"], "nowhere: no such checkpoint", "kasmina-trainer train"),
    ],
)
def test_mistakes_get_one_sentence(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str, step: str
):
    assert main([*arguments, "--out", str(out)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert sentence in printed and step in printed and "Traceback" not in printed


def test_debug_shows_the_traceback(out: Path):
    with pytest.raises(InputError, match="labelled captures"):
        main(["evolve", "--out", str(out), "--debug"])


def test_a_mistake_for_machines(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evolve", "--out", str(out), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "InputError"


def test_captures_are_read_as_written(captures: Path, captured: Samples, tmp_path: Path):
    x, y = read_captured(captures)
    assert np.array_equal(x, captured[0]) and np.array_equal(y, captured[1])
    packed = tmp_path / "packed.npz"
    packed.write_bytes(pack_arrays({"x": to_nhwc(captured[0]), "y": captured[1]}))
    assert np.array_equal(read_captured(packed)[0], x)


GOOD = np.zeros((3, 16, 16, 1), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GOOD}, "array y is missing"),
        ({"x": GOOD[:, :8], "y": np.zeros(3, np.int64)}, r"got x \(3, 8, 16, 1\) float32"),
        ({"x": GOOD, "y": np.zeros(2, np.int64)}, r"y \(2,\) int64"),
        ({"x": GOOD.astype(np.float64), "y": np.zeros(3, np.int64)}, "float64"),
        ({"x": GOOD * np.nan, "y": np.zeros(3, np.int64)}, "768 values that are not numbers"),
        ({"x": GOOD, "y": np.array([0, 1, 10])}, "labels run from 0 to 10"),
        ({"x": GOOD, "y": np.array([object()] * 3)}, "not a file of plain arrays"),
    ],
)
def test_malformed_captures_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        read_captured(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", b"text"])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.npz"):
        read_captured(path)


@pytest.mark.slow
def test_the_whole_bench_in_a_shell(tmp_path: Path, captured: Samples, monkeypatch: pytest.MonkeyPatch):
    """Train, export, evolve, export: two signed bundles, the second one a growth of the first."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    captures = tmp_path / "captured.npz"
    np.savez(captures, x=to_nhwc(captured[0]), y=captured[1])
    to = ["--out", str(tmp_path / "build")]
    assert main(["train", *to]) == 0
    assert main(["export", *to]) == 0
    assert main(["evolve", "--captured", str(captures), "--no-rival", *to]) == 0
    assert main(["export", "--captured", str(captures), *to]) == 0
    host, grown = (read_file(tmp_path / "build" / f"digits-{version}.kasmina") for version in ("1.0.0", "1.1.0"))
    assert grown.manifest.parent == grown.manifest.host == host.manifest.content_digest()
    assert [g.site for g in grown.manifest.grafts] == ["s1", "s2"]
    assert grown.manifest.acceptance is not None and grown.manifest.acceptance.accepted
    assert {d.name for d in grown.manifest.domains} == {"clean", "captured"}
    assert min(m.parity.top1_agreement for b in (host, grown) for m in b.manifest.models) >= 0.99


def grow_arguments(out: Path, *more: str) -> list[str]:
    return ["evolve", "--simulated", "blur", "--no-rival", "--out", str(out), "--steps", "6", "--json", *more]


def test_evolve_draws_and_writes_scalars(out: Path):
    wanted = ["--picture", str(out / "net.svg"), "--tensorboard", str(out / "board"), "--intensity", "depthwise=0.5"]
    result = runner.invoke(app, grow_arguments(out, *wanted))
    value = json.loads(result.stdout)
    assert value["picture"] == str(out / "net.svg") and (out / "net.svg").read_text().startswith("<?xml")
    assert [path.name[:20] for path in (out / "board").iterdir()] == ["events.out.tfevents."]
    saved = load_checkpoint(out / "grown.checkpoint")
    assert {graft.intensity for graft in saved.grafts} == {0.5}
    assert not (out / "growth.run").exists(), "a run that is done needs no folder"


def test_a_recipe_brings_its_own_sites(out: Path):
    result = runner.invoke(app, grow_arguments(out, "--blueprint", "light"))
    value = json.loads(result.stdout)
    assert value["rows"][1]["name"] == "+ input-filter+scale-bn-retune@10 sites"
    saved = load_checkpoint(out / "grown.checkpoint")
    assert [g.site for g in saved.grafts][:2] == ["input", "norm"] and len(saved.grafts) == 10
    assert saved.metadata["blueprint"] == "light"


def test_an_interrupted_growth_goes_on_to_the_same_file(out: Path, monkeypatch: pytest.MonkeyPatch):
    from kasmina_trainer.evolve import growing

    runner.invoke(app, grow_arguments(out))
    whole = (out / "grown.checkpoint").read_bytes()
    (out / "grown.checkpoint").unlink()
    monkeypatch.setattr(growing, "CHECKPOINT_EVERY", 2)
    real = growing.Journal.checkpoint
    steps: list[int] = []

    def killed(journal: growing.Journal, key: str, state: object) -> None:
        real(journal, key, state)  # type: ignore[arg-type]
        steps.append(state.step)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(growing.Journal, "checkpoint", killed)
    assert runner.invoke(app, grow_arguments(out)).exit_code != 0 and not (out / "grown.checkpoint").exists()
    assert steps == [2] and (out / "growth.run" / "running.kasmina-run").exists()
    monkeypatch.setattr(growing.Journal, "checkpoint", real)
    resumed = runner.invoke(app, grow_arguments(out, "--resume"))
    assert "grown.checkpoint" in resumed.stdout, resumed.exception
    assert (out / "grown.checkpoint").read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "sentence", "step"),
    [
        (["--budget", "soon"], "budget 'soon': expected a time", ""),
        (["--budget", "10k"], "MACs a frame, the budget leaves 10000", "Raise the budget"),
        (["--budget", "0.5%"], "parameters, the budget leaves 204", "Raise the budget"),
        (["--sites", "s1,s9"], "no seed site is called 's9'", "Did you mean"),
        (["--picture", "net.png"], "expected a name that ends in .svg or .html", ""),
        (["--intensity", "deptwise=0.5"], "no blueprint is called 'deptwise'", "depthwise"),
        (["--intensity", "2"], "intensity 2: expected 0 to 1", ""),
    ],
)
def test_mistakes_of_a_growth_get_one_sentence(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str, step: str
):
    assert main(["evolve", "--simulated", "blur", "--no-rival", "--out", str(out), *arguments]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert sentence in printed and step in printed and "Traceback" not in printed
    assert not (out / "growth.run").exists() and not (out / "grown.checkpoint").exists()


def test_blueprints_lists_the_library_with_its_prices(capsys: pytest.CaptureFixture[str]):
    assert main(["blueprints", "--shape", "16,16,16", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["blueprints"]}
    assert rows["depthwise"]["parameters"] == 688 and rows["depthwise"]["macs"] > 100_000
    assert rows["scale-bn-retune"]["mergeable"] and rows["scale-bn-retune"]["parameters"] is None
    assert main(["blueprints", "--shape", "40,32", "--tokens"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "depthwise" in printed and "does not fit: expected a site of shape" in printed
    assert main(["blueprints", "--shape", "large"]) == 2
