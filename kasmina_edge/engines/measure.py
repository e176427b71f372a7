"""Which of the engines that are here is the fastest one that agrees with the self-test, and a file that remembers it.

Engines are timed in turns, block by block, so that a machine that grows busy meanwhile is busy for all of them; a
figure is the median of the blocks' medians. Differences that this spread does not carry leave the profile's order as it
is.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.choice import Candidates, check_layout, engine_names
from kasmina_edge.engines.engine import Engine
from kasmina_edge.engines.registry import AUTO, OURS, build_of
from kasmina_edge.engines.selftest import self_test, vectors
from kasmina_edge.errors import KasminaError, StorageError
from kasmina_edge.storage import make_private_folder, write_durable

Array = npt.NDArray[Any]
BLOCKS = 9
BLOCK_NS = 4_000_000
"""Each engine's share of a block, nanoseconds; a slower model gets one run a block."""
NOISE = 0.03
"""Engines closer than this share of the fastest count as equally fast, whatever the blocks' spread says."""
STRANGER_S = 10.0
"""A third party's engine that has not loaded and passed its self-test by then is left out; its thread is abandoned."""
VERDICTS_FILE = "engines.json"
_KEPT = 16
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class Measured:
    """One engine's result on one bundle.

    Attributes:
        name: The engine.
        runs_on: As `Engine.runs_on`; empty when it did not get so far.
        samples: Self-test vectors tried.
        passed: Those within the tolerance; an engine with fewer than ``samples`` is never chosen.
        p50_us: Median time of one run in the model's own dtypes, microseconds; None when not measured.
        spread_us: Half the distance between the quartiles of the blocks' medians, microseconds.
        reason: Why it was not measured, or why it is not to be chosen.
    """

    name: str
    runs_on: str = ""
    samples: int = 0
    passed: int = 0
    p50_us: float | None = None
    spread_us: float = 0.0
    reason: str = ""

    @property
    def ok(self) -> bool:
        """It may be chosen."""
        return self.p50_us is not None and 0 < self.samples == self.passed


def measure_engines(
    bundle: Bundle,
    profile: HardwareProfile,
    *,
    names: Sequence[str] = (),
    timer_ns: Callable[[], int] = time.perf_counter_ns,
    blocks: int = BLOCKS,
) -> list[Measured]:
    """Load every engine that can run the bundle here, hold it to the self-test, and time those that pass.

    Args:
        bundle: The bundle; files of several engines make the comparison worth while.
        profile: The hardware target: threads, accelerator, and the order of the result.
        names: Engines to try; without, the profile's and then every other one that may be measured.
        timer_ns: Monotonic nanoseconds.
        blocks: Turns.

    Returns:
        One result an engine, in the order of ``names``; also those that cannot, with the reason.

    Raises:
        BundleError: The manifest does not fit its models.
    """
    check_layout(bundle.manifest)
    results: dict[str, Measured] = {}
    loaded: dict[str, Engine] = {}
    with ExitStack() as stack:
        for name in names or auto_names(profile):
            engine, results[name] = _proven(name, bundle, profile)
            if engine is not None:
                loaded[name] = stack.enter_context(engine)
        for name, medians in _time(loaded, bundle, timer_ns, blocks, results).items():
            quartiles = np.percentile(medians, [25, 50, 75]) / 1000.0
            spread_us = float(quartiles[2] - quartiles[0]) / 2
            results[name] = replace(results[name], p50_us=float(quartiles[1]), spread_us=spread_us)
    return list(results.values())


def fastest(measured: Sequence[Measured]) -> Measured | None:
    """The one to use: the fastest that passed, or an earlier one that is as fast within noise; None when none passed.

    >>> fastest([Measured("a", "", 4, 4, 101.0), Measured("b", "", 4, 4, 100.0), Measured("c", "", 4, 3, 1.0)]).name
    'a'
    """
    passed = [m for m in measured if m.ok]
    best = min(passed, key=lambda m: m.p50_us or 0.0, default=None)
    if best is None or best.p50_us is None:
        return None
    for m in passed:
        assert m.p50_us is not None
        if m.p50_us - best.p50_us <= max(NOISE * best.p50_us, m.spread_us + best.spread_us):
            return m
    return best


def auto_names(profile: HardwareProfile) -> list[str]:
    """Engines that ``auto`` measures: the profile's in its order, then every other that may be measured."""
    return list(dict.fromkeys([*(n for n in profile.engines if n != AUTO), *engine_names(profile, AUTO)]))


class Verdicts:
    """The engines that measurements chose on this device, kept in a folder over restarts.

    A verdict holds for one bundle's content, one set of engines with their versions, and one machine; anything else is
    measured anew, and so is what a damaged file had held.

    Args:
        folder: Where ``engines.json`` lies.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / VERDICTS_FILE

    def get(self, key: str) -> str | None:
        """The engine chosen for ``key``."""
        name = self._read().get(key)
        return name if isinstance(name, str) else None

    def put(self, key: str, name: str) -> None:
        """Keep a verdict durably; the oldest of more than 16 goes.

        Raises:
            StorageError: The disk refused.
        """
        known = self._read()
        known.pop(key, None)
        known[key] = name
        newest = dict(list(known.items())[-_KEPT:])
        make_private_folder(self._path.parent)
        write_durable(self._path, (json.dumps(newest, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        try:
            with self._path.open("rb") as stream:
                value = json.loads(stream.read(_MAX_BYTES))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def verdict_key(bundle: Bundle, profile: HardwareProfile) -> str:
    """What a verdict depends on, as a digest: bundle content and files, engines and versions, machine, threads."""
    manifest = bundle.manifest
    checks = {}
    for name in auto_names(profile):
        candidates = Candidates(manifest, profile, present=set(bundle.files), engine=name)
        checks[name] = [(model.file.path, check.reason, build_of(kind)) for kind, model, check in candidates]
    facts = {
        "bundle": manifest.content_digest(),
        "engines": checks,
        "threads": profile.threads,
        "accelerator": [profile.accelerator, profile.accelerator_device, profile.delegate_library],
        "machine": [platform.machine(), _cpu(), os.cpu_count()],
    }
    return sha256_hex(json.dumps(facts, sort_keys=True).encode())


def chosen_by_measurement(bundle: Bundle, profile: HardwareProfile, *, folder: Path | None = None) -> str:
    """The name of the engine that ``auto`` means for this bundle here; "" when none passed its self-test.

    Args:
        bundle: The bundle.
        profile: The hardware target.
        folder: Where the verdict is kept; without one it is measured at every call, which takes some 0.1 s an engine.
    """
    verdicts = Verdicts(folder) if folder is not None else None
    key = verdict_key(bundle, profile) if verdicts else ""
    name = verdicts.get(key) if verdicts else None
    if name is not None and name in auto_names(profile) and _still_right(name, bundle, profile):
        return name
    best = fastest(measure_engines(bundle, profile))
    if best is None:
        return ""
    if verdicts is not None:
        with suppress(StorageError):  # a full disk costs the next start a measurement, no more
            verdicts.put(key, best.name)
    return best.name


def _still_right(name: str, bundle: Bundle, profile: HardwareProfile) -> bool:
    """Whether the engine of a kept verdict passes the self-test today: a driver or a library may have changed since."""
    for _, model, _ in Candidates(bundle.manifest, profile, present=set(bundle.files), engine=name):
        if model.compiled_for is not None:
            from kasmina_edge.engines.accelerator.twins import find_twin

            if find_twin(bundle, profile, model) is not None:
                return True  # its supervisor asks the vectors at every start, and has a deadline
        break
    engine, _ = _proven(name, bundle, profile)
    if engine is not None:
        engine.close()
    return engine is not None


def _proven(name: str, bundle: Bundle, profile: HardwareProfile) -> tuple[Engine | None, Measured]:
    """The engine loaded, where it passes the self-test, and what came of it; a stranger's has `STRANGER_S` for it."""
    if name in OURS:
        return _load_and_test(name, bundle, profile)
    found: list[tuple[Engine | None, Measured]] = []
    turn = threading.Lock()
    late = False

    def work() -> None:
        try:
            result = _load_and_test(name, bundle, profile)
        except BaseException as exc:  # no user interrupts this thread
            result = None, Measured(name, reason=repr(exc))
        with turn:
            found.append(result)
        if late and result[0] is not None:
            result[0].close()

    thread = threading.Thread(target=work, name=f"kasmina-measure-{name}", daemon=True)
    thread.start()
    thread.join(STRANGER_S)
    with turn:
        if found:
            return found[0]
        late = True
    return None, Measured(name, reason=f"not ready after {STRANGER_S:g} s")


def _load_and_test(name: str, bundle: Bundle, profile: HardwareProfile) -> tuple[Engine | None, Measured]:
    engine = _load(name, bundle, profile)
    if isinstance(engine, Measured):
        return None, engine
    result = _test(name, engine, bundle)
    if result.samples and result.samples == result.passed:
        return engine, result
    engine.close()
    return None, result


def _load(name: str, bundle: Bundle, profile: HardwareProfile) -> Engine | Measured:
    candidates = Candidates(bundle.manifest, profile, present=set(bundle.files), engine=name)
    for kind, model, _ in candidates:
        try:
            return kind(model, bundle.read(model.file), profile)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # a stranger's constructor may raise anything, sys.exit() too
            candidates.reasons.append(exc.message if isinstance(exc, KasminaError) else repr(exc))
    return Measured(name, reason="; ".join(candidates.reasons).removeprefix(f"{name}: "))


def _test(name: str, engine: Engine, bundle: Bundle) -> Measured:
    try:
        found = self_test(engine, bundle, timed_runs=1)
    except KasminaError as exc:
        return Measured(name, engine.runs_on, reason=exc.message)
    except BaseException as exc:
        if name in OURS or isinstance(exc, KeyboardInterrupt):
            raise
        return Measured(name, engine.runs_on, reason=repr(exc))
    reason = "" if found.ok else f"{found.samples - found.passed} of {found.samples} self-test vectors fail, worst "
    return Measured(name, engine.runs_on, found.samples, found.passed, reason=reason and f"{reason}{found.worst:g}")


def _time(
    engines: dict[str, Engine],
    bundle: Bundle,
    timer_ns: Callable[[], int],
    blocks: int,
    results: dict[str, Measured],
) -> dict[str, list[float]]:
    """Medians of each block, nanoseconds; an engine that fails meanwhile says so in ``results`` and is left out."""
    frames = {}
    for name, engine in engines.items():
        tensors = engine.model.app_inputs
        frames[name] = [[frame[t.name] for t in tensors] for frame in vectors(bundle, engine.model)[0]]
    medians: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(blocks):
        for name in list(medians):
            try:
                medians[name].append(_block(engines[name].hot_path(), frames[name], timer_ns))
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                del medians[name]
                fault = exc if isinstance(exc, Exception) else RuntimeError(repr(exc))
                results[name] = replace(results[name], reason=engines[name].failure(fault).message)
    return medians


def _block(call: Callable[[list[Array]], list[Array]], frames: list[list[Array]], timer_ns: Callable[[], int]) -> float:
    times: list[int] = []
    spent, i = 0, 0
    call(frames[0])  # the caches are another engine's
    while spent < BLOCK_NS and len(times) < 200:
        started = timer_ns()
        call(frames[i % len(frames)])
        times.append(timer_ns() - started)
        spent += max(times[-1], 1)
        i += 1
    return float(np.median(times))


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware", "model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
