"""Alignment on private pairs: towers stay frozen, and what the pairs teach leaves once, as two sums with noise.

Pictures of a new camera, say, no longer lie where their texts lie. The linear turn that brings them back needs only two
sums over the pairs: texts times pictures, and pictures times pictures (sufficient statistics, as of Vu and Slavkovic
2009, Sheffet 2017). They are released once with Gaussian noise; everything after that is arithmetic on what has left,
and costs no privacy. There is no training loop to account for, and no batch in which one pair's loss holds another's
text, as a contrastive loss does: there the bound on what one pair changes would not hold.

The number of pairs is not told either, and must not be where a pair may be added or removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.align import AlignBranch
from kasmina_trainer.multimodal.privacy_accountant import Budget, epsilon_of
from kasmina_trainer.multimodal.private_sums import (
    OS_ENTROPY,
    Adjacency,
    Entropy,
    Sums,
    Vectors,
    noisy_cross,
    noisy_square,
    on_grid,
    reach,
)
from kasmina_trainer.multimodal.retrieval import Embeddings, unit
from kasmina_trainer.seeds import SeededNetwork

SQUARE = 0.7
"""Weight of the second sum in the one release: it gets 1/0.7 of the noise of the first."""
PULL = 0.6
"""How strongly the turn is held at no turn, in typical largest stretches of the noise, sigma * sqrt(width)."""
SITE = "site"


@dataclass(frozen=True)
class PrivacyCost:
    """What a release cost, for the record; none of it was learned from the pairs.

    Attributes:
        epsilon: Of the release, at ``delta``; met with equality.
        delta: Chance for which epsilon may not hold.
        mu: Gaussian privacy: sensitivity over noise. Several releases about the same pairs: `composed`.
        adjacency: What two neighbouring sets are.
        sensitivity: How far one pair can move both sums together, L2.
        sigma: Noise on an entry of the first sum; on the second's diagonal it is ``sigma / square``.
        square: Weight of the second sum.
    """

    epsilon: float
    delta: float
    mu: float
    adjacency: Adjacency
    sensitivity: float
    sigma: float
    square: float


@dataclass(frozen=True, eq=False)
class Released:
    """What left the private pairs.

    Attributes:
        cross: Sum of texts times pictures, with noise.  # (E, E)
        square: Sum of pictures times pictures, with symmetric noise.  # (E, E)
        cost: What it cost; None: nothing was added, and all of it may be read back.
    """

    cross: Sums
    square: Sums
    cost: PrivacyCost | None


@dataclass(frozen=True, eq=False)
class PrivateTurn:
    """The turn of picture embeddings that a release teaches.

    Attributes:
        matrix: Columns are what each coordinate becomes; no bias, so lengths do not matter.  # (E, E) float32
        cost: What it cost; None without privacy.
    """

    matrix: npt.NDArray[np.float32]
    cost: PrivacyCost | None

    def __call__(self, images: Embeddings) -> Embeddings:
        """Turned embeddings, of unit length.  # (N, E)"""
        return unit(images @ self.matrix.T)

    def graft_on(self, seeds: SeededNetwork, site: str = SITE, *, intensity: float = 1.0, seed: int = 0) -> None:
        """Grow a ``latent-align`` that holds this turn; it is PROBING afterwards, and is exported and removed as any.

        Args:
            seeds: The image tower with its seed sites.
            site: Where its embedding flows.
            intensity: Share of the turn, 0 to 1.
            seed: For the record; the weights are the turn's.

        Raises:
            InputError: No such site, it is taken, or another width flows there.
        """
        flows = seeds.site(site) and seeds.ports[site].shape
        if flows != (len(self.matrix),):
            raise InputError(f"site {site} carries {flows}, the turn is for embeddings of ({len(self.matrix)},)")
        seeds.graft(site, "latent-align", intensity=intensity, seed=seed, reason="a turn learned in private")
        branch = seeds.site(site).branch
        assert isinstance(branch, AlignBranch)
        with torch.no_grad():
            branch.turn.weight.copy_(torch.from_numpy(self.matrix.copy()))
            branch.turn.bias.zero_()
            branch.scale.fill_(1.0)


def align_privately(
    images: Vectors,
    texts: Vectors,
    budget: Budget,
    *,
    adjacency: Adjacency = "add-or-remove",
    entropy: Entropy = OS_ENTROPY,
    pull: float = PULL,
) -> PrivateTurn:
    """`release`, then `solve`.

    Args:
        images: Embeddings of the private pictures, of unit length.  # (N, E)
        texts: Embeddings of their texts, likewise.  # (N, E)
        budget: What this one release may cost.
        adjacency: What two neighbouring sets are.
        entropy: The operating system's by default. `seeded` makes a run that comes again; whoever knows that seed
            can take the noise off, so it is for tests and figures, never for pairs that are really private.
        pull: As `solve`.

    Raises:
        InputError: As `release`.
    """
    return solve(release(images, texts, budget, adjacency=adjacency, entropy=entropy), pull=pull)


def release(
    images: Vectors,
    texts: Vectors,
    budget: Budget,
    *,
    adjacency: Adjacency = "add-or-remove",
    entropy: Entropy = OS_ENTROPY,
    square: float = SQUARE,
) -> Released:
    """Both sums with the least noise that keeps to the budget, as one Gaussian release.

    Longer embeddings than 1 are shortened to 1, so that one pair moves the first sum by at most 1 and the second, in
    its weight, by at most ``square``.

    Args:
        images: As `align_privately`.
        texts: As `align_privately`.
        budget: What it may cost.
        adjacency: What two neighbouring sets are; "replace" takes up to twice the noise.
        entropy: As `align_privately`.
        square: Weight of the second sum, 0.001 to 1000.

    Raises:
        InputError: Not as many of both, numbers that are not finite, or a weight out of range.
    """
    seen, said = _pairs(images, texts)
    if not 1e-3 <= square <= 1e3:
        raise InputError(f"weight {square!r} of the second sum: expected 0.001 to 1000")
    sensitivity = reach(adjacency, square=square)
    sigma = budget.noise(sensitivity)
    mu = sensitivity / sigma
    cost = PrivacyCost(epsilon_of(mu, budget.delta), budget.delta, mu, adjacency, sensitivity, sigma, square)
    return Released(noisy_cross(said, seen, sigma, entropy), noisy_square(seen, sigma / square, entropy), cost)


def sum_openly(images: Vectors, texts: Vectors) -> Released:
    """The same sums without noise: what privacy is compared with, and what must never leave private pairs.

    Raises:
        InputError: As `release`.
    """
    seen, said = _pairs(images, texts)
    return Released(_bare(said, seen), _bare(seen, seen), None)


def solve(released: Released, *, pull: float = PULL) -> PrivateTurn:
    """The turn W that brings pictures to their texts with the least squared error, held at no turn where none is known.

    ``W = (cross + l 1) (square + l 1)^-1``, where l is ``pull`` times the noise's stretch; without noise l is ``pull``.
    Only what was released is used.

    Args:
        released: By `release`.
        pull: Above 0.

    Raises:
        InputError: A pull that is not above 0.
    """
    if not (math.isfinite(pull) and pull > 0):
        raise InputError(f"pull {pull!r}: expected above 0")
    width = len(released.cross)
    hold = pull if released.cost is None else pull * released.cost.sigma * math.sqrt(width)
    sizes, axes = np.linalg.eigh(released.square)
    inverse = (axes / (np.maximum(sizes, 0.0) + hold)) @ axes.T
    matrix = (released.cross + hold * np.eye(width)) @ inverse
    return PrivateTurn(matrix.astype(np.float32), released.cost)


def _pairs(images: Vectors, texts: Vectors) -> tuple[Sums, Sums]:
    if images.shape != texts.shape:
        raise InputError(f"pictures {images.shape} and texts {texts.shape}: expected as many of each, of one width")
    return on_grid(images), on_grid(texts)


def _bare(left: Sums, right: Sums) -> Sums:
    return noisy_cross(left, right, 0.0, bytes)
