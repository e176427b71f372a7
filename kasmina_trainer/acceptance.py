"""The gate that lets a graft out of the trainer: a paired measurement on data that nothing was trained on.

Both networks answer the same inputs; what counts is the difference row by row. Its 95 % bounds come from a seeded
bootstrap over rows (Efron and Tibshirani 1993, percentile bounds): one-sided, so that the bound and not the average has
to clear the margin. Answers come from functions, so that the file a device will run can be judged as well as torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Samples as Samples

Bools = npt.NDArray[np.bool_]
Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class AcceptanceLimits:
    """What a graft has to show, in shares of 1.

    Attributes:
        minimum_gain: The lower 95 % bound of the gain on the target must be above this.
        maximum_clean_loss: The upper 95 % bound of the clean accuracy lost must not be above this.
        minimum_samples: Fewer rows on either side prove nothing.
        confidence: One-sided level of both bounds.
        resamples: Bootstrap repetitions.
    """

    minimum_gain: float = 0.02
    maximum_clean_loss: float = 0.03
    minimum_samples: int = 50
    confidence: float = 0.95
    resamples: int = 2000


DEFAULT_LIMITS = AcceptanceLimits()


def measure_acceptance(
    before: Predict,
    after: Predict,
    clean: Samples,
    target: Samples,
    *,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    seed: int = 0,
) -> Acceptance:
    """Ask both networks the same questions and judge.

    Args:
        before: Labels the network without the graft gives; called with the inputs of ``clean`` and of ``target``.
        after: The same with the graft.
        clean: Held-out inputs (N, ...) and labels (N,) of what the host was made for.
        target: Held-out inputs and labels of what the graft was grown for.
        limits: What it has to show.
        seed: Of the bootstrap.

    Raises:
        InputError: Rows and labels or answers differ in number.
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
    return judge(*answers, limits=limits, seed=seed)


def judge(
    clean_before: Bools,
    clean_after: Bools,
    target_before: Bools,
    target_after: Bools,
    *,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    seed: int = 0,
) -> Acceptance:
    """The verdict, from which rows were answered rightly; pure.

    Args:
        clean_before: Right or wrong by row, without the graft, on clean inputs.
        clean_after: The same rows with the graft.
        target_before: Right or wrong by row, without the graft, on target inputs.
        target_after: The same rows with the graft.
        limits: What it has to show.
        seed: Of the bootstrap.

    Raises:
        InputError: No rows, or the pairs do not match.

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
    rng = np.random.default_rng(seed)
    loss = _resampled_means(clean_before.astype(np.int8) - clean_after.astype(np.int8), limits.resamples, rng)
    gain = _resampled_means(target_after.astype(np.int8) - target_before.astype(np.int8), limits.resamples, rng)
    level = f"{limits.confidence * 100:.0f} %"
    gain_low = float(np.quantile(gain, 1 - limits.confidence))
    gain_high = float(np.quantile(gain, limits.confidence))
    loss_high = float(np.quantile(loss, limits.confidence))
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
    )


def _resampled_means(
    differences: npt.NDArray[np.int8], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of ``resamples`` draws with replacement of values -1, 0 and 1: a multinomial over their counts."""
    count = len(differences)
    shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
    draws = rng.multinomial(count, shares, size=resamples)
    means: npt.NDArray[np.float64] = (draws[:, 2] - draws[:, 0]) / count
    return means
