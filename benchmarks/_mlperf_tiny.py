"""Published results of MLPerf Tiny, and predictions of them by a model that saw neither the chip nor the network.

For every chip and every network the kernel factors (`mcu_fit`) are fitted anew to the other chips' latencies of the
other networks; a board's speed comes from one of its own latencies, the anchor. "Chip" is wider than "board": all
boards and toolchains of a chip are left out together. The band is made the same way once more inside what is left: the
90 % quantile of the errors there, every chip of equal weight. Boards whose toolchain and core were both seen on other
chips have a band of their own; for the rest it comes from the boards that were as strange in their turn.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kasmina_edge.hardware_simulator.mcu_fit import KernelFactors, Timing, fit_factors
from kasmina_edge.hardware_simulator.mcu_kernels import Counts, cycles, network_counts
from kasmina_edge.hardware_simulator.networks import table

NETWORKS = ("ad", "ic", "kws", "vww")
RESULTS = Path(__file__).with_name("mlperf_tiny.csv")
HELD = 0.9
FEW = 3


@dataclass(frozen=True)
class System:
    """One submitted system, as mlperf_tiny.csv has it.

    Attributes:
        latency_ms: By the network's short name.
        energy_uj: Likewise, where submitted.
        networks: Short name to the table of layers that its toolchain runs.
    """

    name: str
    chip: str
    core: str
    accelerator: str
    toolchain: str
    version: str
    clock_mhz: float
    latency_ms: dict[str, float]
    energy_uj: dict[str, float]
    networks: dict[str, str]


@dataclass(frozen=True)
class Prediction:
    """One held-out latency.

    Attributes:
        ratio: Predicted over published.
        macs_ratio: The same by multiply-accumulates alone.
        energy_ratio: Of the energy, by the anchor's power; None where none was submitted.
        familiar: Toolchain and core were both seen on other chips, and the submission names no accelerator.
        band: Relative half-width, made without this chip and network.
    """

    system: System
    anchor: str
    network: str
    ratio: float
    macs_ratio: float
    energy_ratio: float | None
    familiar: bool
    band: float | None = None

    @property
    def error(self) -> float:
        """How far the prediction is from the published figure, relative to that."""
        return abs(self.ratio - 1.0)

    @property
    def miss(self) -> float:
        """How far the published figure is from the prediction, relative to this: what a band must hold."""
        return abs(1.0 / self.ratio - 1.0)


def systems(path: Path = RESULTS) -> list[System]:
    """Every row of the file."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found = []
    for row in csv.DictReader(lines):
        name = " ".join(filter(None, (row["round"], row["submitter"], row["system"])))
        found.append(
            System(
                name, row["chip"], row["core"], row["accelerator"], row["toolchain"], row["version"],
                float(row["clock_mhz"]),
                {n: float(row[f"{n}_ms"]) for n in NETWORKS if row[f"{n}_ms"]},
                {n: float(row[f"{n}_uj"]) for n in NETWORKS if row[f"{n}_uj"]},
                {n: f"mlperf-tiny-{row['vww'] if n == 'vww' else n}" for n in NETWORKS},
            )
        )  # fmt: skip
    return found


@lru_cache(maxsize=16)
def counts_of(network: str) -> Counts:
    """Of a table by its full name."""
    return network_counts(table(network))


def timings(subjects: Iterable[System], *, without_network: Sequence[str] = ()) -> list[Timing]:
    """What the fit reads."""
    return [
        Timing(s.name, s.toolchain, core_of(s), counts_of(s.networks[n]), ms)
        for s in subjects
        for n, ms in s.latency_ms.items()
        if n not in without_network
    ]


def core_of(system: System) -> str:
    """A core with its accelerator is another core."""
    return "+".join(filter(None, (system.core, system.accelerator)))


def predict_held_out(
    subjects: Sequence[System], networks: Sequence[str] = NETWORKS, *, chips: Sequence[str] = ()
) -> list[Prediction]:
    """Every network of every system from every other one as the anchor, without bands.

    Args:
        subjects: Systems to learn from and to predict.
        networks: Short names.
        chips: To predict; (): all.
    """
    found = []
    for chip in chips or sorted({s.chip for s in subjects}):
        for network in networks:
            left_out = [n for n in NETWORKS if n == network or n not in networks]
            model = fit_factors(timings((s for s in subjects if s.chip != chip), without_network=left_out))
            for system in (s for s in subjects if s.chip == chip and network in s.latency_ms):
                found += _from_anchors(model, system, network, [n for n in networks if n != network])
    return found


def _from_anchors(model: KernelFactors, system: System, network: str, anchors: Sequence[str]) -> list[Prediction]:
    costs = model.costs(system.toolchain, core_of(system))
    familiar = model.knows(system.toolchain, core_of(system)) and not system.accelerator
    ms, uj, found = system.latency_ms, system.energy_uj, []
    for anchor in anchors:
        if anchor not in ms:
            continue
        name, known = system.networks[network], system.networks[anchor]
        ratio = ms[anchor] * cycles(counts_of(name), costs) / cycles(counts_of(known), costs) / ms[network]
        products = table(f"mlperf-tiny-{network}").macs / table(f"mlperf-tiny-{anchor}").macs
        energy = ratio * ms[network] / ms[anchor] * uj[anchor] / uj[network] if network in uj and anchor in uj else None
        found.append(Prediction(system, anchor, network, ratio, products * ms[anchor] / ms[network], energy, familiar))
    return found


def with_bands(subjects: Sequence[System], predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions with the bands that were made without their chip and network."""
    found = []
    for chip, network in dict.fromkeys((p.system.chip, p.network) for p in predictions):
        rest = [s for s in subjects if s.chip != chip]
        inner = predict_held_out(rest, [n for n in NETWORKS if n != network])
        for p in predictions:
            if (p.system.chip, p.network) == (chip, network):
                found.append(
                    Prediction(
                        p.system, p.anchor, p.network, p.ratio, p.macs_ratio, p.energy_ratio, p.familiar,
                        band_from(inner, familiar=p.familiar),
                    )
                )  # fmt: skip
    return found


def band_from(known: Sequence[Prediction], *, familiar: bool) -> float | None:
    """The half-width that held 90 % of known misses, every chip of equal weight; None with fewer than three chips."""
    alike = [p for p in known if p.familiar == familiar]
    chips = [p.system.chip for p in alike]
    if len(set(chips)) < FEW:
        return None
    weighed = sorted((p.miss, 1.0 / chips.count(p.system.chip)) for p in alike)
    total, held = sum(weight for _, weight in weighed), 0.0
    for miss, weight in weighed:
        held += weight / total
        if held >= HELD - 1e-12:
            return miss
    return weighed[-1][0]


def predict_new_network(subjects: Sequence[System]) -> list[tuple[System, str, float]]:
    """What a shipped profile is used for: (system, network, predicted over published) with the board itself known.

    The network is left out of the fit and of the anchors; the other networks' latencies on this very board stay.
    """
    found = []
    for network in NETWORKS:
        model = fit_factors(timings(subjects, without_network=[network]))
        for system in (s for s in subjects if network in s.latency_ms):
            costs = model.costs(system.toolchain, core_of(system))
            logs = [
                math.log(ms / cycles(counts_of(system.networks[n]), costs))
                for n, ms in system.latency_ms.items()
                if n != network
            ]
            speed = math.exp(sum(logs) / len(logs))
            ratio = speed * cycles(counts_of(system.networks[network]), costs) / system.latency_ms[network]
            found.append((system, network, ratio))
    return found


def shipped_costs(subjects: Sequence[System], toolchain: str, core: str) -> tuple[float, ...]:
    """Cycles of every term for profiles, before the board's own speed: fitted to everything."""
    return fit_factors(timings(subjects)).costs(toolchain, core)
