"""What one update of a drift detector costs, and one audit entry.

Processor time of this thread (whoever else runs on the machine is none of the detector's cost), mean over 20,000
standard normal values after 5,000 to warm up, the detectors taking turns; the best of several rounds. The 99th
percentile is of single calls on the wall clock with the timer's own cost in it; ADWIN and KS do their real work with
every 32nd and 16th value, so there it is that work.
`river` stands beside where it is installed: compiled ADWIN, Python Page-Hinkley, and a KS test made anew every value.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from kasmina_edge.safety.audit import AuditLog, verify
from kasmina_edge.safety.detectors import Adwin, PageHinkley, WindowedKs
from kasmina_edge.safety.drift_watch import DEFAULT_WATCHES, DriftWatch, DriftWatchConfig
from kasmina_edge.updates.trust import TrustStore

TARGET_US = 3.0
WARM_UP = 5000
VALUES = 20_000
Update = Callable[[float], object]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Every detector against its target; a whole `DriftWatch`, `river` and the audit log stand beside."""
    rounds = 3 if quick else 9
    rng = random.Random(0)
    stream = [rng.gauss(0.0, 1.0) for _ in range(WARM_UP + VALUES)]
    subjects: dict[str, Update] = {
        "Page-Hinkley": PageHinkley().update,
        "ADWIN": Adwin().update,
        "windowed KS": WindowedKs().update,
    }
    watched = {f"DriftWatch, {name}": _watched(name) for name in ("score", "input_mean", "roughness")}
    cost = _means({**subjects, **watched}, stream, rounds)
    slow = _means(_river(), stream[: WARM_UP // 5], 1)
    found = []
    for name, mean_us in cost.items():
        p99_us = _p99({**subjects, **watched}[name], stream)
        target = TARGET_US if name in subjects else None
        how = f"processor time, mean of {VALUES} values, best of {rounds} rounds; p99 of single calls {p99_us:.1f} us"
        found.append(_row(f"drift detector, {name}", target, mean_us, "us", how))
    found += [_row(f"drift detector, {n}", None, us, "us", "beside: mean of 1000 values") for n, us in slow.items()]
    return found + _audit(20 if quick else 200)


def _watched(name: str) -> Update:
    watch = DriftWatch((), DriftWatchConfig(watches={name: DEFAULT_WATCHES[name]}))
    return lambda x: watch.update(name, x, 0.0)


def _river() -> dict[str, Update]:
    try:
        drift: Any = import_module("river.drift")
    except ImportError:
        return {}
    return {
        "river ADWIN (compiled)": drift.ADWIN().update,
        "river PageHinkley": drift.PageHinkley().update,
        "river KSWIN": drift.KSWIN(seed=1).update,
    }


def _means(subjects: dict[str, Update], stream: list[float], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(subjects, float("inf"))
    warm, timed = stream[:WARM_UP], stream[WARM_UP:] or stream
    for update in subjects.values():
        for x in warm:
            update(x)
    for _ in range(rounds):
        for name, update in subjects.items():
            began = time.thread_time()
            for x in timed:
                update(x)
            best[name] = min(best[name], (time.thread_time() - began) / len(timed) * 1e6)
    return best


def _p99(update: Update, stream: list[float]) -> float:
    clock = time.perf_counter_ns
    taken = []
    for x in stream[:VALUES]:
        began = clock()
        update(x)
        taken.append(clock() - began)
    return sorted(taken)[int(0.99 * len(taken))] / 1e3


def _audit(entries: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        log = AuditLog(Path(folder) / "audit.log")
        trust = TrustStore(Path(folder) / "trust", clock=time.time)
        appends, anchors = [], []
        for release in range(entries):
            began = time.perf_counter()
            entry = log.append("committed", bundle="digits 1.0.0", release=release, slot="a")
            middle = time.perf_counter()
            trust.anchor_audit(entry.head)
            anchors.append((time.perf_counter() - middle) * 1e3)
            appends.append((middle - began) * 1e3)
        began = time.perf_counter()
        report = verify(Path(folder) / "audit.log", remembered=trust.audit_anchor())
        verified_us = (time.perf_counter() - began) / entries * 1e6
        if not report.ok:
            raise RuntimeError(f"the benchmark's own audit log does not verify: {report.reason}")
    how = f"median of {entries}; every write flushed, so it is the disk that is measured"
    return [
        _row("audit entry, log and head", None, statistics.median(appends), "ms", how),
        _row("audit entry, anchor in the floor file", None, statistics.median(anchors), "ms", how),
        _row("audit log, verify", None, verified_us, "us an entry", f"{entries} entries"),
    ]


def _row(name: str, target: float | None, measured: float, unit: str, how: str) -> dict[str, Any]:
    return {
        "name": name,
        "target": target if target is not None else "-",
        "measured": round(measured, 3),
        "unit": unit,
        "ok": target is None or measured <= target,
        "how": how,
    }
