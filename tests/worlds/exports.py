"""Small real exports for tests: a host, a graft on it, and networks that must not pass.

The networks are channels-first modules; frames are channels-last, as the app sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.bundle import Bundle
from kasmina_trainer.datasets.corruptions import blur
from kasmina_trainer.datasets.digits import LABELS, DigitSplits, to_nhwc
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.training import TrainingSettings, as_tensors, train

Array = npt.NDArray[Any]
CAPTURED = 200


def grow(host: nn.Module, parts: DigitSplits, *, steps: int = 250) -> SeededNetwork:
    """Depthwise grafts at the first two sites, trained for a lens out of focus."""
    network = attach_seeds(host)
    for site in network.sites[:2]:
        network.graft(site, "depthwise")
    learn = parts.camera.take(slice(0, CAPTURED))
    train(
        network,
        network.graft_parameters(),
        [as_tensors((parts.host.x, parts.host.y), "cpu"), as_tensors((blur(learn.x), learn.y), "cpu")],
        training_modules=[network],
        settings=TrainingSettings(steps=steps, learning_rate=1e-2),
        seed=0,
    )
    network.eval()
    return network


def frames(parts: DigitSplits) -> Mapping[str, tuple[Array, Array]]:
    """Calibration and held-out frames with labels, clean and mixed with the blurred domain."""
    learn, judge = parts.camera.take(slice(0, CAPTURED)), parts.camera.take(slice(CAPTURED, len(parts.camera)))
    clean, clean_y = to_nhwc(parts.host.x[:CAPTURED]), parts.host.y[:CAPTURED]
    held = np.concatenate([to_nhwc(parts.probes.x), to_nhwc(parts.check.x)])
    held_y = np.concatenate([parts.probes.y, parts.check.y])
    return {
        "clean": (clean, clean_y),
        "captured": (to_nhwc(blur(learn.x)), learn.y),
        "held_out_clean": (held, held_y),
        "held_out_mixed": (
            np.concatenate([held, to_nhwc(blur(judge.x))]),
            np.concatenate([held_y, judge.y]),
        ),
    }


def host_bundle(network: SeededNetwork, parts: DigitSplits) -> Bundle:
    """digits 1.0.0."""
    given = frames(parts)
    return export_bundle(
        network,
        "digits",
        version="1.0.0",
        profile="x86-cpu",
        calibration=given["clean"][0],
        held_out=given["held_out_clean"],
        labels=LABELS,
        domains={"clean": given["held_out_clean"][0]},
        probes=(to_nhwc(parts.probes.x), parts.probes.y),
        release=1,
    )


def graft_bundle(network: SeededNetwork, parts: DigitSplits, parent: Bundle) -> Bundle:
    """digits 1.1.0."""
    given = frames(parts)
    return export_bundle(
        network,
        "digits",
        version="1.1.0",
        profile="x86-cpu",
        calibration=np.concatenate([given["clean"][0], given["captured"][0]]),
        held_out=given["held_out_mixed"],
        labels=LABELS,
        domains={"clean": given["held_out_clean"][0], "captured": given["captured"][0]},
        parent=parent,
        grafts=network.grafts,
        release=2,
    )


class Tiny(nn.Module):
    """A few hundred parameters with a residual addition; random weights.

    Args:
        gap: Difference between the first two classes' weights; the smaller, the more often rounding decides.
    """

    def __init__(self, gap: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.stem = nn.Conv2d(1, 8, 3, 2, 1)
            self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
            self.pointwise = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 3)
            with torch.no_grad():
                self.head.weight[1] = self.head.weight[0] + gap * torch.randn(8)
                self.head.bias.copy_(torch.tensor([4.0, 4.0, -4.0]))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 8)."""
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        return x.mean((2, 3), keepdim=True).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 3)."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


class Sorting(Tiny):
    """Keeps the four largest features: converts to an operator that LiteRT's runtime does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 3)."""
        x = self.features(x)
        threshold = torch.topk(x, 4, dim=1).values[:, 3:]
        logits: torch.Tensor = self.head(x * (x >= threshold))
        return logits
