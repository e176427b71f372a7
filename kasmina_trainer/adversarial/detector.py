"""A detector of inputs gone wrong: statistics of the network's own features, and how far they are from good ones.

`WithStatistics` gives a network a second output, the mean of every channel at its seed sites, which costs a few
additions a picture and goes into the same int8 file. `fit_check` learns from good frames alone what is common there;
the result is a `kasmina_edge.safety.input_check.InputCheck` that a device asks with numpy. No wrong frame is needed to
fit it, so that it is not tuned to the kinds it is judged on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.input_check import InputCheck
from kasmina_trainer.adversarial.attacks import Penalty
from kasmina_trainer.datasets.digits import Images, Labels, to_nhwc
from kasmina_trainer.training import one_core

STATISTICS = "statistics"
FALSE_ALARMS = 0.01
_SHRINK = 0.01
_BATCH = 256
Array = npt.NDArray[Any]


class WithStatistics(nn.Module):
    """A network with the channel means at some of its modules as a second output.

    Args:
        network: Takes pictures (N, C, H, W), gives logits; copied.
        sites: Names of its modules that give maps (N, C, H, W).

    Raises:
        InputError: No sites, or a name that is none of its modules.
    """

    def __init__(self, network: nn.Module, sites: Sequence[str]) -> None:
        super().__init__()
        own = copy.deepcopy(network)
        known = dict(own.named_modules())
        wrong = [site for site in sites if site not in known]
        if wrong or not sites:
            raise InputError(f"statistics at {', '.join(sites) or 'no site'}: {', '.join(wrong) or 'none'} not found")
        self.network = own
        self.sites = tuple(sites)
        self._means: list[torch.Tensor] = []
        for site in sites:
            known[site].register_forward_hook(self._take)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) to logits (N, classes) and statistics (N, D)."""
        self._means = []  # what calls of the inner network alone may have left
        logits = self.network(x)
        means, self._means = self._means, []
        return logits, torch.cat(means, 1)

    def _take(self, module: nn.Module, given: Any, value: torch.Tensor) -> None:
        self._means.append(value.mean((2, 3), keepdim=True).flatten(1))


def statistics_of(network: WithStatistics, x: Images) -> npt.NDArray[np.float32]:
    """Statistics of pictures on the desk, in evaluation mode.  # (N, C, H, W) to (N, D)"""
    network.eval()
    with torch.no_grad(), one_core():
        parts = [network(torch.from_numpy(np.array(x[i : i + _BATCH])))[1] for i in range(0, len(x), _BATCH)]
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def device_statistics(runtime: Runtime, output: str = STATISTICS) -> Callable[[Images], npt.NDArray[np.float32]]:
    """The same from a deployed bundle, as the app sees them.

    Args:
        runtime: Open.
        output: Its output that holds them.

    Raises:
        InputError: The bundle has no such output.
    """
    names = [tensor.name for tensor in runtime.manifest.outputs]
    if output not in names:
        raise InputError(f"output {output!r}: the bundle has {', '.join(names)}", "Export it WithStatistics.")

    def asked(x: Images) -> npt.NDArray[np.float32]:
        answers = [result.outputs[output] for result in runtime.infer_batch(to_nhwc(x))]
        return np.stack([np.ravel(answer) for answer in answers]).astype(np.float32)

    return asked


def fit_check(
    statistics: Array, labels: Labels, held_out: Array, *, false_alarms: float = FALSE_ALARMS, shrink: float = _SHRINK
) -> InputCheck:
    """What good frames have in common.

    Args:
        statistics: Of good frames.  # (N, D)
        labels: Their classes; each has a centre of its own.  # (N,)
        held_out: Statistics of other good frames, which set the threshold.  # (M, D)
        false_alarms: Share of these that may alarm.
        shrink: Share of the mean variance that is added in every direction, against directions that hardly vary.

    Raises:
        InputError: Fewer rows than statistics, not as many labels, a share outside 0 to 1, numbers that are not
            finite, or statistics that never vary.
    """
    values, others, labels = np.asarray(statistics, np.float64), np.asarray(held_out, np.float64), np.asarray(labels)
    if values.ndim != 2 or others.ndim != 2 or labels.ndim != 1:
        raise InputError(
            f"statistics {values.shape}, labels {labels.shape}, held out {others.shape}: expected (N, D), (N,), (M, D)"
        )
    rows, width = values.shape
    if len(labels) != rows or rows <= width or not len(others) or others.shape[1] != width:
        raise InputError(
            f"statistics {values.shape}, labels {labels.shape}, held out {others.shape}: too few or unequal"
        )
    if not 0 < false_alarms < 1 or not 0 <= shrink <= 1:
        raise InputError(f"false alarms {false_alarms}, shrink {shrink}: expected shares of 1")
    if not (np.isfinite(values).all() and np.isfinite(others).all() and np.isfinite(labels).all()):
        raise InputError("statistics or labels: not all numbers are finite", "Find the frame that it fails on.")
    classes = np.unique(labels)
    middles = np.stack([values[labels == label].mean(0) for label in classes])
    apart = values - middles[np.searchsorted(classes, labels)]
    spread = apart.T @ apart / rows
    spread += shrink * np.trace(spread) / width * np.eye(width)
    sizes, axes = np.linalg.eigh(spread)
    if not sizes[0] > 0:
        raise InputError(
            f"statistics: of {width}, {int((~(sizes > 0)).sum())} directions never vary about the classes' centres",
            "Give more frames, or a shrink above 0.",
        )
    whitening = axes / np.sqrt(sizes)
    mean = values.mean(0)
    bare = InputCheck(mean, whitening, (middles - mean) @ whitening, 1.0)
    limit = float(np.quantile(bare.scores(others), 1 - false_alarms))
    return InputCheck(bare.mean, bare.whitening, bare.centres, limit)


def score_of(check: InputCheck, network: WithStatistics) -> Penalty:
    """The score as something an adaptive attacker can follow downhill.

    Args:
        check: The detector it knows.
        network: What the detector looks at.
    """
    mean, whitening, centres = (
        torch.from_numpy(np.asarray(part, np.float32)) for part in (check.mean, check.whitening, check.centres)
    )

    def score(x: torch.Tensor) -> torch.Tensor:
        there = (network(x)[1] - mean) @ whitening
        return torch.cdist(there, centres).pow(2).min(1).values / centres.shape[1]

    return score


def alarm_of(check: InputCheck, network: WithStatistics, *, room: float = 0.95) -> Penalty:
    """How far the score is above what raises an alarm: the strongest attacker cares for nothing below it.

    Args:
        check: The detector it knows.
        network: What the detector looks at.
        room: Share of the threshold that the attacker aims below.

    Raises:
        InputError: No room, or more than the threshold.
    """
    if not 0 < room <= 1:
        raise InputError(f"room {room}: expected a share of the threshold, above 0 up to 1")
    score, limit = score_of(check, network), room * check.threshold
    return lambda x: torch.relu(score(x) - limit)


def auroc(good: Array, wrong: Array) -> float:
    """Chance that a wrong frame's score is above a good one's, a draw counting half (Mann and Whitney 1947).

    Raises:
        InputError: One of the two is empty, or holds what is no number.

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(good) or not len(wrong):
        raise InputError(f"{len(good)} good and {len(wrong)} wrong scores: expected some of each")
    if np.isnan(good).any() or np.isnan(wrong).any():
        raise InputError(f"AUROC: {int(np.isnan(good).sum() + np.isnan(wrong).sum())} scores are no numbers")
    ordered = np.sort(good)
    below, up_to = (np.searchsorted(ordered, wrong, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(good))
