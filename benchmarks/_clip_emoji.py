"""Real emoji and their names: the same towers, trained on them from nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kasmina_trainer.datasets.captioned import Pairs, joined, load_emoji
from kasmina_trainer.multimodal import Recall, TinyClip, mean_recall, recall, train_tiny_clip
from kasmina_trainer.multimodal.contrastive import LEARN

STEPS, WAYS, DRAWS, REACH = 300, 100, 10, 2


def emoji_recall(seed: int, steps: int = STEPS) -> tuple[Recall, Recall]:
    """Mean recall among 100 emoji of the training part, and among 100 whose groups were held out.

    Raises:
        KasminaError: The set is not here and cannot be fetched.
    """
    parts = load_emoji(seed)
    clip = train_tiny_clip(moved(parts["train"], seed), seed=seed, settings=replace(LEARN, steps=steps))
    return _recall_of(clip, parts["train"], seed), _recall_of(clip, parts["test"], seed)


def moved(pairs: Pairs, seed: int, *, copies: int = 3) -> Pairs:
    """The pairs, and copies of them moved by up to two pixels each way."""
    rng = np.random.default_rng((seed, 21))
    lots = [pairs]
    for _ in range(copies):
        steps = rng.integers(-REACH, REACH + 1, (len(pairs), 2))
        turned = [np.roll(x, (int(a), int(b)), (1, 2)) for x, (a, b) in zip(pairs.pictures, steps, strict=True)]
        lots.append(pairs.seen(np.stack(turned)))
    return joined(lots)


def _recall_of(clip: TinyClip, pairs: Pairs, seed: int) -> Recall:
    rng = np.random.default_rng((seed, 22))
    _, single = np.unique(pairs.captions, return_index=True)  # two emoji share a name
    found = []
    for _ in range(DRAWS):
        each = pairs.at(rng.choice(single, WAYS, replace=False))
        found.append(recall(clip.see(each.pictures), clip.read(each.captions)))
    return mean_recall(found)
