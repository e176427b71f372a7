"""Reservoirs of a window: every frame has the same chance, kinds keep apart, memory is bounded."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from kasmina_edge.contracts.change_plan import CaptureSampling
from kasmina_edge.telemetry.sampling import CaptureSampler, Picked


def run(sampling: CaptureSampling, frames: list[tuple[float | None, bool]], seed: int) -> list[Picked]:
    """One window of frames that hold their own number."""
    sampler = CaptureSampler(sampling, random.Random(seed))
    for number, (score, drifted) in enumerate(frames):
        sampler.offer(np.full(4, number, np.float32), score=score, drifted=drifted, at_s=100.0 + number / 100)
    assert sampler.take(100.5) == []
    return sampler.take(100.0 + sampling.window_s)


def numbers(picked: list[Picked], reason: str) -> list[int]:
    return [int(p.frame[0]) for p in picked if reason in p.reasons]


def test_every_frame_has_the_same_chance() -> None:
    counts: Counter[int] = Counter()
    windows, size, frames = 3000, 3, 20
    for seed in range(windows):
        picked = run(CaptureSampling(window_s=60, frames=size), [(0.9, False)] * frames, seed)
        assert len(picked) == size
        counts.update(numbers(picked, "share"))
    expected = windows * size / frames
    chi = sum((counts[n] - expected) ** 2 / expected for n in range(frames))
    assert chi < 43.8  # 99.9 % of chi-square with 19 degrees of freedom


def test_kinds_keep_apart() -> None:
    rule = CaptureSampling(window_s=60, frames=1, low_score=0.6, low_score_frames=2, drift_frames=3)
    frames: list[tuple[float | None, bool]] = [(0.3 if n % 10 == 0 else 0.9, n >= 50) for n in range(100)]
    picked = run(rule, frames, seed=1)
    assert len(numbers(picked, "share")) == 1
    assert len(numbers(picked, "low-score")) == 2 and all(n % 10 == 0 for n in numbers(picked, "low-score"))
    assert len(numbers(picked, "drift")) == 3 and all(n >= 50 for n in numbers(picked, "drift"))
    assert [p.at_s for p in picked] == sorted(p.at_s for p in picked)


def test_no_score_and_no_drift_give_only_the_share() -> None:
    rule = CaptureSampling(window_s=60, frames=2, low_score=0.6, drift_frames=2)
    picked = run(rule, [(None, False)] * 30, seed=2)
    assert [p.reasons for p in picked] == [("share",), ("share",)]


def test_the_same_seed_picks_the_same_frames() -> None:
    rule = CaptureSampling(window_s=60, frames=4)
    first, second, other = (numbers(run(rule, [(0.9, False)] * 200, seed), "share") for seed in (5, 5, 6))
    assert first == second != other


@pytest.mark.parametrize("now", [160.0, 40.0])
def test_a_window_ends_and_the_next_begins(now: float) -> None:
    """Also when the clock was set back."""
    sampler = CaptureSampler(CaptureSampling(window_s=60, frames=1), random.Random(0))
    assert sampler.take(100.0) == []
    sampler.offer(np.zeros(1), score=None, drifted=False, at_s=100.0)
    assert len(sampler.take(now)) == 1 and sampler.take(now) == []
    sampler.offer(np.zeros(1), score=None, drifted=False, at_s=now)
    assert sampler.take(now + 59.0) == [] and len(sampler.take(now + 60.0)) == 1


def test_memory_is_bounded_and_the_draw_stays_fair() -> None:
    last = 0
    for seed in range(60):
        sampler = CaptureSampler(CaptureSampling(window_s=60, frames=64), random.Random(seed), max_held_bytes=3000)
        for number in range(100):
            sampler.offer(np.full(100, number, np.uint8), score=None, drifted=False, at_s=0.0)
        picked = sampler.take(60.0)
        assert len(picked) == 10
        last += sum(int(p.frame[0]) >= 50 for p in picked)
    assert 240 <= last <= 360  # half of 600 picks, five standard deviations
