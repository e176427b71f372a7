"""What somebody meets who comes with a network of their own: nothing grown is left unsaid, and every refusal helps."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kasmina_trainer as kt
from kasmina_edge.bundle import read_file
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.checkpoints import load_checkpoint, save_network
from kasmina_trainer.evolve import GrownNetwork
from kasmina_trainer.optimize.torch_form import TorchForm
from kasmina_trainer.pruning import Amount, shrink
from kasmina_trainer.seeds import attach_seeds
from tests.worlds.bundles import make_bundle

FRAMES = np.random.default_rng(0).random((24, 12, 3)).astype(np.float32)


class Series(nn.Module):
    """A user's network: nothing in it knows of seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 6, 3, 2, 1), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(torch.relu(self.first(x)).mean(2))
        return answer


@pytest.fixture
def own() -> nn.Module:
    torch.manual_seed(0)
    return Series().eval()


def test_a_seeded_network_does_not_hide_its_grafts(own: nn.Module) -> None:
    seeds = attach_seeds(own, ["first"], example=torch.zeros(1, 3, 12))
    seeds.graft("first", "adapter")
    with pytest.raises(InputError, match="1 grafts and no parent"):
        kt.export(seeds, "own", version="1.0.0", profile="x86-cpu", calibration=FRAMES, held_out=(FRAMES, None))


def test_a_parent_may_be_a_file(own: nn.Module, tmp_path: Path) -> None:
    seeds = attach_seeds(own, ["first"], example=torch.zeros(1, 3, 12))
    given = {"version": "1.1.0", "profile": "x86-cpu", "calibration": FRAMES, "held_out": (FRAMES, None)}
    with pytest.raises(InputError, match=r"no\.kasmina: no such file"):
        kt.export(seeds, "own", parent=str(tmp_path / "no.kasmina"), **given)


def test_a_bundle_is_written_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    bundle = make_bundle()
    path = kt.write_bundle(bundle, str(tmp_path / "made"))
    assert path == tmp_path / "made" / bundle.file_name
    found = read_file(path)
    assert found.files == bundle.files and found.metadata and not bundle.metadata
    assert Repository.desk(clock=lambda: 0.0).is_desk


def test_a_bundle_is_one_line_on_a_screen() -> None:
    bundle = make_bundle()
    assert len(repr(bundle)) < 100 and bundle.id in repr(bundle) and "unsigned" in repr(bundle)


def test_the_next_step_stands_in_a_traceback(own: nn.Module) -> None:
    with pytest.raises(InputError) as caught:
        attach_seeds(own, ["firts"], example=torch.zeros(1, 3, 12))
    told = traceback.format_exception_only(caught.value)
    assert len(told) == 2 and "first" in told[1] and told[1].strip() == caught.value.next_step


def test_settings_that_do_not_fit_are_not_answered_with_other_blueprints(own: nn.Module) -> None:
    seeds = attach_seeds(own, ["first"], example=torch.zeros(1, 3, 12))
    with pytest.raises(InputError, match="parameters asked for, 10 left") as caught:
        children = [{"name": "a", "blueprint": "adapter"}]
        seeds.graft("first", "nested-seed", config={"children": children, "budget": {"parameters": 10}})
    assert "settings" in caught.value.next_step
    with pytest.raises(InputError, match="expected a site of shape") as caught:
        seeds.graft("first", "latent-align")
    assert "Blueprints that fit: adapter" in caught.value.next_step


def test_a_host_under_seeds_is_pruned_before_they_are_attached(own: nn.Module) -> None:
    seeds = attach_seeds(own, ["first"], example=torch.zeros(1, 3, 12))
    with pytest.raises(InputError) as caught:
        shrink(seeds, Amount(0.3), torch.from_numpy(FRAMES.transpose(0, 2, 1).copy()))
    assert "host_copy()" in caught.value.next_step


def test_a_growth_is_printed_as_a_table(grown: GrownNetwork) -> None:
    report = grown.report()
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report.rows) + len(report.sentences())
    assert lines[1].startswith("host") and lines[-len(report.sentences()) :] == list(report.sentences())
    column = lines[0].index("parameters") + len("parameters")
    assert lines[2][:column].endswith(str(report.rows[1].parameters))


def test_files_are_named_by_words_as_well(own: nn.Module, grown: GrownNetwork, tmp_path: Path) -> None:
    seeds = attach_seeds(own, ["first"], example=torch.zeros(1, 3, 12))
    save_network(f"{tmp_path}/own.checkpoint", seeds, foreign=True)
    assert load_checkpoint(f"{tmp_path}/own.checkpoint", host=own).network.sites == ("first",)
    grown.save_picture(f"{tmp_path}/net.svg")
    assert (tmp_path / "net.svg").stat().st_size


def test_weights_that_are_no_checkpoint_are_told_as_such(own: nn.Module, tmp_path: Path) -> None:
    torch.save(own.state_dict(), tmp_path / "own.pt")
    with pytest.raises(BundleError, match="not written by Kasmina") as caught:
        load_checkpoint(tmp_path / "own.pt")
    assert "Train or grow it again" in caught.value.next_step


def test_frames_of_a_series_are_turned_for_a_comparison(own: nn.Module) -> None:
    form = TorchForm(own, "own", [(1, 3, 12)])
    (fitted,) = form.fit([FRAMES])
    assert np.array_equal(fitted, FRAMES.transpose(0, 2, 1))
    with pytest.raises(InputError, match=r"shape \(4, 12\), the model takes \(3, 12\)"):
        form.fit([np.zeros((2, 4, 12), np.float32)])
