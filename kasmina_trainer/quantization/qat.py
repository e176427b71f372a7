"""Quantization-aware training: a few hundred steps in which the network computes as its quantized file will.

Batch normalisation is folded before, so that what is rounded is what the file holds (Jacob et al. 2018 fold during
training; folding first is simpler and needs no second set of statistics for a network that is already trained). The
gradient passes the rounding by the straight-through estimator. The float network may teach (Hinton et al. 2015), which
also serves where labels are missing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.calibration import range_by
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.ranges import Array, Range, Ranges
from kasmina_trainer.quantization.simulation import Simulation, outputs_of, to_tensor

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
TEMPERATURE = 2.0
OBSERVATIONS = 4
"""How often ranges that are not learned are observed again."""
_WARM_UP = 0.1
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class QatRun:
    """What training against the rounding left.

    Attributes:
        graph: The trained float graph; rounding its weights gives what was trained.
        ranges: Range of every rounding point, without head-room.
        first_loss: Mean loss of the first tenth of the steps.
        last_loss: Mean loss of the last tenth.
    """

    graph: fx.GraphModule
    ranges: dict[str, Range]
    first_loss: float
    last_loss: float


def train_rounded(
    graph: fx.GraphModule,
    bits: dict[str, int],
    ranges: Ranges,
    config: QuantizeConfig,
    calibration: Array,
    train: tuple[Array, Array | None] | None = None,
    *,
    border: tuple[str, ...] = (),
    loss: Loss = functional.cross_entropy,
    device: str = "cpu",
) -> QatRun:
    """Train a folded graph against the rounding; same seed, same bytes on one core of one machine.

    Args:
        graph: As `folded_graph` gives it; parameters without gradient stay as they are.
        bits: Width of each weighted layer.
        ranges: Range of each rounding point to begin with.
        config: Steps, rate, distillation, seed, how ranges are found.
        calibration: Frames that ranges are observed on.  # (N, ..., C)
        train: Frames and their labels, or None for labels; None: the calibration frames without labels.
        border: Points whose range stays as it is given (the network's inputs).
        loss: Takes the network's answer and a batch of labels; the labels' share of the loss.
        device: ``cpu`` or ``cuda``; the result is on the CPU.

    Raises:
        InputError: Nothing can learn, labels are missing or too few, or the loss is no longer a number.
    """
    x, y = train if train is not None else (calibration, None)
    if not len(x) or (y is not None and len(y) != len(x)):
        raise InputError(f"qat: {len(x)} frames and {'no' if y is None else len(y)} labels; as many of each are needed")
    if y is None and train is not None and config.distillation < 1:
        raise InputError(
            f"qat: distillation {config.distillation:g} leaves {1 - config.distillation:g} of it to labels, 0 given",
            "Give labels, or set distillation to 1.",
        )
    if y is not None and loss is functional.cross_entropy:
        y = _classes(graph, x, y)
    keep = 1.0 if y is None else config.distillation
    with one_core():
        teacher = copy.deepcopy(graph).eval().to(device)
        student = Simulation(graph, bits, ranges, learn=config.learn_ranges)
        module = student.module.to(device)
        for name in border:
            for end in student.activations[name].parameters():
                end.requires_grad_(False)
        losses = _steps(module, teacher, student, config, calibration, x, y, keep, loss, device, border)
        module.cpu()
    return QatRun(
        _taken_over(graph, student), student.ranges, _mean(losses[: _tenth(losses)]), _mean(losses[-_tenth(losses) :])
    )


def _steps(
    module: nn.Module,
    teacher: nn.Module,
    student: Simulation,
    config: QuantizeConfig,
    calibration: Array,
    x: Array,
    y: Array | None,
    keep: float,
    loss: Loss,
    device: str,
    border: tuple[str, ...],
) -> list[float]:
    learned = [p for p in module.parameters() if p.requires_grad]
    ends = {id(p) for r in student.activations.values() for p in r.parameters()}
    if not [p for p in learned if id(p) not in ends]:
        raise InputError("qat: no parameter of the network may learn", "Train the host before it is frozen.")
    optimizer = torch.optim.Adam(learned, lr=config.qat_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, config.qat_steps))
    again = {config.qat_steps * i // OBSERVATIONS for i in range(1, OBSERVATIONS)}
    draw = _draw(len(x), min(config.qat_batch, len(x)), torch.Generator().manual_seed(config.seed))
    losses: list[float] = []
    for step in range(config.qat_steps):
        if not config.learn_ranges and step in again:
            _observe_again(student, config, calibration, border)
        rows = next(draw)
        frames = to_tensor(x[rows], device)
        answer = module(frames)
        total = torch.zeros((), device=device)
        if keep > 0:
            with torch.no_grad():
                wanted = teacher(frames)
            total = total + keep * divergence(answer, wanted)
        if keep < 1 and y is not None:
            total = total + (1 - keep) * loss(answer, torch.from_numpy(np.array(y[rows])).to(device))
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        losses.append(float(total.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"qat: loss {losses[-1]} after {step + 1} of {config.qat_steps} steps", "Lower qat_rate, or use ptq."
            )
    if not config.learn_ranges:
        _observe_again(student, config, calibration, border)
    return losses


def _classes(graph: fx.GraphModule, x: Array, y: Array) -> Array:
    """Labels as the loss takes them; refused where they name no answer of the network."""
    with torch.no_grad():
        found = outputs_of(graph(to_tensor(x[:1])))[0]
    classes = found.shape[1] if found.ndim > 1 else 0
    if y.dtype.kind not in "iu" or int(y.min()) < 0 or int(y.max()) >= classes:
        raise InputError(
            f"qat: labels {y.dtype} from {y.min()} to {y.max()}; the network has {classes} classes, 0 to {classes - 1}",
            "Number the classes from 0 in the order of the network's answers, as whole numbers.",
        )
    return y.astype(np.int64)


def divergence(answer: Any, wanted: Any) -> torch.Tensor:
    """How far answers are from the teacher's: one number, 0 for equal ones.

    Two-dimensional single answers are taken for logits: Kullback-Leibler divergence at temperature 2, in the scale of a
    cross entropy. Anything else: mean square in units of the teacher's variance, summed over the outputs.
    """
    ours, theirs = outputs_of(answer), outputs_of(wanted)
    if len(ours) == 1 and ours[0].ndim == 2 and ours[0].shape[1] > 1:
        soft = functional.log_softmax(theirs[0] / TEMPERATURE, 1)
        found = functional.log_softmax(ours[0] / TEMPERATURE, 1)
        return TEMPERATURE**2 * functional.kl_div(found, soft, reduction="batchmean", log_target=True)
    parts = [((a - b) ** 2).mean() / b.var().clamp(min=1e-12) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(parts).sum()


def _observe_again(student: Simulation, config: QuantizeConfig, calibration: Array, border: tuple[str, ...]) -> None:
    for name, seen in student.observe(calibration).items():
        if name not in border:
            student.activations[name].take(range_by(seen, config))


def _taken_over(graph: fx.GraphModule, student: Simulation) -> fx.GraphModule:
    trained = copy.deepcopy(graph)
    trained.load_state_dict(student.float_state())
    return trained.eval()


def _share(step: int, steps: int) -> float:
    """Of the peak rate: a short linear rise, then a half cosine to nothing (Loshchilov and Hutter 2017)."""
    rise = max(1, int(steps * _WARM_UP))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _draw(count: int, batch: int, generator: torch.Generator) -> Iterator[Array]:
    """Rows in shuffled epochs without end."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch].numpy()
        order = order[batch:]


@contextmanager
def one_core() -> Iterator[None]:
    """One torch thread: sums then have one order, and files the same bytes on machines of more cores."""
    threads, exact = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = exact


def _tenth(losses: list[float]) -> int:
    return max(1, len(losses) // 10)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
