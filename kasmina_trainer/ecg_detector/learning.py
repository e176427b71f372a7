"""Training the pattern net, and scoring any answerer on windows: the float network or a bundle on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_trainer.datasets.digits import Images, Samples
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES
from kasmina_trainer.ecg_detector.nets import PatternNet
from kasmina_trainer.ecg_detector.scores import auc_by_class
from kasmina_trainer.training import Progress, TrainingSettings, as_tensors, one_core, train

SETTINGS = TrainingSettings(steps=1500, batch=64, learning_rate=6e-3, shift=0, label_smoothing=0.02)
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PatternScores:
    """AUC of each pattern against all others, and their mean.

    Attributes:
        by_pattern: In the order of the patterns.
        accuracy: Share of windows whose highest score is the right one.
    """

    by_pattern: dict[str, float]
    accuracy: float

    @property
    def macro_auc(self) -> float:
        """Mean over patterns."""
        return float(np.mean(list(self.by_pattern.values())))

    def lines(self) -> list[str]:
        """A table, worst first."""
        rows = sorted(self.by_pattern.items(), key=lambda row: row[1])
        head = f"macro AUC {self.macro_auc:.4f}, accuracy {self.accuracy:.1%}"
        return [head, *(f"  {name:14} {value:.4f}" for name, value in rows)]


def train_pattern_net(
    samples: Samples,
    *,
    seed: int = 0,
    classes: int = len(NAMES),
    settings: TrainingSettings = SETTINGS,
    on_step: Progress | None = None,
) -> PatternNet:
    """A pattern net trained from nothing, in evaluation mode; the same seed gives the same bytes.

    Args:
        samples: Windows and labels of the training patients.  # (N, 3, 1, 1280), (N,)
        seed: Of first weights and order.
        classes: How many patterns.
        settings: How long and how boldly.
        on_step: Called with (steps done, steps asked for).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PatternNet(classes)
    train(
        net,
        list(net.parameters()),
        [as_tensors(samples, "cpu")],
        training_modules=[net],
        settings=settings,
        seed=seed,
        on_step=on_step,
    )
    return net.eval()


def softmax_of(net: nn.Module, x: Images, *, batch: int = 128) -> Scores:
    """Probabilities of every class.  # (N, ...) to (N, classes)"""
    with torch.no_grad(), one_core():
        parts = [net(torch.from_numpy(np.array(x[i : i + batch]))).softmax(1) for i in range(0, len(x), batch)]
    found: Scores = torch.cat(parts).numpy()
    return found


def score(
    answer: Callable[[Images], npt.NDArray[np.floating]], samples: Samples, names: Sequence[str] = NAMES
) -> PatternScores:
    """Score an answerer.

    Args:
        answer: Windows to one number a pattern; only their order over windows counts.  # (N, 3, 1, 1280) to (N, C)
        samples: Windows and labels of patients it has not seen.
        names: Of the patterns.

    Raises:
        InputError: A pattern of which there is no window, or nothing else.
    """
    x, y = samples
    found = answer(x)
    return PatternScores(auc_by_class(found, y, names), float((found.argmax(1) == y).mean()))
