"""Tiny-CLIP: an image tower and a text tower that learned from pictures with captions to answer alike.

208 thousand parameters together; each tower becomes an int8 file of its own, so a device may hold one of them alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_trainer.datasets.captioned import Pairs, encode
from kasmina_trainer.datasets.captioned.words import Texts
from kasmina_trainer.multimodal.contrastive import FIRST_SCALE, LEARN, align
from kasmina_trainer.multimodal.retrieval import Embeddings, unit
from kasmina_trainer.multimodal.towers import WIDTH, ImageTower, TextTower
from kasmina_trainer.training import Progress, TrainingSettings, one_core

_BATCH = 256


class TinyClip(nn.Module):
    """Both towers and the temperature that they learned.

    Args:
        width: Of an embedding.

    Attributes:
        images: Pictures (N, 3, 32, 32) to (N, width).
        texts: Encoded texts (N, BINS, WORDS) to (N, width).
        log_scale: Logarithm of the inverse temperature.

    >>> sum(p.numel() for p in TinyClip().parameters())
    208417
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.images = ImageTower(width)
        self.texts = TextTower(width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, pictures: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and encoded texts to embeddings, not of unit length.  # (N, width) and (M, width)"""
        return self.images(pictures), self.texts(texts)

    def see(self, pictures: npt.NDArray[np.float32]) -> Embeddings:
        """Embeddings of pictures (N, 3, 32, 32), of unit length.  # (N, width)"""
        return embed(self.images, pictures)

    def read(self, texts: tuple[str, ...] | list[str] | Texts) -> Embeddings:
        """Embeddings of texts, or of what `encode` made of them, of unit length.  # (N, width)"""
        return embed(self.texts, texts if isinstance(texts, np.ndarray) else encode(texts))


def embed(tower: nn.Module, x: npt.NDArray[np.float32]) -> Embeddings:
    """What a tower, bare or with grafts, answers; of unit length.  # (N, ...) to (N, width)"""
    was_training = tower.training
    tower.eval()
    with torch.no_grad(), one_core():
        parts = [tower(torch.from_numpy(np.array(x[i : i + _BATCH]))).numpy() for i in range(0, len(x), _BATCH)]
    tower.train(was_training)
    return unit(np.concatenate(parts))


def train_tiny_clip(
    pairs: Pairs, *, seed: int = 0, settings: TrainingSettings = LEARN, on_step: Progress | None = None
) -> TinyClip:
    """Train both towers from nothing; the result is in evaluation mode. Same arguments, same bytes.

    Args:
        pairs: What to learn from, and nothing else.
        seed: Chooses first weights and order.
        settings: How long and how boldly.
        on_step: Called with (steps done, steps asked for).

    Raises:
        InputError: As `align`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = TinyClip()
    align(
        clip.images,
        clip.texts,
        pairs,
        list(clip.parameters()),
        log_scale=clip.log_scale,
        training_modules=[clip],
        settings=settings,
        seed=seed,
        on_step=on_step,
    )
    return clip.eval()
