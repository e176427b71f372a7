"""What the growth benchmarks learn and are judged on: hosts trained on clean data, and the same data gone wrong.

Hosts and data are those of benchmarks/_quantize_nets.py. Pictures go wrong as `corruptions.KINDS` says, one kind of
each family of Hendrycks and Dietterich 2019 that needs no colour. ECG windows go wrong as electrodes do: muscle noise,
mains hum on a wandering baseline, and contact lost for a part of the window; labels stay those of the clean signal.
Recipes and rates are chosen on validation rows, figures come from test rows; no row is in two parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from benchmarks._quantize_nets import ECG, Parts, Task, network, tasks
from kasmina_trainer.datasets.corruptions import KINDS, corrupt
from kasmina_trainer.datasets.digits import Samples

Array = npt.NDArray[Any]
MOST_TRAIN, MOST_VALIDATION, MOST_TEST = 4000, 1000, 2000
"""Rows of a part that are used; the first ones, which are in random order."""
SAMPLE_HZ = 180.0


@dataclass(frozen=True)
class Ground:
    """One host, and one way in which its inputs go wrong.

    Attributes:
        task: Data set and architecture.
        seed: Of the host, of the split where the data set has one, and of the corruption.
        kind: What goes wrong.
        host: Trained on clean rows, in evaluation mode.
        clean: Rows as the host knows them.
        target: The same rows gone wrong.
    """

    task: Task
    seed: int
    kind: str
    host: nn.Module
    clean: Parts
    target: Parts


def kinds_of(task: Task) -> tuple[str, ...]:
    """Names of what goes wrong in a data set."""
    return tuple(_ECG_KINDS) if task.name == ECG else KINDS


def ground(task: Task, seed: int, kind: str, *, most: int | None = None) -> Ground:
    """Host and rows of one cell; ``most`` rows of each held-out part, where a moment must do."""
    host, parts = _host(task.name, seed) if task is _known().get(task.name) else _made(task, seed)
    if most is not None:
        parts = Parts(parts.train, _first(parts.validation, most), _first(parts.test, most))
    spoil = _ECG_KINDS[kind] if task.name == ECG else lambda x, s: corrupt(x, kind, seed=s)
    wrong = [
        (spoil(x, 1000 * part + seed), y) for part, (x, y) in enumerate((parts.train, parts.validation, parts.test))
    ]
    return Ground(task, seed, kind, host, parts, Parts(*wrong))


def small(task: Task, *, steps: int) -> Task:
    """The same task with a host that is trained for so few steps that it is ready in seconds."""
    return replace(task, settings=replace(task.settings, steps=steps))


@cache
def _known() -> dict[str, Task]:
    return tasks()


@cache
def known(name: str) -> Task:
    """A task by name; the same object each time."""
    return _known()[name]


@cache
def _host(name: str, seed: int) -> tuple[nn.Module, Parts]:
    return _made(known(name), seed)


def _made(task: Task, seed: int) -> tuple[nn.Module, Parts]:
    parts = task.load(seed)
    host = network(task, seed, parts)
    limits = (MOST_TRAIN, MOST_VALIDATION, MOST_TEST)
    cut = [_first(part, most) for part, most in zip((parts.train, parts.validation, parts.test), limits, strict=True)]
    return host, Parts(*cut)


def _first(samples: Samples, most: int) -> Samples:
    return np.ascontiguousarray(samples[0][:most]), np.ascontiguousarray(samples[1][:most])


def _muscle(x: Array, seed: int) -> Array:
    """Broadband noise of 0.9 mV."""
    return _within(x + np.random.default_rng(seed).normal(0.0, 0.15, x.shape))


def _hum(x: Array, seed: int) -> Array:
    """1.2 mV of 50 Hz mains on a baseline that wanders by 1.5 mV."""
    rng, t = np.random.default_rng(seed), np.arange(x.shape[-1]) / SAMPLE_HZ
    rows = (len(x), 1, 1, 1)
    mains = 0.2 * np.sin(2 * np.pi * (50 * t + rng.uniform(0, 1, rows)))
    slow = 0.25 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.5, rows) * t + rng.uniform(0, 1, rows)))
    return _within(x + mains + slow)


def _contact(x: Array, seed: int) -> Array:
    """A quarter of the samples, in stretches of eight, at the rail; the rest at half its height, and noisy."""
    rng = np.random.default_rng(seed)
    lost = np.repeat(rng.random((len(x), 1, 1, -(-x.shape[-1] // 8))) < 0.25, 8, axis=-1)[..., : x.shape[-1]]
    weak = 0.5 + 0.5 * (x - 0.5) + rng.normal(0.0, 0.05, x.shape)
    return _within(np.where(lost, 1.0, weak))


def _within(x: Array) -> Array:
    return np.clip(x, 0.0, 1.0).astype(np.float32)


_ECG_KINDS: dict[str, Callable[[Array, int], Array]] = {"muscle": _muscle, "hum": _hum, "contact": _contact}
