"""What an accelerator in a process of its own costs, and how long its failures keep an app waiting.

The engine here does next to nothing, so that the way to the worker and back is what is measured. The frame itself says
what shall go wrong: the twin does not listen, the worker does. No accelerator is needed.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile, ModelIO
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.engines.accelerator.rules import SupervisorRules
from kasmina_edge.engines.accelerator.supervisor import SupervisedEngine, supervise
from kasmina_edge.engines.engine import Engine, EngineCheck, LoadedTensor

Array = npt.NDArray[Any]
GAP_TARGET_MS = 200.0
CLASSES = 10
SIZES = {"256 B": 256, "150 kB": 224 * 224 * 3}
_FINE, _HANG, _CRASH, _WRONG = 0, 101, 102, 103


class NearlyNothing(Engine):
    """Adds up a few of its input's numbers."""

    name: ClassVar[str] = "nothing"

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """Always."""
        return EngineCheck(True, "CPU", "benchmark 1")

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        self.runs_on = "CPU"
        sides = (self.model.inputs, self.model.outputs)
        inputs, outputs = ([LoadedTensor(t.name, t.shape, t.dtype) for t in side] for side in sides)
        return inputs, outputs

    def _run(self, inputs: list[Array]) -> list[Array]:
        return [inputs[0][:, :CLASSES] + 1]


class Breaking(NearlyNothing):
    """Does what the frame's last number says; once it was told to be wrong, it is wrong about everything."""

    name: ClassVar[str] = "breaking"
    _broken = False

    def _run(self, inputs: list[Array]) -> list[Array]:
        order = inputs[0].item(-1)
        if order == _HANG:
            time.sleep(3600)
        if order == _CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        self._broken |= order == _WRONG
        answers = super()._run(inputs)
        return [answers[0] + 50] if self._broken else answers


def rows(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Overhead, the twin's own speed while it stands in, gaps, recovery, and wrong answers that got through."""
    for label, size in SIZES.items():
        yield overhead(label, size, pairs=9 if quick else 31)
    yield standing_in(pairs=9 if quick else 31)
    for name, order in (("hang", _HANG), ("crash", _CRASH)):
        yield from gap(name, order, times=3 if quick else 8)
    for verify_every, canary_every in ((1, 0), (16, 0), (1000, 32)):
        yield wrong(verify_every, canary_every, times=2 if quick else 8)


def toy_bundle(size: int) -> Bundle:
    """A model with one input of ``size`` bytes and ten outputs, twice: plain and for the accelerator."""
    files = {"plain": b"plain", "accelerated": b"accelerated"}
    frames = np.zeros((4, 1, size), np.int8)
    files["selftest.npz"] = pack_arrays({"input_x": frames, "output_y": frames[:, :, :CLASSES] + 1})
    scale = {"dtype": "int8", "scale": 1.0, "zero_point": 0}
    models = [
        ModelFile.parse(
            {
                "file": FileEntry.of(path, files[path]).model_dump(),
                "engine": "nothing",
                "inputs": [{"name": "x", "shape": (1, size), **scale}],
                "outputs": [{"name": "y", "shape": (1, CLASSES), **scale}],
                "selftest": {
                    "file": FileEntry.of("selftest.npz", files["selftest.npz"]).model_dump(),
                    "samples": 4,
                    "tolerance": 0.5,
                },
                "parity": {"samples": 1, "top1_agreement": 1.0, "max_abs_difference": 0.0},
            }
        )
        for path in ("plain", "accelerated")
    ]
    manifest = BundleManifest(
        name="nothing",
        version="1.0.0",
        release=1,
        profile="x86-cpu",
        inputs=(ModelIO(name="x", shape=(1, size)),),
        outputs=(ModelIO(name="y", shape=(1, CLASSES)),),
        models=tuple(models),
    )
    return Bundle(manifest, files, {})


@contextmanager
def supervised(size: int = 256, **rules: Any) -> Iterator[tuple[SupervisedEngine, Engine]]:
    """An engine in service, and a twin of its own to compare with."""
    bundle, profile = toy_bundle(size), load_profile("x86-cpu")
    plain, accelerated = bundle.manifest.models
    limits: dict[str, Any] = {"late_limit": 10**9, "verify_every": 10**9, "canary_every": 0, **rules}
    with (
        supervise(
            bundle,
            profile,
            (Breaking, accelerated),
            (NearlyNothing, plain),
            label="accelerator",
            rules=SupervisorRules(**limits),
        ) as engine,
        NearlyNothing(plain, b"", profile) as alone,
    ):
        drive(engine, size, until=lambda: engine.counters().in_service)
        yield engine, alone


def frame(size: int, order: int = _FINE) -> Array:
    """A frame that asks for ``order``."""
    x = np.zeros((1, size), np.int8)
    x[0, -1] = order
    return x


def drive(engine: SupervisedEngine, size: int, *, until: Callable[[], bool], every_s: float = 0.002) -> float:
    """Ask as a camera does until something holds; the longest wait for an answer, in milliseconds."""
    run, x, longest = engine.hot_path(), frame(size), 0.0
    ends = time.monotonic() + 60.0
    while not until():
        if time.monotonic() > ends:
            raise TimeoutError("a minute has passed")
        longest = max(longest, timed(run, x))
        time.sleep(every_s)
    return longest


def timed(run: Callable[[list[Array]], list[Array]], x: Array) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter_ns()
    run([x])
    return (time.perf_counter_ns() - began) / 1e6


def medians(first: Engine, second: Engine, x: Array, pairs: int, calls: int = 300) -> tuple[float, float]:
    """Median microseconds of a call on each, in blocks that take turns."""
    runs, found = (first.hot_path(), second.hot_path()), ([], [])  # type: tuple[Any, Any], tuple[list[float], list[float]]
    for _ in range(pairs):
        for run, to in zip(runs, found, strict=True):
            to.append(statistics.median(timed(run, x) for _ in range(calls)) * 1000)
    return statistics.median(found[0]), statistics.median(found[1])


def overhead(label: str, size: int, *, pairs: int) -> dict[str, Any]:
    """One row: what the way to the worker and back adds."""
    with supervised(size) as (engine, alone):
        link = engine._keeper.link
        assert link is not None
        through, bare = medians(engine, alone, frame(size), pairs)
        pss = worker_pss_mb(link.pid)
    return _row(
        f"supervisor.overhead_{label.replace(' ', '')}",
        None,
        through - bare,
        "us",
        True,
        f"p50 {through:.1f} us through the worker against {bare:.1f} us in this process, median of {pairs} pairs of "
        f"blocks of 300 calls, a frame of {label}; the worker holds {pss:.0f} MB (PSS)",
    )


def standing_in(*, pairs: int) -> dict[str, Any]:
    """One row: the twin behind the supervisor over the twin alone, while the accelerator is out."""
    with supervised(256, backoff_first_s=3600.0, backoff_max_s=3600.0) as (engine, alone):
        engine.hot_path()([frame(256, _CRASH)])
        drive(engine, 256, until=lambda: engine.counters().cause == "crash")
        through, bare = medians(engine, alone, frame(256), pairs)
    added = through - bare
    how = f"p50 {through:.2f} us against {bare:.2f} us for the twin alone, median of {pairs} pairs of blocks"
    return _row("supervisor.twin_overhead", 1.0, added, "us", added <= 1.0, how)


def gap(name: str, order: int, *, times: int) -> Iterator[dict[str, Any]]:
    """Two rows: the longest wait for an answer around a fault, and the time until the accelerator is back."""
    gaps, away = [], []
    with supervised(backoff_first_s=0.05, backoff_max_s=0.05, hang_ms=1000.0) as (engine, _):
        run = engine.hot_path()
        for n in range(1, times + 1):
            before = engine.counters().fallbacks_total
            began = time.monotonic()
            first = timed(run, frame(256, order))
            until = drive(engine, 256, until=partial(_fell, engine, before))
            gaps.append(max(first, until, drive(engine, 256, until=lambda: engine.counters().in_service)))
            away.append(time.monotonic() - began)
            assert engine.counters().fallbacks == {name: n}
    worst = max(gaps)
    yield _row(
        f"supervisor.gap_{name}",
        GAP_TARGET_MS,
        worst,
        "ms",
        worst <= GAP_TARGET_MS,
        f"the longest of {times} faults, p50 {statistics.median(gaps):.1f} ms; every frame until the accelerator was "
        "back is counted",
    )
    yield _row(
        f"supervisor.back_after_{name}",
        None,
        statistics.median(away),
        "s",
        True,
        f"from the fault to the end of the probation, median of {times}; 50 ms of it are the first wait",
    )


def wrong(verify_every: int, canary_every: int, *, times: int) -> dict[str, Any]:
    """One row: answers that were wrong and got through, when every frame from a random one on is answered wrongly."""
    rng = np.random.default_rng(0)
    through: list[int] = []
    right = frame(256)[:, :CLASSES] + 1
    for _ in range(times):
        with supervised(verify_every=verify_every, canary_every=canary_every, probation_frames=2) as (engine, _):
            run, bad, found = engine.hot_path(), frame(256, _WRONG), 0
            for _ in range(int(rng.integers(0, 64))):
                run([frame(256)])
            while engine.counters().cause != "wrong" and found < 2000:
                found += not np.array_equal(run([bad])[0], right)
            through.append(found)
    bound = min(verify_every - 1, canary_every or verify_every)
    return _row(
        f"supervisor.wrong_through_{verify_every}_{canary_every}",
        bound,
        max(through),
        "answers",
        max(through) <= bound,
        f"the most of {times} faults, the accelerator wrong about everything from a random frame on; "
        f"verify_every={verify_every}, canary_every={canary_every}",
    )


def _fell(engine: SupervisedEngine, times: int) -> bool:
    return engine.counters().fallbacks_total > times


def worker_pss_mb(pid: int) -> float:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _row(name: str, target: float | None, measured: float, unit: str, ok: bool, how: str) -> dict[str, Any]:
    return {"name": name, "target": target, "measured": measured, "unit": unit, "ok": ok, "how": how}
