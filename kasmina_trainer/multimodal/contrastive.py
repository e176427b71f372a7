"""Contrastive training: a picture and a text that is true of it are drawn together, all others apart.

The loss is that of CLIP (Radford et al. 2021, arXiv:2103.00020): cross entropy over the batch, both ways. Where several
captions of a batch are true of one picture, the right answer is spread over them evenly (Khosla et al. 2020).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned import Pairs
from kasmina_trainer.training import Progress, TrainingRun, TrainingSettings, one_core

MOST_SCALE = 100.0
FIRST_SCALE = 1 / 0.07
LEARN = TrainingSettings(steps=600, batch=128, learning_rate=4e-3, weight_decay=2e-2, shift=0)

Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Coded:
    """Pairs as tensors.

    Attributes:
        pictures: As the image tower takes them.  # (N, 3, 32, 32) float32
        texts: As the text tower takes them.  # (N, BINS, WORDS) float32
        codes: What is in each picture.  # (N, 8) int8
        said: What each caption says, -1 where it is silent.  # (N, 8) int8
    """

    pictures: torch.Tensor
    texts: torch.Tensor
    codes: torch.Tensor
    said: torch.Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def truth(self, rows: torch.Tensor) -> torch.Tensor:
        """Which text (row) is true of which picture (column), among these pairs.  # (B,) to (B, B) bool"""
        said, codes = self.said[rows][:, None], self.codes[rows][None]
        return ((said == -1) | (said == codes)).all(2)


def coded(pairs: Pairs) -> Coded:
    """Pairs as tensors, the texts as numbers."""
    return Coded(
        torch.from_numpy(np.array(pairs.pictures)),
        torch.from_numpy(pairs.texts),
        torch.from_numpy(np.array(pairs.codes)),
        torch.from_numpy(np.array(pairs.said)),
    )


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross entropy of both directions.  # scalar, nats

    Args:
        images: Of any length.  # (N, E)
        texts: Likewise.  # (N, E)
        scale: What cosines are multiplied by.  # scalar
        truth: Which text (row) is true of which picture (column); None: the i-th of the i-th alone.  # (N, N) bool
    """
    scores = scale * functional.normalize(texts, dim=1) @ functional.normalize(images, dim=1).T
    if truth is None:
        own = torch.arange(len(images), device=images.device)
        return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
    right = truth.to(scores.dtype)
    to_images, to_texts = right / right.sum(1, keepdim=True), right.T / right.T.sum(1, keepdim=True)
    return (functional.cross_entropy(scores, to_images) + functional.cross_entropy(scores.T, to_texts)) / 2


def align(
    images: nn.Module,
    texts: nn.Module,
    pairs: Pairs | Coded,
    parameters: Sequence[nn.Parameter],
    *,
    log_scale: torch.Tensor,
    training_modules: Sequence[nn.Module] = (),
    settings: TrainingSettings = LEARN,
    seed: int,
    on_step: Progress | None = None,
) -> TrainingRun:
    """Fit ``parameters`` to pairs with the contrastive loss; AdamW on a one-cycle schedule.

    Args:
        images: The image tower, or a `SeededNetwork` around it.
        texts: The text tower, likewise.
        pairs: What to learn from.
        parameters: What may change: all of both towers, or those of grafts alone.
        log_scale: Logarithm of what cosines are multiplied by; learns when it is among the parameters.  # scalar
        training_modules: Modules that run in training mode meanwhile.
        settings: Steps, batch, rate and decay; the rest of them is for classifiers.
        seed: Chooses the order.
        on_step: Called with (steps done, steps asked for).

    Returns:
        What happened.

    Raises:
        InputError: Nothing can learn, fewer pairs than a batch, or a loss that is no number.
    """
    known = coded(pairs) if isinstance(pairs, Pairs) else pairs
    if not parameters:
        raise InputError("nothing can learn: no parameters", "Grow a blueprint that has parameters.")
    if len(known) < settings.batch or settings.batch < 2:
        raise InputError(f"{len(known)} pairs and batches of {settings.batch}: expected at least 2, and a whole batch")
    started = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p is not log_scale], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p is log_scale], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(10, settings.steps), pct_start=0.2
    )
    modes = [(module, module.training) for module in training_modules]
    losses: list[float] = []
    rows = torch.randperm(len(known), generator=generator)
    at = 0
    with one_core():
        for module in training_modules:
            module.train()
        try:
            for done in range(1, settings.steps + 1):
                if at + settings.batch > len(rows):
                    rows, at = torch.randperm(len(known), generator=generator), 0
                chosen, at = rows[at : at + settings.batch], at + settings.batch
                scale = log_scale.exp().clamp(max=MOST_SCALE)
                pictures = known.pictures[chosen].contiguous(memory_format=torch.channels_last)
                loss = contrastive_loss(images(pictures), texts(known.texts[chosen]), scale, known.truth(chosen))
                losses.append(float(loss.detach()))
                if not np.isfinite(losses[-1]):
                    raise InputError(
                        f"training diverged: loss {losses[-1]} at step {done} of {settings.steps}",
                        "Lower the learning rate.",
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                if on_step is not None:
                    on_step(done, settings.steps)
        finally:
            for module, mode in modes:
                module.train(mode)
    tail = losses[-max(1, len(losses) // 10) :]
    return TrainingRun(len(losses), settings.steps, sum(tail) / max(1, len(tail)), time.monotonic() - started)
