"""Attacks that see the network: one step along the sign of the gradient, and many, from random starts.

FGSM is Goodfellow, Shlens and Szegedy 2015 (arXiv:1412.6572), PGD Madry et al. 2018 (arXiv:1706.06083). Both move every
pixel by at most ``epsilon`` in units of full scale and stay in [0, 1]. The black-box attack is in `square_attack`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels
from kasmina_trainer.training import one_core

Penalty = Callable[[torch.Tensor], torch.Tensor]
"""Pictures (N, C, H, W) to one number each that an attacker wants small besides: a detector's score."""

_BATCH = 256
_STEP_SHARE = 2.5


@dataclass(frozen=True)
class Attacked:
    """What an attack made of some pictures.

    Attributes:
        x: The pictures it found, within ``epsilon`` of the clean ones.  # (N, C, H, W) in [0, 1]
        right_before: Whether the clean picture was answered rightly.  # (N,)
        fooled: Whether it was answered rightly before and no longer is.  # (N,)
        queries: How often the target was asked about each picture.  # (N,)
    """

    x: Images
    right_before: npt.NDArray[np.bool_]
    fooled: npt.NDArray[np.bool_]
    queries: npt.NDArray[np.int64]

    @property
    def success_rate(self) -> float:
        """Share of the pictures answered rightly before that are wrong now; 0 where none was right."""
        right = int(self.right_before.sum())
        return int(self.fooled.sum()) / right if right else 0.0

    @property
    def accuracy(self) -> float:
        """Share of all pictures still answered rightly."""
        return float((self.right_before & ~self.fooled).mean()) if len(self.fooled) else 0.0

    @property
    def median_queries(self) -> float:
        """Queries until a picture was found, over those that were."""
        return float(np.median(self.queries[self.fooled])) if self.fooled.any() else 0.0


def fgsm(network: nn.Module, x: Images, y: Labels, epsilon: float) -> Attacked:
    """One step of ``epsilon`` along the sign of the loss's gradient.

    Args:
        network: Takes pictures, gives logits; attacked as it answers, in evaluation mode.
        x: In [0, 1].  # (N, C, H, W)
        y: True labels.  # (N,)
        epsilon: Most that a pixel moves, in units of full scale; 0 leaves everything as it is.

    Raises:
        InputError: A negative ``epsilon``, pictures outside [0, 1], or not as many labels.
    """
    return pgd(network, x, y, epsilon, steps=1, step=epsilon, restarts=0)


def pgd(
    network: nn.Module, x: Images, y: Labels, epsilon: float, *, steps: int = 40, step: float | None = None,
    restarts: int = 1, seed: int = 0, penalty: Penalty | None = None, weight: float = 0.0,
) -> Attacked:  # fmt: skip
    """Many steps along the sign of the loss's gradient, each brought back into the box around the clean picture.

    A picture is kept as soon as a step fools the network, at the lowest penalty met; where nothing does, the last one.

    Args:
        network: As in `fgsm`.
        x: In [0, 1].  # (N, C, H, W)
        y: True labels.  # (N,)
        epsilon: Most that a pixel moves.
        steps: Of each start.
        step: Length of one, 0 or more; 2.5 ``epsilon / steps`` when left out.
        restarts: Random starts in the box; with 0 it starts once, from the clean picture.
        seed: Of the starts.
        penalty: What an adaptive attacker keeps small besides.
        weight: Of the penalty against the cross entropy, 0 or more.

    Raises:
        InputError: A negative ``epsilon`` or no steps, pictures outside [0, 1], not as many labels or one that the
            network does not know, or answers that are not finite.
    """
    check_attack(x, y, epsilon)
    if steps < 1 or restarts < 0:
        raise InputError(f"{steps} steps from {restarts} random starts: expected at least 1 and at least 0")
    length = _STEP_SHARE * epsilon / steps if step is None else step
    if not (math.isfinite(length) and length >= 0 and math.isfinite(weight) and weight >= 0):
        raise InputError(f"step {length!r}, weight {weight!r}: expected numbers of 0 or more")
    generator = torch.Generator().manual_seed(seed)
    goal = _Goal(network, epsilon, length, penalty, weight)
    parts = []
    mode = network.training
    network.eval()
    try:
        with one_core():
            for at in range(0, len(x), _BATCH):
                clean = torch.from_numpy(np.array(x[at : at + _BATCH], np.float32))
                labels = torch.from_numpy(np.array(y[at : at + _BATCH], np.int64))
                parts.append(goal.followed(clean, labels, steps, restarts, generator))
    finally:
        network.train(mode)
    found, right, fooled = (np.concatenate(column) for column in zip(*parts, strict=True))
    asked = 1 + steps * max(1, restarts)
    return Attacked(found, right, fooled & right, np.full(len(x), asked, np.int64))


def check_attack(x: Images, y: Labels, epsilon: float) -> None:
    """Refuse what no attack can begin with.

    Raises:
        InputError: A negative ``epsilon``, no pictures or some outside [0, 1], or not as many whole labels.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon {epsilon!r}: expected 0 or more, in units of full scale")
    if x.ndim != 4 or not len(x) or len(x) != len(y):
        raise InputError(f"pictures {x.shape} and labels {y.shape}: expected (N, C, H, W) and (N,), at least one")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"labels {y.shape} of type {y.dtype}: expected whole numbers (N,)")
    if not (float(x.min()) >= 0.0 and float(x.max()) <= 1.0):
        raise InputError(f"pictures from {x.min():g} to {x.max():g}: expected 0 to 1", "Divide bytes by 255.")


def check_answers(answers: npt.NDArray[Any], y: Labels) -> None:
    """Refuse a target whose answers on clean pictures say nothing: an attack on it would be a figure of nothing.

    Args:
        answers: On clean pictures.  # (N, classes)
        y: True labels.  # (N,)

    Raises:
        InputError: Not two classes at least, numbers that are not finite, or a label of no class.
    """
    if answers.ndim != 2 or len(answers) != len(y) or answers.shape[1] < 2:
        raise InputError(f"answers {answers.shape} on {len(y)} pictures: expected (N, classes), two classes at least")
    if not np.isfinite(answers).all():
        raise InputError(f"{int((~np.isfinite(answers)).sum())} of {answers.size} answers are not finite")
    if int(y.min()) < 0 or int(y.max()) >= answers.shape[1]:
        raise InputError(f"labels {int(y.min())} to {int(y.max())}: expected 0 to {answers.shape[1] - 1}")


@dataclass(frozen=True)
class _Goal:
    """What the steps climb."""

    network: nn.Module
    epsilon: float
    length: float
    penalty: Penalty | None
    weight: float

    def followed(
        self, clean: torch.Tensor, y: torch.Tensor, steps: int, restarts: int, generator: torch.Generator
    ) -> tuple[Images, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The pictures found in one batch, which clean ones were right, and which found ones are wrong."""
        with torch.no_grad():
            answers = self.network(clean)
            check_answers(answers.numpy(), y.numpy())
            right = answers.argmax(1) == y
        best, best_price = clean.clone(), torch.full((len(clean),), torch.inf)
        fooled = torch.zeros(len(clean), dtype=torch.bool)
        for _ in range(max(1, restarts)):
            moved = clean.clone()
            if restarts:
                moved += (2 * torch.rand(clean.shape, generator=generator) - 1) * self.epsilon
                moved.clamp_(0, 1)
            for _ in range(steps):
                moved = self._stepped(moved, clean, y)
                with torch.no_grad():
                    wrong = self.network(moved).argmax(1) != y
                    price = torch.zeros(len(clean)) if self.penalty is None else self.penalty(moved)
                better = wrong & ((price < best_price) | ~fooled)  # the first one even at a price that is no number
                best[better], best_price[better] = moved[better], price[better]
                fooled |= wrong
            best[~fooled] = moved[~fooled]
        return best.numpy(), right.numpy(), fooled.numpy()

    def _stepped(self, moved: torch.Tensor, clean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = moved.detach().requires_grad_(True)
        gain = functional.cross_entropy(self.network(moved), y, reduction="sum")
        if self.penalty is not None and self.weight:
            gain = gain - self.weight * self.penalty(moved).sum()
        (slope,) = torch.autograd.grad(gain, moved)
        with torch.no_grad():
            there = moved + self.length * slope.sign()
            there = torch.max(torch.min(there, clean + self.epsilon), clean - self.epsilon)
            return there.clamp(0, 1)
