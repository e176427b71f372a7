"""Microcontrollers: MLPerf Tiny latencies predicted for chips and networks that the model never saw (`_mlperf_tiny`).

``python -m benchmarks.mcu --coefficients TOOLCHAIN CORE`` prints the costs that a profile starts from.

Every (system, anchor, network) of benchmarks/mlperf_tiny.csv is one case. Multiply-accumulates alone stand beside, with
the same anchor. Nothing is timed: the figures are the same on every machine.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._mlperf_tiny import (
    NETWORKS,
    Prediction,
    System,
    counts_of,
    predict_held_out,
    predict_new_network,
    shipped_costs,
    systems,
    with_bands,
)  # fmt: skip
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.hardware_simulator.mcu_kernels import TERMS, cycles

TARGET_ERROR, TARGET_COVER = 12.0, 90.0
CARDS = ("STM32L4R5", "STM32U575", "STM32U385", "STM32H7A3", "RA8D1", "GAP9", "NDP9120")
"""The chips that the project ships profiles for."""


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Median error and coverage against their targets, and what the model is worth in parts."""
    subjects = systems()
    found = predict_held_out(subjects)
    asked = [p for p in found if p.system.chip in ("STM32U385", "STM32H7A3")] if quick else found
    banded = [p for p in with_bands(subjects, asked) if p.band is not None]
    chips = len({s.chip for s in subjects})
    how = (
        f"{len(found)} cases of {len(subjects)} systems on {chips} chips, one anchor each; fitted without the chip and "
        f"without the network; {_spread(found)}"
    )
    held = 100.0 * statistics.mean(p.miss <= p.band for p in banded if p.band is not None)
    cover = (
        f"{len(banded)} of {len(asked)} cases have a band (median ± {100 * _median(banded, _band):.0f} %, "
        f"± {100 * _median([p for p in banded if p.familiar], _band):.0f} % where toolchain and core were seen on "
        "other chips); made without the chip and the network"
    )
    error, macs = 100.0 * _median(found, lambda p: p.error), 100.0 * _median(found, lambda p: abs(p.macs_ratio - 1.0))
    result = [
        _row("MLPerf Tiny boards, held out by network and chip, median error", TARGET_ERROR, error, how),
        _row("MLPerf Tiny boards, share that the printed band covers", TARGET_COVER, held, cover, least=True),
        _row("MLPerf Tiny boards, multiply-accumulates alone, median error", None, macs, "the same cases and anchors"),
    ]
    result += [_part(name, part) for name, part in _parts(found)]
    energy = [p for p in found if p.energy_ratio is not None]
    off = 100.0 * _median(energy, lambda p: abs((p.energy_ratio or 0.0) - 1.0))
    result.append(
        _row("MLPerf Tiny boards, energy, median error", None, off,
             f"{len(energy)} cases; the anchor's power times the predicted time")
    )  # fmt: skip
    return [*result, *_known_boards(subjects), _ladder(subjects)]


def _known_boards(subjects: Sequence[System]) -> list[dict[str, Any]]:
    """What the bands of the shipped profiles come from."""
    found = predict_new_network(subjects)
    groups = {
        "X-CUBE-AI": [f for f in found if f[0].toolchain == "x-cube-ai" and not f[0].accelerator],
        "all without an accelerator": [f for f in found if not f[0].accelerator],
        "RA8D1": [f for f in found if f[0].chip == "RA8D1"],
    }
    rows = []
    for name, part in groups.items():
        misses = sorted(abs(1.0 / ratio - 1.0) for _, _, ratio in part)
        held = misses[min(len(misses) - 1, int(0.9 * len(misses)))]
        how = f"{len(part)} cases, the board's other anchors kept, the network left out; 90 % within {100 * held:.1f} %"
        error = 100.0 * statistics.median(abs(ratio - 1.0) for _, _, ratio in part)
        rows.append(_row(f"MLPerf Tiny, a new network on a known board, {name}, median error", None, error, how))
    return rows


def _ladder(subjects: Sequence[System]) -> dict[str, Any]:
    """STM32H747 was never in the fit: MobileNetV1 of three widths and two sizes, each anchor against all others."""
    costs = shipped_costs(subjects, "x-cube-ai", "m7")
    told = {a.network: a.latency_ms / cycles(counts_of(a.network), costs) for a in load_profile("stm32h747").anchors}
    errors = [abs(told[a] / told[n] - 1.0) for a in told for n in told if a != n]
    worst = 100.0 * max(errors)
    how = f"{len(errors)} pairs of {len(told)} latencies of ST's model zoo, one anchor each; worst {worst:.1f} %"
    name = "STM32H747, MobileNetV1 ladder, kernel factors of MLPerf Tiny alone, median error"
    return _row(name, None, 100.0 * statistics.median(errors), how)


def _parts(found: Sequence[Prediction]) -> list[tuple[str, list[Prediction]]]:
    parts = [
        ("toolchain and core seen elsewhere", [p for p in found if p.familiar]),
        ("toolchain or core new, no accelerator", [p for p in found if not (p.familiar or p.system.accelerator)]),
        ("with an accelerator", [p for p in found if p.system.accelerator]),
        ("the chips of the shipped profiles", [p for p in found if p.system.chip in CARDS]),
    ]
    parts += [(f"predicting {n.upper()}", [p for p in found if p.network == n]) for n in NETWORKS]
    return parts


def _part(name: str, part: Sequence[Prediction]) -> dict[str, Any]:
    macs = 100.0 * _median(part, lambda p: abs(p.macs_ratio - 1.0))
    how = f"{len(part)} cases; multiply-accumulates alone {macs:.1f} %; {_spread(part)}"
    return _row(f"MLPerf Tiny boards, {name}, median error", None, 100.0 * _median(part, lambda p: p.error), how)


def _spread(part: Sequence[Prediction]) -> str:
    errors = [p.error for p in part]
    within = 100.0 * statistics.mean(e <= 0.1 for e in errors)
    return f"{within:.0f} % within 10 %, 90th percentile {100.0 * statistics.quantiles(errors, n=10)[-1]:.0f} %"


def _median(part: Sequence[Prediction], value: Callable[[Prediction], float]) -> float:
    return statistics.median(map(value, part))


def _band(prediction: Prediction) -> float:
    return prediction.band or 0.0


def _row(name: str, target: float | None, measured: float, how: str, *, least: bool = False) -> dict[str, Any]:
    ok = target is None or (measured >= target if least else measured <= target)
    return {"name": name, "target": target, "measured": measured, "unit": "%", "ok": ok, "how": how}


if __name__ == "__main__":
    if "--coefficients" in sys.argv:
        toolchain, core = sys.argv[sys.argv.index("--coefficients") + 1 :][:2]
        for term, value in zip(TERMS, shipped_costs(systems(), toolchain, core), strict=True):
            sys.stdout.write(f"{term} = {value:.4g}\n")
        sys.exit(0)
    for row in rows(quick="--quick" in sys.argv):
        sys.stdout.write(f"{row['name']:70s} {row['target']} {row['measured']:.2f} {row['ok']}  {row['how']}\n")
