"""Does a sentence encoder help a text tower? Real emoji of held-out groups, with and without it.

The text tower first learns the teacher's neighbours on names of the training part and on phrases of common words, then
both towers are trained as ever. ``python -m benchmarks._clip_teacher`` prints the row.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from benchmarks._clip_emoji import STEPS, WAYS, _recall_of, moved
from benchmarks._clip_host import SEEDS
from benchmarks.quantize import row
from kasmina_trainer.datasets.captioned import load_emoji
from kasmina_trainer.multimodal import Recall, TinyClip, align
from kasmina_trainer.multimodal.contrastive import LEARN
from kasmina_trainer.multimodal.sentence_teacher import SentenceTeacher, Teacher, distil_texts

KINDS = ("big", "small", "happy", "sad", "old", "young")
THINGS = (
    "cat", "dog", "house", "flag", "man", "woman", "fruit", "tool", "car", "ball", "tree", "star", "heart", "hand",
    "food", "fish", "bird",
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """R@1 among 100 emoji of groups that were held out: with the teacher, and in ``how`` without.

    Raises:
        KasminaError: The set or the teacher is not here and cannot be fetched.
    """
    teacher = SentenceTeacher()
    found = {told: [held_out_recall(seed, teacher if told else None) for seed in SEEDS] for told in (True, False)}
    first = {told: 100 * statistics.fmean(each.first for each in own) for told, own in found.items()}
    fifth = {
        told: 100 * statistics.fmean((r.to_text[5] + r.to_image[5]) / 2 for r in own) for told, own in found.items()
    }
    how = (
        f"emoji of held-out groups, {WAYS}-way, mean of both ways and {len(SEEDS)} seeds; without the teacher "
        f"{first[False]:.1f} %; R@5 {fifth[True]:.1f} % and {fifth[False]:.1f} %"
    )
    return [row("Tiny-CLIP, emoji, taught by a sentence encoder: R@1", None, round(first[True], 1), "%", True, how)]


def held_out_recall(seed: int, teacher: Teacher | None, steps: int = STEPS) -> Recall:
    """Recall among emoji of groups that were held out; the teacher's lesson may name them and shows none."""
    parts = load_emoji(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = TinyClip()
    if teacher is not None:
        phrases = {f"{kind} {thing}" for kind in KINDS for thing in THINGS}
        distil_texts(clip.texts, sorted({*parts["train"].captions, *phrases}), teacher, seed=seed)
    align(
        clip.images, clip.texts, moved(parts["train"], seed), list(clip.parameters()), log_scale=clip.log_scale,
        training_modules=[clip], settings=replace(LEARN, steps=steps), seed=seed,
    )  # fmt: skip
    return _recall_of(clip.eval(), parts["test"], seed)


if __name__ == "__main__":
    for each in rows():
        print(each, flush=True)
