"""Intervals for figures of many cells, where cells of one host, and rows of one test set, are not independent.

A draw takes hosts with replacement, then kinds of each host, then test rows: those of one host are the same for all its
kinds, clean and wrong alike, and where all hosts are tested on the same rows they are the same for all (Davison and
Hinkley 1997, section 3.8). Intervals are two-sided, 95 %, percentile; an upper bound is the upper end of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 2000
LOW, HIGH = 0.025, 0.975


@dataclass(frozen=True)
class Rows:
    """One cell's differences, row by row.

    Attributes:
        cluster: Data set and host: what is drawn first.
        rows: Cells with the same value were tested on the same rows.
        values: One line a figure.  # (figures, N)
    """

    cluster: tuple[str, int]
    rows: tuple[str, int]
    values: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Figure:
    """A figure and its interval."""

    value: float
    low: float
    high: float


def interval(
    cells: Sequence[Rows], statistic: Callable[[Floats], float], *, draws: int = DRAWS, seed: int = 0
) -> Figure:
    """A statistic of the cells' means and its interval.

    Args:
        cells: At least one.
        statistic: Takes means of the figures of each cell (cells, figures), gives one number.
        draws: Of the bootstrap.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, dict[tuple[str, int], list[int]]] = {}
    for at, each in enumerate(cells):
        groups.setdefault(each.cluster[0], {}).setdefault(each.cluster, []).append(at)
    values = [each.values.astype(np.float32) for each in cells]
    lengths = {each.rows: each.values.shape[1] for each in cells}
    found = np.empty(draws)
    for draw in range(draws):
        means = []
        weights = {
            key: np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float32) / n for key, n in lengths.items()
        }
        for hosts in groups.values():
            names = list(hosts)
            for host in rng.integers(0, len(names), len(names)):
                members = hosts[names[host]]
                for at in rng.integers(0, len(members), len(members)):
                    means.append(values[members[at]] @ weights[cells[members[at]].rows])
        found[draw] = statistic(np.array(means, dtype=np.float64))
    whole = statistic(np.array([each.values.mean(1) for each in cells]))
    return Figure(whole, float(np.quantile(found, LOW)), float(np.quantile(found, HIGH)))


def ratio_of_sums(means: Floats) -> float:
    """Sum of the first figure over the sum of the second; 0 where there is nothing to share."""
    whole = means[:, 1].sum()
    return float(means[:, 0].sum() / whole) if whole else 0.0


def mean_in_points(means: Floats) -> float:
    """Mean of the first figure, in points."""
    return 100 * float(means[:, 0].mean())
