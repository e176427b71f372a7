"""Predicted latency against this CPU's own: calibrate, then predict random networks that no calibration has seen.

Calibration networks and judged ones are timed in one session, round by round, each beside a reference network, so that
a machine that slows down meanwhile slows down for all of them; every judged network is in it twice, as two files that
know nothing of each other. The prediction goes the product's way: profile, TOML, `CpuLayer`, workload read from the
file. Families of the judged networks: benchmarks/_random_nets.py. The `how` of a row gives what it was drawn from.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._random_nets import FAMILIES, random_nets
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.engines.litert import LitertEngine
from kasmina_edge.hardware_simulator import Workload, read_workload
from kasmina_edge.hardware_simulator.calibrate import Measurement, calibrated_profile, machine_facts
from kasmina_edge.hardware_simulator.calibration_nets import calibration_nets, mixtures, reference_net
from kasmina_edge.hardware_simulator.cpu_fit import around_prediction, band_of, fit_model, shares_off
from kasmina_edge.hardware_simulator.cpu_layer import CpuLayer, CpuModel
from kasmina_edge.hardware_simulator.net_timing import Timing, litert_opener, time_nets
from kasmina_edge.hardware_simulator.profile_text import profile_toml

Row = dict[str, Any]
Shares = npt.NDArray[np.float64]
TARGET = 0.9
WITHIN = 0.10
NETS = 6 * len(FAMILIES)
COMMAND = "`make bench only=cpu_prediction`"


@dataclass(frozen=True)
class Session:
    """One calibration and what it is judged by.

    Attributes:
        profile: As calibration leaves it, read back from its TOML.
        nets: The judged networks.
        first: Their times; ``second`` those of their copies.
        rounds_s: How long it took.
        spread: Of one measurement.
    """

    profile: HardwareProfile
    nets: list[Workload]
    first: list[Timing]
    second: list[Timing]
    spread: float


def rows(quick: bool = False) -> list[Row]:
    """int8 against the target; the rest is stated."""
    found = session("int8", seconds=40.0 if quick else 110.0, count=NETS if not quick else 45)
    measured = np.array([t.p50_us for t in found.first])
    predicted = predictions(found.profile, found.nets)
    off = predicted / measured - 1.0
    again = np.array([t.p50_us for t in found.second]) / measured - 1.0
    raw = predicted / np.array([t.raw_us for t in found.first]) - 1.0
    drawn = f"{len(off)} random nets of {len(FAMILIES)} families, never fitted; LiteRT, 1 thread, {COMMAND}"
    twice = f"the same net measured twice differs by {_middle(again)}"
    share, band = _within(off), found.profile.error_band
    plain = macs_only(found) / measured - 1.0
    out = [
        _row("int8_within_10_percent", TARGET, share, "of nets", f"{drawn}; off by {_middle(off)}; {twice}"),
        _row("int8_same_net_twice_within_10_percent", None, _within(again), "of nets", twice),
        _row("int8_raw_wall_within_10_percent", None, _within(raw), "of nets",
             f"against the wall clock's median without the reference's proportion; off by {_middle(raw)}"),
        _row("int8_band_covers", None, float(np.mean(np.abs(around_prediction(off)) <= band)), "of nets",
             f"the profile's band is {100 * band:.1f} % around the prediction, from mixtures that were not fitted"),
        _row("int8_macs_only_within_10_percent", None, _within(plain), "of nets",
             f"best line through multiplications and a call; off by {_middle(plain)}"),
        shipped(found, measured),
    ]  # fmt: skip
    if not quick:
        out.append(float_row())
    return out


def session(kind: str, *, seconds: float, count: int) -> Session:
    """Calibrate and time the judged networks, all in the same rounds."""
    fitted, held_out = list(calibration_nets(560, dtype=kind)), list(mixtures(60, dtype=kind))
    judged = list(random_nets(count, dtype=kind))
    reference = reference_net(kind)
    files = [*(n.data for n in fitted), *(n.data for n in held_out), *(n.data for n in judged), reference]
    copies = [bytes(bytearray(n.data)) for n in judged]
    timings = time_nets([*files, *copies], litert_opener(), reference=reference, rounds=25, seconds=seconds)
    works = [read_workload(n.data) for n in (*fitted, *held_out)]
    measured = [(work, t.p50_us) for work, t in zip(works, timings, strict=False)]
    model = fit_model(measured[: len(fitted)], kind)
    off = shares_off(model, measured[len(fitted) :])
    judged_model = CpuModel(model.tiles, model.ns, band_of(around_prediction(off)))
    spread = float(np.median([t.spread for t in timings]))
    at = len(files) - 1
    result = Measurement(kind, judged_model, timings[at].p50_us, tuple(map(float, off)), spread)
    facts = machine_facts()
    made = calibrated_profile(
        [result], name="benchmark", chip=facts.chip, clock_mhz=facts.clock_mhz, ram_bytes=facts.ram_bytes,
        runtime_version=f"ai-edge-litert {LitertEngine.library()[1]}", at=datetime.now(UTC),
    )  # fmt: skip
    profile = HardwareProfile.parse(tomllib.loads(profile_toml(made)), where="benchmark")
    return Session(
        profile, [read_workload(n.data) for n in judged], timings[at - len(judged) : at], timings[at + 1 :], spread
    )


def predictions(profile: HardwareProfile, nets: list[Workload]) -> Shares:
    """Microseconds of each, by the product's own layer."""
    layer = CpuLayer(profile)
    return np.array([layer.costs(work).latency_ms * 1000.0 for work in nets])


def macs_only(found: Session) -> Shares:
    """What the best line through MACs says; it even sees the nets that it is judged by."""
    measured = np.array([t.p50_us for t in found.first])
    counts = np.array([[work.macs, 1.0] for work in found.nets])
    line = np.linalg.lstsq(counts / measured[:, None], np.ones(len(measured)), rcond=None)[0]
    return np.asarray(counts @ line)


def shipped(found: Session, measured: Shares) -> Row:
    """The profile that comes with the package, brought to the machine's speed of today by the reference network."""
    profile = load_profile("x86-cpu")
    pace = found.profile.anchors[0].latency_ms / profile.anchors[0].latency_ms
    plain = predictions(profile, found.nets) / measured - 1.0
    off = (plain + 1.0) * pace - 1.0
    how = (
        f"profile x86-cpu as shipped ({profile.chip}), not calibrated here, times {pace:.2f}, the reference network's "
        f"time over its anchor; off by {_middle(off)}; without that {100 * _within(plain):.0f} %, bias {_bias(plain)}"
    )
    return _row("int8_shipped_profile_within_10_percent", None, _within(off), "of nets", how)


def float_row() -> Row:
    """float32 networks, stated."""
    found = session("float32", seconds=60.0, count=45)
    measured = np.array([t.p50_us for t in found.first])
    off = predictions(found.profile, found.nets) / measured - 1.0
    again = np.array([t.p50_us for t in found.second]) / measured - 1.0
    how = f"{len(off)} random float32 nets, never fitted; off by {_middle(off)}; measured twice {_middle(again)}"
    return _row("float32_within_10_percent", None, _within(off), "of nets", how)


def _row(name: str, target: float | None, measured: float, unit: str, how: str) -> Row:
    ok = target is None or measured >= target
    return {
        "name": f"cpu_prediction.{name}",
        "target": target,
        "measured": measured,
        "unit": unit,
        "ok": ok,
        "how": how,
    }


def _within(off: Shares) -> float:
    return float(np.mean(np.abs(off) <= WITHIN))


def _middle(off: Shares) -> str:
    middle, ninth = np.quantile(np.abs(off), [0.5, 0.9])
    return f"{100 * middle:.1f} % (median), {100 * ninth:.1f} % (9 of 10)"


def _bias(off: Shares) -> str:
    return f"{100 * float(np.median(off)):+.1f} %"
