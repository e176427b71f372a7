"""A user's own network from the command line alone: evolve, export, deploy; nothing of ours builds it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from worlds import small_growth, sources

from kasmina_edge.bundle import read_file
from kasmina_edge.cli import main as edge
from kasmina_trainer.checkpoints import load_checkpoint
from kasmina_trainer.cli import main
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.datasets.scenes import divide
from kasmina_trainer.export.source import load_source
from kasmina_trainer.seeds import outputs_equal

Read = pytest.CaptureFixture[str]
LENS = ("--blueprint", "filters-and-norms", "--steps", "60", "--no-rival")


def save_rows(path: Path, samples: Samples) -> Path:
    """As the app has them: channels last."""
    np.savez(path, x=np.moveaxis(samples[0], 1, -1), y=samples[1])
    return path


@dataclass(frozen=True)
class Desk:
    """A user's files."""

    host: Path
    clean: Path
    weak: Path
    out: Path

    def evolve(self, *more: str) -> list[str]:
        files = ["--host", str(self.host), "--data", str(self.clean), "--captured", str(self.weak)]
        return ["evolve", *files, "--out", str(self.out), *more]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a network and rows; and what has grown on it."""
    folder = tmp_path_factory.mktemp("files")
    sources.save_pt2(small_growth.trained_host(), folder / "bars.pt2", (1, *small_growth.SmallHost.input_shape))
    save_rows(folder / "rows.npz", small_growth.bars(400, 1))
    save_rows(folder / "weak.npz", small_growth.inverted(small_growth.bars(400, 2)))
    assert main(desk_in(folder).evolve(*LENS, "--json", "--save", str(folder / "grown.checkpoint"))) == 0
    shutil.rmtree(folder / "build", ignore_errors=True)
    return folder


def desk_in(folder: Path) -> Desk:
    return Desk(folder / "bars.pt2", folder / "rows.npz", folder / "weak.npz", folder / "build")


@pytest.fixture
def desk(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(files, tmp_path / "desk")
    return desk_in(tmp_path / "desk")


@pytest.mark.untraced
def test_a_network_of_ones_own_grows_is_exported_and_deployed_from_the_command_line(desk: Desk, capsys: Read) -> None:
    options = ["--out", str(desk.out), "--profile", "raspberry-pi-4", "--json"]
    assert main(desk.evolve(*LENS, "--json")) == 0
    grown = json.loads(capsys.readouterr().out)
    assert grown["accepted"] and Path(grown["file"]) == desk.out / "grown.checkpoint"
    assert main(["export", str(desk.host), "--calibration", str(desk.clean), *options]) == 0
    capsys.readouterr()
    call = ["export", grown["file"], "--host", str(desk.host), "--calibration", str(desk.clean)]
    assert main([*call, "--captured", str(desk.weak), *options]) == 0
    made = json.loads(capsys.readouterr().out)
    bundle = read_file(Path(made["file"]))
    assert bundle.manifest.id == "bars 1.1.0" and bundle.manifest.grafts and bundle.manifest.acceptance is not None
    assert bundle.manifest.inputs[0].shape == (1, 8, 8, 1)
    lite = bundle.model_for("litert").parity
    assert lite is not None and lite.accuracy is not None and lite.accuracy > 0.8
    x, _ = small_growth.inverted(small_growth.bars(400, 2))
    assert lite.samples == divide(x, seed=0).judge.sum() + divide(small_growth.bars(400, 1)[0], seed=0).judge.sum()
    data = str(desk.out / "data")
    for version in ("1.0.0", "1.1.0"):
        assert edge(["deploy", str(desk.out / f"bars-{version}.kasmina"), "--data", data, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == version


def test_the_checkpoint_holds_the_network_and_opens_with_its_file_alone(desk: Desk, capsys: Read) -> None:
    grown = desk.host.with_name("grown.checkpoint")
    host = load_source(desk.host)
    saved = load_checkpoint(grown, host=host.module)
    x = torch.from_numpy(small_growth.bars(20, 5)[0])
    assert saved.network.grafts and not outputs_equal(saved.network, host.module, x)
    for site in list(saved.network.growths):
        saved.network.remove(site)
    assert outputs_equal(saved.network, host.module, x), "what grew comes off without a trace"
    assert saved.metadata["host_file"] == "bars.pt2" and saved.metadata["host_sha256"] == host.digest
    assert main(["export", str(grown), "--out", str(desk.out)]) == 2
    assert "--host FILE.pt2" in " ".join(capsys.readouterr().err.split())


def test_the_same_call_gives_the_same_bytes(desk: Desk) -> None:
    quick = desk.evolve("--blueprint", "se", "--steps", "5", "--no-rival", "--json")
    written = []
    for _ in range(2):
        assert main(quick) in (0, 1)
        written.append((desk.out / "grown.checkpoint").read_bytes())
    assert written[0] == written[1] and len(written[0]) > 1000


def test_a_series_grows_as_well_in_either_layout(desk: Desk, capsys: Read) -> None:
    rng = np.random.default_rng(0)
    sources.save_pt2(sources.network("ecg"), desk.host, sources.SHAPES["ecg"])
    for layout, shape in (("channels-last", (128, 1)), ("as-is", (1, 128))):
        for rows in (desk.clean, desk.weak):
            np.savez(rows, x=rng.normal(size=(200, *shape)).astype(np.float32), y=np.arange(200) % 3)
        code = main(desk.evolve("--layout", layout, "--blueprint", "se", "--steps", "3", "--no-rival", "--json"))
        assert code in (0, 1), capsys.readouterr().err
        assert load_checkpoint(desk.out / "grown.checkpoint", host=load_source(desk.host).module).grafts


class FlatBatch(nn.Module):
    """Writes a batch of one into its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, 1, 1), nn.Linear(4 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, 1, 8, 8) to (1, 3)."""
        logits: torch.Tensor = self.head(torch.relu(self.conv(x)).reshape(1, -1))
        return logits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no data", ("--data is missing", "--captured WEAK.npz")),
        ("no captures", ("--captured is missing",)),
        ("simulated", ("--simulated blur", "no digits host")),
        ("no labels", ("array y is missing",)),
        ("other shape", ("x is (40, 9, 9, 1), expected (N, 8, 8, 1)",)),
        ("nan rows", ("row 7 holds nan",)),
        ("one class", ("all", "rows are of class 1", "at least 2 classes")),
        ("a pickle", ("a pickle can run any code",)),
        ("pickled rows", ("not a file of plain arrays",)),
        ("fixed batch", ("a batch of one built in", "flatten(1)")),
        ("unknown site", ("site 'nowhere' is not a module", "Places are")),
        ("layout", ("--layout sideways", "as-is")),
        ("data for digits", ("belong to a network of your own",)),
        ("no file", ("no such",)),
        ("class too high", ("has label 3, expected 0 to 2",)),
    ],
)
def test_what_cannot_grow_is_one_sentence_and_leaves_nothing(
    desk: Desk, capsys: Read, change: str, words: tuple[str, ...]
) -> None:
    x, y = small_growth.bars(40, 1)
    call = desk.evolve("--steps", "2")
    if change in ("no data", "no captures"):
        at = call.index("--data" if change == "no data" else "--captured")
        del call[at : at + 2]
    elif change == "simulated":
        call += ["--simulated", "blur"]
    elif change == "no labels":
        np.savez(desk.clean, x=np.moveaxis(x, 1, -1))
    elif change == "other shape":
        np.savez(desk.clean, x=np.zeros((40, 9, 9, 1), np.float32), y=y)
    elif change == "nan rows":
        x[7] = np.nan
        save_rows(desk.weak, (x, y))
    elif change == "one class":
        save_rows(desk.weak, (small_growth.bars(400, 1)[0], np.ones(400, np.int64)))
    elif change == "class too high":
        save_rows(desk.weak, (x, y + 1))
    elif change == "a pickle":
        call[2] = str(desk.host.with_suffix(".pth"))
        torch.save(small_growth.trained_host(), call[2])
        Path(call[2]).write_bytes(b"\x80" + Path(call[2]).read_bytes())
    elif change == "pickled rows":
        np.savez(desk.weak, x=np.array([{}], object), y=y)
    elif change == "fixed batch":
        sources.save_pt2(FlatBatch().eval(), desk.host, (1, 1, 8, 8))
    elif change == "unknown site":
        call += ["--sites", "nowhere"]
    elif change == "layout":
        call += ["--layout", "sideways"]
    elif change == "data for digits":
        del call[1:3]
    elif change == "no file":
        desk.host.unlink()
    assert main(call) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(word in said for word in words) and "Traceback" not in said, said
    assert not list(desk.out.rglob("*.checkpoint")), "nothing is written"


@pytest.mark.parametrize("change", ["another host", "no captures", "no parent", "a digits checkpoint"])
def test_what_grew_is_exported_with_its_own_network_and_rows(desk: Desk, capsys: Read, change: str) -> None:
    grown = desk.host.with_name("grown.checkpoint")
    call = ["export", str(grown), "--host", str(desk.host), "--calibration", str(desk.clean), "--out", str(desk.out)]
    words = "no bundle of the host below these grafts"
    if change == "another host":
        other = small_growth.trained_host()
        with torch.no_grad():
            other.head.bias += 1
        sources.save_pt2(other, desk.host, (1, 1, 8, 8))
        words = "grown on another host"
    elif change == "no captures":
        words = "--captured is missing"
    elif change == "a digits checkpoint":
        call[3] = str(grown)
        words = "a zip without the mark of torch.export"
    if change != "no captures":
        call += ["--captured", str(desk.weak)]
    capsys.readouterr()
    assert main(call) == 2
    assert words in " ".join(capsys.readouterr().err.split())
