"""What Gaussian noise costs in privacy, exactly: the analytic Gaussian mechanism and its composition.

A value with L2 sensitivity `Delta` released with noise `N(0, sigma^2 I)` is mu-Gaussian-private, mu = Delta / sigma,
and several such releases, even when a later one is chosen by what an earlier one said, are together Gaussian-private
with the root of the sum of their mu^2 (Dong, Roth and Su 2022, arXiv:1905.02383). What that is in epsilon and delta is
a closed formula that is met with equality (Balle and Wang 2018, arXiv:1805.06530), so nothing is given away to a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from kasmina_edge.errors import InputError

MAX_EPSILON = 100.0
MIN_DELTA = 1e-12
_HALVINGS = 200
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Budget:
    """What a release may cost: outputs are at most exp(epsilon) times as likely with a pair as without, but for delta.

    Attributes:
        epsilon: Above 0 up to 100.
        delta: 1e-12 to below 1; well below one over the number of pairs.
    """

    epsilon: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MAX_EPSILON or not MIN_DELTA <= self.delta < 1:
            raise InputError(
                f"privacy budget epsilon {self.epsilon:g}, delta {self.delta:g}: expected above 0 up to "
                f"{MAX_EPSILON:g}, and {MIN_DELTA:g} to below 1",
                "An epsilon of 1 to 4 with a delta of 1e-5 is usual.",
            )

    @cached_property
    def mu(self) -> float:
        """The largest sensitivity over noise that keeps to it; it fits, and the next larger number may not."""
        low, high = 0.0, 1.0
        while delta_of(high, self.epsilon) <= self.delta:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if delta_of(middle, self.epsilon) <= self.delta else (low, middle)
        return low

    def noise(self, sensitivity: float) -> float:
        """The least standard deviation for one release of this L2 sensitivity.

        Raises:
            InputError: A sensitivity that is not above 0, or for which no such number is left.
        """
        if not (math.isfinite(sensitivity) and sensitivity > 0):
            raise InputError(f"sensitivity {sensitivity!r}: expected a number above 0")
        found = sensitivity / self.mu
        if not (math.isfinite(found) and found > 0):
            raise InputError(f"sensitivity {sensitivity!r}: its noise would be {found!r}", "Scale the values first.")
        return found


def delta_of(mu: float, epsilon: float) -> float:
    """The delta of a mu-Gaussian-private release at an epsilon (Balle and Wang 2018, theorem 8).

    Args:
        mu: Sensitivity over noise; 0 or above.
        epsilon: 0 or above.

    Raises:
        InputError: A number out of range.

    >>> round(delta_of(1.0, 1.0), 6)
    0.126937
    """
    if not (math.isfinite(mu) and mu >= 0 and 0 <= epsilon <= MAX_EPSILON):
        raise InputError(f"mu {mu!r}, epsilon {epsilon!r}: expected 0 or above, epsilon up to {MAX_EPSILON:g}")
    if mu == 0:
        return 0.0
    near, far = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
    return max(0.0, _below(near) - math.exp(epsilon) * _below(far))


def epsilon_of(mu: float, delta: float) -> float:
    """The epsilon of a mu-Gaussian-private release at a delta, from above; infinite where it passes 100.

    Raises:
        InputError: A number out of range.
    """
    if not (math.isfinite(mu) and mu >= 0 and MIN_DELTA <= delta < 1):
        raise InputError(f"mu {mu!r}, delta {delta!r}: expected 0 or above, and {MIN_DELTA:g} to below 1")
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    if delta_of(mu, MAX_EPSILON) > delta:
        return math.inf
    low, high = 0.0, MAX_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if delta_of(mu, middle) <= delta else (middle, high)
    return high


def composed(mus: Iterable[float]) -> float:
    """Several Gaussian releases about the same pairs as one: the root of the sum of squares.

    Raises:
        InputError: One that is not 0 or above.
    """
    return math.hypot(*map(_checked, mus))


def most_hits(mu: float, false_alarms: float) -> float:
    """The most members that any membership test can name at a share of false alarms (Dong, Roth and Su 2022).

    Args:
        mu: Of the release.
        false_alarms: Share of outsiders that are named, 0 to 1.

    Raises:
        InputError: A number out of range.

    >>> round(most_hits(1.0, 0.01), 3)
    0.092
    """
    if not 0 <= false_alarms <= 1:
        raise InputError(f"false alarms {false_alarms!r}: expected a share of 1")
    if false_alarms in (0, 1):
        return float(false_alarms)
    return _below(_NORMAL.inv_cdf(false_alarms) + _checked(mu))


def most_area(mu: float) -> float:
    """The largest area under the curve of any membership test: two unit normals apart by mu.

    >>> most_area(0.0)
    0.5
    """
    return _below(_checked(mu) / math.sqrt(2))


def _checked(mu: float) -> float:
    if not (math.isfinite(mu) and mu >= 0):
        raise InputError(f"mu {mu!r}: expected 0 or above")
    return mu


def _below(x: float) -> float:
    """Normal distribution function; keeps its relative precision far below 0, where `NormalDist.cdf` loses it."""
    return math.erfc(-x / math.sqrt(2)) / 2
