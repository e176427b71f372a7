"""Streaming detectors: what they see and how soon, how rarely they are wrong, and that a restart changes nothing.

Rates and delays are over many fixed seeds. The quick forms here have room for a factor of two; the slow forms measure
what docs/decisions/0024-drift-detectors-and-alerts.md states.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors import (
    Adwin,
    AdwinConfig,
    Detector,
    DriftState,
    PageHinkley,
    PageHinkleyConfig,
    WindowedKs,
    WindowedKsConfig,
    kolmogorov_quantile,
)

SUBJECTS: dict[str, Callable[[], Detector]] = {
    "page-hinkley": PageHinkley,
    "adwin": Adwin,
    "windowed-ks": WindowedKs,
}
SMALL: dict[str, Callable[[], Detector]] = {
    "page-hinkley": lambda: PageHinkley(PageHinkleyConfig(threshold=4.0, minimum=5)),
    "adwin": lambda: Adwin(AdwinConfig(every=4, longest=64)),
    "windowed-ks": lambda: WindowedKs(WindowedKsConfig(alpha=0.01, reference=20, recent=10, every=3)),
}
CHANGE = 1000


def stream(kind: str, seed: int, size: int) -> list[float]:
    rng = np.random.default_rng([seed, 17])
    noise = {
        "gaussian": lambda: rng.normal(size=size),
        "heavy tails": lambda: rng.standard_t(3, size=size) / math.sqrt(3),
        "skewed": lambda: rng.exponential(size=size) - 1.0,
    }[kind]()
    values: list[float] = noise.tolist()
    return values


def drifts(detector: Detector, values: list[float]) -> list[int]:
    return [i for i, x in enumerate(values) if detector.update(x) is DriftState.DRIFT]


def delays(make: Callable[[], Detector], seeds: int, after: Callable[[int], list[float]]) -> list[int | None]:
    """Values from the change to the first drift; None where it was not seen. An alarm before the change fails."""
    found: list[int | None] = []
    for seed in range(seeds):
        hits = drifts(make(), stream("gaussian", seed, CHANGE) + after(seed))
        assert not [i for i in hits if i < CHANGE], f"seed {seed} cried wolf at {hits}"
        found.append(hits[0] - CHANGE if hits else None)
    return found


def shifted(by: float) -> Callable[[int], list[float]]:
    return lambda seed: [x + by for x in stream("gaussian", seed + 1000, 1500)]


def spread(factor: float) -> Callable[[int], list[float]]:
    return lambda seed: [factor * x for x in stream("gaussian", seed + 1000, 1500)]


def creeping(seed: int) -> list[float]:
    return [x + min(i / 1000, 1.0) for i, x in enumerate(stream("gaussian", seed + 1000, 1500))]


def test_every_detector_is_a_subject() -> None:
    assert {make().name for make in SUBJECTS.values()} == set(SUBJECTS) == {c.name for c in Detector.__subclasses__()}


@pytest.mark.parametrize("name", SUBJECTS)
def test_false_alarms_are_rare(name: str) -> None:
    """10 seeds of 10,000 quiet values: none of 100,000 calls a drift."""
    assert sum(len(drifts(SUBJECTS[name](), stream("gaussian", seed, 10_000))) for seed in range(10)) == 0


@pytest.mark.parametrize(("name", "most"), [("page-hinkley", 90), ("adwin", 120), ("windowed-ks", 220)])
def test_a_shift_of_one_standard_deviation_is_seen(name: str, most: int) -> None:
    found = delays(SUBJECTS[name], 10, shifted(1.0))
    assert None not in found
    assert statistics.median([d for d in found if d is not None]) <= most


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_gradual_shift_is_seen_before_it_is_complete(name: str) -> None:
    found = delays(SUBJECTS[name], 6, creeping)
    assert None not in found and statistics.median([d for d in found if d is not None]) < 1000


def test_a_change_of_spread_alone_is_seen_by_the_distribution_only() -> None:
    found = delays(SUBJECTS["windowed-ks"], 6, spread(4.0))
    assert None not in found and statistics.median([d for d in found if d is not None]) <= 400
    assert delays(SUBJECTS["adwin"], 6, spread(2.0)) == [None] * 6, "if it sees this now, say so in its docstring"


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_onset_is_near_the_change(name: str) -> None:
    for seed in range(6):
        detector = SUBJECTS[name]()
        values = stream("gaussian", seed, CHANGE) + shifted(2.0)(seed)
        first = next(i for i, x in enumerate(values) if detector.update(x) is DriftState.DRIFT)
        assert abs(first - detector.onset - CHANGE) <= 130, (seed, first, detector.onset)


def test_only_the_asked_direction_is_seen() -> None:
    up = PageHinkley(PageHinkleyConfig(direction="up"))
    down = PageHinkley(PageHinkleyConfig(direction="down"))
    values = stream("gaussian", 1, CHANGE) + shifted(-2.0)(1)
    assert not drifts(up, values) and drifts(down, values)
    assert up.statistic < up.config.threshold


@pytest.mark.parametrize("name", SMALL)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=120), cut=st.integers(0, 120))
def test_a_restart_in_the_middle_changes_nothing(name: str, values: list[float], cut: int) -> None:
    whole, first, second = SMALL[name](), SMALL[name](), SMALL[name]()
    told = [whole.update(x) for x in values]
    before = [first.update(x) for x in values[:cut]]
    second.load_state(json.loads(json.dumps(first.to_state())))
    assert before + [second.update(x) for x in values[cut:]] == told
    assert second.to_state() == whole.to_state()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out_and_counted(name: str, bad: float) -> None:
    clean, dirty = SMALL[name](), SMALL[name]()
    values = stream("gaussian", 3, 60)
    for x in values:
        clean.update(x)
        dirty.update(x)
        dirty.update(bad)
    assert (dirty.ignored, dirty.count) == (60, 60)
    assert {**dirty.to_state(), "ignored": 0} == clean.to_state()


@pytest.mark.parametrize("name", SMALL)
@given(data=st.data())
def test_a_damaged_state_is_refused_and_changes_nothing(name: str, data: st.DataObject) -> None:
    detector = SMALL[name]()
    for x in stream("gaussian", 4, 45):
        detector.update(x)
    before = detector.to_state()
    state = json.loads(json.dumps(before))
    field = data.draw(st.sampled_from(sorted(state)))
    state[field] = data.draw(st.sampled_from([None, "x", math.nan, [math.inf], [[1.0]], {}]))
    if data.draw(st.booleans()):
        del state[field]
    with pytest.raises(InputError, match=r"detector state"):
        detector.load_state(state)
    assert detector.to_state() == before


def test_states_of_others_are_refused() -> None:
    with pytest.raises(InputError, match="'adwin'"):
        PageHinkley().load_state(Adwin().to_state())


@given(
    reference=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    recent=st.lists(st.integers(0, 6), min_size=8, max_size=20),
)
def test_the_distance_is_exact_for_discrete_values_too(reference: list[int], recent: list[int]) -> None:
    ks = WindowedKs(WindowedKsConfig(alpha=1e-9, reference=8, recent=8, every=10_000))
    for x in reference + recent:
        ks.update(float(x))
    last = recent[-8:]
    points = sorted({*reference, *last})
    by_hand = max(abs(sum(v <= p for v in reference) / 8 - sum(v <= p for v in last) / 8) for p in points)
    assert ks.distance == pytest.approx(by_hand, abs=1e-12)


def test_the_window_of_adwin_is_what_its_buckets_hold() -> None:
    adwin = Adwin(AdwinConfig(longest=256))
    for n, x in enumerate(stream("gaussian", 5, 5000)):
        adwin.update(x)
        assert adwin.width <= 256 + 32 or n < 256
    values = stream("gaussian", 6, 400)
    free = Adwin(AdwinConfig(delta=1e-9))
    for x in values:
        free.update(x)
    assert free.width == 400 and free.mean == pytest.approx(statistics.fmean(values))
    squares = free.to_state()["_squares"]
    assert squares == pytest.approx(statistics.variance(values) * 399)
    assert len(json.dumps(free.to_state())) < 4000, "the histogram is small, whatever the window"


def test_kolmogorovs_quantiles_are_those_of_the_tables() -> None:
    """Smirnov 1948, Annals of Mathematical Statistics 19:279."""
    for alpha, value in ((0.10, 1.2238), (0.05, 1.3581), (0.01, 1.6276), (0.001, 1.9495)):
        assert kolmogorov_quantile(alpha) == pytest.approx(value, abs=1e-4)
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InputError):
            kolmogorov_quantile(wrong)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_one_comparison_is_wrong_as_often_as_alpha_says(alpha: float) -> None:
    wrong, trials = 0, 400
    for seed in range(trials):
        ks = WindowedKs(WindowedKsConfig(alpha=alpha, reference=100, recent=100, every=10_000))
        for x in stream("gaussian", seed, 200):
            ks.update(x)
        assert ks.distance is not None
        wrong += ks.distance > ks.config.critical
    assert wrong / trials <= alpha + 3 * math.sqrt(alpha / trials), wrong


@pytest.mark.parametrize(
    "make",
    [
        lambda: PageHinkleyConfig(delta=-1.0),
        lambda: PageHinkleyConfig(threshold=0.0),
        lambda: PageHinkleyConfig(forget=1.5),
        lambda: PageHinkleyConfig(threshold=math.nan),
        lambda: PageHinkleyConfig(direction="sideways"),  # type: ignore[arg-type]
        lambda: AdwinConfig(delta=0.0),
        lambda: AdwinConfig(buckets=1),
        lambda: AdwinConfig(longest=8),
        lambda: WindowedKsConfig(alpha=1.0),
        lambda: WindowedKsConfig(recent=1),
    ],
)
def test_a_line_that_cannot_be_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "skewed"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_false_alarms_over_a_million_values(name: str, kind: str) -> None:
    """20 seeds of 50,000 independent values with the detectors' own defaults; ADWIN's are the paper's, and laxer."""
    most = 6 if name == "adwin" else 2
    assert sum(len(drifts(SUBJECTS[name](), stream(kind, seed, 50_000))) for seed in range(20)) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("page-hinkley", 150), ("adwin", 200)])
def test_half_a_standard_deviation_is_seen_over_many_seeds(name: str, most: int) -> None:
    found = [d for d in delays(SUBJECTS[name], 50, shifted(0.5)) if d is not None]
    assert len(found) == 50 and statistics.median(found) <= most
