"""The figures of one seed site from the frames that were looked at: formulas only; docs/spec/telemetry.md tells them.

The trainer computes the same figures with these functions from PyTorch's activations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.telemetry.sketch import Moments, VectorMoments

Array = npt.NDArray[Any]
KEPT_CONTRIBUTIONS = 16
"""A contribution takes two runs of the network: it is measured seldom, and the last ones are averaged."""


def interface_drift(entry: Array, leave: Array) -> float | None:
    """1 - cosine of what enters and what leaves a site, 0 (same direction) to 2 (opposite).

    None where one of the two is all zeros or not finite, so that it has no direction, or where their shapes differ.

    >>> import numpy as np
    >>> interface_drift(np.array([1.0, 0.0]), np.array([0.0, 2.0]))
    1.0
    """
    if entry.shape != leave.shape:
        return None
    a, b = entry.astype(np.float64).ravel(), leave.astype(np.float64).ravel()
    if np.array_equal(a, b):
        return 0.0 if a.any() and np.isfinite(a).all() else None
    size = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if not 0.0 < size < math.inf:
        return None
    return min(2.0, max(0.0, 1.0 - float(a @ b) / size))


def participation(weights: Array) -> float:
    """Which share of a layer's weights carries it: L1^2 / (n * L2^2), 1/n to 1; 0 where all are zero.

    The participation ratio, of one scale with the sparsity of Hoyer 2004 (JMLR 5:1457): it does not change when the
    layer is scaled as a whole. A single number (a gate) gives its size instead, at most 1.
    """
    values = np.abs(weights.astype(np.float64)).ravel()
    if values.size == 1:
        return min(1.0, float(values[0]))
    squares = float(values @ values)
    return 0.0 if squares == 0.0 else min(1.0, float(values.sum()) ** 2 / (values.size * squares))


def weights_in_use(layers: Sequence[Array]) -> float | None:
    """`participation` of the weakest layer: a branch is a chain. None for a branch without weights."""
    return min(map(participation, layers)) if layers else None


def contribution(with_graft: Array, without: Array, *, classifies: bool) -> float | None:
    """How far an answer moves when a graft is silenced, 0 (not at all) to 1.

    Args:
        with_graft: The first output as the bundle answers, in real units.
        without: The same output with the graft adding nothing.
        classifies: Answers are logits: total variation distance of the two softmaxes. Otherwise the distance is
            ``|a - b| / (|a| + |b|)``, in Euclidean norms.

    Returns:
        None where an answer is not finite.
    """
    a, b = with_graft.astype(np.float64).ravel(), without.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if classifies:
        return min(1.0, 0.5 * float(np.abs(_softmax(a) - _softmax(b)).sum()))
    size = float(np.linalg.norm(a)) + float(np.linalg.norm(b))
    return 0.0 if size == 0.0 else min(1.0, float(np.linalg.norm(a - b)) / size)


def utilization(weights: float | None, activity: float | None, contributed: float | None) -> float | None:
    """The mean of the shares that are known: weights in use, activity, contribution. 0 (idle) to 1.

    Activity is mean |added| / (mean |entry| + mean |added|). None where nothing is known.

    >>> utilization(0.6, 0.3, None), utilization(None, None, None)
    (0.45, None)
    """
    known = [share for share in (weights, activity, contributed) if share is not None]
    return min(1.0, math.fsum(known) / len(known)) if known else None


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())


@dataclass(frozen=True)
class SiteFigures:
    """What one period said of a site; None: not measured."""

    looks: int
    weights_l1: float | None
    activation_variance: float | None
    interface_drift: float | None
    mean_output: float | None
    contribution: float | None
    utilization: float | None


class SiteMeasures:
    """Accumulates one site; not safe for several threads.

    Args:
        weights: Arrays of the branch's weights in real units; None where nothing is grafted. A single number is a gate:
            it is no part of the sum of weights.
    """

    def __init__(self, weights: Sequence[Array] | None = None) -> None:
        self._contributions: deque[float] = deque(maxlen=KEPT_CONTRIBUTIONS)
        self.weigh(weights)
        self._begin()

    def weigh(self, weights: Sequence[Array] | None) -> None:
        """Take the branch's weights as they are now, where they learn; as the constructor does.

        Weights that are not finite measure nothing.
        """
        self.weights_l1 = self._in_use = None
        if weights is None or not all(np.isfinite(w).all() for w in weights):
            return
        with np.errstate(over="ignore"):
            told = math.fsum(float(np.abs(w).sum()) for w in weights if w.size > 1)
        self.weights_l1 = told if math.isfinite(told) else None
        self._in_use = weights_in_use(weights)

    def add(self, entry: Array, leave: Array, added: Array | None) -> None:
        """Take one frame in; one with a value that is not finite is left out.

        Args:
            entry: What flowed into the site, channels last.
            leave: What flowed out.
            added: What the branch added; None where nothing is grafted. Where it is there, the drift is that of
                ``entry + added``, which is free of the output's rounding.
        """
        if not all(np.isfinite(a).all() for a in (entry, leave, added) if a is not None):
            return
        self._looks += 1
        self._variance.add(leave.reshape(-1, leave.shape[-1]) if leave.ndim else leave.reshape(1, 1))
        drift = interface_drift(entry, leave if added is None else entry + added)
        if drift is not None:
            self._drift.add(drift)
        if added is not None:
            self._entry.add(float(np.abs(entry).mean(dtype=np.float64)))
            self._added.add(float(np.abs(added).mean(dtype=np.float64)))

    def add_answer(self, answer: Array, without: Array | None = None) -> None:
        """Take one answer of the whole model in.

        Args:
            answer: The first output in real units.
            without: The same output with every graft silenced: what enters and what leaves, for the model as a whole.
        """
        values = answer.astype(np.float64).reshape(1, -1)
        if not np.isfinite(values).all():
            return
        self._looks += 1
        self._variance.add(values)
        if without is None or not np.isfinite(without).all():
            return
        drift = interface_drift(without, answer)
        if drift is not None:
            self._drift.add(drift)
        self._entry.add(float(np.abs(without).mean(dtype=np.float64)))
        self._added.add(float(np.abs(answer - without).mean(dtype=np.float64)))

    def contributed(self, share: float | None) -> None:
        """Take one frame's `contribution` in."""
        if share is not None:
            self._contributions.append(share)

    def take(self) -> SiteFigures:
        """The figures since the last take, and begin anew; contributions stay until newer ones push them out."""
        variance = self._variance.variance()
        added, entry = self._added, self._entry
        size = added.mean + entry.mean
        activity = None if not added.count else added.mean / size if size > 0.0 else 0.0
        share = math.fsum(self._contributions) / len(self._contributions) if self._contributions else None
        known = self.weights_l1 is not None and (added.count or self._contributions)
        found = SiteFigures(
            looks=self._looks,
            weights_l1=self.weights_l1,
            activation_variance=float(variance.mean()) if variance.size else None,
            interface_drift=self._drift.mean if self._drift.count else None,
            mean_output=added.mean if added.count else None,
            contribution=share,
            utilization=utilization(self._in_use, activity, share) if known else None,
        )
        self._begin()
        return found

    def _begin(self) -> None:
        self._looks = 0
        self._variance = VectorMoments()
        self._drift, self._entry, self._added = Moments(), Moments(), Moments()
