"""A disk that fills up and a hand that interrupts, at any moment: one clear error, nothing half done, it goes on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import small_growth
from worlds.disks import BrokenDisk

from kasmina_edge.errors import StorageError
from kasmina_edge.storage import use_disk
from kasmina_trainer.checkpoints import load_checkpoint, save_network
from kasmina_trainer.evolve import GrownNetwork, evolve, growing
from kasmina_trainer.seeds import hash_state
from kasmina_trainer.training import TrainingSettings

SHORT = TrainingSettings(steps=6, batch=16, learning_rate=2e-2, shift=0, keep=0.5)


def grow(folder: Path, **options: Any) -> GrownNetwork:
    task = {**small_growth.task(), "rival": False, "settings": SHORT, "blueprint": "se"}
    return evolve(small_growth.seeded(), **{**task, "folder": folder, **options})


def make(folder: Path, out: Path, **options: Any) -> GrownNetwork:
    """A growth, its checkpoint and its picture."""
    grown = grow(folder, **options)
    save_network(out / "grown.checkpoint", grown.network, grafts=grown.grafts, foreign=True)
    grown.save_picture(out / "grown.svg")
    return grown


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every third step."""
    monkeypatch.setattr(growing, "CHECKPOINT_EVERY", 3)


@pytest.mark.untraced
def test_a_disk_that_fills_up_at_any_operation_is_one_error_and_the_run_goes_on(tmp_path: Path) -> None:
    counting = BrokenDisk(0)
    with use_disk(counting):
        make(tmp_path / "whole.run", tmp_path)
    whole = (tmp_path / "grown.checkpoint").read_bytes()
    assert counting.count > 20
    host = small_growth.trained_host()
    refused = 0
    for at in range(2, counting.count, counting.count // 6):
        out, run = tmp_path / str(at), tmp_path / f"{at}.run"
        out.mkdir()
        (out / "grown.checkpoint").write_bytes(b"the one before")
        try:
            with use_disk(BrokenDisk(at, errno.ENOSPC, for_good=True)):
                make(run, out)
        except StorageError as exc:
            refused += 1
            assert "space" in str(exc), at
        held = (out / "grown.checkpoint").read_bytes()
        assert held in (b"the one before", whole), f"half a checkpoint at {at}"
        make(run, out, resume=True)
        assert (out / "grown.checkpoint").read_bytes() == whole, at
        assert load_checkpoint(out / "grown.checkpoint", host=host).grafts
        left = [path.name for path in out.iterdir() if path.name not in ("grown.checkpoint", "grown.svg")]
        assert not left, left
    assert refused >= 5


def test_an_interrupt_at_any_event_leaves_the_host_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    heard: list[str] = []
    whole = hash_state(grow(tmp_path / "whole", on_event=lambda e: heard.append(e.kind)).network.graft_state())
    assert len(heard) > 6 and {"phase", "step", "verdict"} <= set(heard)
    threads = torch.get_num_threads()
    for stop in (0, 1, 4, len(heard) - 1):
        left = iter(range(stop + 1))
        seeds = small_growth.seeded()
        before, noise = seeds.current_host_hash(), torch.get_rng_state()

        def press(event: object, left: Any = left, stop: int = stop) -> None:
            if next(left) == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            evolve(seeds, **{**small_growth.task(), "rival": False, "settings": SHORT, "blueprint": "se",
                             "folder": folder, "on_event": press})  # fmt: skip
        assert seeds.current_host_hash() == before and not seeds.grafts
        assert torch.equal(torch.get_rng_state(), noise) and torch.get_num_threads() == threads
        assert hash_state(grow(folder, resume=True).network.graft_state()) == whole, stop
