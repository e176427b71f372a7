"""Tiny-CLIP: retrieval over combinations that were never seen together, int8, a new camera, and real emoji.

Pairs of colour and shape are held out; a gallery has 100 different combinations of held-out pairs, half of them with
two objects, and fresh pictures and wordings. Both towers answer as int8 files through the edge Runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._clip_device import Towers
from benchmarks._clip_emoji import emoji_recall
from benchmarks._clip_growth import CAMERA, fine_tuned, grown, pairs_of
from benchmarks._clip_host import GALLERIES, QUICK_ROWS, QUICK_STEPS, SEEDS, hard_recall_of, host, recall_of
from benchmarks._clip_index import rows as index_rows
from benchmarks._clip_private import rows as private_rows
from kasmina_edge.errors import KasminaError
from kasmina_trainer.datasets.captioned import CaptionedShapes, joined
from kasmina_trainer.datasets.captioned.drawing import COLOURS, SHAPES
from kasmina_trainer.multimodal import Recall, TinyClip, class_vectors, nearest
from kasmina_trainer.multimodal.growing import CROSS_ATTENTION, INPUT_FILTER, LATENT_ALIGN, LEARN_GRAFT

TARGET, MOST_INT8_LOSS = 60.0, 1.0
EVERY = (INPUT_FILTER, CROSS_ATTENTION, LATENT_ALIGN)
ZERO_SHOT_ROWS = 1000
IN_EVERY_COLOUR = "shapes, prompts in every colour"
Row = dict[str, Any]


def rows(quick: bool = False) -> list[Row]:
    """Retrieval, int8, prompts, growth, emoji, privacy; ``quick``: one seed that hardly learned, no grafts."""
    if quick:
        shapes, clip = host(0, QUICK_STEPS, QUICK_ROWS)
        found = recall_of(clip, shapes, "validation", 2).first
        how = f"float, seed 0, {QUICK_STEPS} steps, validation; the full form has the target"
        return [_row("R@1, 100-way", None, 100 * found, True, how), *private_rows(True)]
    return [*_retrieval(), *_growth(), _emoji(), *private_rows(), *index_rows()]


def _retrieval() -> list[Row]:
    floats: list[Recall] = []
    int8: list[Recall] = []
    hard: list[Recall] = []
    kinds: dict[str, list[float]] = {"colours": [], "shapes": [], IN_EVERY_COLOUR: []}
    sizes: list[int] = []
    for seed in SEEDS:
        shapes, clip = host(seed)
        galleries = [shapes.gallery("test", seed=each) for each in range(GALLERIES)]
        towers = Towers(clip.images, clip.texts, shapes.draw("train", 800, seed=5))
        floats.append(recall_of(clip, shapes, "test"))
        hard.append(hard_recall_of(clip, shapes, "test"))
        int8.append(towers.recall(galleries))
        sizes.append(towers.size_bytes)
        for name, share in zero_shot(clip, shapes).items():
            kinds[name].append(share)
    lost = [100 * (a.first - b.first) for a, b in zip(floats, int8, strict=True)]
    mean = 100 * statistics.fmean(each.first for each in int8)
    how = (
        f"int8 through the Runtime, mean of both ways and of {len(SEEDS)} seeds, worst "
        f"{100 * min(each.first for each in int8):.1f}; {_sides(int8)}; float {100 * _mean_first(floats):.1f}; "
        f"{GALLERIES} galleries a seed; both files {max(sizes) / 1000:.0f} kB"
    )
    lost_how = f"points of R@1, float minus int8, the seed that loses most; all: {', '.join(f'{x:+.2f}' for x in lost)}"
    out = [
        _row("R@1 on held-out combinations, 100-way", TARGET, mean, mean >= TARGET, how),
        _row("R@1 lost by int8", MOST_INT8_LOSS, max(lost), max(lost) <= MOST_INT8_LOSS, lost_how, unit="points"),
    ]
    told = (
        "float; 50 held-out combinations and of each a twin with one other colour or shape, of training pairs too; "
        f"{_sides(hard)}"
    )
    out.append(
        _row("R@1 among near twins, 100-way", TARGET, 100 * _mean_first(hard), 100 * _mean_first(hard) >= TARGET, told)
    )
    for name, shares in kinds.items():
        prompts = "the nearest of 64 prompts" if name == IN_EVERY_COLOUR else "two short prompts each"
        told = f"float, 8 classes (chance 12.5), {prompts}, {ZERO_SHOT_ROWS} pictures of held-out pairs a seed"
        out.append(_row(f"zero-shot {name}", None, 100 * statistics.fmean(shares), True, told))
    return out


def zero_shot(clip: TinyClip, shapes: CaptionedShapes) -> dict[str, float]:
    """Share of single objects whose shape, and whose colour, is named rightly by prompts alone."""
    drawn = shapes.draw("test", 2 * ZERO_SHOT_ROWS, seed=3)
    single = drawn.at(np.flatnonzero(drawn.codes[:, 0] == 0)[:ZERO_SHOT_ROWS])
    seen, found = clip.see(single.pictures), {}
    for name, field, prompts in (
        ("colours", 1, [[f"something {name}", f"a {name} thing"] for name in COLOURS]),
        ("shapes", 2, [[f"a {name}", f"one {name}"] for name in SHAPES]),
    ):
        classes = class_vectors([clip.read(each) for each in prompts])
        found[name] = float((nearest(seen, classes) == single.codes[:, field]).mean())
    every = clip.read([f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS])
    found[IN_EVERY_COLOUR] = float((nearest(seen, every) // len(COLOURS) == single.codes[:, 2]).mean())
    return found


def _growth() -> list[Row]:
    all_three, tuned, int8 = [], [], []
    for seed in SEEDS:
        shapes, clip = host(seed)
        pairs = pairs_of(shapes)
        found, seeds = grown(shapes, clip, pairs, EVERY, seed=seed, steps=LEARN_GRAFT.steps)
        all_three.append(found)
        tuned.append(fine_tuned(shapes, clip, pairs, seed=seed, steps=LEARN_GRAFT.steps))
        galleries = [shapes.gallery("test", seed=each) for each in range(GALLERIES)]
        seen = [each.seen(CAMERA.see(each.pictures, seed=i)) for i, each in enumerate(galleries)]
        old, new = pairs.at(np.arange(0, 1500, 5)), pairs.at(np.arange(1500, 4500, 10))
        order = np.random.default_rng(seed).permutation(600)
        bare = Towers(clip.images, clip.texts, shapes.draw("train", 800, seed=5))
        int8.append(bare.grown(seeds, joined([old, new]).at(order)).recall(seen).first)
    shapes, clip = host(SEEDS[0])
    two, _ = grown(
        shapes, clip, pairs_of(shapes), (CROSS_ATTENTION, LATENT_ALIGN), seed=SEEDS[0], steps=LEARN_GRAFT.steps
    )
    before, after = (100 * statistics.fmean(getattr(each, side) for each in all_three) for side in ("before", "after"))
    clean_before = 100 * statistics.fmean(each.clean_before for each in all_three)
    clean_after = 100 * statistics.fmean(each.clean_after for each in all_three)
    whole = sum(p.numel() for p in clip.images.parameters())
    how = (
        f"float R@1, {len(SEEDS)} seeds, input filter, cross-attention and latent align, {all_three[0].parameters:,} "
        f"parameters; without {before:.1f}; int8 of the grown tower {100 * statistics.fmean(int8):.1f}; all of the "
        f"image tower fine-tuned ({whole:,} parameters) {100 * statistics.fmean(b for _, b in tuned):.1f}; cross-"
        f"attention and latent align alone, seed {SEEDS[0]}: {100 * two.after:.1f} with {two.parameters:,} parameters"
    )
    kept = (
        f"R@1 with the old camera while the grafts are in; without them {clean_before:.1f}, fine-tuned "
        f"{100 * statistics.fmean(a for a, _ in tuned):.1f}"
    )
    restored = sum(each.restored for each in (*all_three, two))
    count = len(all_three) + 1
    return [
        _row("a new camera, after growth", None, after, True, how),
        _row("the old camera, after growth", None, clean_after, True, kept),
        _row("grafts taken out: bit for bit as before", count, restored, restored == count, "growths", unit="of 4"),
    ]


def _emoji() -> Row:
    try:
        found = [emoji_recall(seed) for seed in SEEDS]
    except KasminaError as exc:
        return _row("emoji, R@1, 100-way", None, None, True, f"not measured: {exc}")
    known, new = [a for a, _ in found], [b for _, b in found]
    how = (
        f"float, names of emoji whose whole group of variants was held out, {len(SEEDS)} seeds, chance 1.0; "
        f"{_sides(new)}; on emoji it was trained on {100 * _mean_first(known):.1f}"
    )
    return _row("emoji, R@1, 100-way", None, 100 * _mean_first(new), True, how)


def _mean_first(found: Sequence[Recall]) -> float:
    return statistics.fmean(each.first for each in found)


def _sides(found: Sequence[Recall]) -> str:
    def mean(side: str, at: int) -> float:
        return 100 * statistics.fmean(getattr(each, side)[at] for each in found)

    return (
        f"picture to text R@1 {mean('to_text', 1):.1f}, R@5 {mean('to_text', 5):.1f}; "
        f"text to picture R@1 {mean('to_image', 1):.1f}, R@5 {mean('to_image', 5):.1f}"
    )


def _row(name: str, target: float | None, measured: float | None, ok: bool, how: str, *, unit: str = "%") -> Row:
    kept = None if measured is None else round(measured, 2)
    return {"name": f"Tiny-CLIP, {name}", "target": target, "measured": kept, "unit": unit, "ok": ok, "how": how}
