"""Fine-tunes a network that lost something, with the whole one as its teacher.

The teacher answers the very frames that the student sees, moved and mixed alike, for long enough: a patient and
consistent teacher (Beyer et al. 2022). Mixtures of two frames need no label and make many frames of few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.qat import divergence
from kasmina_trainer.training import one_core


@dataclass(frozen=True)
class Recovery:
    """How long and how boldly.

    Attributes:
        steps: Optimiser steps over all rounds; 0: none.
        batch: Rows a step.
        learning_rate: Peak; a short rise, then a half cosine to nothing.
        weight_decay: Decoupled (AdamW).
        labels: Share of the loss that labels make, where there are any; the teacher makes the rest.
        mix: Share of the rows that are mixed with another one, at a weight drawn evenly from 0 to 1.
        shift: Rows are moved by up to so many places along their last axes, zeros moving in; 0 where position matters.
    """

    steps: int = 300
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    labels: float = 0.0
    mix: float = 0.5
    shift: int = 0


@dataclass(frozen=True)
class RecoveryRun:
    """What happened: steps, mean loss of the first and of the last tenth."""

    steps: int
    first_loss: float
    last_loss: float


def recover(
    network: nn.Module,
    teacher: nn.Module,
    frames: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    settings: Recovery,
    seed: int = 0,
    hold: Callable[[], None] | None = None,
) -> RecoveryRun:
    """Train all parameters of a network towards its teacher's answers; same seed, same bytes on one core.

    Batch statistics are learned as well; dropout stays off. Afterwards the network is in the modes it was in, and
    parameters learn or not as they did.

    Args:
        network: Takes what the teacher takes.
        teacher: In evaluation mode.
        frames: Inputs that nothing is judged by.  # (N, C, ...)
        labels: Their classes, or None.  # (N,)
        settings: How.
        seed: Of order, moves and mixtures.
        hold: Called after every step, to put back what must not change.

    Raises:
        InputError: No frames, labels of another number, or the loss is no longer a number; the step is named.
    """
    if not len(frames) or (labels is not None and len(labels) != len(frames)):
        raise InputError(f"recovery: {len(frames)} frames and {'no' if labels is None else len(labels)} labels")
    if settings.steps == 0:
        return RecoveryRun(0, 0.0, 0.0)
    generator = torch.Generator().manual_seed(seed)
    learned = [(p, p.requires_grad) for p in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    losses: list[float] = []
    with one_core():
        try:
            for p, _ in learned:
                p.requires_grad_(True)
            network.eval()
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.train(min(settings.batch, len(frames)) > 1)
            losses = _steps(network, teacher, frames, labels, settings, generator, hold)
        finally:
            for p, learns in learned:
                p.requires_grad_(learns)
                p.grad = None
            for module, mode in modes:
                module.training = mode
    tenth = max(1, len(losses) // 10)
    return RecoveryRun(len(losses), sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth)


def _steps(
    network: nn.Module,
    teacher: nn.Module,
    frames: torch.Tensor,
    labels: torch.Tensor | None,
    settings: Recovery,
    generator: torch.Generator,
    hold: Callable[[], None] | None,
) -> list[float]:
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, settings.steps))
    draw = _draw(len(frames), min(settings.batch, len(frames)), generator)
    losses: list[float] = []
    for step in range(settings.steps):
        rows = next(draw)
        x = moved(frames[rows], settings.shift, generator)
        mixed = round(settings.mix * len(x))
        if mixed:
            weight = torch.rand((mixed, *(1,) * (x.ndim - 1)), generator=generator).to(x)
            other = x[torch.randperm(len(x), generator=generator)[:mixed]]
            x = torch.cat([weight * x[:mixed] + (1 - weight) * other, x[mixed:]])
        with torch.no_grad():
            wanted = teacher(x)
        answer = network(x)
        loss = divergence(answer, wanted)
        if labels is not None and settings.labels > 0 and mixed < len(x):
            told = functional.cross_entropy(answer[mixed:], labels[rows][mixed:])
            loss = (1 - settings.labels) * loss + settings.labels * told
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if hold is not None:
            hold()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"recovery: loss {losses[-1]} after {step + 1} of {settings.steps} steps", "Lower the learning rate."
            )
    return losses


def moved(x: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Rows moved alike by whole places along their last axes, zeros moving in.  # (N, C, ...)"""
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    if reach == 0 or not axes:
        return x
    out = torch.zeros_like(x)
    moves = torch.randint(-reach, reach + 1, (len(x), len(axes)), generator=generator).tolist()
    for row, steps in enumerate(moves):
        source: list[Any] = [slice(None)] * (x.ndim - 1)
        target = list(source)
        for axis, step in zip(axes, steps, strict=True):
            length = x.shape[axis]
            source[axis - 1] = slice(max(0, -step), length - max(0, step))
            target[axis - 1] = slice(max(0, step), length - max(0, -step))
        out[(row, *target)] = x[(row, *source)]
    return out


def _share(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _draw(count: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch]
        order = order[batch:]
