"""The bound that the benchmark prints covers a known loss as often as it says, and is no wider than it must be."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quantize import loss_bound


def flips(rng: np.random.Generator, count: int, lost: float, won: float) -> np.ndarray:
    """-1, 0 and 1 of ``count`` images."""
    draw = rng.random(count)
    return ((draw < lost).astype(np.int8) - (draw > 1 - won).astype(np.int8)).astype(np.int8)


@pytest.mark.parametrize("shared", [True, False])
def test_the_bound_lies_above_the_true_loss_nearly_always(shared: bool) -> None:
    rng = np.random.default_rng(0)
    covered, room = [], []
    for _ in range(12):
        mean, bound = loss_bound([flips(rng, 700, 0.01, 0.005) for _ in range(8)], shared=shared, draws=200)
        covered.append(bound >= 0.5)  # the true loss is half a point
        room.append(bound - mean)
    assert sum(covered) >= 10
    assert 0.1 < np.mean(room) < 0.8  # independent draws would give 1.96 * sqrt(0.015 / 5600) = 0.32 points


def test_networks_that_differ_widen_the_bound() -> None:
    rng = np.random.default_rng(1)
    even = [flips(rng, 700, 0.01, 0.01) for _ in range(6)]
    uneven = [flips(rng, 700, 0.04 * (i % 2), 0.04 * (1 - i % 2)) for i in range(6)]
    widths = [bound - mean for mean, bound in (loss_bound(each, shared=False, draws=200) for each in (even, uneven))]
    assert widths[1] > 3 * widths[0]
