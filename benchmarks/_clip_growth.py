"""Another camera in front of a frozen Tiny-CLIP: what grafts on the image tower bring back, and what removal does.

The text tower, its embeddings and the temperature stay. Full fine-tuning of the image tower on the same pairs for as
many steps stands beside.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks._clip_host import GALLERIES
from kasmina_trainer.datasets.captioned import Camera, CaptionedShapes, Pairs, joined
from kasmina_trainer.multimodal import TinyClip, align, embed, mean_recall, recall
from kasmina_trainer.multimodal.contrastive import coded
from kasmina_trainer.multimodal.growing import LEARN_GRAFT, Sprout, grow, seeded_tower
from kasmina_trainer.seeds import SeededNetwork, outputs_equal

OLD_ROWS, NEW_ROWS = 1500, 3000
CAMERA = Camera()


@dataclass(frozen=True)
class Grown:
    """R@1, mean of both ways, in shares of 1.

    Attributes:
        before: Through the new camera, without grafts.
        after: With them.
        clean_before: Through the old camera, without grafts.
        clean_after: With them.
        parameters: Of the grafts.
        restored: Taken out, the tower answers as before, bit for bit, and its state is the same.
    """

    before: float
    after: float
    clean_before: float
    clean_after: float
    parameters: int
    restored: bool


def pairs_of(shapes: CaptionedShapes, *, scale: float = 1.0) -> Pairs:
    """What is learned from: some pairs as they were, and twice as many through the new camera."""
    old = shapes.draw("train", int(OLD_ROWS * scale), seed=7)
    new = shapes.draw("train", int(NEW_ROWS * scale), seed=8)
    return joined([old, new.seen(CAMERA.see(new.pictures, seed=1000))])


def grown(
    shapes: CaptionedShapes, clip: TinyClip, pairs: Pairs, sprouts: Sequence[Sprout], *, seed: int, steps: int
) -> tuple[Grown, SeededNetwork]:
    """Grafts grown, measured on held-out combinations, and taken out again; they are in again in what comes back."""
    seeds = seeded_tower(clip)
    grow(seeds, clip, pairs, sprouts, settings=replace(LEARN_GRAFT, steps=steps), seed=seed)
    clean_after, after = measured(seeds, shapes, clip)
    clean_before, before = measured(clip.images, shapes, clip)
    parameters = sum(p.numel() for p in seeds.graft_parameters())
    bare = copy.deepcopy(seeds)
    for sprout in sprouts:
        bare.remove(sprout.site)
    bare.check_host()
    example = torch.from_numpy(pairs.pictures[:64])
    restored = outputs_equal(bare, clip.images, (example,))
    return Grown(before, after, clean_before, clean_after, parameters, restored), seeds


def fine_tuned(shapes: CaptionedShapes, clip: TinyClip, pairs: Pairs, *, seed: int, steps: int) -> tuple[float, float]:
    """R@1 with the old camera and with the new one after all of the image tower learned the same pairs."""
    other = copy.deepcopy(clip)
    align(
        other.images, other.texts, coded(pairs), list(other.images.parameters()), log_scale=other.log_scale.detach(),
        training_modules=[other.images], settings=replace(LEARN_GRAFT, steps=steps, learning_rate=3e-3), seed=seed,
    )  # fmt: skip
    return measured(other.images, shapes, clip)


def measured(tower: nn.Module, shapes: CaptionedShapes, clip: TinyClip) -> tuple[float, float]:
    """R@1 on held-out combinations with the old camera and with the new one."""
    old, new = [], []
    for seed in range(GALLERIES):
        each = shapes.gallery("test", seed=seed)
        texts = clip.read(each.captions)
        old.append(recall(embed(tower, each.pictures), texts))
        new.append(recall(embed(tower, CAMERA.see(each.pictures, seed=seed)), texts))
    return mean_recall(old).first, mean_recall(new).first
