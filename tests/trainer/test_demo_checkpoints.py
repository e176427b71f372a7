"""What the demo leaves on disk can be optimized: its checkpoints say how the digits and the captures were divided."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds.bundles import make_bundle

from kasmina_edge.bundle import Bundle
from kasmina_trainer.checkpoints import load_checkpoint
from kasmina_trainer.cli import captured
from kasmina_trainer.datasets.digits import Samples, image_digests, split_digits, to_nhwc
from kasmina_trainer.demo.growing import HOST_FILE, Grower
from kasmina_trainer.evolve import GrownNetwork
from kasmina_trainer.optimize.tasks import read_task
from kasmina_trainer.training import HOST_SETTINGS

SEED = 5


class Quick(Grower):
    """Neither grows nor exports, both of which take long; everything else is the demo's."""

    grown: GrownNetwork

    def _evolve(self, *_: Any) -> tuple[GrownNetwork, Samples, Samples]:
        nothing = (np.zeros((0, 16, 16, 1), np.float32), np.zeros(0, np.int64))
        return self.grown, nothing, nothing

    def _export(self, *_: Any) -> Bundle:
        return make_bundle()


@pytest.fixture
def grower(tmp_path: Path) -> Quick:
    settings = replace(HOST_SETTINGS, steps=2)
    return Quick(tmp_path, seed=SEED, progress=lambda text, share: None, host_settings=settings)


def digests(x: Any) -> set[str]:
    return set(image_digests(x))


def test_the_demos_host_is_judged_by_its_own_split(grower: Quick, tmp_path: Path) -> None:
    grower.train_host()
    task = read_task(tmp_path / HOST_FILE, None)
    assert digests(task.learn) == digests(split_digits(SEED).host.nhwc())
    assert not digests(task.held_out) & digests(split_digits(SEED).host.nhwc())
    assert digests(task.learn) != digests(split_digits(0).host.nhwc()), "a file that says nothing is taken as seed 0"


def test_what_the_demo_grew_is_judged_by_what_growth_set_aside(
    grower: Quick, grown: GrownNetwork, tmp_path: Path
) -> None:
    scenes = split_digits(SEED).camera.take(slice(0, 200))
    x, y = to_nhwc(scenes.x), scenes.y
    np.savez(tmp_path / "captured.npz", x=x, y=y)
    grower.grown = grown
    grower.release("retune", x, y, ["batch"])
    path = tmp_path / "grown-1.1.0-retune.checkpoint"
    task = read_task(path, None, 0, partial(captured.target, tmp_path / "captured.npz", None))
    divided = grower.divide(x)
    aside = divided.judge
    assert not divided.between.any()
    assert digests(x[~aside]) <= digests(task.learn)
    assert digests(x[aside]) <= digests(task.held_out) | digests(task.final)
    assert not digests(x[aside]) & digests(task.learn), "nothing is judged by what it learned from"
    noted = load_checkpoint(path).metadata
    assert (noted["seed"], noted["growth_seed"], noted["captured"], noted["attempts"]) == (SEED, SEED, 200, 1)
