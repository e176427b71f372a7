"""Nothing grows: memory, open files and threads over many inferences, swaps and starts.

The quick forms run in ``make test`` and would see some 100 bytes an inference; the long ones (``make soak``) see 5.
Each bound is shown to fail on a leak that was planted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds.bundles import make_bundle, make_frames
from worlds.fleets import MemoryFleet, wait_for
from worlds.soaking import Sample, look, slope_bytes

from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore

TESTS = Path(__file__).resolve().parents[1]
QUICK_FRAMES, QUICK_BYTES = 30_000, 100.0
LONG_FRAMES, LONG_BYTES = 1_000_000, 5.0
PLANTED_QUICK, PLANTED_LONG = 512, 64
WARM_SHARE = 1 / 3
"""Caches, SQLite's pages and allocator pools fill at first: that part is left out."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with digits in it."""
    commit(SlotStore(tmp_path / "data"), make_bundle())
    return tmp_path / "data"


def commit(store: SlotStore, bundle: object) -> None:
    store.begin_trial(store.install(bundle, engine="litert"))  # type: ignore[arg-type]
    store.confirm()


def soak(data: Path, frames: int, leak_bytes: int = 0) -> list[Sample]:
    """Samples of a child process, the warm-up left out."""
    command = [
        sys.executable, "-m", "worlds.soaking", str(data), str(frames), "--every", str(frames // 30),
        "--leak", str(leak_bytes),
    ]  # fmt: skip
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = [Sample(**json.loads(line)) for line in done.stdout.splitlines()]
    assert len(samples) == 30
    return [s for s in samples if s.frames > WARM_SHARE * frames]


def test_the_slope_of_a_leak_is_its_bytes_and_of_a_step_none() -> None:
    leak = [Sample(i * 1000, 10_000_000 + i * 1000 * 64, 9, 2) for i in range(1, 21)]
    step = [Sample(i * 1000, 10_000_000 + (2_000_000 if i > 15 else 0), 9, 2) for i in range(1, 21)]
    assert slope_bytes(leak) == pytest.approx(64)
    assert slope_bytes(step) == 0


def test_inference_keeps_nothing(data: Path) -> None:
    samples = soak(data, QUICK_FRAMES)
    assert slope_bytes(samples) <= QUICK_BYTES
    assert {s.threads for s in samples} == {samples[0].threads}
    assert max(s.open_files for s in samples) <= samples[0].open_files + 1


def test_a_planted_leak_is_seen(data: Path) -> None:
    assert slope_bytes(soak(data, QUICK_FRAMES // 3, PLANTED_QUICK)) > QUICK_BYTES


@pytest.mark.soak
def test_a_million_inferences_keep_nothing(data: Path) -> None:
    samples = soak(data, LONG_FRAMES)
    slope = slope_bytes(samples)
    assert slope <= LONG_BYTES, f"{slope:.2f} bytes an inference"
    assert {s.threads for s in samples} == {samples[0].threads}
    assert max(s.open_files for s in samples) <= samples[0].open_files + 1


@pytest.mark.soak
def test_a_small_planted_leak_is_seen_over_a_million(data: Path) -> None:
    assert slope_bytes(soak(data, LONG_FRAMES, PLANTED_LONG)) > LONG_BYTES


def swaps(data: Path, count: int) -> list[Sample]:
    """Swap between two bundles under inference; the number of swaps stands for frames."""
    bundles = [make_bundle(version="1.1.0", release=2, seed=5), make_bundle(version="1.2.0", release=3, seed=6)]
    store, frames, samples = SlotStore(data), make_frames(8), []
    with Runtime.open(data) as runtime:
        for i in range(1, count + 1):
            commit(store, bundles[i % 2])
            version = bundles[i % 2].manifest.version
            wait_for(lambda: runtime.infer(frames[0]).bundle and runtime.manifest.version == version, "the swap")  # noqa: B023
            samples.append(look(i))
    return samples


def test_swaps_keep_nothing_open(data: Path) -> None:
    samples = swaps(data, 10)
    assert samples[-1].open_files <= samples[1].open_files + 2  # the outbox opens its file with the first record
    assert samples[-1].threads <= samples[1].threads + 2  # the outbox's and the taps' begin when first needed


@pytest.mark.soak
def test_hundreds_of_swaps_keep_nothing(data: Path) -> None:
    samples = swaps(data, 300)[100:]
    assert slope_bytes(samples) <= 5_000, "bytes a swap"
    assert samples[-1].open_files <= samples[0].open_files + 1
    quarter = len(samples) // 4  # the outbox's thread comes and goes; one that stays for good adds to every sample
    assert min(s.threads for s in samples[-quarter:]) <= max(s.threads for s in samples[:quarter])


def starts(folder: Path, count: int, after: Callable[[], None] = lambda: None) -> list[Sample]:
    """Start and stop an agent in this process."""
    samples = []
    with MemoryFleet(folder) as fleet:
        fleet.enroll("cam-1")
        store = fleet.office.store()

        def online() -> bool:
            return any(v.device == "cam-1" and v.online for v in store.devices())

        for i in range(1, count + 1):
            fleet.start("cam-1")
            wait_for(online, "the agent to be online")
            fleet.stop("cam-1")
            wait_for(lambda: not online(), "the agent to be offline")
            after()
            samples.append(look(i))
        store.close()
    return samples


def test_an_agent_that_stops_leaves_nothing_open(tmp_path: Path) -> None:
    samples = starts(tmp_path, 5)
    assert samples[-1].open_files <= samples[1].open_files
    assert samples[-1].threads <= samples[1].threads


def test_a_planted_descriptor_is_seen(tmp_path: Path) -> None:
    kept: list[int] = []
    samples = starts(tmp_path, 4, lambda: kept.append(os.open(os.devnull, os.O_RDONLY)))
    for fd in kept:
        os.close(fd)
    assert samples[-1].open_files > samples[1].open_files


@pytest.mark.soak
def test_hundreds_of_starts_leave_nothing(tmp_path: Path) -> None:
    samples = starts(tmp_path, 200)[50:]
    assert samples[-1].open_files <= samples[0].open_files
    assert slope_bytes(samples) <= 20_000, "bytes a start"
