"""The watch over a device's quantities: quiet on streams that only look restless, right about what, when and home."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from kasmina_edge.contracts.manifest import DomainStatistics, FeatureStatistics
from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors import AdwinConfig, PageHinkleyConfig
from kasmina_edge.safety.drift import FEATURES, domain_statistics, features
from kasmina_edge.safety.drift_quantity import SPREAD, QuantityLimits
from kasmina_edge.safety.drift_watch import (
    DEFAULT_WATCHES,
    DriftChange,
    DriftWatch,
    DriftWatchConfig,
    Watched,
    label_entropy,
)

SCORE, INPUT, ROUGHNESS = (DEFAULT_WATCHES[name] for name in ("score", "input_mean", "roughness"))
WATCHES = {"page-hinkley": SCORE, "windowed-ks": INPUT, "adwin": ROUGHNESS}
CHANGE = 2000


def correlated(rng: np.random.Generator, size: int, rho: float) -> np.ndarray:
    noise, scale = rng.normal(size=size), math.sqrt(1 - rho * rho)
    values = np.empty(size)
    values[0] = noise[0]
    for i in range(1, size):
        values[i] = rho * values[i - 1] + scale * noise[i]
    return values


STREAMS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gaussian": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size=size) / math.sqrt(3),
    "skewed": lambda rng, size: rng.exponential(size=size) - 1.0,
    "correlated": lambda rng, size: correlated(rng, size, 0.5),
    "a camera": lambda rng, size: correlated(rng, size, 0.9),
}


def watch_of(watched: Watched, domains: tuple[DomainStatistics, ...] = ()) -> DriftWatch:
    return DriftWatch(domains, DriftWatchConfig(watches={"q": watched}))


def changes(watch: DriftWatch, values: np.ndarray | list[float], start: int = 0) -> list[tuple[int, DriftChange]]:
    found = []
    for i, x in enumerate(list(values), start):
        change = watch.update("q", float(x), at_s=float(i))
        if change is not None:
            found.append((i, change))
    return found


def domain(name: str, mean: float, std: float = 1.0) -> DomainStatistics:
    features = {"q": FeatureStatistics(mean=mean, std=std)}
    return DomainStatistics(name=name, samples=500, window=60, threshold=4.0, features=features)


def false_alarms(watched: Watched, kind: str, seeds: int, size: int) -> int:
    return sum(
        sum(change.kind == "drifted" for _, change in changes(watch_of(watched), STREAMS[kind](rng, size)))
        for rng in (np.random.default_rng([seed, 7]) for seed in range(seeds))
    )


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", WATCHES)
def test_restless_streams_are_no_drift(name: str, kind: str) -> None:
    """4 seeds of 5,000 values each; one false alarm in all 20,000 is tolerated."""
    assert false_alarms(WATCHES[name], kind, 4, 5000) <= 1


def test_without_whitening_the_same_stream_is_one_long_alarm() -> None:
    """The negative control of the test above."""
    limits = QuantityLimits(most_correlation=0.0)
    watch = DriftWatch((), DriftWatchConfig(watches={"q": ROUGHNESS}, limits=limits))
    rng = np.random.default_rng([0, 7])
    found = [c for _, c in changes(watch, STREAMS["a camera"](rng, 5000))]
    assert len(found) > 3


def delay(watched: Watched, seeds: int, after: Callable[[np.random.Generator], np.ndarray]) -> float:
    """Median number of values from the change to the alarm; every seed must have one, and none before."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 8])
        told = changes(watch_of(watched), np.concatenate([rng.normal(size=CHANGE), after(rng)]))
        first, change = told[0]
        assert first >= CHANGE and change.kind == "drifted", f"seed {seed}: {told[0]}"
        found.append(first - CHANGE)
    return statistics.median(found)


SIZE = 2500
AFTER: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], int]] = {
    "sudden, 1 standard deviation": (lambda rng: rng.normal(1.0, size=SIZE), 160),
    "sudden, 2 down": (lambda rng: rng.normal(-2.0, size=SIZE), 60),
    "gradual, 1 over 1000 values": (lambda rng: rng.normal(size=SIZE) + np.minimum(np.arange(SIZE) / 1000, 1), 1000),
    "spread alone, twice": (lambda rng: rng.normal(scale=2.0, size=SIZE), 100),
}


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("name", WATCHES)
def test_drift_is_seen_soon(name: str, kind: str) -> None:
    after, most = AFTER[kind]
    assert delay(WATCHES[name], 4, after) <= most


def test_without_its_own_watch_the_spread_is_not_seen() -> None:
    blind = Watched(AdwinConfig(delta=1e-4), spread=None)
    values = np.concatenate(
        [np.random.default_rng(1).normal(size=CHANGE), AFTER["spread alone, twice"][0](np.random.default_rng(2))]
    )
    assert changes(watch_of(blind), values) == []
    assert ROUGHNESS.spread == SPREAD, "and the defaults have it"


@pytest.mark.parametrize("name", WATCHES)
def test_since_when_is_told(name: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng([seed, 9])
        watch = watch_of(WATCHES[name])
        ((_, change), *_) = changes(watch, np.concatenate([rng.normal(size=CHANGE), rng.normal(2.0, size=400)]))
        assert abs(change.since_s - CHANGE) <= 64, change
        assert watch.drifted == {"q": change.since_s}


@pytest.mark.parametrize("name", WATCHES)
def test_what_comes_home_is_cleared(name: str) -> None:
    rng = np.random.default_rng(3)
    watch = watch_of(WATCHES[name])
    told = changes(watch, np.concatenate([rng.normal(size=CHANGE), rng.normal(3.0, size=600), rng.normal(size=800)]))
    assert [c.kind for _, c in told] == ["drifted", "cleared"]
    cleared_at, cleared = told[1]
    assert CHANGE + 600 < cleared_at < CHANGE + 600 + 300 and cleared.home == "learned"
    assert watch.drifted == {}


def test_a_known_domain_is_a_move_and_an_unknown_one_is_drift() -> None:
    rng = np.random.default_rng(4)
    homes = (domain("clean", 0.0), domain("out-of-focus", 6.0))
    moved = changes(watch_of(SCORE, homes), np.concatenate([rng.normal(size=CHANGE), rng.normal(6.0, size=800)]))
    ((at, change),) = moved
    assert (change.kind, change.home) == ("moved", "out-of-focus") and at < CHANGE + 100
    lost = changes(watch_of(SCORE, homes), np.concatenate([rng.normal(size=CHANGE), rng.normal(3.0, size=800)]))
    assert [c.kind for _, c in lost] == ["drifted"]


def test_a_device_that_wakes_up_in_the_fog_is_told_as_soon_as_it_has_learned() -> None:
    rng = np.random.default_rng(5)
    watch = watch_of(SCORE, (domain("clean", 0.0),))
    ((at, change),) = changes(watch, rng.normal(5.0, size=600))
    assert (at, change.kind, change.since_s) == (255, "drifted", 0.0)
    assert [c.kind for _, c in changes(watch, rng.normal(size=400), 600)] == ["cleared"]


def test_a_stuck_sensor_is_drift() -> None:
    """The mean stays, the spread goes: a distribution sees it."""
    rng = np.random.default_rng(6)
    told = changes(watch_of(INPUT), np.concatenate([rng.normal(size=CHANGE), np.zeros(600)]))
    assert told[0][1].kind == "drifted" and told[0][0] < CHANGE + 200


@pytest.mark.parametrize("name", WATCHES)
def test_a_constant_quantity_is_quiet_until_it_moves(name: str) -> None:
    watch = watch_of(WATCHES[name])
    assert changes(watch, [0.5] * 1000) == []
    assert changes(watch, [0.9] * 300, 1000)[0][1].kind == "drifted"


@pytest.mark.parametrize("name", WATCHES)
@pytest.mark.parametrize("cut", [100, 255, 256, 1500, 2020, 2400, 2900])
def test_a_restart_forgets_nothing_and_tells_nothing_twice(name: str, cut: int) -> None:
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.normal(size=CHANGE), rng.normal(3.0, size=600), rng.normal(size=600)])
    whole = watch_of(WATCHES[name])
    told = changes(whole, values)
    first, second = watch_of(WATCHES[name]), watch_of(WATCHES[name])
    before = changes(first, values[:cut])
    assert second.load_state(json.loads(json.dumps(first.to_state())))
    assert before + changes(second, values[cut:], cut) == told and len(told) == 2
    assert second.to_state() == whole.to_state()


def test_a_state_of_another_bundle_is_left_and_a_damaged_one_begins_anew() -> None:
    watch = watch_of(SCORE)
    changes(watch, np.random.default_rng(8).normal(size=400))
    state = watch.to_state()
    assert not watch_of(SCORE, (domain("clean", 0.0),)).load_state(state)
    other = watch_of(SCORE)
    for damage in ("detector", "scale", "recent", "moments"):
        spoilt = json.loads(json.dumps(state))
        spoilt["quantities"]["q"][damage] = None
        with pytest.raises(InputError, match="damaged"):
            other.load_state(spoilt)
        assert other.learning == ("q",) and other.drifted == {}


def test_what_is_not_watched_or_not_finite_is_left_out() -> None:
    watch = DriftWatch()
    assert watch.update("humidity", 5.0, 0.0) is None
    assert watch.update_all({"score": math.nan, "drift": math.inf}, 0.0) == []
    assert set(watch.learning) == set(DEFAULT_WATCHES)


def test_another_bundle_begins_anew() -> None:
    rng = np.random.default_rng(9)
    watch = watch_of(SCORE)
    changes(watch, np.concatenate([rng.normal(size=CHANGE), rng.normal(3.0, size=100)]))
    assert watch.drifted
    watch.switch(())
    assert watch.drifted == {} and watch.learning == ("q",)


def test_entropy_of_labels() -> None:
    assert label_entropy({}) == label_entropy({"a": 0}) == label_entropy({"a": 9, "b": 0}) == 0.0
    assert label_entropy({"a": 1, "b": 1, "c": 1, "d": 1}) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "wrong", [{"learn": 4}, {"recent": 1}, {"clip": 1.0}, {"home_ratio": 0.5}, {"most_correlation": 1.0}]
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        QuantityLimits(**wrong)  # type: ignore[arg-type]
    assert PageHinkleyConfig().threshold < SPREAD.threshold


@pytest.mark.slow
@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", WATCHES)
def test_restless_streams_are_no_drift_over_a_million_values(name: str, kind: str) -> None:
    """20 seeds of 50,000 values; at most 1 false alarm in a million."""
    assert false_alarms(WATCHES[name], kind, 20, 50_000) <= 1


# Real frames: scikit-learn's digits, in windows of 20 as an agent sees them ------------------------------------------


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32) / 16.0
    return images[np.random.default_rng(0).permutation(len(images))][..., None]  # (N, 8, 8, 1)


def blurred(images: np.ndarray) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return sum(padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9.0  # type: ignore[return-value]


def windows(images: np.ndarray, count: int, seed: int) -> list[dict[str, float]]:
    rows = [features(image) for image in images]
    table = np.array([[row[name] for name in FEATURES[:3]] for row in rows])
    means = table[np.random.default_rng(seed).integers(0, len(table), (count, 20))].mean(axis=1)
    return [dict(zip(FEATURES[:3], map(float, row), strict=True)) for row in means]


def run(watch: DriftWatch, rows: list[dict[str, float]], start: int = 0) -> list[DriftChange]:
    return [change for i, row in enumerate(rows, start) for change in watch.update_all(row, 2.0 * i)]


def test_a_lens_out_of_focus_is_named_and_is_home_once_the_bundle_knows_it() -> None:
    images = digits()
    reference, fresh = images[:900], images[900:]
    clean = domain_statistics("clean", reference, None, 20, seed=1)
    soft = domain_statistics("out-of-focus", blurred(reference), None, 20, seed=1)
    quiet, after = windows(fresh, 900, 2), windows(blurred(fresh), 150, 3)
    watch = DriftWatch((clean,))
    assert run(watch, quiet) == []
    told = run(watch, after, len(quiet))
    assert {c.kind for c in told} == {"drifted"} and {"roughness", "input_std"} <= set(watch.drifted)
    assert all(abs(since_s - 2.0 * len(quiet)) <= 64.0 for since_s in watch.drifted.values()), watch.drifted
    knows = DriftWatch((clean, soft))
    assert run(knows, quiet) == []
    assert {c.kind for c in run(knows, after, len(quiet))} == {"moved"} and knows.drifted == {}
