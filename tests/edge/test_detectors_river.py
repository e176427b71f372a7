"""`river` as an oracle: the same streams through its detectors and ours, over many seeds.

Page-Hinkley: the same detections at the same values, all of them. ADWIN: the same first detection; after it river
throws its whole window away (``ADWIN.update`` resets), while ours keeps the newer side of the cut, as the paper has it.
KSWIN draws a random part of its window as reference and tests every value; ours keeps one reference window. They agree
on whether there is a change, not on the value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kasmina_edge.safety.detectors import (
    Adwin,
    AdwinConfig,
    Detector,
    DriftState,
    PageHinkley,
    PageHinkleyConfig,
    WindowedKs,
    WindowedKsConfig,
)

drift = pytest.importorskip("river.drift", reason="river, the oracle, is not installed: pip install -e .[dev]")
SEEDS = 40


def stream(seed: int) -> list[float]:
    """Nothing, a sudden, a gradual change or one of spread, by turns; some with heavy tails, some with correlation."""
    rng = random.Random(seed)
    shift, factor, ramp = rng.choice([0.0, 0.5, 1.0, 2.0, 5.0]), rng.choice([1.0, 1.0, 3.0]), rng.choice([1, 400])
    correlation = rng.choice([0.0, 0.0, 0.6])
    values, last = [], 0.0
    for i in range(1600):
        noise = rng.gauss(0.0, 1.0) / (abs(rng.gauss(0.0, 1.0)) ** 0.5 + 0.3 if seed % 3 == 0 else 1.0)
        last = correlation * last + noise
        moved = min(max(i - 800, 0) / ramp, 1.0)
        values.append(last * (factor if i >= 800 else 1.0) + shift * moved)
    return values


def ours(detector: Detector, values: Sequence[float]) -> list[int]:
    return [i for i, x in enumerate(values) if detector.update(x) is DriftState.DRIFT]


def theirs(detector: Any, values: Sequence[float]) -> list[int]:
    found = []
    for i, x in enumerate(values):
        detector.update(x)
        if detector.drift_detected:
            found.append(i)
    return found


@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize("forget", [1.0, 0.999])
def test_page_hinkley_detects_what_river_detects_where_it_does(direction: Any, forget: float) -> None:
    detections = 0
    for seed in range(SEEDS):
        values = stream(seed)
        config = PageHinkleyConfig(threshold=20.0, forget=forget, direction=direction)
        river = drift.PageHinkley(min_instances=30, delta=0.25, threshold=20.0, alpha=forget, mode=direction)
        expected = theirs(river, values)
        assert ours(PageHinkley(config), values) == expected, f"seed {seed}"
        detections += len(expected)
    assert detections > 10, "streams without a change prove nothing"


@pytest.mark.parametrize("delta", [0.002, 0.2])
@pytest.mark.parametrize("every", [32, 8])
def test_adwin_detects_first_where_river_does(delta: float, every: int) -> None:
    found = 0
    for seed in range(SEEDS):
        values = stream(seed)
        expected = theirs(drift.ADWIN(delta=delta, clock=every), values)[:1]
        assert ours(Adwin(AdwinConfig(delta=delta, every=every)), values)[:1] == expected, f"seed {seed}"
        found += len(expected)
    assert found > SEEDS // 2


def test_adwin_holds_what_river_holds_while_nothing_changes() -> None:
    mine, river = Adwin(AdwinConfig(delta=1e-6)), drift.ADWIN(delta=1e-6)
    rng = random.Random(5)
    for _ in range(3000):
        x = rng.gauss(3.0, 2.0)
        mine.update(x)
        river.update(x)
        assert mine.width == river.width
    assert mine.mean == pytest.approx(river.estimation)
    assert mine.to_state()["_squares"] == pytest.approx(river.variance, rel=1e-6) or river.variance == pytest.approx(
        mine.to_state()["_squares"] / mine.width, rel=1e-6
    )


@pytest.mark.parametrize(("shift", "changed"), [(0.0, False), (2.0, True)])
def test_windowed_ks_and_river_agree_on_whether_there_is_a_change(shift: float, changed: bool) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        values = [rng.gauss(shift if i >= 500 else 0.0, 1.0) for i in range(700)]
        config = WindowedKsConfig(alpha=1e-5, reference=100, recent=100, every=1)
        river = drift.KSWIN(alpha=1e-5, window_size=200, stat_size=100, seed=seed)
        mine, other = ours(WindowedKs(config), values), theirs(river, values)
        assert bool(mine) is bool(other) is changed, (seed, mine, other)
        assert all(500 <= i <= 620 for i in (*mine[:1], *other[:1]))


def test_the_comparison_can_fail() -> None:
    """A detector with another line does not pass for river's."""
    make: Callable[[], Detector] = lambda: PageHinkley(PageHinkleyConfig(threshold=19.0))  # noqa: E731
    river = [
        theirs(drift.PageHinkley(min_instances=30, delta=0.25, threshold=20.0, alpha=1.0), stream(s)) for s in range(9)
    ]
    assert [ours(make(), stream(s)) for s in range(9)] != river
