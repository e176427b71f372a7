"""Training of the detector: which anchor stands for which object, the loss, one loop. Same seed, same bytes on a core.

Anchors overlapping an object by half stand for it, and so does every object's best anchor; those below 0.4 are
background; in between they do not count (Ren et al. 2015; Liu et al. 2016). Scores: focal loss (Lin et al. 2017) over
sigmoids, so that the many background anchors do not drown the few objects. Offsets: smooth L1 on the objects' anchors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from kasmina_edge.contracts.postprocessing import BOX_VALUES, Postprocessing
from kasmina_edge.engines.postprocessing import anchors_of
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.composed_scenes import Scenes, Truth
from kasmina_trainer.detection.network import DigitDetector, build_detector, postprocessing
from kasmina_trainer.detection.scoring import iou

Progress = Callable[[int, int], None]
OBJECT_IOU, BACKGROUND_IOU = 0.5, 0.4
FOCAL_POWER, FOCAL_SHARE = 2.0, 0.25
IGNORED = -1


@dataclass(frozen=True)
class DetectorSettings:
    """How long and how boldly.

    Attributes:
        steps: Optimiser steps.
        batch: Scenes a step.
        learning_rate: Peak of a one-cycle schedule (Smith and Topin 2018).
        weight_decay: Decoupled (AdamW).
        box_weight: Weight of the offsets' loss beside the scores'.
    """

    steps: int = 1200
    batch: int = 32
    learning_rate: float = 6e-3
    weight_decay: float = 1e-3
    box_weight: float = 1.0


def targets(truth: Truth, post: Postprocessing) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """What every anchor should say of a scene.

    Args:
        truth: The scene's objects.
        post: Whose anchors and variances apply.

    Returns:
        Offsets (A, 4): y, x, height, width; and per anchor its class, the number of classes for background, or -1
        where it does not count (A,).
    """
    anchors = anchors_of(post)
    background = len(post.labels)
    offsets = np.zeros((len(anchors), BOX_VALUES), np.float32)
    classes = np.full(len(anchors), background, np.int64)
    if not len(truth.labels):
        return offsets, classes
    centres, sizes = anchors[:, :2], anchors[:, 2:]
    corners = np.concatenate([(centres - sizes / 2)[:, ::-1], (centres + sizes / 2)[:, ::-1]], axis=1)
    overlaps = iou(corners, truth.boxes)  # (A, M)
    best = overlaps.argmax(1)
    most = overlaps.max(1)
    best[overlaps.argmax(0)] = np.arange(len(truth.labels))  # every object has an anchor
    most[overlaps.argmax(0)] = 1.0
    classes[(most >= BACKGROUND_IOU) & (most < OBJECT_IOU)] = IGNORED
    own = most >= OBJECT_IOU
    classes[own] = truth.labels[best[own]]
    boxes = truth.boxes[best]
    middle, size = (boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2, (boxes[:, 2:] - boxes[:, :2])[:, ::-1]
    offsets[:, :2] = (middle - centres) / sizes / post.centre_variance
    offsets[:, 2:] = np.log(size / sizes) / post.size_variance
    offsets[~own] = 0.0
    return offsets, classes


def by_anchor(outputs: Sequence[torch.Tensor], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's maps in the order of the anchors: offsets (N, A, 4) and logits (N, A, classes)."""
    boxes = [o.permute(0, 2, 3, 1).reshape(len(o), -1, BOX_VALUES) for o in outputs[0::2]]
    scores = [o.permute(0, 2, 3, 1).reshape(len(o), -1, classes) for o in outputs[1::2]]
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def loss(
    outputs: Sequence[torch.Tensor], offsets: torch.Tensor, classes: torch.Tensor, *, kinds: int, box_weight: float
) -> torch.Tensor:
    """Focal loss of the scores and smooth L1 of the offsets, an object of a batch at a time.

    Args:
        outputs: As `DigitDetector.forward` gives them.
        offsets: Of every anchor.  # (N, A, 4)
        classes: As `targets`.  # (N, A)
        kinds: How many classes.
        box_weight: As `DetectorSettings`.
    """
    boxes, logits = by_anchor(outputs, kinds)
    wanted = functional.one_hot(classes.clamp(0, kinds), kinds + 1)[..., :kinds].to(logits.dtype)
    counts = (classes != IGNORED).unsqueeze(-1)
    share = torch.sigmoid(logits)
    surprise = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = torch.where(wanted > 0, 1 - share, share)
    weight = torch.where(wanted > 0, FOCAL_SHARE, 1 - FOCAL_SHARE)
    own = (classes >= 0) & (classes < kinds)
    objects = own.sum().clamp(min=1)
    focal = (weight * missed**FOCAL_POWER * surprise * counts).sum()
    placed = functional.smooth_l1_loss(boxes[own], offsets[own], reduction="sum")
    return (focal + box_weight * placed / BOX_VALUES) / objects


def train_detector(
    scenes: Scenes,
    *,
    labels: tuple[str, ...],
    seed: int = 0,
    settings: DetectorSettings | None = None,
    width: int = 16,
    deadline_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_step: Progress | None = None,
) -> DigitDetector:
    """Train a detector from nothing; the result is in evaluation mode.

    Args:
        scenes: To learn from.
        labels: Class names.
        seed: Chooses first weights and order.
        settings: How long and how boldly.
        width: As `DigitDetector`.
        deadline_s: By ``clock``; the steps that do not fit are left out.
        clock: Monotonic seconds.
        on_step: Called with (steps done, steps asked for).

    Raises:
        InputError: Fewer scenes than a batch.
    """
    settings = settings or DetectorSettings()
    if len(scenes) < settings.batch:
        raise InputError(f"{len(scenes)} scenes: a batch has {settings.batch}")
    post = postprocessing(labels)
    found = [targets(truth, post) for truth in scenes.truths]
    x = torch.from_numpy(scenes.x)
    offsets = torch.from_numpy(np.stack([o for o, _ in found]))
    classes = torch.from_numpy(np.stack([c for _, c in found]))
    network = build_detector(seed=seed, classes=len(labels), width=width).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter less time
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=settings.steps + 1)
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.intp)
    for step in range(settings.steps):
        if deadline_s is not None and clock() >= deadline_s:
            break
        if len(order) < settings.batch:
            order = rng.permutation(len(scenes))
        rows, order = torch.from_numpy(order[: settings.batch]), order[settings.batch :]
        optimiser.zero_grad(set_to_none=True)
        error = loss(network(x[rows]), offsets[rows], classes[rows], kinds=len(labels), box_weight=settings.box_weight)
        error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, settings.steps)
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[no-any-return, call-overload]
