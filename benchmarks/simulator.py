"""The simulator's core: its arena against LiteRT's and TFLM's own, and how many networks a growth loop can ask about.

Arena: every network is read from its file and packed, and the same file is given to the runtime. Networks: random
wirings (benchmarks/_wired_nets.py), the families of benchmarks/_random_nets.py, the golden digits network and, where
the index is in reach, a real wake word. Speed: processor time of this thread over networks that are all different, none
of them asked about twice; who else runs on the machine is none of the simulator's cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks._arena_oracles import NotFetchedError, litert_arena, tflm_arenas
from benchmarks._models import ROOT
from benchmarks._random_nets import random_nets
from benchmarks._wired_nets import wired_net
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.hardware_simulator import HardwareContext, Workload, arena_bytes, read_workload
from kasmina_edge.hardware_simulator.arena import Planner
from kasmina_edge.hardware_simulator.networks.building import LayerTable
from kasmina_edge.hardware_simulator.tflm_structures import structure_bytes

ARENA_PERCENT = 5.0
EVALUATIONS_PER_S = 1000.0
TARGETS = {"cpu": "raspberry-pi-4", "edgetpu": "coral-usb", "mcu": "stm32l4r5", "npu": "hailo-8"}
SEED = 1000
"""Of the networks; `tflm_structures` was fitted to others."""
REAL = "okay_nabu.tflite"
"""With variables of its own LiteRT has no arena before it has run, and TFLM has."""
COMMAND = "python -m benchmarks.run --only simulator"


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Arena rows, then speed rows."""
    return [*_arena(quick), *_speed(quick)]


def _networks(quick: bool) -> dict[str, bytes]:
    count, families = (10, 9) if quick else (60, 45)
    nets = {f"wired {i} {d}": wired_net(SEED + i, d) for i in range(count) for d in ("int8", "float32")}
    for dtype in ("int8", "float32"):
        drawn = random_nets(families, dtype=dtype, seed=SEED)
        nets.update({f"{net.family} {i} {dtype}": net.data for i, net in enumerate(drawn)})
    nets["digits"] = (ROOT / "tests/golden/digits.tflite").read_bytes()
    real = ROOT / "build/models" / REAL
    if real.is_file():
        nets[REAL] = real.read_bytes()
    return nets


def _arena(quick: bool) -> list[dict[str, Any]]:
    nets = _networks(quick)
    works = {name: read_workload(data) for name, data in nets.items()}
    found = []
    kernels: dict[Planner, str] = {"litert": "reference kernels", "litert-plain": "own kernels, im2col included"}
    for planner, what in kernels.items():
        theirs = {name: litert_arena(data, planner) for name, data in nets.items() if name != REAL}
        found.append(_worst(f"arena peak v LiteRT's own, {what}", works, planner, theirs))
    try:
        sizes = tflm_arenas(nets)
    except NotFetchedError as exc:
        return [*found, _row("arena peak v TFLM's own", ARENA_PERCENT, None, "% off", False, f"NOT MEASURED: {exc}")]
    heads = {name: size["head"] for name, size in sizes.items()}
    found.append(_worst("arena peak v TFLM's own, activations and scratch", works, "tflm", heads))
    whole = {n: abs(arena_bytes(works[n], planner="tflm") + structure_bytes(works[n]) + works[n].kept_bytes
                    - size["total"]) / size["total"] for n, size in sizes.items()}  # fmt: skip
    worst = max(whole, key=lambda n: whole[n])
    how = (
        f"worst of {len(whole)} networks ({worst}), median {100 * statistics.median(whole.values()):.2f} %, on 64 "
        f"bit; structures for tensors and operations are fitted to other networks. {COMMAND}"
    )
    off = round(100 * whole[worst], 2)
    return [*found, _row("arena total v TFLM's own, its structures too", ARENA_PERCENT, off, "% off", off <= 5, how)]


def _worst(name: str, works: dict[str, Workload], planner: Planner, theirs: dict[str, int]) -> dict[str, Any]:
    off = {n: abs(arena_bytes(works[n], planner=planner) / size - 1) for n, size in theirs.items()}
    plain = [abs(max(_live(works[n])) / size - 1) for n, size in theirs.items()]
    worst = max(off, key=lambda n: off[n])
    exact = sum(value == 0 for value in off.values())
    how = (
        f"worst of {len(off)} networks ({worst}), {exact} exact of {len(works)} asked; bytes alive at once, "
        f"unpacked, would be off by up to {100 * max(plain):.0f} %. {COMMAND}"
    )
    return _row(name, ARENA_PERCENT, round(100 * off[worst], 3), "% off", 100 * off[worst] <= ARENA_PERCENT, how)


def _live(work: Workload) -> tuple[int, ...]:
    from kasmina_edge.hardware_simulator.arena import live_bytes

    return live_bytes(work)


def _speed(quick: bool) -> list[dict[str, Any]]:
    count = 60 if quick else 400
    found = []
    for kind, name in TARGETS.items():
        context = HardwareContext(load_profile(name))
        context.estimate(grown_net(0, 24))  # imports and the profile's own anchors
        rate = _rate(context.estimate, [grown_net(i, 24) for i in range(1, count + 1)])
        how = f"one host of 50 operations, {count} different pairs of grafts, each asked once, {name}. {COMMAND}"
        found.append(
            _row(f"model evaluations, {kind}", EVALUATIONS_PER_S, round(rate), "/s", rate >= EVALUATIONS_PER_S, how)
        )
        rate = _rate(context.estimate, [grown_net(i, 9 + i) for i in range(count)])
        how = f"beside: no two of {count} networks have a layer in common, but for the first"
        found.append(_row(f"model evaluations, {kind}, unrelated networks", None, round(rate), "/s", True, how))
    return found


def _rate(evaluate: Callable[[Any], object], subjects: Any) -> float:
    """Evaluations a second of processor time: the median of ten batches."""
    subjects = list(subjects)
    size, rates = max(1, len(subjects) // 10), []
    for begin in range(0, len(subjects), size):
        batch = subjects[begin : begin + size]
        began = time.thread_time()
        for subject in batch:
            evaluate(subject)
        rates.append(len(batch) / (time.thread_time() - began))
    return statistics.median(rates)


def grown_net(index: int, width: int) -> Workload:
    """A host of inverted residuals, 50 operations, and two grafts of three operations each.

    Args:
        index: Of the grafts: where they are and how wide.
        width: Of the host.
    """
    table = LayerTable(f"grown {index}")
    sites = {index % 11: 4 + index // 11, (index // 2) % 11: 5 + index // 7}
    x = table.conv(table.input((1, 32, 32, 3)), width, 3)
    for block in range(11):
        wide = table.conv(x, 3 * width + block, 1)
        x = table.add(x, table.conv(table.depthwise(wide, 3), width, 1, activation=""))
        if block in sites:
            x = table.add(x, table.conv(table.conv(x, sites[block], 1), width, 3, activation=""))
    x = table.conv(x, 2 * width, 3, stride=2)
    x = table.conv(x, 3 * width, 3, stride=2)
    return table.build(table.fully_connected(table.mean(x), 10))


def _row(name: str, target: Any, measured: Any, unit: str, ok: bool, how: str) -> dict[str, Any]:
    return {"name": name, "target": target, "measured": measured, "unit": unit, "ok": ok, "how": how}
