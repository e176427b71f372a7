"""Gaussian blobs with a stated overlap: what is drawn, what the best classifier answers, and how often it is right.

The unit of every coordinate is the standard deviation of a round blob. A stretched blob keeps its volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Labels, Samples
from kasmina_trainer.datasets.idx import Splits

Points = npt.NDArray[np.float64]
ROWS = (4000, 1000, 4000)
_CALIBRATION_ROWS = 20_000
_BLOCK = 50_000
_NEAR = 0.002


@dataclass(frozen=True)
class Estimate:
    """A figure from random draws.

    Attributes:
        value: Its mean.
        error: Its standard error; the truth lies within two of them 19 times out of 20.
        rows: Draws behind it.
    """

    value: float
    error: float
    rows: int

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}"


@dataclass(frozen=True, eq=False)
class Blobs:
    """A mixture of normal distributions, one a class.

    Attributes:
        means: Centres.  # (K, D)
        factors: Lower Cholesky factors of the covariances.  # (K, D, D)
        shares: How much of the data each blob is; sums to 1.  # (K,)
    """

    means: Points
    factors: Points
    shares: Points

    def __post_init__(self) -> None:
        count, dimensions = self.means.shape
        if self.factors.shape != (count, dimensions, dimensions) or self.shares.shape != (count,):
            raise InputError(
                f"blobs: means {self.means.shape}, factors {self.factors.shape} and shares {self.shares.shape}, "
                "expected (K, D), (K, D, D) and (K,)"
            )
        if self.shares.min() <= 0 or not math.isclose(self.shares.sum(), 1.0, abs_tol=1e-9):
            raise InputError(f"blobs: shares {self.shares.round(4).tolist()}, expected above 0 and a sum of 1")
        if np.linalg.det(self.factors).min() <= 0:
            raise InputError("blobs: a covariance without volume")

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(f"blob-{i}" for i in range(len(self)))

    def draw(self, count: int, rng: np.random.Generator) -> Samples:
        """Independent points and the blob that each came from.  # (count, D), (count,)"""
        y: Labels = rng.choice(len(self), count, p=self.shares).astype(np.int64)
        noise = rng.normal(0.0, 1.0, (count, self.means.shape[1]))
        x = self.means[y] + np.einsum("nij,nj->ni", self.factors[y], noise)
        return x.astype(np.float32), y

    def log_densities(self, x: npt.NDArray[np.floating]) -> Points:
        """Log of share times density of every blob at every point.  # (N, D) to (N, K)"""
        columns = []
        for mean, factor, share in zip(self.means, self.factors, self.shares, strict=True):
            z = np.linalg.solve(factor, (x.astype(np.float64) - mean).T)
            logarithm = math.log(share) - np.log(np.diag(factor)).sum() - len(mean) / 2 * math.log(2 * math.pi)
            columns.append(logarithm - 0.5 * (z * z).sum(0))
        return np.stack(columns, 1)

    def posterior(self, x: npt.NDArray[np.floating]) -> Points:
        """Chance of every blob given the point, exactly.  # (N, D) to (N, K)"""
        logs = self.log_densities(x)
        weights = np.exp(logs - logs.max(1, keepdims=True))
        found: Points = weights / weights.sum(1, keepdims=True)
        return found

    def best(self, x: npt.NDArray[np.floating]) -> Labels:
        """The answer of the best classifier there is.  # (N, D) to (N,)"""
        answers: Labels = self.log_densities(x).argmax(1).astype(np.int64)
        return answers

    def bayes_purity(self, rows: int = 200_000, seed: int = 0) -> Estimate:
        """Purity that no clustering by position can exceed in the long run, and the accuracy of the best classifier.

        It is the mean of the largest posterior. Posteriors are exact, only the mean over points is drawn.
        """
        rng = np.random.default_rng(seed)
        found = np.concatenate(
            [self.posterior(self.draw(n, rng)[0]).max(1) for n in _blocks(rows)],
        )
        return Estimate(float(found.mean()), float(found.std(ddof=1) / math.sqrt(rows)), rows)

    def between(self, other: Blobs, share: float) -> Blobs:
        """Part of the way to other blobs: centres, factors and shares move in a straight line.

        Args:
            other: As many blobs in as many dimensions.
            share: 0 is here, 1 is there.
        """
        return Blobs(
            *(
                (1 - share) * a + share * b
                for a, b in (
                    (self.means, other.means),
                    (self.factors, other.factors),
                    (self.shares, other.shares),
                )
            )
        )


def make_blobs(
    seed: int = 0,
    *,
    blobs: int = 3,
    dimensions: int = 2,
    overlap: float = 0.05,
    imbalance: float = 1.0,
    anisotropy: float = 1.0,
) -> Blobs:
    """Blobs at random places, as far apart as the wanted overlap asks for.

    Args:
        seed: Places, turns and orders them.
        blobs: How many, 2 to 50.
        dimensions: Of the space, 1 to 200.
        overlap: Share of points that the best classifier gets wrong, 0.0005 to 0.4, met to within some 0.002.
        imbalance: The largest blob's share by the smallest's, 1 to 100; shares between fall geometrically.
        anisotropy: A blob's longest axis by its shortest, 1 to 100; each blob is turned its own way.

    Raises:
        InputError: A number outside its range, or an overlap that these shares and shapes cannot have.

    >>> float(round(1 - make_blobs(0, overlap=0.1).bayes_purity().value, 2))
    0.1
    """
    limits = {
        "blobs": (blobs, 2, 50),
        "dimensions": (dimensions, 1, 200),
        "overlap": (overlap, 0.0005, 0.4),
        "imbalance": (imbalance, 1, 100),
        "anisotropy": (anisotropy, 1, 100),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InputError(f"{name} {value:g}: expected {low:g} to {high:g}")
    rng = np.random.default_rng(seed)
    shares = imbalance ** -(np.arange(blobs) / (blobs - 1))
    shares = rng.permutation(shares / shares.sum())
    places = _apart(blobs, dimensions, rng)
    factors = np.stack([_factor(dimensions, anisotropy, rng) for _ in range(blobs)])
    if overlap >= 1 - shares.max():
        raise InputError(f"overlap {overlap:g}: always answering the largest blob is wrong {1 - shares.max():.3f} only")
    low, high = 0.0, 4.0
    calibration = int(rng.integers(2**31))

    def wrong(scale: float) -> float:
        return 1 - Blobs(places * scale, factors, shares).bayes_purity(_CALIBRATION_ROWS, calibration).value

    while wrong(high) > overlap:
        high *= 2
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if wrong(middle) > overlap else (low, middle)
    if abs(wrong(high) - overlap) > _NEAR:
        raise InputError(f"overlap {overlap:g}: blobs of these shapes and shares, at one place, have {wrong(0.0):.3f}")
    return Blobs(places * high, factors, shares)


def blob_splits(found: Blobs, seed: int = 0, *, rows: tuple[int, int, int] = ROWS) -> Splits:
    """Training, validation and test points from streams of their own.  # x (N, D)"""
    streams = np.random.default_rng(seed).spawn(3)
    parts = [found.draw(count, stream) for count, stream in zip(rows, streams, strict=True)]
    return Splits(parts[0], parts[1], parts[2], found.labels)


def _apart(count: int, dimensions: int, rng: np.random.Generator) -> Points:
    """Centres in the unit ball, each the farthest of several candidates from those before it."""
    found = np.zeros((0, dimensions))
    for _ in range(count):
        directions = rng.normal(0.0, 1.0, (16, dimensions))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        candidates = directions * rng.uniform(0.0, 1.0, (16, 1)) ** (1 / dimensions)
        gaps = np.array([np.linalg.norm(found - c, axis=1).min() if len(found) else 0.0 for c in candidates])
        found = np.vstack([found, candidates[gaps.argmax()]])
    return found


def _factor(dimensions: int, anisotropy: float, rng: np.random.Generator) -> Points:
    """Cholesky factor of a turned covariance of volume 1."""
    axes = anisotropy ** np.linspace(-1.0, 1.0, dimensions) if dimensions > 1 else np.ones(1)
    turned = np.linalg.qr(rng.normal(0.0, 1.0, (dimensions, dimensions)))[0]
    return np.linalg.cholesky((turned * axes) @ turned.T)


def _blocks(rows: int) -> list[int]:
    return [min(_BLOCK, rows - start) for start in range(0, rows, _BLOCK)]
