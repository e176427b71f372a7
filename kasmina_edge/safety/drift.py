"""Drift: how far a window of inputs is from the nearest domain that a bundle was accepted on.

Values only, never models. A frame gives four cheap features. A window of frames is compared, feature by feature, with
each domain's reference statistics by the two-sample z statistic; the largest of them, in units of the domain's own
alarm threshold, is the drift score: 1.0 is the alarm line. The threshold comes from resampling windows of the reference
frames at export time, so no distribution is assumed. With more than one domain the nearest counts: drift clears once a
graft has learned the new domain and brings its statistics along.

Frames are taken to be independent. A camera that stares at one scene for a whole window is unlike its reference in the
statistic's eyes, and is reported as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import DomainStatistics, FeatureStatistics
from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]

FEATURES = ("input_mean", "input_std", "roughness", "score")
"""Names of the features: mean and standard deviation of the frame's values, mean absolute difference of neighbours
along every axis longer than 1 (all in the input's own units), and the network's top score (share of 1)."""

RESAMPLED_WINDOWS = 20_000
ALARM_QUANTILE = 0.999
_LATER, _EARLIER = slice(1, None), slice(None, -1)
SMALLEST_SHARE = 4
"""A window may hold as few as ``window // SMALLEST_SHARE`` frames; the threshold is calibrated to hold for it too."""


def features(frame: Array, score: float | None = None) -> dict[str, float]:
    """The drift features of one frame.

    Args:
        frame: Any shape, numeric, as the app hands it to the runtime.
        score: Top score of the network's answer in shares of 1; None when it was not measured, and then absent.

    Returns:
        Values by the names of `FEATURES`. A frame without neighbours (one value) has roughness 0. A finite
        frame has finite features, up to the largest float32.

    >>> sorted(features(np.eye(2, dtype=np.float32)).items())
    [('input_mean', 0.5), ('input_std', 0.5), ('roughness', 1.0)]
    """
    values = (frame if frame.dtype == np.float32 else frame.astype(np.float32)).squeeze()
    found = _measured(frame, values)
    if not all(map(math.isfinite, found.values())):  # squares beyond float32: a broken sensor, which must be seen
        found = _measured(frame, values.astype(np.float64))
    if score is not None:
        found["score"] = float(score)
    return found


def _measured(frame: Array, values: Array) -> dict[str, float]:
    """All features but the score, in the precision of ``values``."""
    flat = values.reshape(-1)
    count = flat.size
    if not count:
        raise InputError(f"drift features of an empty frame, shape {frame.shape}")
    mean = float(flat.dot(_ones(count))) / count
    centred = flat - flat.dtype.type(mean)
    found = {"input_mean": mean, "input_std": math.sqrt(float(centred.dot(centred)) / count)}
    total, pairs = 0.0, 0
    for axis in range(values.ndim):
        lead = (slice(None),) * axis
        step = (values[(*lead, _LATER)] - values[(*lead, _EARLIER)]).reshape(-1)
        np.absolute(step, out=step)
        pairs += step.size
        total += float(step.dot(_ones(step.size)))
    found["roughness"] = total / pairs if pairs else 0.0
    return found


def domain_statistics(
    name: str, frames: Sequence[Array] | Array, scores: Sequence[float] | Array | None, window: int, seed: int
) -> DomainStatistics:
    """Reference statistics of one domain, with the threshold found by resampling.

    Windows of ``window`` frames, of half and of a quarter of it, are drawn from the frames with replacement, and scored
    against reference means that are themselves redrawn with their standard error: the threshold is the largest of the
    three 99.9th percentiles. So it holds for fresh frames of the domain, not just for these.

    Args:
        name: The domain's name, as alarms print it.
        frames: At least 2 frames of the domain, (N, ...); some hundreds give a trustworthy threshold.
        scores: Top score of the network on each frame (N,); None leaves the score out of the statistics.
        window: Sampled frames that a telemetry window usually holds.
        seed: Seeds the resampling.

    Raises:
        InputError: Fewer than 2 frames, another number of scores, a window below 1, or values that are not finite.
    """
    if scores is not None and len(scores) != len(frames):
        raise InputError(f"domain {name}: {len(frames)} frames and {len(scores)} scores")
    if len(frames) < 2 or window < 1:
        raise InputError(f"domain {name}: {len(frames)} frames and a window of {window}; at least 2 and 1 are needed")
    rows = [features(frame, None if scores is None else float(scores[i])) for i, frame in enumerate(frames)]
    names = tuple(n for n in FEATURES if n in rows[0])
    table = np.array([[row[n] for n in names] for row in rows], dtype=np.float64)  # (N, F)
    if not np.isfinite(table).all():
        raise InputError(f"domain {name}: frames or scores hold values that are not finite")
    mean = table.mean(axis=0)
    spread = _floor_std(mean, table.std(axis=0, ddof=1))
    threshold = _resampled_threshold(table, mean, spread, window, seed)
    found = {n: FeatureStatistics(mean=float(mean[i]), std=float(spread[i])) for i, n in enumerate(names)}
    return DomainStatistics(name=name, samples=len(rows), window=window, threshold=threshold, features=found)


def drift_score(
    window_means: Mapping[str, float], count: int, domains: Sequence[DomainStatistics]
) -> tuple[float | None, str | None]:
    """Distance of a window to its nearest domain, in units of that domain's threshold, and that domain's name.

    Args:
        window_means: Mean of each feature over the window; features that a domain does not know are left out.
        count: Frames in the window.
        domains: The active bundle's domains.

    Returns:
        ``(score, name)``; 1.0 is the alarm line. ``(None, None)`` when nothing can be compared: no frame, no domain, no
        feature in common.
    """
    best: tuple[float | None, str | None] = (None, None)
    for domain in domains:
        distance = _distance(window_means, count, domain)
        if distance is not None and (best[0] is None or distance < best[0]):
            best = (distance, domain.name)
    return best


def explain_drift(window_means: Mapping[str, float], count: int, domain: DomainStatistics) -> dict[str, float]:
    """Signed distance of each feature to ``domain`` in units of its threshold: which quantity moved, and which way."""
    if count < 1:
        return {}
    scale = math.sqrt(1.0 / count + 1.0 / domain.samples) * domain.threshold
    return {
        name: (window_means[name] - reference.mean) / (_floor(reference.mean, reference.std) * scale)
        for name, reference in domain.features.items()
        if name in window_means
    }


@lru_cache(maxsize=64)
def _ones(count: int) -> Array:
    """Ones to take sums with: a dot product costs half of a reduction on small frames."""
    return np.ones(count, dtype=np.float32)


@dataclass(frozen=True)
class HysteresisState:
    """What the hysteresis remembers: whether the alarm stands, and how many windows in a row spoke against it."""

    raised: bool = False
    against: int = 0


@dataclass(frozen=True)
class DriftHysteresis:
    """Hysteresis around the alarm line as a pure step function.

    Args:
        raise_windows: Windows in a row above ``raise_at`` that raise the alarm.
        clear_windows: Windows in a row below ``clear_at`` that clear it.
        raise_at: Drift score, 1.0 is the line that clean windows cross once in a thousand.
        clear_at: Not above ``raise_at``.

    >>> line, state = DriftHysteresis(raise_windows=2, clear_windows=1), HysteresisState()
    >>> for score in (1.5, None, 1.6):
    ...     state = line.step(state, score)
    >>> state.raised
    True
    """

    raise_windows: int = 3
    clear_windows: int = 3
    raise_at: float = 1.0
    clear_at: float = 1.0

    def __post_init__(self) -> None:
        if min(self.raise_windows, self.clear_windows) < 1 or not 0 < self.clear_at <= self.raise_at:
            raise InputError(
                f"drift hysteresis: {self.raise_windows} and {self.clear_windows} windows must be at least 1, and "
                f"clear_at {self.clear_at} within 0 and raise_at {self.raise_at}"
            )

    def step(self, state: HysteresisState, score: float | None) -> HysteresisState:
        """The state after one more window; a window that was not measured (None) changes nothing."""
        if score is None:
            return state
        speaks = score < self.clear_at if state.raised else score > self.raise_at
        if not speaks:
            return HysteresisState(raised=state.raised)
        against = state.against + 1
        if against >= (self.clear_windows if state.raised else self.raise_windows):
            return HysteresisState(raised=not state.raised)
        return HysteresisState(raised=state.raised, against=against)

    def run(self, scores: Sequence[float | None], state: HysteresisState | None = None) -> HysteresisState:
        """`step` over a whole series, oldest first."""
        state = state or HysteresisState()
        for score in scores:
            state = self.step(state, score)
        return state


def smallest_window(domains: Sequence[DomainStatistics]) -> int:
    """Fewest sampled frames whose window may be judged against these domains."""
    return max((max(1, domain.window // SMALLEST_SHARE) for domain in domains), default=1)


def _distance(window_means: Mapping[str, float], count: int, domain: DomainStatistics) -> float | None:
    found = explain_drift(window_means, count, domain)
    return max(abs(v) for v in found.values()) if found else None


def _resampled_threshold(table: Array, mean: Array, spread: Array, window: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    samples, width = table.shape
    covariance = np.atleast_2d(np.cov(table, rowvar=False)) / samples
    threshold = 0.0
    for size in sorted({window, max(1, window // 2), max(1, window // SMALLEST_SHARE)}):
        worst = np.empty(RESAMPLED_WINDOWS)
        reference = rng.multivariate_normal(mean, covariance, size=RESAMPLED_WINDOWS, method="eigh")
        for start in range(0, RESAMPLED_WINDOWS, 1000):  # keeps the drawn block small: 1000 * size * F
            picks = rng.integers(0, samples, size=(1000, size))
            means = table[picks].mean(axis=1)  # (1000, F)
            z = np.abs(means - reference[start : start + 1000]) / (spread * math.sqrt(1 / size + 1 / samples))
            worst[start : start + 1000] = z.max(axis=1)
        threshold = max(threshold, float(np.quantile(worst, ALARM_QUANTILE)))
    return max(threshold, 1.0 / int(width))


def _floor(mean: float, std: float) -> float:
    return max(std, 1e-6 * max(1.0, abs(mean)))


def _floor_std(mean: Array, std: Array) -> Array:
    return np.maximum(std, 1e-6 * np.maximum(1.0, np.abs(mean)))
