"""Scenes: what judges is never nearly what was learned from, at any contrast, order and scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasmina_trainer.datasets.digits import split_digits
from kasmina_trainer.datasets.scenes import SAME_SCENE, divide, scene_groups

Frames = np.ndarray


def distances(x: Frames, y: Frames) -> Frames:
    """Root mean square differences, pair by pair.  # (N, M)"""
    a, b = (part.reshape(len(part), math.prod(part.shape[1:])).astype(np.float64) for part in (x, y))
    return np.sqrt(((a[:, None] - b[None]) ** 2).mean(2))


@st.composite
def films(draw: st.DrawFn) -> Frames:
    """Some scenes, filmed several times at some contrast and noise, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scenes = rng.random((draw(st.integers(1, 25)), 1, 4, 4)) * draw(st.floats(0.0, 1.0))
    film = np.repeat(scenes, draw(st.integers(1, 4)), axis=0)
    film = film + rng.normal(0, draw(st.floats(0.0, 0.02)), film.shape)
    scale = draw(st.sampled_from([1.0, 255.0, 0.001]))
    low = 0.0 if scale == 1.0 else draw(st.floats(-100, 100))
    film = np.clip(film, 0, 1) if scale == 1.0 else film * scale + low
    return rng.permutation(film).astype(np.float32)


def tolerance_of(x: Frames) -> float:
    return SAME_SCENE * (1.0 if x.min() >= 0 and x.max() <= 1 else float(x.max()) - float(x.min()))


QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault


@QUICK
@given(films(), st.integers(0, 5))
def test_no_row_that_is_learned_from_is_near_to_one_that_judges(x: Frames, seed: int) -> None:
    parts = divide(x, seed=seed)
    assert not (parts.learn & parts.judge).any()
    assert (parts.learn | parts.judge | parts.between).all()
    assert parts.judge.mean() <= 0.25
    between = distances(x[parts.learn], x[parts.judge])
    assert not between.size or between.min() > tolerance_of(x) * (1 - 1e-3)
    again = divide(x, seed=seed)
    assert np.array_equal(parts.judge, again.judge) and np.array_equal(parts.learn, again.learn)


@QUICK
@given(films())
def test_a_scene_is_what_is_near_to_its_leader_and_leaders_are_apart(x: Frames) -> None:
    groups, tolerance = scene_groups(x), tolerance_of(x)
    leaders = np.unique(groups)
    assert all(groups[leader] == leader for leader in leaders)
    assert (distances(x, x)[np.arange(len(x)), groups] <= tolerance * (1 + 1e-3)).all()
    apart = distances(x[leaders], x[leaders]) + np.eye(len(leaders)) * 1e9
    assert apart.min(initial=1e9) > tolerance * (1 - 1e-3)


def filmed(contrast: float) -> Frames:
    """Three hundred digits that are all different scenes, at a share of their contrast."""
    x: Frames = (0.4 + contrast * split_digits(0).camera.x[:300]).astype(np.float32)
    return x


def test_without_the_border_near_rows_would_be_on_both_sides() -> None:
    """The control: scenes alone, which is what a division by leaders gives without its border, would leak."""
    x = filmed(0.1)
    parts = divide(x, seed=0)
    assert parts.between.sum() == 99, "docs/guides/growing.md says so"
    assert distances(x[parts.between], x[parts.judge]).min(1).max() <= SAME_SCENE * (1 + 1e-6)
    assert distances(x[parts.learn], x[parts.judge]).min() > SAME_SCENE


def test_low_contrast_is_not_one_scene() -> None:
    for contrast, scenes in ((0.3, 296), (0.15, 166), (0.1, 46)):
        x = filmed(contrast)
        parts = divide(x, seed=0)
        assert len(np.unique(scene_groups(x))) == scenes, contrast
        assert parts.judge.sum() >= 70 and parts.learn.sum() >= 100, contrast


def test_frames_without_any_difference_are_one_scene_that_nobody_judges_by() -> None:
    for value in (0.0, 0.5, 1.0, 37.25, -3.0):
        parts = divide(np.full((40, 1, 4, 4), value, np.float32), seed=0)
        assert parts.learn.all() and not parts.judge.any() and not parts.between.any()


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_frames(rows: int) -> None:
    parts = divide(np.zeros((rows, 3), np.float32), seed=0)
    assert parts.learn.sum() == rows and len(scene_groups(np.zeros((rows, 3), np.float32))) == rows
