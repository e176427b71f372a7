"""The ECG set: its detector finds made beats, its parts share no second, its labels follow the rule that is written."""

from __future__ import annotations

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import ecg
from kasmina_trainer.datasets.catalogue import data_set
from kasmina_trainer.datasets.ecg_peaks import band_passed, half_widths_ms, r_peaks

RATE = ecg.SOURCE_HZ


def heart(
    seed: int, *, seconds: float = 160.0, noise: float = 0.03, wide_share: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A made record: R peaks of 10 ms or 45 ms deviation with a T wave, drifting baseline, noise; peaks and widths."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.normal(0.75, 0.06, int(seconds / 0.8)))
    at = at[at < seconds - 1]
    wide = rng.uniform(size=len(at)) < wide_share
    time = np.arange(int(seconds * RATE)) / RATE
    signal = 0.4 * np.sin(2 * np.pi * 0.25 * time) + rng.normal(0, noise, len(time))
    for when, is_wide in zip(at, wide, strict=True):
        near = np.abs(time - when) < 0.6
        spread = 0.032 if is_wide else 0.009
        signal[near] += 1.4 * np.exp(-0.5 * ((time[near] - when) / spread) ** 2)
        signal[near] += 0.2 * np.exp(-0.5 * ((time[near] - when - 0.3) / 0.05) ** 2)
    return signal, np.round(at * RATE).astype(int), wide


@pytest.mark.parametrize("seed", range(4))
def test_the_detector_finds_every_made_beat_and_no_other(seed: int) -> None:
    signal, at, wide = heart(seed)
    peaks = r_peaks(signal, RATE)
    assert len(peaks) == len(at)
    assert np.abs(peaks - at).max() <= 0.02 * RATE
    widths = half_widths_ms(signal, RATE, peaks)
    assert (widths[wide] >= ecg.WIDE_MS).mean() > 0.95 and (widths[~wide] <= ecg.NARROW_MS).mean() > 0.95


def test_the_detector_finds_nothing_like_a_beat_rate_in_bare_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 1, int(60 * RATE))
    gaps = np.diff(r_peaks(noise, RATE))
    regular, _, _ = heart(0, seconds=60.0)
    assert gaps.std() / gaps.mean() > 3 * np.diff(r_peaks(regular, RATE)).std() / np.diff(r_peaks(regular, RATE)).mean()


def test_a_signal_that_is_none_is_refused() -> None:
    for bad in (np.zeros(10), np.full(4000, np.nan), np.zeros((2, 4000))):
        with pytest.raises(InputError, match="ECG: expected at least 2 s"):
            r_peaks(bad, RATE)
    with pytest.raises(InputError, match="150 s are needed"):
        ecg.split_windows(heart(0, seconds=100.0)[0], 0)


def test_a_band_keeps_what_is_inside_and_drops_the_rest() -> None:
    time = np.arange(3600) / RATE
    inside, outside = np.sin(2 * np.pi * 10 * time), 5 + np.sin(2 * np.pi * 90 * time)
    kept = band_passed(inside + outside, RATE, (1.0, 40.0))
    assert np.abs(kept - inside)[400:-400].max() < (40 / 90) ** 4 * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_parts_share_no_second_and_hold_every_class(seed: int) -> None:
    signal = heart(9)[0]
    marked = signal + 0.0
    parts = ecg.split_windows(marked, seed)
    assert parts.labels == ("narrow", "wide", "none")
    for x, y in (parts.train, parts.validation, parts.test):
        assert x.shape[1:] == ecg.INPUT_SHAPE and x.dtype == np.float32 and len(x) == len(y)
        assert x.min() >= 0.0 and x.max() <= 1.0 and set(y.tolist()) == {0, 1, 2}
    rows = {row.tobytes() for row in parts.train[0]}
    assert not rows & {row.tobytes() for row in parts.test[0]}
    again = ecg.split_windows(marked, seed)
    assert np.array_equal(again.test[0], parts.test[0]) and np.array_equal(again.train[1], parts.train[1])


def test_labels_follow_the_beat_at_the_centre() -> None:
    signal, at, wide = heart(3)
    centres, labels = ecg.labelled_centres(signal, np.random.default_rng(0))
    distance = np.abs(centres[:, None] - at[None, :])
    nearest, away_s = distance.argmin(1), distance.min(1) / RATE
    assert away_s[labels < 2].max() <= ecg.JITTER_S + 0.02
    assert away_s[labels == 2].min() >= ecg.AWAY_S - 0.02
    assert (wide[nearest][labels < 2] == labels[labels < 2]).mean() > 0.97


@pytest.mark.skipif(not data_set("ecg").here, reason="not fetched: kasmina-trainer data fetch ecg")
def test_the_real_record_gives_five_hundred_beats() -> None:
    signal = ecg.load_signal(downloaded=None)
    peaks = r_peaks(signal, RATE)
    widths = half_widths_ms(signal, RATE, peaks)
    assert len(signal) == 108_000 and 480 <= len(peaks) <= 520
    assert 0.05 < (widths >= ecg.WIDE_MS).mean() < 0.4
    parts = ecg.load_ecg(0, downloaded=None)
    assert len(parts.train[1]) > 1_200 and len(parts.test[1]) > 500
