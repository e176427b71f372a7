"""Supervised training: one loop for hosts, grafts and retunes; same seed, same bytes on one core.

Everything random comes from a generator made of the seed; torch's global generator is left as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Digits
from kasmina_trainer.hosts import build_host
from kasmina_trainer.training.answers import as_tensors, check_device, one_core
from kasmina_trainer.training.rows import Draw, shifted
from kasmina_trainer.training.settings import Group, Progress, Thinned, TrainingRun, TrainingSettings, Watch
from kasmina_trainer.training.state import TrainingState, kept_arrays, restore

TEMPERATURE = 2.0
HOST_SETTINGS = TrainingSettings(steps=450, learning_rate=1e-2)


def train_host(
    digits: Digits,
    *,
    seed: int = 0,
    settings: TrainingSettings = HOST_SETTINGS,
    device: str = "cpu",
    on_step: Progress | None = None,
) -> nn.Module:
    """Train the digits host from nothing; the result is on the CPU, in evaluation mode.

    Args:
        digits: The host part of the split, and nothing else.
        seed: Chooses first weights, order and shifts.
        settings: How long and how boldly.
        device: ``cpu`` or ``cuda``.
        on_step: Called with (steps done, steps asked for).
    """
    host = build_host(seed=seed).to(check_device(device))
    train(
        host,
        list(host.parameters()),
        [as_tensors((digits.x, digits.y), device)],
        training_modules=[host],
        settings=settings,
        seed=seed,
        on_step=on_step,
    )
    return host.cpu().eval()


def train(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    sources: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    training_modules: Sequence[nn.Module] = (),
    teacher: nn.Module | None = None,
    settings: TrainingSettings,
    seed: int,
    thinned: Thinned | None = None,
    deadline_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_step: Progress | None = None,
    groups: Sequence[Group] = (),
    watch: Watch | None = None,
    state: TrainingState | None = None,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_every: int = 50,
) -> TrainingRun:
    """Fit ``parameters`` to the sources, an equal share of every batch from each.

    Args:
        network: Takes (N, ...), gives logits.
        parameters: What may change; everything else keeps its bytes.
        sources: Pairs of inputs (N, ...) and labels (N,), on the network's device.
        training_modules: Modules that run in training mode meanwhile; the rest runs as it is.
        teacher: The network whose answers to the first source are kept, as `TrainingSettings.keep` says.
        settings: How long and how boldly.
        seed: Chooses order and shifts.
        thinned: What the first source is, where it is only a part of one.
        deadline_s: Time on ``clock`` at which to stop.
        clock: Seconds that only go up.
        on_step: Called with (steps done, steps asked for).
        groups: Factors of the learning rate and the parameters that each holds for; 1 for those in no group.
        watch: Called after every step with (steps done, loss).
        state: Where an earlier training of the same call stopped; it goes on from there to the same bytes.
        on_checkpoint: Called with the state after every ``checkpoint_every`` steps that are not the last.
        checkpoint_every: Steps from one to the next.

    Raises:
        InputError: Nothing to learn from, nothing that can learn, a state of another training, or a loss that is not a
            number; the message says at which step.
    """
    if not sources or any(len(x) == 0 or len(x) != len(y) for x, y in sources):
        raise InputError(f"training sources of {[(len(x), len(y)) for x, y in sources]} rows: expected as many labels")
    if not parameters:
        raise InputError("nothing can learn: no parameters", "Grow a blueprint that has parameters.")
    started = clock()
    generator = torch.Generator().manual_seed(seed)
    each = max(1, settings.batch // len(sources))
    counts = [each if thinned is None or at else thinned.rows(each) for at in range(len(sources))]
    draws = [Draw(len(x), count, generator) for (x, _), count in zip(sources, counts, strict=True)]
    optimizer, schedule = _optimizer(parameters, groups, settings)
    modes = [(module, module.training) for module in training_modules]
    losses: list[float] = []
    first_step, before_s, peak_bytes = 1, 0.0, 0
    if state is not None:
        first_step, before_s = state.step + 1, state.seconds
        losses = restore(state, parameters, training_modules, optimizer, draws, generator)
        schedule.load_state_dict({"last_epoch": state.step, "_step_count": first_step})
        peak_bytes = int(state.arrays["peak_bytes"][0])
    done = first_step - 1
    known: torch.Tensor | None = None
    if (settings.remember or thinned is not None) and teacher is not None and settings.keep > 0:
        known = _remembered(teacher, sources[0][0])
    with one_core(), _own_noise(seed, state), channels_last(network):
        for module in training_modules:
            module.train()
        try:
            for done in range(first_step, settings.steps + 1):
                rows = [next(draw) for draw in draws]
                x = torch.cat([source[0][r.to(source[0].device)] for source, r in zip(sources, rows, strict=True)])
                y = torch.cat([source[1][r.to(source[1].device)] for source, r in zip(sources, rows, strict=True)])
                still = 0 if thinned is None else counts[0]  # those are moved already
                moved = shifted(x[still:], settings.shift, generator)
                x = _in_channels_last(torch.cat([x[:still], moved]) if still else moved)
                counting: AbstractContextManager[dict[int, int]] = nullcontext({})
                if not peak_bytes:
                    counting = _counted_bytes(network)
                with counting as saved:
                    answers = network(x)
                    loss = _mistaken(answers, y, settings, thinned, counts[0], each)
                    if teacher is not None and settings.keep > 0:
                        first = len(rows[0])
                        wanted = known[rows[0].to(known.device)] if known is not None else _softened(teacher, x[:first])
                        weight = settings.keep * (1.0 if thinned is None else thinned.share)
                        loss = loss + weight * _divergence(answers[:first], wanted)
                losses.append(float(loss.detach()))
                if not np.isfinite(losses[-1]):
                    raise InputError(
                        f"training diverged: loss {losses[-1]} at step {done} of {settings.steps}",
                        "Lower the learning rate.",
                    )
                for parameter in parameters:  # as zero_grad does, which a profiler's mark makes slower
                    parameter.grad = None
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                peak_bytes = peak_bytes or sum(saved.values()) + 3 * sum(p.numel() * p.itemsize for p in parameters)
                if on_step is not None:
                    on_step(done, settings.steps)
                if watch is not None:
                    watch(done, losses[-1])
                if deadline_s is not None and clock() >= deadline_s:
                    break
                if on_checkpoint is not None and done % checkpoint_every == 0 and done < settings.steps:
                    arrays = kept_arrays(parameters, training_modules, optimizer, draws, generator)
                    arrays |= {"losses": np.array(losses), "peak_bytes": np.array([peak_bytes])}
                    arrays["noise"] = torch.get_rng_state().numpy().copy()
                    on_checkpoint(TrainingState(done, before_s + clock() - started, arrays))
        finally:
            for module, mode in modes:
                module.train(mode)
    tail = losses[-max(1, len(losses) // 10) :]
    last = sum(tail) / max(1, len(tail))
    return TrainingRun(done, settings.steps, last, before_s + clock() - started, peak_bytes)


def _mistaken(
    answers: torch.Tensor, y: torch.Tensor, settings: TrainingSettings, thinned: Thinned | None, first: int, each: int
) -> torch.Tensor:
    """Mean cross entropy of a step; rows of a thinned source weigh as much as ``each`` of the whole one would."""
    if thinned is None:
        return functional.cross_entropy(answers, y, label_smoothing=settings.label_smoothing)
    lines = functional.cross_entropy(answers, y, label_smoothing=settings.label_smoothing, reduction="none")
    total = thinned.share * each / first * lines[:first].sum() + lines[first:].sum()
    return total / (each + len(y) - first)


def _divergence(answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from a teacher's softened answers, in the scale of a cross entropy."""
    found = functional.log_softmax(answers / TEMPERATURE, 1)
    return TEMPERATURE**2 * functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _softened(teacher: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A teacher's answers as log probabilities at `TEMPERATURE`."""
    with torch.no_grad():
        return functional.log_softmax(teacher(x) / TEMPERATURE, 1)


def _remembered(teacher: nn.Module, x: torch.Tensor, *, batch: int = 256) -> torch.Tensor:
    """The same for every row of a source.  # (N, classes)"""
    with one_core():
        return torch.cat([_softened(teacher, x[i : i + batch]) for i in range(0, len(x), batch)])


@contextmanager
def _own_noise(seed: int, state: TrainingState | None) -> Iterator[None]:
    """What layers draw while they train (dropout) comes from the seed; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if state is not None:
            torch.set_rng_state(torch.from_numpy(np.array(state.arrays["noise"])))
        yield


@contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """Weights in the memory order in which depthwise layers train some 1.7 times as fast; values stay as they are."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _in_channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _optimizer(
    parameters: Sequence[nn.Parameter], groups: Sequence[Group], settings: TrainingSettings
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW on a one-cycle schedule, each group at its factor of the rate."""
    factors = {id(p): factor for factor, members in groups for p in members}
    parts: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        parts.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    rates = [settings.learning_rate * factor for factor in parts]
    optimizer = torch.optim.AdamW(
        [{"params": members, "lr": rate} for members, rate in zip(parts.values(), rates, strict=True)],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True if settings.fused and all(p.is_cpu for p in parameters) else None,
    )
    total = max(2, settings.steps)
    rise = 0.2 if total != 5 else 0.4  # a fifth of five steps is no phase at all, and torch divides by it
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=rise)
    return optimizer, schedule


@contextmanager
def _counted_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every value that is saved for the way back, by storage; the network's own do not count."""
    saved: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield saved
