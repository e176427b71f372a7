"""Tiny-CLIP: parts that share no pair, texts without a vocabulary, ties that lose, grafts that leave no trace."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned import Camera, CaptionedShapes, encode
from kasmina_trainer.datasets.captioned.emoji import PARTS, load_emoji, read_table, split_by_group, variant_groups
from kasmina_trainer.datasets.captioned.grammar import is_true
from kasmina_trainer.datasets.captioned.indexed_png import read_indexed
from kasmina_trainer.datasets.captioned.shapes import pictured, twins
from kasmina_trainer.datasets.captioned.words import BINS, WORDS, words_of
from kasmina_trainer.multimodal import (
    TinyClip,
    class_vectors,
    contrastive_loss,
    embed,
    nearest,
    ranks,
    recall,
    train_tiny_clip,
    unit,
)
from kasmina_trainer.multimodal.contrastive import LEARN
from kasmina_trainer.multimodal.growing import INPUT_FILTER, LATENT_ALIGN, LEARN_GRAFT, grow, seeded_tower
from kasmina_trainer.seeds import outputs_equal
from kasmina_trainer.training import TrainingSettings

PARTS_OF_SHAPES = ("train", "validation", "test")
FEW = TrainingSettings(steps=3, batch=16, learning_rate=4e-3, weight_decay=2e-2, shift=0)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_no_pair_is_in_two_parts_and_every_colour_and_shape_is_in_training(seed: int) -> None:
    shapes = CaptionedShapes(seed)
    pairs = {part: set(shapes.pairs[part]) for part in PARTS_OF_SHAPES}
    assert sum(map(len, pairs.values())) == len(set().union(*pairs.values())) == 64
    assert {colour for colour, _ in pairs["train"]} == {shape for _, shape in pairs["train"]} == set(range(8))


def test_what_is_drawn_shows_pairs_of_its_part_alone() -> None:
    shapes = CaptionedShapes(3)
    for part in PARTS_OF_SHAPES:
        codes = shapes.draw(part, 200, seed=1).codes
        shown = {(int(a), int(b)) for a, b in codes[:, 1:3]}
        shown |= {(int(a), int(b)) for a, b in codes[codes[:, 0] == 1][:, 6:8]}
        assert shown <= set(shapes.pairs[part])


def test_a_gallery_has_one_right_caption_a_picture_and_a_hard_one_has_twins() -> None:
    shapes = CaptionedShapes(0)
    plain, hard = shapes.gallery("test", seed=4), shapes.hard_gallery("test", seed=4)
    assert len(plain) == len(hard) == 100 and np.array_equal(plain.truth, np.eye(100, dtype=bool))
    changed = (hard.codes[:50] != hard.codes[50:]).sum(1)
    assert np.array_equal(changed, np.ones(50))


def test_equal_seeds_give_equal_pictures_and_others_do_not() -> None:
    shapes = CaptionedShapes(0)
    first, again, other = (shapes.draw("train", 40, seed=seed) for seed in (1, 1, 2))
    assert first.pictures.tobytes() == again.pictures.tobytes() and first.captions == again.captions
    assert first.pictures.tobytes() != other.pictures.tobytes()
    assert first.pictures.min() >= 0 and first.pictures.max() <= 1 and first.pictures.dtype == np.float32


def test_a_colour_and_a_place_can_be_seen_in_the_picture() -> None:
    codes = np.array(
        [[0, 0, 0, 1, 0, 1, -1, -1], [0, 5, 0, 1, 0, 4, -1, -1]], np.int8
    )  # red top left, blue bottom right
    red, blue = pictured(codes, np.random.default_rng(0)).pictures
    assert red[0, :16, :16].mean() > red[2, :16, :16].mean() + 0.3 > red[0, 16:, 16:].mean()
    assert blue[2, 16:, 16:].mean() > blue[0, 16:, 16:].mean() + 0.3


def test_a_short_caption_is_true_of_every_picture_of_its_colour() -> None:
    pairs = CaptionedShapes(0).draw("train", 300, seed=2, short=1.0)
    short = np.flatnonzero((pairs.said == -1).sum(1) > 2)
    assert len(short) > 50 and pairs.truth.diagonal().all()
    assert pairs.truth[short].sum(1).mean() > 5
    assert is_true(pairs.codes[:1], twins(pairs.codes[:1], np.random.default_rng(0))).sum() == 0


def test_texts_need_no_vocabulary_and_long_ones_are_cut() -> None:
    known, unknown = encode(["a red ring", "zyzzyva quokka"])
    assert known.shape == (BINS, WORDS) and set(np.unique(known)) == {0.0, 1.0}
    assert unknown[:, :2].sum() > 0 and not unknown[:, 2:].any()
    assert encode(["Red, RING!"]).tobytes() == encode(["red ring"]).tobytes()
    assert encode(["ring red"]).tobytes() != encode(["red ring"]).tobytes()
    assert encode(["a " * 40])[0].any(0).all() and words_of("") == []
    with pytest.raises(InputError, match="no word"):
        encode(["..."])


def test_ties_count_as_lost() -> None:
    same = np.ones((10, 4), np.float32)
    eye = np.eye(10, dtype=np.float32)
    assert recall(same, same).first == 0.0 and recall(eye, eye).first == 1.0
    assert ranks(np.array([[0.5, 0.5], [0.1, 0.9]], np.float32)).tolist() == [2, 1]


def test_recall_is_that_of_sorting() -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((60, 8)).astype(np.float32) for _ in range(2))
    found = recall(images, texts, at=(1, 5, 60))
    order = np.argsort(-(unit(images) @ unit(texts).T), 1)
    for k in (1, 5, 60):
        assert found.to_text[k] == np.mean([i in order[i, :k] for i in range(60)])
    with pytest.raises(InputError, match="as many"):
        recall(images, texts[:5])


def test_the_loss_is_least_where_true_pairs_agree() -> None:
    vectors, scale = torch.eye(4), torch.tensor(20.0)
    right, wrong = contrastive_loss(vectors, vectors, scale), contrastive_loss(vectors, vectors.roll(1, 0), scale)
    assert float(right) < 1e-3 < 1.0 < float(wrong)
    assert float(contrastive_loss(vectors, vectors, scale, torch.eye(4, dtype=torch.bool))) == pytest.approx(
        float(right)
    )
    twice = torch.ones(4, 4, dtype=torch.bool)
    assert float(contrastive_loss(vectors, vectors, torch.tensor(0.0), twice)) == pytest.approx(np.log(4), abs=1e-5)


@lru_cache(maxsize=1)
def learned() -> tuple[CaptionedShapes, TinyClip]:
    shapes = CaptionedShapes(0)
    return shapes, train_tiny_clip(shapes.draw("train", 600, seed=0), settings=replace(LEARN, steps=40, batch=64))


def among_five(clip: TinyClip, shapes: CaptionedShapes) -> float:
    """Mean of R@5 both ways among 20; chance is a quarter."""
    drawn = [shapes.gallery("train", seed=seed, ways=20) for seed in range(4)]
    found = [recall(clip.see(each.pictures), clip.read(each.captions)) for each in drawn]
    return float(np.mean([(each.to_text[5] + each.to_image[5]) / 2 for each in found]))


def test_a_little_training_beats_none_and_is_repeated_to_the_bit() -> None:
    shapes, clip = learned()
    few = shapes.draw("train", 48, seed=0)
    first, again, other = (train_tiny_clip(few, seed=seed, settings=FEW) for seed in (1, 1, 2))
    assert among_five(clip, shapes) > 0.45 > among_five(first, shapes)
    states = [each.state_dict() for each in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_a_class_is_the_mean_of_its_prompts() -> None:
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((8, 16)))
    prompts = [centre + 0.2 * rng.standard_normal((5, 16)).astype(np.float32) for centre in centres]
    labels = rng.integers(8, size=200)
    images = centres[labels] + 0.2 * rng.standard_normal((200, 16)).astype(np.float32)
    assert (nearest(images, class_vectors(prompts)) == labels).mean() > 0.9
    assert (nearest(images, class_vectors(prompts[::-1])) == labels).mean() < 0.3
    with pytest.raises(InputError, match="at least one a class"):
        class_vectors([prompts[0], prompts[0][:0]])


def test_grafts_grow_on_a_frozen_tower_and_leave_no_trace() -> None:
    shapes, clip = learned()
    pairs = shapes.draw("train", 128, seed=5)
    before, kept = embed(clip.images, pairs.pictures), {k: v.clone() for k, v in clip.state_dict().items()}
    seeds = seeded_tower(clip)
    seen = pairs.seen(Camera().see(pairs.pictures, seed=0))
    grow(seeds, clip, seen, settings=replace(LEARN_GRAFT, steps=4, batch=32))
    assert np.abs(embed(seeds, pairs.pictures) - before).max() > 1e-4
    assert all(torch.equal(kept[k], v) for k, v in clip.state_dict().items())
    for site in seeds.growths:
        seeds.remove(site)
    seeds.check_host()
    assert outputs_equal(seeds, clip.images, (torch.from_numpy(pairs.pictures),))


def test_a_filter_may_grow_where_another_site_has_a_context_and_is_bare() -> None:
    _, clip = learned()
    seeds = seeded_tower(clip)
    seeds.graft(INPUT_FILTER.site, INPUT_FILTER.blueprint)
    assert outputs_equal(seeds, clip.images, (torch.rand(2, 3, 32, 32),))


def test_texts_grow_as_pictures_do() -> None:
    shapes, clip = learned()
    pairs = shapes.draw("train", 64, seed=6)
    seeds = seeded_tower(clip, "texts")
    run = grow(seeds, clip, pairs, [LATENT_ALIGN], side="texts", settings=replace(LEARN_GRAFT, steps=2, batch=32))
    assert run.steps == 2 and np.abs(embed(seeds, pairs.texts) - clip.read(pairs.captions)).max() > 0


def test_variants_of_one_emoji_are_one_group_and_flags_are_not() -> None:
    codes = ["1F468-200D-1F33E", "1F469-200D-1F33E", "1F1E9-1F1EA", "1F1EA-1F1E9", "1F3C3-200D-2642-FE0F", "1F3C3"]
    names = ["male farmer", "female farmer", "germany flag", "no flag", "man running", "runner"]
    groups = variant_groups(codes, names)
    assert groups[0] == groups[1] and groups[4] == groups[5] and len(set(groups)) == 4
    parts = split_by_group(groups * 50, 1)
    found = {part: {(groups * 50)[i] for i in rows} for part, rows in parts.items()}
    assert sum(map(len, found.values())) == 4 and set(found) == set(PARTS)


def _png(pixels: np.ndarray, *, filtered: int = 0, colour: int = 3) -> bytes:  # type: ignore[type-arg]
    lines = np.concatenate([np.full((len(pixels), 1), filtered, np.uint8), pixels], 1).tobytes()
    header = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", bytes(range(6))), (b"tRNS", b"\x40"), (b"IDAT", zlib.compress(lines)))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_an_indexed_png_is_read_and_nothing_else_is() -> None:
    pixels = np.array([[0, 1], [1, 0]], np.uint8)
    found = read_indexed(_png(pixels), where="x")
    assert found[0].tolist() == [[0, 1, 2, 64], [3, 4, 5, 255]]
    for bad, said in (
        (_png(pixels, filtered=1), "filtered"),
        (_png(pixels, colour=2), "type 3"),
        (_png(pixels)[:-3], "whole"),
        (b"GIF", "whole"),
        (_png(pixels)[:40] + b"\0" + _png(pixels)[41:], "whole"),
    ):
        with pytest.raises(InputError, match=said):
            read_indexed(bad, where="x")


def test_no_emoji_without_the_files_and_no_table_without_its_fields(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data fetch emoji"):
        load_emoji(folder=tmp_path / "emoji", downloaded=None)
    with pytest.raises(InputError, match="not a list of emoji"):
        read_table(json.dumps([{"has_img_twitter": True}]).encode(), where="emoji.json")


def test_a_camera_changes_colours_and_an_impossible_one_is_refused() -> None:
    pictures = CaptionedShapes(0).draw("train", 8, seed=0).pictures
    still = Camera(leak=0, light=(1, 1, 1), focus_pixels=0, noise=0)
    assert np.array_equal(still.see(pictures, seed=0), pictures)
    assert np.abs(Camera().see(pictures, seed=0) - pictures).mean() > 0.02
    with pytest.raises(InputError, match="leak"):
        Camera(leak=2.0)
