"""Hot swap under back-to-back load: no frame is dropped, wrong, or made to wait for a model to load."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_bundle, make_frames, make_profile

from benchmarks import swap
from kasmina_edge.bundle import Bundle
from kasmina_edge.runtime import Runtime
from kasmina_edge.runtime.follow import Follower
from kasmina_edge.slots import SlotStore

PROFILE = make_profile()
Deploy = Callable[..., SlotStore]


@pytest.fixture
def bundles() -> list[Bundle]:
    return [make_bundle(), make_bundle(version="1.1.0", release=2, corrupt=True)]


def test_every_answer_is_that_of_the_bundle_it_names(bundles: list[Bundle], deploy: Deploy, tmp_path: Path) -> None:
    frames = list(make_frames(16, seed=1))
    expected = {bundle.id: swap.alone(bundle, frames) for bundle in bundles}
    for bundle in bundles:
        deploy(bundle)
    runs = []
    with Runtime.open(tmp_path / "data", profile=PROFILE) as runtime:
        for _ in range(5):
            runs.append(swap.load(runtime, frames, expected, 0.1, swap_in=tmp_path / "data"))
        assert runtime.swaps == 5
    assert [run.wrong for run in runs] == [0] * 5
    assert all(len(run.times_us) > 50 for run in runs)

    # The negative control: with the names exchanged the same answers are all wrong.
    exchanged = dict(zip(expected, reversed(expected.values()), strict=True))
    with Runtime.open(tmp_path / "data", profile=PROFILE) as runtime:
        run = swap.load(runtime, frames, exchanged, 0.02)
    assert run.wrong == len(run.times_us) > 0


def test_no_frame_waits_for_a_bundle_to_load(
    bundles: list[Bundle], deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load stands still for as long as the test likes, and frames are answered meanwhile."""
    x = make_frames(1)[0]
    deploy(bundles[0])
    loading, go_on = threading.Event(), threading.Event()
    follow = Follower._follow

    def slowly(self: Follower) -> None:
        loading.set()
        assert go_on.wait(20)
        follow(self)

    monkeypatch.setattr(Follower, "_follow", slowly)
    with Runtime.open(tmp_path / "data", profile=PROFILE, telemetry=None) as runtime:
        deploy(bundles[1])
        assert loading.wait(20)
        assert {runtime.infer(x).bundle for _ in range(200)} == {bundles[0].id}
        go_on.set()
        assert runtime.refresh() == bundles[1].id


def test_the_figures_are_held_against_their_targets() -> None:
    calm = swap.Run(np.full(2000, 25.0), 0, ["a"], None)
    same = replace(calm, bundles=["a", "b"], swap_s=0.02)
    slow = replace(same, times_us=np.where(np.arange(2000) < 4, 9000.0, 25.0))
    told = {name: {r["name"].removeprefix("swap."): r["ok"] for r in swap._rows([run], [calm], 1)} for name, run in
            (("same", same), ("slow", slow), ("wrong", replace(same, wrong=1)))}  # fmt: skip
    assert all(told["same"].values())
    assert not told["slow"]["p999_ratio"] and not told["slow"]["mean_ratio"]
    assert not told["wrong"]["frames_dropped_or_wrong"]
    missed = {r["name"]: r["ok"] for r in swap._rows([same], [calm], 0)}
    assert not missed["swap.frames_dropped_or_wrong"], "a swap that did not happen is not a swap without loss"
