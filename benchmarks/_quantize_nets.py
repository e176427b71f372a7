"""Small float networks of four tasks for benchmarks/quantize.py, trained once a seed and kept in build/bench/.

A task gives training, validation and test frames that share no source: digits (8x8 enlarged, another split a seed),
MNIST and Fashion-MNIST (official test set, the same for every seed), windows of one ECG record (another split a seed,
labels of a detector, not of an expert: kasmina_trainer/datasets/ecg.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_trainer.datasets.digits import Digits, Samples, split_digits
from kasmina_trainer.hosts import DigitsHost
from kasmina_trainer.training import TrainingSettings, as_tensors, train

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/bench"
ECG = "1-D ECG"
Array = npt.NDArray[Any]


class ConvNet(nn.Module):
    """Plain convolutions with batch norm for 28x28 grey pictures, 61,050 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = ((1, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1, bias=False) for a, b, s in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _ in widths)
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to (N, classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        logits: torch.Tensor = self.head(x.mean((2, 3), keepdim=True).flatten(1))
        return logits


class EcgNet(nn.Module):
    """One-dimensional convolutions for windows of 128 samples, as rows of height one."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        widths = ((1, 16), (16, 32), (32, 48), (48, 64))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, (1, 7), (1, 2), (0, 3), bias=False) for a, b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 1, 128) to (N, classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        logits: torch.Tensor = self.head(x.mean((2, 3), keepdim=True).flatten(1))
        return logits


@dataclass(frozen=True)
class Parts:
    """Frames (N, C, H, W) and labels of one seed; no source is in two parts."""

    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True)
class Task:
    """One data set and the network for it.

    Attributes:
        seeds: How many networks are trained.
        shared_test: Whether all seeds are tested on the same frames, in the same order.
        separable: Whether it is built of depthwise layers, whose weights no engine stores at four bits.
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[int], Parts]
    settings: TrainingSettings
    seeds: int
    shared_test: bool
    separable: bool = False


def _digits(seed: int) -> Parts:
    parts = split_digits(seed)
    return Parts(parts.host.samples, _joined(parts.probes, parts.check), _joined(parts.test, parts.camera))


def _joined(a: Digits, b: Digits) -> Samples:
    return np.concatenate([a.x, b.x]), np.concatenate([a.y, b.y])


def _mnist(seed: int) -> Parts:
    from kasmina_trainer.datasets.mnist import load_mnist

    found = load_mnist(seed)
    return Parts(found.train, found.validation, found.test)


def _fashion(seed: int) -> Parts:
    from kasmina_trainer.datasets.fashion import load_fashion

    found = load_fashion(seed)
    return Parts(found.train, found.validation, found.test)


def _ecg(seed: int) -> Parts:
    from kasmina_trainer.datasets.ecg import load_ecg

    found = load_ecg(seed)
    return Parts(found.train, found.validation, found.test)


def tasks() -> dict[str, Task]:
    """The four tasks by name."""
    pictures = TrainingSettings(steps=700, batch=128, learning_rate=4e-3, shift=0)
    found = (
        Task("digits", DigitsHost, _digits, TrainingSettings(steps=450, learning_rate=1e-2), 10, False, True),
        Task("MNIST", ConvNet, _mnist, pictures, 5, True),
        Task("Fashion-MNIST", ConvNet, _fashion, pictures, 5, True),
        Task(ECG, EcgNet, _ecg, TrainingSettings(steps=400, learning_rate=4e-3, shift=0), 10, False),
    )
    return {task.name: task for task in found}


def network(task: Task, seed: int, parts: Parts) -> nn.Module:
    """The trained float network of a seed, from build/bench/ where it was trained before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = task.build()
    made_of = f"{module} {task.settings} {torch.__version__} {_rows_digest(parts)}"
    key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    path = FOLDER / f"quantize-{task.name.lower().replace(' ', '-')}-{seed}-{key}.pt"
    if path.is_file():
        module.load_state_dict(torch.load(path, weights_only=True))
        return module.eval()
    train(
        module,
        list(module.parameters()),
        [as_tensors(parts.train, "cpu")],
        training_modules=[module],
        settings=task.settings,
        seed=seed,
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return module.eval()


def _rows_digest(parts: Parts) -> str:
    return hashlib.sha256(np.ascontiguousarray(parts.train[0][:64]).tobytes() + parts.train[1].tobytes()).hexdigest()


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or tasks():
        task = tasks()[name]
        for seed in range(task.seeds):
            parts = task.load(seed)
            network(task, seed, parts)
            print(name, seed, len(parts.train[1]), len(parts.test[1]), flush=True)
