"""How far real toolchains and cores are from the counted kernels: learned from published latencies of known networks.

The cycles of a term are what was counted (`mcu_kernels.counted`) times three factors: one common to all, one of the
toolchain, one of the core. All are drawn towards 1, the toolchain's and the core's more than the common one, so that
three networks on a few boards are enough, and a toolchain or core that was never seen gets the common factor. A board's
speed (clock, wait states, caches) is one free factor of all its latencies: only their ratios teach. Least squares in
the logarithm, by Gauss-Newton; the ridge is the hierarchical prior (Gelman and Hill, 2007, chapter 12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.mcu_kernels import TERMS, Counts, counted

MODEL_ERROR = 0.15
"""Standard deviation, in the logarithm, that latencies scatter around the model; what a fit is not drawn into."""
STEPS = 40
_FIXED = 1e-4
SPREAD: Mapping[str, tuple[float, ...]] = {
    "common": (_FIXED, 0.5, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.7),
    "toolchain": (_FIXED, 0.4, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.3),
    "core": (_FIXED, 0.25, 0.2, 0.2, 0.25, 0.2, 0.2, 0.2, 0.2),
}
"""Standard deviation of each factor's logarithm, in the order of `TERMS`. The matrix product is the unit."""


@dataclass(frozen=True)
class Timing:
    """One published latency.

    Attributes:
        board: Whose speed it shares; any word.
        toolchain: As its own description names it, without the version.
        core: As its own description names it.
        counts: Of the network (`mcu_kernels.network_counts`).
        latency_ms: Of one inference.
    """

    board: str
    toolchain: str
    core: str
    counts: Counts
    latency_ms: float


@dataclass(frozen=True)
class KernelFactors:
    """Factors on the counted cycles.

    Attributes:
        logs: ``common``, ``toolchain:NAME`` and ``core:NAME`` to the logarithm of the factor of every term.
    """

    logs: Mapping[str, tuple[float, ...]]

    def costs(self, toolchain: str, core: str) -> tuple[float, ...]:
        """Cycles of every term, in the order of `TERMS`; names that were never seen have no factor of their own."""
        total = np.log(list(counted(core).values()))
        for label in _labels(toolchain, core):
            total = total + np.array(self.logs.get(label, (0.0,) * len(TERMS)))
        return tuple(float(c) for c in np.exp(total))

    def knows(self, toolchain: str, core: str) -> bool:
        """Whether both were seen."""
        return all(label in self.logs for label in _labels(toolchain, core))


def fit_factors(timings: Sequence[Timing], *, model_error: float = MODEL_ERROR) -> KernelFactors:
    """The factors that explain the ratios of each board's latencies best.

    Args:
        timings: At least two latencies of one board among them, or nothing is learned.
        model_error: See `MODEL_ERROR`.

    Raises:
        InputError: No timings.
    """
    if not timings:
        raise InputError("no published latencies to fit kernel costs to")
    labels = sorted({label for t in timings for label in _labels(t.toolchain, t.core)})
    terms, size = len(TERMS), len(TERMS) * len(labels)
    counts = np.array([t.counts for t in timings])
    observed = np.log([t.latency_ms for t in timings])
    member = np.array([[label in _labels(t.toolchain, t.core) for label in labels] for t in timings], float)
    boards = sorted({t.board for t in timings})
    index = np.array([boards.index(t.board) for t in timings])
    mean = np.zeros((len(boards), len(timings)))
    mean[index, np.arange(len(timings))] = 1.0
    mean /= mean.sum(1, keepdims=True)
    prior = 1.0 / np.concatenate([SPREAD[label.partition(":")[0]] for label in labels]) ** 2
    base, found = np.log([list(counted(t.core).values()) for t in timings]), np.zeros(size)
    for _ in range(STEPS):
        parts = counts * np.exp(base + member @ found.reshape(len(labels), terms))
        total = parts.sum(1)
        slope = (member[:, :, None] * (parts / total[:, None])[:, None, :]).reshape(len(timings), size)
        slope -= (mean @ slope)[index]
        off = observed - np.log(total)
        off -= (mean @ off)[index]
        normal = slope.T @ slope / model_error**2 + np.diag(prior)
        step = np.linalg.solve(normal, slope.T @ off / model_error**2 - prior * found)
        found = found + step
        if np.max(np.abs(step)) < 1e-3:
            break
    rows = found.reshape(len(labels), terms)
    return KernelFactors({label: tuple(map(float, row)) for label, row in zip(labels, rows, strict=True)})


def _labels(toolchain: str, core: str) -> tuple[str, str, str]:
    return ("common", f"toolchain:{toolchain}", f"core:{core}")
