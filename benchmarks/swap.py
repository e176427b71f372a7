"""A hot swap under back-to-back load: is every answer one bundle's, and what do the frames around it wait?

Two bundles with different weights lie in the two slots of a data folder. The app's loop never pauses; in every other
run the boot record is turned to the other slot a quarter into the run, as an agent does, and the runtime follows. Every
answer is compared with what the bundle that its result names answers alone. The process has never seen PyTorch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _models
from kasmina_edge.boot_record import encode_record
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines import open_engine
from kasmina_edge.engines.tensors import to_model
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import RECORD_FILES, Slot, SlotStore
from kasmina_edge.storage import write_durable

Array = npt.NDArray[Any]
SWAPS, QUICK_SWAPS = 24, 4
RUN_S = 1.0
TAIL, MEAN = 2.0, 1.2


@dataclass
class Run:
    """What one run of the loop saw.

    Attributes:
        times_us: Of every call, microseconds.
        wrong: Calls that raised, or whose answer was not the one of the bundle they name.
        bundles: Names in the order they answered.
        swap_s: From the boot record's change to the first answer of the new bundle; None without a swap.
    """

    times_us: Array
    wrong: int
    bundles: list[str]
    swap_s: float | None


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Wrong answers, the ratios of mean and p99.9 with and without swaps, and the longest calls."""
    for name in ("digits", "other"):
        _models.bundle_path(name)
    command = [sys.executable, "-m", "benchmarks.swap", str(QUICK_SWAPS if quick else SWAPS)]
    done = subprocess.run(command, cwd=_models.ROOT, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(swaps: int, run_s: float = RUN_S) -> list[dict[str, Any]]:
    """The rows, from ``swaps`` pairs of runs."""
    bundles = [_models.read("digits"), _models.read("other")]
    frames = _models.frames_of(bundles[0])
    expected = {bundle.id: alone(bundle, frames) for bundle in bundles}
    assert len({answers.tobytes() for answers in expected.values()}) == 2, "the bundles have to answer differently"
    with_swap: list[Run] = []
    without: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        for bundle in bundles:
            _models.deploy(Path(folder), bundle, "litert")
        with Runtime.open(Path(folder), profile=_models.PROFILE) as runtime:
            load(runtime, frames, expected, run_s / 4)
            for i in range(swaps):
                for swap in (bool(i % 2), not i % 2):
                    run = load(runtime, frames, expected, run_s, swap_in=Path(folder) if swap else None)
                    (with_swap if swap else without).append(run)
            seen = runtime.swaps
    return _rows(with_swap, without, seen)


def alone(bundle: Bundle, frames: list[Array]) -> Array:
    """The raw answers of an engine that nothing else uses.  # (N, classes)"""
    with open_engine(bundle, load_profile(_models.PROFILE), engine="litert") as engine:
        tensor = engine.model.inputs[0]
        pre = bundle.manifest.preprocessing
        answers = [engine.run({tensor.name: to_model(x, tensor, pre)}) for x in frames]
    return np.concatenate([next(iter(answer.values())) for answer in answers])


def turn(data: Path) -> None:
    """Make the other slot the active one, durably, as a commit does."""
    record = SlotStore(data).record()
    other: Slot = "b" if record.active == "a" else "a"
    following = encode_record(replace(record, sequence=record.sequence + 1, active=other, previous=record.active))
    for name in RECORD_FILES:
        write_durable(data / name, following)


def load(
    runtime: Runtime, frames: list[Array], expected: dict[str, Array], seconds: float, swap_in: Path | None = None
) -> Run:
    """One run of the loop; with ``swap_in``, the boot record of that data folder is turned a quarter into it."""
    clock = time.perf_counter_ns
    times: list[int] = []
    names: list[str] = []
    answers: list[Array] = []
    turned: list[int] = []
    wrong, count, swapped_at = 0, len(frames), None
    before = runtime.bundle

    def agent(data: Path) -> None:
        time.sleep(seconds / 4)
        turn(data)
        turned.append(clock())

    thread = threading.Thread(target=agent, args=(swap_in,)) if swap_in is not None else None
    if thread is not None:
        thread.start()
    i, until = 0, clock() + int(seconds * 1e9)
    while clock() < until or (thread is not None and swapped_at is None and clock() < until + 10_000_000_000):
        frame = frames[i % count]
        began = clock()
        try:
            result = runtime.infer(frame)
        except Exception:
            wrong += 1
        else:
            times.append(clock() - began)
            names.append(result.bundle)
            answers.append(result.raw)
            if swapped_at is None and names[-1] != before:
                swapped_at = clock()
            i += 1
    if thread is not None:
        thread.join()
    for k, (name, answer) in enumerate(zip(names, answers, strict=True)):
        wrong += not np.array_equal(answer[0], expected[name][k % count])
    order = [name for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
    if order != ([before] if swap_in is None else [before, next(n for n in expected if n != before)]):
        wrong += 1  # a swap that did not happen, or one that went back
    swap_s = (swapped_at - turned[0]) / 1e9 if swapped_at is not None and turned else None
    return Run(np.array(times) / 1000.0, wrong, order, swap_s)


def _rows(with_swap: list[Run], without: list[Run], seen: int) -> list[dict[str, Any]]:
    wrong = sum(run.wrong for run in (*with_swap, *without))
    tails = [float(np.percentile(np.concatenate([r.times_us for r in runs]), 99.9)) for runs in (with_swap, without)]
    means = [float(np.concatenate([r.times_us for r in runs]).mean()) for runs in (with_swap, without)]
    longest = [float(np.median([r.times_us.max() for r in runs])) / 1000.0 for runs in (with_swap, without)]
    took_ms = float(np.median([run.swap_s for run in with_swap if run.swap_s is not None])) * 1000.0
    calls = sum(len(run.times_us) for run in (*with_swap, *without))
    how = f"{seen} swaps, each in a run of {RUN_S:g} s, alternating with runs without; {calls} calls"
    done = seen == len(with_swap)
    return [
        _row("frames_dropped_or_wrong", 0, wrong, "frames", wrong == 0 and done, how),
        _row("p999_ratio", TAIL, tails[0] / tails[1], "x without", tails[0] <= TAIL * tails[1],
             f"p99.9 {tails[0]:.0f} us with swaps, {tails[1]:.0f} us without; {how}"),
        _row("mean_ratio", MEAN, means[0] / means[1], "x without", means[0] <= MEAN * means[1],
             f"mean {means[0]:.1f} us with swaps, {means[1]:.1f} us without; {how}"),
        _row("longest_call", None, longest[0], "ms", True,
             f"median of the runs' longest calls; {longest[1]:.1f} ms without swaps; {how}"),
        _row("record_to_answer", None, took_ms, "ms", True,
             f"median from the boot record's change to the new bundle's first answer, loaded beside the frames; {how}"),
    ]  # fmt: skip


def _row(name: str, target: float | None, measured: float, unit: str, ok: bool, how: str) -> dict[str, Any]:
    return {"name": f"swap.{name}", "target": target, "measured": measured, "unit": unit, "ok": ok, "how": how}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
