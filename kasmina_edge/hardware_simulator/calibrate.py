"""``kasmina-edge profile calibrate``: this machine, measured into a profile with coefficients, anchors and a band."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from kasmina_edge.contracts.profile import Anchor, HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.calibration_nets import REFERENCE, calibration_nets, mixtures, reference_net
from kasmina_edge.hardware_simulator.cpu_fit import COVERED, Measured, around_prediction, band_of, fit_model, shares_off
from kasmina_edge.hardware_simulator.cpu_kernels import TILES
from kasmina_edge.hardware_simulator.cpu_layer import FAMILIES, CpuModel
from kasmina_edge.hardware_simulator.net_timing import Opener, litert_opener, time_nets
from kasmina_edge.hardware_simulator.reading import read_workload

FITTED, HELD_OUT = 560, 60
LEAST_MINUTES, MOST_MINUTES = 0.5, 60.0
MOST_ROUNDS = 25
Told = Callable[[str, float], None]


@dataclass(frozen=True)
class Measurement:
    """What was measured for one type of number.

    Attributes:
        kind: "int8" or "float32".
        model: The fitted model with its band.
        reference_us: Time of the reference network.
        off: How far the networks that were not fitted are off, as shares of the measured time; the band is around the
            prediction.
        spread: Median spread of the single measurements, as a share.
    """

    kind: str
    model: CpuModel
    reference_us: float
    off: tuple[float, ...]
    spread: float

    @property
    def within_tenth(self) -> float:
        """Share of the networks that were not fitted whose prediction is within a tenth."""
        return float(np.mean(np.abs(np.array(self.off)) <= 0.1))


def measure_machine(
    open_net: Opener,
    *,
    minutes: float = 2.0,
    kinds: Sequence[str] = FAMILIES,
    seed: int = 0,
    fitted: int = FITTED,
    held_out: int = HELD_OUT,
    rounds: int = MOST_ROUNDS,
    timer_ns: Callable[[], int] = time.perf_counter_ns,
    told: Told = lambda kind, share: None,
) -> list[Measurement]:
    """Time the calibration networks, fit, and see how far the fit is off on networks that it has not seen.

    Args:
        open_net: See `net_timing.litert_opener`.
        minutes: About how long it may take; more give more rounds.
        kinds: Types of number to measure.
        seed: Of the networks.
        fitted: How many are fitted; ``held_out`` how many judge.
        rounds: At most.
        timer_ns: Monotonic.
        told: Called with what is measured and the share of it that is done.

    Raises:
        InputError: ``minutes`` or a kind is none.
        EngineError: A network does not run.
    """
    if not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        raise InputError(f"calibrate: {minutes:g} minutes; between {LEAST_MINUTES:g} and {MOST_MINUTES:g}")
    for kind in kinds:
        if kind not in FAMILIES:
            raise InputError(f"calibrate: {kind!r} is none of {', '.join(FAMILIES)}")
    seconds = minutes * 60.0 / len(kinds)
    return [
        _measure(open_net, kind, seconds, seed, fitted, held_out, rounds, timer_ns, partial(told, kind))
        for kind in kinds
    ]


def _measure(
    open_net: Opener,
    kind: str,
    seconds: float,
    seed: int,
    fitted: int,
    held_out: int,
    rounds: int,
    timer_ns: Callable[[], int],
    told: Callable[[float], None],
) -> Measurement:
    nets = [*calibration_nets(fitted, dtype=kind, seed=seed), *mixtures(held_out, dtype=kind, seed=seed)]
    reference = reference_net(kind)
    files = [*(net.data for net in nets), reference]
    timings = time_nets(
        files, open_net, reference=reference, rounds=rounds, seconds=seconds, timer_ns=timer_ns, told=told
    )
    measured: list[Measured] = [
        (read_workload(net.data), timing.p50_us) for net, timing in zip(nets, timings, strict=False)
    ]
    model = fit_model(measured[:fitted], kind)
    off = shares_off(model, measured[fitted:])
    model = CpuModel(model.tiles, model.ns, band_of(around_prediction(off)))
    spread = float(np.median([timing.spread for timing in timings]))
    return Measurement(kind, model, timings[-1].p50_us, tuple(map(float, off)), spread)


def calibrated_profile(
    measured: Sequence[Measurement],
    *,
    base: HardwareProfile | None = None,
    name: str = "",
    chip: str,
    clock_mhz: float,
    ram_bytes: int,
    runtime_version: str,
    at: datetime,
    threads: int = 1,
) -> HardwareProfile:
    """The profile that carries the measurements.

    Args:
        measured: Of `measure_machine`.
        base: Whose other fields stay; None: a processor and nothing else.
        name: Of the profile; "": the base's, or ``this-cpu``.
        chip: See `machine_facts`, as ``clock_mhz`` and ``ram_bytes``.
        clock_mhz: Of the core.
        ram_bytes: Of the machine.
        runtime_version: Of the engine.
        at: When it was measured.
        threads: That the engine had.

    Raises:
        InputError: The base is no processor, or the name is none.
    """
    if base is not None and base.kind != "cpu":
        raise InputError(f"profile {base.name} is of kind {base.kind}; only processors are calibrated here")
    day = f"{at:%Y-%m-%d}"
    coefficients: dict[str, float] = {}
    anchors = []
    sources = {}
    for each in measured:
        tiles, kind = each.model.tiles, each.kind
        coefficients |= {
            f"{kind}_tile_rows": tiles.rows,
            f"{kind}_tile_columns": tiles.columns,
            f"{kind}_tile_depth": tiles.depth,
            f"{kind}_tile_channels": tiles.channels,
            f"{kind}_band": round(each.model.band or 1.0, 4),
        }
        coefficients |= {f"{kind}_{term}_ns": float(f"{ns:.4g}") for term, ns in sorted(each.model.ns.items())}
        anchors.append(
            Anchor(
                network=f"{REFERENCE}-{kind}",
                latency_ms=float(f"{each.reference_us / 1000.0:.4g}"),
                source=f"measured {day}: median of set, invoke and get; the network is calibration_nets.reference_net",
            )
        )
        sources[f"coefficients.{kind}"] = (
            f"measured {day}: non-negative least squares over networks of few layers and mixtures; of "
            f"{len(each.off)} other mixtures {100 * each.within_tenth:.0f} % within 10 %, median "
            f"{100 * float(np.median(np.abs(each.off))):.1f} % off; spread of a measurement {100 * each.spread:.1f} %"
        )
    first = next((each for each in measured if each.kind == "int8"), measured[0])
    sources["error_band"] = (
        f"held {100 * COVERED:.0f} % of the mixtures that were not fitted ({first.kind}), on the measured machine"
    )
    fields = base.model_dump() if base is not None else {"aliases": (), "engines": ("litert",)}
    fields |= {
        "name": name or (base.name if base is not None else "this-cpu"),
        "description": base.description if base is not None else f"{chip}, CPU only, as measured",
        "chip": chip,
        "clock_mhz": clock_mhz,
        "runtime": "LiteRT with XNNPACK",
        "runtime_version": runtime_version,
        "threads": threads,
        "ram_bytes": ram_bytes,
        "error_band": round(first.model.band or 1.0, 4),
        "source": f"measured by `kasmina-edge profile calibrate` on {day}, {runtime_version}, {threads} thread",
        "anchors": tuple(anchors),
        "coefficients": coefficients,
        "sources": {**_kept(base), **sources},
    }
    if name and base is not None and name != base.name:
        fields["aliases"] = ()
    return HardwareProfile.parse(fields, where="the calibrated profile")


def _kept(base: HardwareProfile | None) -> dict[str, str]:
    """The base's sources of what is not measured anew."""
    anew = ("coefficients", "anchors", "chip", "clock_mhz", "ram_bytes", "runtime", "threads")
    return {key: text for key, text in (base.sources if base else {}).items() if not key.startswith(anew)}


_UNMEASURED = Measurement("int8", CpuModel(TILES["int8"][0], {}, None), 1.0, (1.0,), 0.0)


@dataclass(frozen=True)
class MachineFacts:
    """Chip, clock and memory of this machine."""

    chip: str
    clock_mhz: float
    ram_bytes: int


def machine_facts(root: Path = Path("/")) -> MachineFacts:
    """What Linux tells; a clock that is not told is taken as 1 GHz, memory as what the C library says."""
    lines = _text(root / "proc/cpuinfo").splitlines()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value.strip()}
    board = _text(root / "proc/device-tree/model").strip("\0\n ")
    chip = board or told.get("model name") or told.get("Hardware") or platform.machine()
    khz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    try:
        clock = float(khz) / 1000.0 if khz.isdigit() else float(told.get("cpu MHz", "1000"))
    except ValueError:
        clock = 1000.0
    words = next(
        (line.split() for line in _text(root / "proc/meminfo").splitlines() if line.startswith("MemTotal")), []
    )
    ram = int(words[1]) * 1024 if len(words) > 1 and words[1].isdigit() else 0
    return MachineFacts(
        chip, clock if clock > 0 else 1000.0, ram or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )


def calibrate(
    *,
    base: HardwareProfile | None = None,
    name: str = "",
    minutes: float = 2.0,
    told: Told = lambda kind, share: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[HardwareProfile, list[Measurement]]:
    """Measure this machine with LiteRT; arguments as of `measure_machine` and `calibrated_profile`.

    Raises:
        EngineError: LiteRT is not installed.
        InputError: An argument is none.
    """
    from kasmina_edge.engines.litert import LitertEngine

    threads = base.threads if base is not None else 1
    _, version = LitertEngine.library()
    facts = machine_facts()

    def carried(measured: Sequence[Measurement]) -> HardwareProfile:
        return calibrated_profile(
            measured, base=base, name=name, chip=facts.chip, clock_mhz=round(facts.clock_mhz, 1),
            ram_bytes=facts.ram_bytes, runtime_version=f"ai-edge-litert {version}", at=now(), threads=threads,
        )  # fmt: skip

    carried([_UNMEASURED])  # a wrong base or name costs no minutes
    measured = measure_machine(litert_opener(threads), minutes=minutes, told=told)
    return carried(measured), measured


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(256 * 1024).decode(errors="replace")
    except OSError:
        return ""
