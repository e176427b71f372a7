"""The Tiny-CLIP that every row of `domain_tiny_clip` begins with, trained once a process."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from kasmina_trainer.datasets.captioned import CaptionedShapes, Part
from kasmina_trainer.multimodal import Recall, TinyClip, mean_recall, recall, train_tiny_clip
from kasmina_trainer.multimodal.contrastive import LEARN

SEEDS = (0, 1, 2)
ROWS = 10_000
SHORT = 0.15
GALLERIES = 10
QUICK_STEPS, QUICK_ROWS = 60, 1500


@lru_cache(maxsize=4)
def host(seed: int, steps: int = LEARN.steps, rows: int = ROWS) -> tuple[CaptionedShapes, TinyClip]:
    """The set of a seed and towers trained on ``rows`` pairs of it; all of it is the seed's."""
    shapes = CaptionedShapes(seed)
    pairs = shapes.draw("train", rows, seed=0, short=SHORT)
    return shapes, train_tiny_clip(pairs, seed=seed, settings=replace(LEARN, steps=steps))


def recall_of(clip: TinyClip, shapes: CaptionedShapes, part: Part, galleries: int = GALLERIES) -> Recall:
    """Mean recall over galleries of 100 combinations of a part."""
    drawn = [shapes.gallery(part, seed=seed) for seed in range(galleries)]
    return mean_recall([recall(clip.see(each.pictures), clip.read(each.captions)) for each in drawn])


def hard_recall_of(clip: TinyClip, shapes: CaptionedShapes, part: Part, galleries: int = GALLERIES) -> Recall:
    """The same among 50 combinations of a part and a near twin of each, of any part; the twins do not ask."""
    found = []
    for seed in range(galleries):
        each = shapes.hard_gallery(part, seed=seed)
        found.append(recall(clip.see(each.pictures), clip.read(each.captions), asking=len(each) // 2))
    return mean_recall(found)
