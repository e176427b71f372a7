"""A growth that is run many times: bars in noise, a net of a few hundred weights, and a lens that inverts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from kasmina_trainer.acceptance import AcceptanceLimits
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.training import TrainingSettings, as_tensors, train

SIDE = 8
CLASSES = 3
QUICK = TrainingSettings(steps=12, batch=16, learning_rate=2e-2, shift=0, keep=0.5)
LIMITS = AcceptanceLimits(minimum_samples=20, resamples=200)


class SmallHost(nn.Module):
    """Two convolutions, one of them behind a batch norm, and two places that do nothing."""

    seed_sites = ("s1", "s2")
    input_shape = (1, SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.s1 = nn.Identity()
        self.deep = nn.Conv2d(6, 8, 3, 2, 1)
        self.s2 = nn.Identity()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to (N, 3)."""
        x = self.s1(torch.relu(self.norm(self.stem(x))))
        x = self.s2(torch.relu(self.deep(x)))
        answer: torch.Tensor = self.head(x.mean((2, 3)))
        return answer


def bars(count: int, seed: int) -> Samples:
    """An upright, a lying or a slanting bar in noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    x = rng.uniform(0, 0.35, (count, 1, SIDE, SIDE)).astype(np.float32)
    for row, label in enumerate(y):
        at = int(rng.integers(1, SIDE - 1))
        if label == 0:
            x[row, 0, :, at] += 0.6
        elif label == 1:
            x[row, 0, at, :] += 0.6
        else:
            x[row, 0, np.arange(SIDE), (np.arange(SIDE) + at) % SIDE] += 0.6
    return x, y.astype(np.int64)


def inverted(samples: Samples) -> Samples:
    """The same through a lens that turns light into dark."""
    return (1 - samples[0]).astype(np.float32), samples[1]


@cache
def _host_state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = SmallHost()
    settings = TrainingSettings(steps=80, batch=32, learning_rate=2e-2, shift=0)
    train(
        host,
        list(host.parameters()),
        [as_tensors(bars(300, 0), "cpu")],
        training_modules=[host],
        settings=settings,
        seed=0,
    )
    return host.state_dict()


def trained_host() -> SmallHost:
    """The host; it knows most bars."""
    host = SmallHost()
    host.load_state_dict(_host_state())
    return host.eval()


def seeded() -> SeededNetwork:
    """The host with bare sites."""
    return attach_seeds(trained_host())


def task() -> dict[str, Any]:
    """Rows to learn from and to judge by, and quick settings."""
    return {
        "train": bars(90, 1),
        "target": inverted(bars(90, 2)),
        "holdout_clean": bars(60, 3),
        "holdout_target": inverted(bars(60, 4)),
        "settings": QUICK,
        "limits": LIMITS,
    }


@dataclass
class Steady:
    """A clock that moves when it is read."""

    now_s: float = 0.0
    step_s: float = 1.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s
