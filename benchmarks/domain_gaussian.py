"""Gaussian clusters against their targets: purity by the best possible one, and how early drift is flagged.

Purity: the clusters are the answers of a small int8 network on held-out points, by blobs, dimension, overlap, imbalance
and shape; the best possible purity is computed from exact posteriors. Drift: a fixed classifier watches a stream whose
blobs all move 1.5 standard deviations, each its own way (2 where the change is sudden); accuracy lost is that of the
classifier at the share of the new at which the first alarm came. The worst stream is held against the target, at both
speeds; a stream that is never flagged counts as all that its drift costs. Beside each stands when somebody who knew the
old and the new blobs and the pace would have spoken on the same streams (`_drift_bound`). The warning was made on
streams of other seeds; these chose nothing. False alarms are counted on streams of the target's length, and beside on
longer ones of seeds of their own. `river` stands beside where it is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks._drift_bound import earliest
from benchmarks.domain_toys import fit_points
from kasmina_trainer.datasets.gaussian import (
    Blobs,
    DriftingBlobs,
    DriftWarning,
    Schedule,
    blob_splits,
    make_blobs,
    moved,
    purity,
)
from kasmina_trainer.datasets.gaussian.drifting import Kind
from kasmina_trainer.export import export_bundle
from kasmina_trainer.training import predict_labels

SEEDS = (0, 1, 2)
SHARE_OF_BEST = 95.0
LOST_POINTS = 5.0
SUDDEN_SAMPLES = 100
CALM_SAMPLES = 300_000
LONG_SEEDS = (1000, 1001, 1002)
LONG_SAMPLES = 2_000_000
BETWEEN_ALARMS = 1e8
"""Samples between false alarms that the warning is asked for, and that its bound is computed for."""
BEGIN = 4000
KINDS: tuple[Kind, ...] = ("gradual", "incremental")
LENGTHS = (20_000, 100_000)
"""Samples from the old to the new; the target names no speed."""
SETTINGS: tuple[dict[str, Any], ...] = (
    {"blobs": 2, "dimensions": 2, "overlap": 0.05},
    {"blobs": 3, "dimensions": 2, "overlap": 0.10, "imbalance": 3.0},
    {"blobs": 4, "dimensions": 8, "overlap": 0.05, "anisotropy": 3.0},
    {"blobs": 5, "dimensions": 2, "overlap": 0.10, "imbalance": 3.0, "anisotropy": 2.0},
)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Purity and drift; ``quick``: one seed, two settings, a tenth of the calm samples."""
    seeds, settings = (SEEDS[:1], SETTINGS[:2]) if quick else (SEEDS, SETTINGS)
    found = [_purity(setting, seeds) for setting in settings]
    found.append(_sudden(settings, seeds))
    for kind in KINDS:
        found += [_slow(kind, settings, seeds, length, target=not quick) for length in LENGTHS[: 1 if quick else 2]]
    calm = CALM_SAMPLES // 10 if quick else CALM_SAMPLES
    return found + _calm(settings, seeds, calm)


def _purity(setting: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    shares, best, plain = [], [], []
    for seed in seeds:
        blobs = make_blobs(seed, **setting)
        splits = blob_splits(blobs, seed)
        network = fit_points(splits, seed, 600)
        x, y = splits.test
        bundle = export_bundle(
            network, "blobs", version="1.0.0", profile="x86-cpu", calibration=splits.train[0][:400], held_out=(x, y),
            labels=splits.labels, minimum_agreement=0.9,
        )  # fmt: skip
        parity = next(m.parity for m in bundle.manifest.models if m.parity is not None)
        estimate = blobs.bayes_purity()
        best.append(estimate)
        plain.append(purity(predict_labels(network, x), y))
        # answers that are right more often than wrong: their purity is at least their accuracy
        shares.append(100 * (parity.accuracy or 0.0) / estimate.value)
    told = ", ".join(f"{name} {value:g}" for name, value in setting.items())
    error = max(e.error for e in best)
    how = (
        f"int8 answers on 4,000 held-out points, mean of {len(shares)} seeds; best purity "
        f"{statistics.fmean(e.value for e in best):.4f} (standard error at most {error:.4f}, 200,000 draws); float "
        f"{100 * statistics.fmean(plain):.2f} %"
    )
    mean = statistics.fmean(shares)
    return _row(f"purity by the best, {told}", SHARE_OF_BEST, mean, "%", mean >= SHARE_OF_BEST, how)


def _sudden(settings: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    delays, bounds = [], []
    for setting in settings:
        for seed in seeds:
            delay, _, drifting, _ = _first(setting, seed, Schedule("sudden", BEGIN), 2.0, 3000)
            delays.append(delay)
            known = earliest(drifting, drifting.whole(BEGIN + 3000, seed + 100).x, BETWEEN_ALARMS)
            bounds.append(float("inf") if known is None else known - BEGIN)
    worst = max(delays)
    how = (
        f"samples to the alarm, worst of {len(delays)} streams, mean {statistics.fmean(delays):.0f}, median "
        f"{statistics.median(delays):g}, {sum(d > SUDDEN_SAMPLES for d in delays)} of them later than {SUDDEN_SAMPLES}"
        f"; who knew both would have known after {min(bounds):.0f} to {max(bounds):.0f}"
    )
    return _row("sudden drift of 2 deviations", SUDDEN_SAMPLES, worst, "samples", worst <= SUDDEN_SAMPLES, how)


def _slow(
    kind: Kind, settings: Sequence[dict[str, Any]], seeds: Sequence[int], length: int, *, target: bool
) -> dict[str, Any]:
    lost, whole, bounds, shares = [], [], [], []
    for setting in settings:
        for seed in seeds:
            _, share, drifting, classify = _first(setting, seed, Schedule(kind, BEGIN, length), 1.5, length + 3000)
            at_first = drifting.accuracy(classify, 0.0)
            shares.append(share)
            lost.append(100 * (at_first - drifting.accuracy(classify, share)))
            whole.append(100 * (at_first - drifting.accuracy(classify, 1.0)))
            known = earliest(drifting, drifting.whole(BEGIN + length + 3000, seed + 100).x, BETWEEN_ALARMS)
            best = 1.0 if known is None else float(drifting.schedule.share(np.array([known]))[0])
            bounds.append(100 * (at_first - drifting.accuracy(classify, best)))
    worst = max(lost)
    how = (
        f"points of accuracy lost when flagged, worst of {len(lost)} streams, mean {statistics.fmean(lost):.2f}, "
        f"{sum(points > LOST_POINTS for points in lost)} of them later than {LOST_POINTS:g}; the whole drift costs "
        f"{min(whole):.1f} to {max(whole):.1f}; who knew both and the pace loses at worst {max(bounds):.2f}, mean "
        f"{statistics.fmean(bounds):.2f}; share of the new at the worst's alarm {shares[lost.index(worst)]:.3f}"
    )
    goal = LOST_POINTS if target else None
    return _row(f"{kind} drift over {length:,} samples", goal, worst, "points", goal is None or worst <= goal, how)


def _first(setting: dict[str, Any], seed: int, schedule: Schedule, distance: float, samples: int) -> tuple[Any, ...]:
    """Samples from the beginning to the first alarm, the share of the new there, the stream and the classifier."""
    blobs = make_blobs(seed, **setting)
    drifting = DriftingBlobs(blobs, moved(blobs, distance, seed), schedule)
    warning = _warning(blobs, seed)
    for block in drifting.stream(BEGIN + samples, seed + 100):
        alarms = warning.update(block.x, blobs.best(block.x))
        if alarms:
            share = float(schedule.share(np.array([alarms[0].sample]))[0])
            late = alarms[0].sample - BEGIN
            return (late if late >= 0 else float("inf")), share, drifting, blobs.best
    return float("inf"), 1.0, drifting, blobs.best


def _warning(blobs: Blobs, seed: int) -> DriftWarning:
    x, _ = blob_splits(blobs, seed + 50).train
    return DriftWarning(x, blobs.best(x), samples=BETWEEN_ALARMS)


def _calm(settings: Sequence[dict[str, Any]], seeds: Sequence[int], samples: int) -> list[dict[str, Any]]:
    ours, seen, spent = _alarms_without_drift(settings, seeds, samples)
    streams = len(settings) * len(seeds)
    how = f"alarms in {samples:,} drift-free samples of each of {streams} streams, {seen:,} in all"
    found = [_row("false alarms", 0, ours, "alarms", ours == 0, how)]
    how = "beside: processor time of the early warning a sample, in blocks of 4,096, mean of the drift-free streams"
    found.append(_row("cost of the early warning", None, spent / seen * 1e6, "us", True, how))
    if samples == CALM_SAMPLES:
        ours, seen, _ = _alarms_without_drift(settings, LONG_SEEDS, LONG_SAMPLES)
        streams = len(settings) * len(LONG_SEEDS)
        how = (
            f"beside: alarms in {LONG_SAMPLES:,} drift-free samples of each of {streams} streams "
            f"of other seeds, {seen:,} in all; the lines ask for one in {BETWEEN_ALARMS:.0e}"
        )
        found.append(_row("false alarms, long streams", None, ours, "alarms", True, how))
    return found + _river(settings[1], seeds[0], samples)


def _alarms_without_drift(
    settings: Sequence[dict[str, Any]], seeds: Sequence[int], samples: int
) -> tuple[int, int, float]:
    """Alarms, samples seen, and seconds of processor time that the warning took."""
    ours, seen, spent = 0, 0, 0.0
    for setting in settings:
        for seed in seeds:
            blobs = make_blobs(seed, **setting)
            warning = _warning(blobs, seed)
            for block in DriftingBlobs(blobs, blobs, Schedule("none")).stream(samples, seed + 7):
                answers = blobs.best(block.x)
                began = time.thread_time()
                ours += len(warning.update(block.x, answers))
                spent += time.thread_time() - began
                seen += len(block.x)
    return ours, seen, spent


def _river(setting: dict[str, Any], seed: int, samples: int) -> list[dict[str, Any]]:
    """river's detectors at their defaults, one a coordinate: false alarms, and delay of the same sudden drift."""
    try:
        drift: Any = import_module("river.drift")
    except ImportError:
        return [_row("river", None, None, "alarms", True, "not measured: river is not installed")]
    blobs = make_blobs(seed, **setting)
    found = []
    calm = DriftingBlobs(blobs, blobs, Schedule("none")).whole(samples, seed + 7)
    after = DriftingBlobs(blobs, moved(blobs, 2.0, seed), Schedule("sudden", BEGIN)).whole(BEGIN + 3000, seed + 100)
    for name in ("ADWIN", "PageHinkley", "KSWIN"):
        rows_of = 20_000 if name == "KSWIN" else samples  # it makes a test of 200 values for every one
        options = {"seed": 1} if name == "KSWIN" else {}
        alarms = _alarms(getattr(drift, name), options, calm.x[:rows_of])
        late = [a - BEGIN for a in _alarms(getattr(drift, name), options, after.x) if a >= BEGIN]
        how = (
            f"beside: false alarms in {rows_of:,} samples at its defaults, a detector for each coordinate; the sudden "
        )
        how += f"drift of seed {seed} after {late[0]} samples" if late else "drift not seen"
        found.append(_row(f"river {name}", None, len(alarms), "alarms", True, how))
    return found


def _alarms(make: Any, options: dict[str, Any], x: np.ndarray[Any, Any]) -> list[int]:
    found: list[int] = []
    for column in x.T.astype(np.float64):
        detector = make(**options)
        for i, value in enumerate(column.tolist()):
            detector.update(value)
            if detector.drift_detected:
                found.append(i)
    return sorted(found)


def _row(name: str, target: float | None, measured: float | None, unit: str, ok: bool, how: str) -> dict[str, Any]:
    kept = None if measured is None else round(float(measured), 3)
    return {"name": f"gaussian, {name}", "target": target, "measured": kept, "unit": unit, "ok": ok, "how": how}
