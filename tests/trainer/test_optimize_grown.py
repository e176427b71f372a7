"""Which digits a checkpoint's recipes learn from and are judged by: never those that its grafts were grown on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import captured, main
from kasmina_trainer.datasets.digits import Digits, Samples, image_digests, split_digits, to_nhwc
from kasmina_trainer.datasets.scenes import divide
from kasmina_trainer.optimize import tasks
from kasmina_trainer.optimize.building import Task
from kasmina_trainer.optimize.tasks import read_task

SEED, GROWTH_SEED = 3, 7
FILE = Path("net.checkpoint")
simulated = partial(captured.target, None, "blur")


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what the checkpoint holds."""

    def holds(grafts: int = 2, **metadata: Any) -> None:
        found = SimpleNamespace(grafts=("graft",) * grafts, metadata={"seed": SEED, **metadata})
        monkeypatch.setattr(tasks, "_network", lambda model: (nn.Identity(), found))

    return holds


def digests(*arrays: Any) -> set[str]:
    return {digest for x in arrays for digest in image_digests(x)}


def parts_of(task: Task) -> list[set[str]]:
    return [digests(x) for x in (task.learn, task.held_out, task.final)]


def test_a_grown_network_learns_what_growth_learned_and_is_judged_by_what_it_set_aside(saved: Any) -> None:
    saved(growth_seed=GROWTH_SEED)
    task = read_task(FILE, None, 0, simulated)
    digits = split_digits(SEED)
    x, y = simulated(digits.camera, GROWTH_SEED)
    aside = divide(x, seed=GROWTH_SEED).judge
    filmed = to_nhwc(x)
    learn, held_out, final = parts_of(task)
    assert digests(filmed[~aside]) <= learn and not digests(filmed[~aside]) & (held_out | final)
    assert digests(filmed[aside]) <= held_out | final and not digests(filmed[aside]) & learn
    assert len(held_out & digests(filmed)) > 20 and len(final & digests(filmed)) > 20, "both judge the new domain"
    assert digests(digits.host.nhwc()) <= learn and digests(digits.test.nhwc()) <= final
    assert not learn & held_out and not learn & final and not held_out & final
    assert not digests(digits.camera.nhwc()) & (learn | held_out | final), "the scenes that were filmed stay out"
    assert task.learn_labels is not None and len(task.learn_labels) == len(task.learn)
    where = image_digests(filmed).index(image_digests(task.held_out)[-1])
    assert task.labels is not None and task.labels[-1] == y[where]


def test_a_network_without_grafts_is_judged_by_the_cameras_scenes_too(saved: Any) -> None:
    saved(grafts=0)
    task, digits = read_task(FILE, None), split_digits(SEED)
    assert digests(digits.camera.nhwc()) <= parts_of(task)[1] and len(task.held_out) == 660
    assert parts_of(task)[0] == digests(digits.host.nhwc())
    named = read_task(FILE, "digits", SEED + 1)
    assert named.data_digest() == task.data_digest(), "by its own split, not by one that trained on other rows"


@pytest.mark.parametrize("data", [None, "digits"])
def test_grafts_without_their_frames_are_refused(saved: Any, data: str | None) -> None:
    saved(growth_seed=GROWTH_SEED)
    with pytest.raises(InputError, match="2 grafts, and no frames of what they were grown for") as told:
        read_task(FILE, data)
    assert "--captured FILE or --simulated" in told.value.next_step
    saved()
    with pytest.raises(InputError, match="2 grafts, and no word on which frames they learned"):
        read_task(FILE, data, 0, simulated)


def test_frames_that_nobody_asked_for_are_refused(saved: Any, tmp_path: Path) -> None:
    saved(grafts=0)
    with pytest.raises(InputError, match="captures were named, and it has no grafts"):
        read_task(FILE, None, 0, simulated)
    saved(growth_seed=GROWTH_SEED)
    with pytest.raises(InputError, match="captures were named, and --data names all frames"):
        read_task(FILE, str(tmp_path / "x.npz"), 0, simulated)


def test_too_few_captures_to_set_any_aside_are_refused(saved: Any) -> None:
    saved(growth_seed=GROWTH_SEED)

    def three(camera: Digits, seed: int) -> Samples:
        return camera.x[:3], camera.y[:3]

    with pytest.raises(InputError, match="3 captured frames, and growth set none of them aside"):
        read_task(FILE, None, 0, three)


def test_the_verb_takes_the_captures(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Task] = []

    class Planned:
        def __init__(self, task: Task, *args: Any, **more: Any) -> None:
            given.append(task)
            raise InputError("far enough")

    monkeypatch.setattr("kasmina_trainer.optimize.optimizing.Optimizing", Planned)
    saved(growth_seed=GROWTH_SEED)
    call = ["optimize", str(FILE), "--profile", "x86-cpu", "--out", str(tmp_path)]
    assert main([*call, "--simulated", "blur"]) == 2 and "far enough" in capsys.readouterr().err
    assert given[0].data_digest() == read_task(FILE, None, 0, simulated).data_digest()
    x = np.asarray(split_digits(SEED).camera.nhwc()[:200])
    np.savez(tmp_path / "c.npz", x=x, y=split_digits(SEED).camera.y[:200])
    assert main([*call, "--captured", str(tmp_path / "c.npz")]) == 2 and "far enough" in capsys.readouterr().err
    assert digests(x) <= set.union(*parts_of(given[1]))
    assert main(call) == 2 and "2 grafts, and no frames" in " ".join(capsys.readouterr().err.split())
