"""A run that is killed at any write goes on to the bytes it would have made, and no other run gets into its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import small_growth
from worlds.disks import PowerCut, PowerDisk

from kasmina_edge.contracts.arrays import pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.errors import InputError, LockedError, StorageError
from kasmina_edge.storage import hold_lock, use_disk
from kasmina_trainer.evolve import GrownNetwork, evolve
from kasmina_trainer.evolve.journal import RUNNING_FILE, Journal, discard_run
from kasmina_trainer.seeds import attach_seeds, hash_state
from kasmina_trainer.training import TrainingRun

RIVALS = ("scale-bn-retune",)


def grow(folder: Path | None, **options: Any) -> GrownNetwork:
    return evolve(small_growth.seeded(), **{**small_growth.task(), "rival": RIVALS, "folder": folder, **options})


def digest(grown: GrownNetwork) -> tuple[str, str, Any, Any]:
    rival = grown.rival
    assert rival is not None
    return (
        hash_state(grown.network.graft_state()),
        hash_state(rival.network.host_state()),
        grown.acceptance,
        rival.acceptance,
    )


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every five steps, so that short trainings have some."""
    from kasmina_trainer.evolve import growing

    monkeypatch.setattr(growing, "CHECKPOINT_EVERY", 5)


def test_a_journal_changes_nothing(tmp_path: Path):
    assert digest(grow(None)) == digest(grow(tmp_path / "run"))


def test_killed_at_every_write_and_resumed_it_makes_the_same_bytes(tmp_path: Path):
    whole = digest(grow(None))
    attic = tmp_path / "attic"
    cut = 0
    stops = 0
    while True:
        cut += 7 if cut > 20 else 3
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(attic, ignore_errors=True)
        attic.mkdir()
        try:
            with use_disk(PowerDisk(attic, cut_after=cut, lose="some", seed=cut)):
                grow(folder)
        except PowerCut:
            stops += 1
            assert digest(grow(folder, resume=True)) == whole, cut
            continue
        break
    assert stops >= 5


def test_an_unfinished_training_goes_on_and_a_finished_one_is_not_done_again(tmp_path: Path):
    steps: list[tuple[str, int]] = []

    def hear(event: Any) -> None:
        if event.kind == "step":
            steps.append((event.name, event.step))
            if event.name == "scale-bn-retune" and event.step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path, on_event=hear)
    first = list(steps)
    steps.clear()
    assert (tmp_path / RUNNING_FILE).exists()
    grow(tmp_path, resume=True, on_event=lambda e: steps.append((e.name, e.step)) if e.kind == "step" else None)
    assert ("depthwise@s1,s2", 12) in first and not any(name.startswith("depthwise") for name, _ in steps)
    assert steps[0] == ("scale-bn-retune", 6) and steps[-1] == ("scale-bn-retune", 12)
    assert not (tmp_path / RUNNING_FILE).exists()


def test_a_folder_with_a_run_is_not_begun_again(tmp_path: Path):
    grow(tmp_path)
    with pytest.raises(InputError, match="a run lies there") as caught:
        grow(tmp_path)
    assert "--resume" in caught.value.next_step


def test_another_host_is_refused_with_both_digests(tmp_path: Path):
    first = grow(tmp_path)
    host = small_growth.trained_host()
    with torch.no_grad():
        host.head.bias += 0.1
    other = attach_seeds(host)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match="the run is of host") as caught:
        evolve(other, **small_growth.task(), rival=RIVALS, folder=tmp_path, resume=True)
    assert first.network.host_hash[:12] in caught.value.message and other.host_hash[:12] in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 1}, "seed"),
        ({"settings": replace(small_growth.QUICK, steps=13)}, "settings"),
        ({"sites": ("s2",)}, "asked"),
        ({"intensity": 0.5}, "intensity"),
        ({"target": small_growth.inverted(small_growth.bars(90, 9))}, "rows"),
        ({"target_only": True}, "target_only"),
    ],
)
def test_another_plan_is_refused(tmp_path: Path, change: dict[str, Any], word: str):
    grow(tmp_path)
    with pytest.raises(InputError, match=f"the run was begun otherwise: {word} was"):
        grow(tmp_path, resume=True, **change)


def test_a_damaged_file_is_named(tmp_path: Path):
    grow(tmp_path)
    path = sorted(tmp_path.glob("result-*"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{path.name}: damaged") as caught:
        grow(tmp_path, resume=True)
    assert "Remove it" in caught.value.next_step
    path.unlink()
    assert digest(grow(tmp_path, resume=True)) == digest(grow(None))


@pytest.mark.parametrize("replace_run", [False, True])
def test_two_processes_do_not_share_a_run(tmp_path: Path, replace_run: bool):
    grow(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with hold_lock(tmp_path / "run.lock"):
        with pytest.raises(LockedError):
            grow(tmp_path, replace_run=replace_run)
        discard_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    discard_run(tmp_path)
    assert not tmp_path.exists()


def test_a_new_run_takes_the_place_of_an_old_one_only_when_it_can_begin(tmp_path: Path):
    grow(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match="no seed site"):
        grow(tmp_path, replace_run=True, sites=("s9",))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    note = tmp_path / "note.txt"
    note.write_text("somebody's own")
    assert digest(grow(tmp_path, replace_run=True, seed=1)) == digest(grow(None, seed=1))
    assert note.exists() and sorted(p.name for p in tmp_path.iterdir()) != before


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], tuple[Any, dict[str, Any]]]) -> None:
    """Another note and other arrays, whole as a file."""
    members = unpack_members(path.read_bytes(), where="", max_bytes=2**30)
    arrays = dict(unpack_arrays(members["arrays"], where=""))
    note, arrays = change(json.loads(members["note.json"]), arrays)
    path.write_bytes(pack_members({"note.json": json.dumps(note).encode(), "arrays": pack_arrays(arrays)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda note, arrays: ({}, arrays), "damaged, or not written"),
        (lambda note, arrays: ([], arrays), "damaged, or not written"),
        (lambda note, arrays: ({**note, "run": {"seconds": 1}}, arrays), "damaged, or not written"),
        (lambda note, arrays: ({**note, "run": {**note["run"], "seconds": "x"}}, arrays), "damaged, or not written"),
        (lambda note, arrays: (note, dict(list(arrays.items())[1:])), "tensors, other ones than the"),
        (lambda note, arrays: (note, {name: np.zeros(3) for name in arrays}), "tensors, other ones than the"),
    ],
)
def test_a_whole_file_of_another_program_is_named(tmp_path: Path, change: Any, message: str):
    grow(tmp_path)
    path = sorted(tmp_path.glob("result-*"))[0]
    changed(path, change)
    with pytest.raises(InputError, match=message) as caught:
        grow(tmp_path, resume=True)
    assert path.name in caught.value.message and "Remove it" in caught.value.next_step


@pytest.mark.parametrize(
    "change",
    [
        lambda note, arrays: ({**note, "step": 12}, arrays),
        lambda note, arrays: ({**note, "step": 0}, arrays),
        lambda note, arrays: (note, {name: a for name, a in arrays.items() if name != "generator"}),
        lambda note, arrays: ({"key": note["key"]}, arrays),
    ],
)
def test_a_checkpoint_that_is_no_middle_is_named(tmp_path: Path, change: Any):
    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path, on_event=stop)
    changed(tmp_path / RUNNING_FILE, change)
    with pytest.raises(InputError, match=RUNNING_FILE) as caught:
        grow(tmp_path, resume=True)
    assert "Remove it" in caught.value.next_step


@pytest.mark.parametrize("name", ["plan.json", "result-x.kasmina-run", RUNNING_FILE])
def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path, name: str):
    grow(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match=name):
        grow(tmp_path, resume=True)


def test_time_that_was_spent_stays_spent(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.finish("a", TrainingRun(3, 3, 0.5, 40.0), {"x": np.zeros(2)})
    journal.finish("b", TrainingRun(3, 3, 0.5, 2.0), {"x": np.zeros(2)})
    again = Journal(tmp_path)
    assert again.spent_s == 42.0
    found = again.finished("a")
    assert found is not None and found[0] == TrainingRun(3, 3, 0.5, 40.0)
    assert again.finished("c") is None and again.unfinished("a", before=9) is None
