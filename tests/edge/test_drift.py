"""Drift on scikit-learn's real digits at 16x16: quiet on clean windows, loud on corrupted ones, quiet again at home."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from kasmina_edge.errors import InputError
from kasmina_edge.safety.drift import (
    FEATURES,
    DriftHysteresis,
    HysteresisState,
    domain_statistics,
    drift_score,
    explain_drift,
    features,
    smallest_window,
)

WINDOW = 60
PIXELS = FEATURES[:3]


def digits() -> tuple[np.ndarray, np.ndarray]:
    images = load_digits().images.astype(np.float32) / 16.0
    images = np.kron(images, np.ones((1, 2, 2), np.float32))[..., None]  # (N, 16, 16, 1)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[:800]], images[order[800:]]


REFERENCE, FRESH = digits()


def blurred(images: np.ndarray) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    return sum(padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)) / 25.0


def noisy(images: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(7).normal(0.0, 0.3, images.shape).astype(np.float32)
    return np.clip(images + grain, 0.0, 1.0)


def washed_out(images: np.ndarray) -> np.ndarray:
    return images * np.float32(0.4) + np.float32(0.3)


CLEAN = domain_statistics("clean", REFERENCE, None, WINDOW, seed=1)
BLURRED = domain_statistics("blurred", blurred(REFERENCE), None, WINDOW, seed=1)


def alarm_rate(images: np.ndarray, domains: list, *, windows: int, frames: int = WINDOW, seed: int = 3) -> float:
    table = np.array([[features(image)[name] for name in PIXELS] for image in images])
    rng = np.random.default_rng(seed)
    means = table[rng.integers(0, len(table), (windows, frames))].mean(axis=1)
    scores = [drift_score(dict(zip(PIXELS, row, strict=True)), frames, domains)[0] for row in means.tolist()]
    return float(np.mean([score > 1.0 for score in scores]))


@pytest.mark.parametrize("frames", [WINDOW // 4, 20, 30, WINDOW, 2 * WINDOW])
def test_clean_windows_hardly_ever_alarm(frames: int) -> None:
    assert alarm_rate(FRESH, [CLEAN], windows=10_000, frames=frames) < 0.002


@pytest.mark.parametrize("corrupt", [blurred, noisy, washed_out])
def test_corrupted_windows_alarm(corrupt) -> None:
    assert alarm_rate(corrupt(FRESH), [CLEAN], windows=2000) >= 0.99
    assert alarm_rate(corrupt(FRESH), [CLEAN], windows=2000, frames=WINDOW // 4) >= 0.99


def test_a_learned_domain_is_home() -> None:
    assert alarm_rate(blurred(FRESH), [CLEAN, BLURRED], windows=5000) < 0.002
    assert alarm_rate(FRESH, [CLEAN, BLURRED], windows=5000) < 0.002
    assert alarm_rate(noisy(FRESH), [CLEAN, BLURRED], windows=2000) >= 0.99  # a second home is no open door


def test_small_references_get_wider_thresholds() -> None:
    """The reference's own uncertainty is in the threshold; without it one window in fifty would alarm here."""
    rates = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        frames = rng.normal(0.0, 1.0, (WINDOW, 1)).astype(np.float32)  # no more frames than a window has
        domain = domain_statistics("few", frames, None, WINDOW, seed=seed)
        means = rng.normal(0.0, 1.0 / np.sqrt(WINDOW), 4000).tolist()
        rates.append(np.mean([drift_score({"input_mean": m}, WINDOW, [domain])[0] > 1.0 for m in means]))
    assert np.mean(rates) < 0.005


def test_drift_names_the_nearest_domain_and_what_moved() -> None:
    window = blurred(FRESH[:WINDOW])
    means = {name: float(np.mean([features(f)[name] for f in window])) for name in PIXELS}
    assert drift_score(means, WINDOW, [CLEAN, BLURRED])[1] == "blurred"
    score, name = drift_score(means, WINDOW, [CLEAN])
    parts = explain_drift(means, WINDOW, CLEAN)
    assert name == "clean" and score == max(abs(v) for v in parts.values()) > 1.0
    assert parts["input_std"] < -1.0  # blur flattens


def test_nothing_to_compare_is_none_not_zero() -> None:
    assert drift_score({}, 60, [CLEAN]) == (None, None)
    assert drift_score({"input_mean": 0.3}, 60, []) == (None, None)
    assert drift_score({"input_mean": 0.3}, 0, [CLEAN]) == (None, None)
    assert drift_score({"unknown": 0.3}, 60, [CLEAN]) == (None, None)


def test_the_score_counts_when_it_was_measured() -> None:
    rng = np.random.default_rng(0)
    domain = domain_statistics("clean", REFERENCE, rng.beta(20, 2, len(REFERENCE)), WINDOW, seed=1)
    at_home = {name: domain.features[name].mean for name in FEATURES}
    assert drift_score(at_home, WINDOW, [domain])[0] == 0.0
    assert drift_score({**at_home, "score": 0.6}, WINDOW, [domain])[0] > 1.0


def test_statistics_are_reproducible_and_the_threshold_follows_the_seed() -> None:
    again = domain_statistics("clean", REFERENCE, None, WINDOW, seed=1)
    assert again == CLEAN
    assert domain_statistics("clean", REFERENCE, None, WINDOW, seed=2).threshold == pytest.approx(
        CLEAN.threshold, rel=0.1
    )
    assert (CLEAN.samples, CLEAN.window, smallest_window([CLEAN])) == (800, WINDOW, WINDOW // 4)


def test_constant_frames_are_no_division_by_zero() -> None:
    domain = domain_statistics("dark", [np.zeros((4, 4), np.float32)] * 10, None, 10, seed=0)
    assert drift_score({"input_mean": 0.0, "input_std": 0.0, "roughness": 0.0}, 10, [domain])[0] == 0.0
    assert drift_score({"input_mean": 0.1, "input_std": 0.0, "roughness": 0.0}, 10, [domain])[0] > 1.0


@pytest.mark.parametrize("shape", [(16, 16, 1), (1, 16, 16, 1), (1, 360), (3, 5, 7), (1,), ()])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_features_equal_their_definition(shape, dtype) -> None:
    frame = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    found = features(frame, 0.5)
    steps = [np.abs(np.diff(frame.astype(np.float64), axis=a)).ravel() for a in range(frame.ndim)]
    steps = np.concatenate([*steps, np.empty(0)])
    assert found["input_mean"] == pytest.approx(frame.astype(np.float64).mean(), rel=1e-5)
    assert found["input_std"] == pytest.approx(frame.astype(np.float64).std(), rel=1e-4, abs=1e-4)
    assert found["roughness"] == pytest.approx(steps.mean() if steps.size else 0.0, rel=1e-4)
    assert found["score"] == 0.5 and "score" not in features(frame, None)


def test_features_survive_an_offset() -> None:
    """Sensors with a pedestal: the standard deviation must not drown in a large mean."""
    frame = (10_000.0 + np.random.default_rng(0).random((16, 16))).astype(np.float32)
    assert features(frame)["input_std"] == pytest.approx(frame.astype(np.float64).std(), rel=0.01)


def test_bad_calls_are_told() -> None:
    with pytest.raises(InputError, match="empty frame"):
        features(np.empty((0, 3), np.float32))
    with pytest.raises(InputError, match="1 frames"):
        domain_statistics("x", REFERENCE[:1], None, WINDOW, seed=0)
    with pytest.raises(InputError, match="800 frames and 3 scores"):
        domain_statistics("x", REFERENCE, [0.1, 0.2, 0.3], WINDOW, seed=0)
    with pytest.raises(InputError, match="not finite"):
        domain_statistics("x", np.full((3, 4, 4), np.nan, np.float32), None, WINDOW, seed=0)


def test_the_detector_wants_windows_in_a_row() -> None:
    detector = DriftHysteresis(raise_windows=3, clear_windows=2, raise_at=1.0, clear_at=0.8)
    assert not detector.run([2.0, 2.0, 0.5, 2.0, 2.0]).raised
    raised = detector.run([2.0, None, 2.0, 2.0])
    assert raised.raised
    assert detector.run([0.9, 0.9, 0.9], raised).raised  # between the lines: stays
    assert detector.run([0.5, 2.0, 0.5], raised).raised
    assert not detector.run([0.5, 0.5], raised).raised


@given(st.lists(st.none() | st.floats(0, 10), max_size=40))
def test_the_detector_flips_only_after_enough_windows(scores) -> None:
    detector = DriftHysteresis(raise_windows=3, clear_windows=2)
    state, run = HysteresisState(), 0
    for score in scores:
        after = detector.step(state, score)
        if score is None:
            assert after == state
            continue
        against = score < 1.0 if state.raised else score > 1.0
        run = run + 1 if against else 0
        assert (after.raised != state.raised) == (run == (2 if state.raised else 3))
        run = 0 if after.raised != state.raised else run
        state = after


@pytest.mark.parametrize("wrong", [{"raise_windows": 0}, {"clear_at": 2.0}, {"clear_at": 0.0}])
def test_a_detector_without_sense_is_refused(wrong) -> None:
    with pytest.raises(InputError, match="drift hysteresis"):
        DriftHysteresis(**wrong)


@pytest.mark.slow  # a timing: for a quiet machine
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer (coverage) slows every line down")
def test_features_cost() -> None:
    frame = FRESH[0][None]
    costs = []
    for _ in range(30):
        began = time.thread_time()
        for _ in range(200):
            features(frame, 0.5)
        costs.append((time.thread_time() - began) / 200)
    assert min(costs) * 1e6 <= 25.0
