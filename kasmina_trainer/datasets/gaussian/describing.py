"""What is told of a point by the clusters that it may belong to: numbers whose means move when clusters do.

A mixture of normal distributions is fitted to reference points, beginning with a model's answers (expectation and
maximisation, Dempster, Laird and Rubin 1977). Of each cluster a point tells, weighted by its chance of belonging there:

- *place*: coordinates inside it, of mean 0, variance 1 and no correlation;
- *shape*: products of two coordinates, shrunk to grow like a root so that one far point says little. A cluster that is
  drawn from only now and then, somewhere else, moves these as much as the places;
- *share*: whether the model answered it.

And of all clusters together *rarity*, how seldom the reference was there. Where a space has so many dimensions that
products outnumber what the reference can teach, the *distance* from the middle stands in their stead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.digits import Labels

Points = npt.NDArray[np.float64]
EVERYWHERE = -1
CLIP = 4.0
ROUNDS = 30
ROWS_A_NUMBER = 50
RAREST = 30.0


@dataclass(frozen=True, eq=False)
class Description:
    """Clusters as a reference shows them.

    Attributes:
        numbers: What the model calls them.  # (K,)
        means: Their middles.  # (K, D)
        whiteners: Symmetric inverse roots of their covariances.  # (K, D, D)
        levels: Log of share times volume.  # (K,)
        products: Whether shapes are told, or distances alone.
    """

    numbers: tuple[int, ...]
    means: Points
    whiteners: Points
    levels: Points
    products: bool

    @property
    def names(self) -> tuple[tuple[int, str], ...]:
        """Cluster and quantity of each number that is told; `EVERYWHERE` for all clusters together."""
        width = self.means.shape[1]
        kinds = [f"place {j}" for j in range(width)]
        kinds += ["shape"] * (width * (width + 1) // 2) if self.products else ["distance"]
        found = [(number, kind) for number in self.numbers for kind in kinds]
        return (*found, *((number, "share") for number in self.numbers[1:]), (EVERYWHERE, "rarity"))

    def tell(self, points: Points, answers: Labels) -> Points:
        """The numbers of each point, unscaled.  # (N, D) and (N,) to (N, F)"""
        placed = [(points - m) @ w for m, w in zip(self.means, self.whiteners, strict=True)]
        logs = np.stack([level - 0.5 * (z * z).sum(1) for level, z in zip(self.levels, placed, strict=True)], 1)
        density, chances = _chances(logs)
        told = [chances[:, k, None] * part for k, z in enumerate(placed) for part in self._parts(z)]
        told += [(answers == number).astype(np.float64)[:, None] for number in self.numbers[1:]]
        return np.hstack([*told, np.minimum(-density, RAREST)[:, None]])

    def _parts(self, z: Points) -> Iterator[Points]:
        yield np.clip(z, -CLIP, CLIP)
        if not self.products:
            yield np.cbrt((z * z).mean(1, keepdims=True))  # near normal: Wilson and Hilferty 1931
            return
        one, other = np.triu_indices(z.shape[1])
        product = z[:, one] * z[:, other]
        yield product / np.sqrt(1.0 + np.abs(product))


def describe(points: Points, answers: Labels, least: int) -> Description:
    """Fit the clusters, beginning with the answers; those of fewer than ``least`` points are part of the others.

    Args:
        points: Without drift.  # (N, D)
        answers: A model's.  # (N,)
        least: Points that a cluster needs.
    """
    told, counts = np.unique(answers, return_counts=True)
    numbers = tuple(int(c) for c, n in zip(told, counts, strict=True) if n >= least) or (int(told[counts.argmax()]),)
    chances = (answers[:, None] == np.array(numbers)).astype(np.float64)
    chances[chances.sum(1) == 0] = 1.0 / len(numbers)
    for _ in range(ROUNDS if len(numbers) > 1 else 1):
        weights = chances.sum(0)
        means = (chances.T @ points) / weights[:, None]
        whiteners = np.stack([_whitener(points - m, c) for m, c in zip(means, chances.T, strict=True)])
        levels = np.log(weights / len(points)) + np.linalg.slogdet(whiteners)[1]
        logs = [
            level - 0.5 * (((points - m) @ w) ** 2).sum(1) for level, m, w in zip(levels, means, whiteners, strict=True)
        ]
        chances = np.maximum(_chances(np.stack(logs, 1))[1], 1e-12)
    width = points.shape[1]
    count = len(numbers) * (width + width * (width + 1) // 2 + 1)
    return Description(numbers, means, whiteners, levels, count * ROWS_A_NUMBER <= len(points))


def _chances(logs: Points) -> tuple[Points, Points]:
    """Log of the sum, and each one's part of it.  # (N, K) to (N,), (N, K)"""
    top = logs.max(1, keepdims=True)
    weights = np.exp(logs - top)
    total = weights.sum(1, keepdims=True)
    return (top + np.log(total))[:, 0], weights / total


def _whitener(offsets: Points, weights: Points) -> Points:
    values, vectors = np.linalg.eigh((weights[:, None] * offsets).T @ offsets / weights.sum())
    floor = max(float(values.max()), 1e-12) * 1e-9
    found: Points = (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T
    return found
