"""The gate that lets a graft out of the trainer: a paired measurement on data that nothing was trained on.

Both networks answer the same inputs; what counts is the difference row by row. Its 95 % bounds come from a seeded
bootstrap (Efron and Tibshirani 1993, percentile bounds): one-sided, so that the bound and not the average has to clear
the margin. Rows of one patient, scene or recording are not independent: where their groups are named, whole groups are
drawn (Field and Welsh 2007). Answers come from functions, so that the file a device will run can be judged as well as
torch; what it costs there comes in as figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Samples as Samples

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]
FEWEST_GROUPS = 8


class Priced(Protocol):
    """What both networks cost on a target, before and after; `acceptance_cost.Costs` is one."""

    @property
    def latency_ms(self) -> tuple[float, float]:
        """Of one inference."""

    @property
    def peak_bytes(self) -> tuple[int, int]:
        """Activations and weights."""

    @property
    def energy_uj(self) -> tuple[float, float] | None:
        """Of one inference; None where the target cannot say."""

    @property
    def band(self) -> float | None:
        """Relative half-width of latency and energy; None: unknown."""


@dataclass(frozen=True)
class AcceptanceLimits:
    """What a graft has to show, in shares of 1.

    Attributes:
        minimum_gain: The lower 95 % bound of the gain on the target must be above this.
        maximum_clean_loss: The upper 95 % bound of the clean accuracy lost must not be above this.
        minimum_samples: Fewer rows on either side prove nothing.
        confidence: One-sided level of both bounds.
        resamples: Bootstrap repetitions.
        maximum_class_loss: Most accuracy that any single class may lose on clean rows, by its upper bound; None: it is
            measured and not judged.
        maximum_latency_ms: Of one inference on the target; None: not judged. An estimate over a limit by less than its
            own band passes, and the report says so.
        maximum_peak_bytes: Of activations and weights.
        maximum_energy_uj: Of one inference.
    """

    minimum_gain: float = 0.02
    maximum_clean_loss: float = 0.03
    minimum_samples: int = 50
    confidence: float = 0.95
    resamples: int = 2000
    maximum_class_loss: float | None = None
    maximum_latency_ms: float | None = None
    maximum_peak_bytes: int | None = None
    maximum_energy_uj: float | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that would let everything or nothing through by accident.

        Raises:
            InputError: A number outside its range, or none at all.
        """
        for name, least, most in (
            ("minimum_gain", -1.0, 1.0),
            ("maximum_clean_loss", -1.0, 1.0),
            ("maximum_class_loss", -1.0, 1.0),
            ("confidence", 0.5, 1.0),
            ("minimum_samples", 0, inf),
            ("resamples", 1, inf),
            ("maximum_latency_ms", 0, inf),
            ("maximum_peak_bytes", 0, inf),
            ("maximum_energy_uj", 0, inf),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                wanted = f"{least:g} to {most:g}" if isfinite(most) else f"{least:g} or more"
                raise InputError(f"acceptance: {name} {value}, expected {wanted}")


DEFAULT_LIMITS = AcceptanceLimits()


def measure_acceptance(
    before: Predict,
    after: Predict,
    clean: Samples,
    target: Samples,
    *,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    seed: int = 0,
    clusters: tuple[Ints | None, Ints | None] = (None, None),
    costs: Priced | None = None,
) -> Acceptance:
    """Ask both networks the same questions and judge.

    Args:
        before: Labels the network without the graft gives; called with the inputs of ``clean`` and of ``target``.
        after: The same with the graft.
        clean: Held-out inputs (N, ...) and labels (N,) of what the host was made for.
        target: Held-out inputs and labels of what the graft was grown for.
        limits: What it has to show.
        seed: Of the bootstrap.
        clusters: Group of each clean and of each target row (patient, scene, recording); None: rows stand alone.
        costs: What both networks cost on the target.

    Raises:
        InputError: Rows and labels, answers or groups differ in number, or there are too few groups.
    """
    answers = []
    for name, (x, y) in (("clean", clean), ("target", target)):
        if len(x) != len(y):
            raise InputError(f"{name}: {len(x)} inputs and {len(y)} labels")
        for side, predict in (("before", before), ("after", after)):
            labels = np.asarray(predict(x))
            if labels.shape != y.shape:
                raise InputError(f"{name}: the network {side} gave answers of shape {labels.shape}, expected {y.shape}")
            answers.append(labels == y)
    classes = np.asarray(clean[1], dtype=np.int64)
    return judge(*answers, limits=limits, seed=seed, clusters=clusters, classes=classes, costs=costs)


def judge(
    clean_before: Bools,
    clean_after: Bools,
    target_before: Bools,
    target_after: Bools,
    *,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    seed: int = 0,
    clusters: tuple[Ints | None, Ints | None] = (None, None),
    classes: Ints | None = None,
    costs: Priced | None = None,
) -> Acceptance:
    """The verdict, from which rows were answered rightly; pure.

    Args:
        clean_before: Right or wrong by row, without the graft, on clean inputs.
        clean_after: The same rows with the graft.
        target_before: Right or wrong by row, without the graft, on target inputs.
        target_after: The same rows with the graft.
        limits: What it has to show.
        seed: Of the bootstrap.
        clusters: Group of each clean and of each target row; None: rows stand alone.
        classes: True class of each clean row; None: no class is looked at alone.
        costs: What both networks cost on the target.

    Raises:
        InputError: No rows, the pairs do not match, or there are too few groups.

    >>> right, wrong = np.ones(100, bool), np.zeros(100, bool)
    >>> judge(right, right, wrong, right).accepted
    True
    >>> judge(right, wrong, wrong, right).reasons
    ('clean accuracy lost: upper 95 % bound 1.000, at most 0.030 is accepted',)
    """
    if not len(clean_before) or not len(target_before):
        raise InputError(
            f"acceptance of {len(clean_before)} clean and {len(target_before)} target rows: both are needed"
        )
    if clean_before.shape != clean_after.shape or target_before.shape != target_after.shape:
        raise InputError("acceptance is paired: both networks answer the same rows")
    check_clusters(clusters, (len(clean_before), len(target_before)))
    lost = clean_before.astype(np.int8) - clean_after.astype(np.int8)
    gained = target_after.astype(np.int8) - target_before.astype(np.int8)
    rng = np.random.default_rng(seed)
    loss = _resampled_means(lost, clusters[0], limits.resamples, rng)
    gain = _resampled_means(gained, clusters[1], limits.resamples, rng)
    level = f"{limits.confidence * 100:.0f} %"
    gain_low = float(np.quantile(gain, 1 - limits.confidence))
    gain_high = float(np.quantile(gain, limits.confidence))
    loss_high = float(np.quantile(loss, limits.confidence))
    worst = _worst_class(lost, classes, clusters[0], limits, seed)
    fewest = min(len(clean_before), len(target_before))
    reasons = []
    if fewest < limits.minimum_samples:
        reasons.append(f"held-out rows: {fewest}, at least {limits.minimum_samples} are asked for")
    if gain_low <= limits.minimum_gain:
        reasons.append(f"gain: lower {level} bound {gain_low:.3f}, more than {limits.minimum_gain:.3f} is asked for")
    if loss_high > limits.maximum_clean_loss:
        reasons.append(
            f"clean accuracy lost: upper {level} bound {loss_high:.3f}, "
            f"at most {limits.maximum_clean_loss:.3f} is accepted"
        )
    if limits.maximum_class_loss is not None and (worst is None or worst[1] > limits.maximum_class_loss):
        found = f"of class {worst[0]}: upper {level} bound {worst[1]:.3f}" if worst else "by class: not measured"
        reasons.append(f"clean accuracy lost {found}, at most {limits.maximum_class_loss:.3f} is accepted")
    reasons += _too_dear(costs, limits)
    return Acceptance(
        samples=fewest,
        clean_before=float(clean_before.mean()),
        clean_after=float(clean_after.mean()),
        target_before=float(target_before.mean()),
        target_after=float(target_after.mean()),
        gain_low=gain_low,
        gain_high=gain_high,
        clean_loss_high=loss_high,
        accepted=not reasons,
        reasons=tuple(reasons),
        worst_class_loss_high=worst[1] if worst else None,
    )


def check_clusters(clusters: tuple[Ints | None, Ints | None], rows: tuple[int, int]) -> None:
    """Groups are one a row, and enough of them.

    Args:
        clusters: Groups of the clean and of the target rows.
        rows: How many rows each side has.

    Raises:
        InputError: Another number of rows, or fewer than `FEWEST_GROUPS` groups.
    """
    for name, groups, count in zip(("clean", "target"), clusters, rows, strict=True):
        if groups is None:
            continue
        if np.shape(groups) != (count,):
            raise InputError(f"{name}: groups of shape {np.shape(groups)}, expected ({count},), one a row")
        found = len(np.unique(groups))
        if found < FEWEST_GROUPS:
            raise InputError(
                f"{name}: {found} groups among the held-out rows, at least {FEWEST_GROUPS} are needed for a bound",
                "Hold out rows of more groups, or leave the groups out where rows stand alone.",
            )


def _too_dear(costs: Priced | None, limits: AcceptanceLimits) -> list[str]:
    """Limits that are exceeded by more than the estimate's own band."""
    latency = energy = memory = None
    if costs is not None:
        latency, memory = costs.latency_ms[1], costs.peak_bytes[1]
        energy = costs.energy_uj[1] if costs.energy_uj is not None else None
    asked: dict[str, tuple[float | None, float | None, str]] = {
        "latency": (limits.maximum_latency_ms, latency, "ms"),
        "energy": (limits.maximum_energy_uj, energy, "uJ"),
        "peak memory": (limits.maximum_peak_bytes, memory, "bytes"),
    }
    reasons = []
    for name, (limit, found, unit) in asked.items():
        if limit is None:
            continue
        if found is None or costs is None:
            reasons.append(f"{name}: not measured, at most {limit:g} {unit} is accepted")
            continue
        band = 0.0 if unit == "bytes" or costs.band is None else costs.band
        if not found * (1 - band) <= limit:
            reasons.append(f"{name}: {found:g} {unit}, at most {limit:g} {unit} is accepted")
    return reasons


def _worst_class(
    lost: npt.NDArray[np.int8], classes: Ints | None, groups: Ints | None, limits: AcceptanceLimits, seed: int
) -> tuple[int, float] | None:
    """The class with the highest upper bound of accuracy lost, and that bound; the lowest class where several tie."""
    if classes is None:
        return None
    if classes.shape != lost.shape:
        raise InputError(f"classes of shape {classes.shape}, expected {lost.shape}")
    rng = np.random.default_rng([seed, 1])
    bounds = {}
    for label in np.unique(classes):
        mine = classes == label
        means = _resampled_means(lost[mine], None if groups is None else groups[mine], limits.resamples, rng)
        bounds[int(label)] = float(np.quantile(means, limits.confidence))
    worst = max(bounds, key=lambda label: (bounds[label], -label))
    return worst, bounds[worst]


def _resampled_means(
    differences: npt.NDArray[np.int8], groups: Ints | None, resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of ``resamples`` draws with replacement of values -1, 0 and 1: of rows, or of whole groups.

    Rows are drawn as a multinomial over their counts. Few groups spread too little when they are drawn; the spread is
    widened by the root of G / (G - 1).
    """
    count = len(differences)
    if groups is None:
        shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
        draws = rng.multinomial(count, shares, size=resamples)
        means: npt.NDArray[np.float64] = (draws[:, 2] - draws[:, 0]) / count
        return means
    _, place = np.unique(groups, return_inverse=True)
    sizes = np.bincount(place)
    sums = np.bincount(place, weights=differences)
    many = len(sizes)
    if many == 1:
        return np.linspace(-1.0, 1.0, resamples)  # one group bounds nothing
    drawn = rng.multinomial(many, np.full(many, 1 / many), size=resamples)
    ratios: npt.NDArray[np.float64] = (drawn @ sums) / (drawn @ sizes)
    middle = sums.sum() / count
    spread: npt.NDArray[np.float64] = middle + (ratios - middle) * sqrt(many / (many - 1))
    return spread
