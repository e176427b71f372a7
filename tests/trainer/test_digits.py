"""The digits: real, at 16x16, in parts that share nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits as reference

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.corruptions import KINDS, NHWC_AXES, blur, contrast, corrupt, noise
from kasmina_trainer.datasets.digits import (
    enlarge,
    image_digests,
    load_digits,
    require_disjoint,
    split_digits,
    to_nchw,
    to_nhwc,
)
from kasmina_trainer.datasets.scenes import scene_groups


def test_the_digits_are_scikit_learns():
    bunch = reference()
    digits = load_digits()
    assert np.array_equal(digits.y, bunch.target)
    assert np.allclose(digits.x, enlarge((bunch.images[:, None] / 16).astype(np.float32)))


def test_shapes_and_range():
    digits = load_digits()
    assert digits.x.shape == (1797, 1, 16, 16)
    assert digits.nhwc().shape == (1797, 16, 16, 1)
    assert digits.x.dtype == np.float32 and digits.y.dtype == np.int64
    assert digits.x.min() == 0.0 and digits.x.max() == 1.0
    assert len(set(digits.sources)) == 1797
    assert np.array_equal(to_nchw(to_nhwc(digits.x)), digits.x)


def test_enlarge_keeps_a_constant_and_the_mean_of_a_ramp():
    assert np.allclose(enlarge(np.full((1, 1, 8, 8), 0.5, np.float32)), 0.5)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (1, 1, 8, 8))
    assert enlarge(np.array(ramp))[0, 0, 0, :4].tolist() == [0.0, 0.25, 0.75, 1.25]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_stratified_and_complete(seed: int):
    parts = split_digits(seed).parts()
    sources = [source for part in parts.values() for source in part.sources]
    assert len(sources) == len(set(sources)) == 1797
    whole = np.bincount(load_digits().y) / 1797
    for part in parts.values():
        assert np.abs(np.bincount(part.y, minlength=10) / len(part) - whole).max() < 0.03
    assert len(parts["host"]) == 800 and len(parts["probes"]) >= 200 and len(parts["test"]) > 300


def test_a_split_depends_on_its_seed_alone():
    assert split_digits(3).test.sources == split_digits(3).test.sources
    assert split_digits(3).test.sources != split_digits(4).test.sources


def test_a_shared_image_is_refused():
    with pytest.raises(InputError, match="share 1 images"):
        require_disjoint({"host": ("a", "b"), "test": ("b", "c")})


@pytest.mark.parametrize("sizes", [{"host": 1800}, {"host": 0}, {"nothing": 5}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]):
    with pytest.raises(InputError, match="expected positive sizes"):
        split_digits(0, sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_keep_shape_range_and_type(kind: str):
    x = load_digits().x[:20]
    bad = corrupt(x, kind, seed=1)
    assert bad.shape == x.shape and bad.dtype == np.float32
    assert bad.min() >= 0 and bad.max() <= 1
    assert np.array_equal(bad, corrupt(x, kind, seed=1))
    assert np.abs(bad - x).mean() > 0.02


def test_both_layouts_blur_alike():
    x = load_digits().x[:5]
    assert np.array_equal(to_nhwc(blur(x)), blur(to_nhwc(x), axes=NHWC_AXES))
    frame = to_nhwc(x)[0]
    assert np.array_equal(blur(frame, axes=NHWC_AXES), to_nhwc(blur(x))[0])


def test_a_spot_spreads_over_its_shape():
    point = np.zeros((1, 1, 16, 16), np.float32)
    point[0, 0, 8, 8] = 1.0
    assert np.allclose(blur(point, width=5)[0, 0, 6:11, 6:11], 1 / 25)
    disc = blur(point, width=5, shape="disc")
    assert disc[0, 0, 6, 6] == 0 and disc.sum() == pytest.approx(1.0)


def test_noise_differs_by_seed_and_contrast_does_what_it_says():
    x = load_digits().x[:5]
    assert not np.array_equal(noise(x, seed=1), noise(x, seed=2))
    assert contrast(np.array([0.0, 1.0], np.float32)).tolist() == pytest.approx([0.4, 0.7])


@pytest.mark.parametrize("width", [0, 4, 17])
def test_a_wrong_width_is_refused(width: int):
    with pytest.raises(InputError, match=f"blur width {width}"):
        blur(load_digits().x[:1], width=width)


def test_an_unknown_corruption_is_refused():
    with pytest.raises(InputError, match="expected one of noise, blur, contrast"):
        corrupt(load_digits().x[:1], "fog")


def test_repeats_of_a_scene_share_a_group_and_others_do_not():
    scenes = load_digits().x[:40]
    rng = np.random.default_rng(0)
    again = np.clip(scenes + rng.normal(0, 0.01, scenes.shape), 0, 1).astype(np.float32)
    groups = scene_groups(np.concatenate([scenes, again]))
    assert groups.tolist() == [*range(40), *range(40)]
    assert len(set(image_digests(np.concatenate([scenes, again])))) == 80


def test_a_scene_reaches_no_farther_than_its_leader():
    frames = np.array([[0.0], [0.5], [0.015], [0.03], [0.045]], np.float32)
    assert scene_groups(frames).tolist() == [0, 1, 0, 3, 3]


def test_the_data_need_neither_torch_nor_scikit_learn_imported():
    code = (
        "import sys, kasmina_trainer; from kasmina_trainer.datasets import corruptions, digits; digits.split_digits(0);"
        "assert not {'torch', 'sklearn'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
