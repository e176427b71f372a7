"""A processor core that runs LiteRT with XNNPACK: time of every operation from the terms of `cpu_kernels`.

A calibrated profile carries nanoseconds for each term and the shape of the tiles. One that has only anchors gets the
terms of a plain core with vector units, scaled so that the anchors come out right on (geometric) average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.anchoring import known_anchors
from kasmina_edge.hardware_simulator.cpu_kernels import (
    CALL,
    FED_BYTE,
    PARTITION,
    Tiles,
    bound_of,
    family,
    fused,
    partitions,
    terms_of,
)
from kasmina_edge.hardware_simulator.layer import Costs, Known, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

FAMILIES = ("int8", "float32")
_TILES = ("rows", "columns", "depth", "channels")
_PLAIN_TILES = {"int8": Tiles(4, 8, 8, 16), "float32": Tiles(4, 8, 1, 8)}
_MACS_PER_NS = {"int8": 12.0, "float32": 6.0}
_PLAIN_OVERHEAD_NS = {
    "call": 5000.0, "partition": 1000.0, "op": 1000.0, "row": 10.0, "pixel": 5.0, "block": 5.0, "tap": 4.0,
    "element": 1.0, "strip": 4.0, "byte": 0.2, "mac": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class CpuModel:
    """How long each term takes, for one type of number.

    Attributes:
        tiles: Of the kernels.
        ns: Nanoseconds by term; a term that is not there costs nothing.
        band: Relative half-width; None where it is unknown.
        note: What people should know of it.
    """

    tiles: Tiles
    ns: Mapping[str, float]
    band: float | None
    note: str = ""


class CpuLayer(SimulationLayer):
    """One core, or as many threads as the profile was measured with.

    Raises:
        InputError: The profile has neither anchors of known networks nor coefficients.
    """

    kind: ClassVar[str] = "cpu"

    def __init__(self, profile: HardwareProfile) -> None:
        super().__init__(profile)
        self._models = cpu_models(profile)
        self._known = Known(self._cost)

    def costs(self, workload: Workload) -> Costs:
        """See `SimulationLayer.costs`; of a mix of integer and float operations each is taken as its own kind."""
        models = self._models
        found: list[OpCost] = []
        seen: dict[str, CpuModel] = {}
        within = fused(workload)
        for place, op in enumerate(workload.ops):
            kind = family(op)
            seen.setdefault(kind, models[kind])
            found.append(self._known[op] if place not in within else _NOTHING)
        main = max(seen, key=lambda kind: sum(op.macs for op in workload.ops if family(op) == kind), default="int8")
        fixed_ns = sum(models[main].ns.get(term, 0.0) * n for term, n in network_terms(workload).items())
        bands = [model.band for model in seen.values()]
        band = None if None in bands else max((b for b in bands if b is not None), default=None)
        notes = dict.fromkeys(model.note for model in seen.values() if model.note)
        return Costs(tuple(found), fixed_ns / 1000.0, band, tuple(notes))

    def _cost(self, op: OpWork) -> OpCost:
        return _op_cost(op, self._models[family(op)])


_NOTHING = OpCost(0.0, "cpu", "overhead")


def network_terms(workload: Workload) -> dict[str, float]:
    """Counts that belong to the whole network."""
    return {
        CALL: 1.0,
        PARTITION: float(partitions(workload.ops)),
        FED_BYTE: float(workload.input_bytes + workload.output_bytes),
    }


def cpu_models(profile: HardwareProfile) -> dict[str, CpuModel]:
    """The latency model of each type of number.

    Raises:
        InputError: As `CpuLayer`.
    """
    found = {kind: model for kind in FAMILIES if (model := _calibrated(profile, kind)) is not None}
    if not found:
        return _anchored(profile)
    for kind in FAMILIES:
        if kind not in found:
            other = next(iter(found))
            note = f"profile {profile.name} was calibrated for {other} only: its {kind} figures are a guess"
            guess = _plain(kind, _scale_between(found[other], other))
            found[kind] = replace(guess, band=None, note=note)
    return found


def _calibrated(profile: HardwareProfile, kind: str) -> CpuModel | None:
    given = profile.coefficients
    ns = {
        key.removeprefix(f"{kind}_").removesuffix("_ns"): value
        for key, value in given.items()
        if key.startswith(f"{kind}_") and key.endswith("_ns")
    }
    if not ns:
        return None
    missing = [f"{kind}_tile_{part}" for part in _TILES if not given.get(f"{kind}_tile_{part}", 0.0) >= 1.0]
    wrong = [f"{kind}_{term}_ns" for term, value in ns.items() if not (math.isfinite(value) and value >= 0.0)]
    if missing or wrong:
        raise InputError(
            f"profile {profile.name}: coefficients lack {', '.join(missing)}"
            if missing
            else f"profile {profile.name}: coefficients {', '.join(wrong)} are no times",
            "Measure it again with `kasmina-edge profile calibrate`.",
        )
    tiles = Tiles(*(round(given[f"{kind}_tile_{part}"]) for part in _TILES))
    return CpuModel(tiles, ns, given.get(f"{kind}_band", profile.error_band))


def _anchored(profile: HardwareProfile) -> dict[str, CpuModel]:
    known = known_anchors(profile)
    if not known:
        why = "no anchors" if not profile.anchors else f"no anchor whose network is known ({_names(profile)})"
        raise InputError(
            f"profile {profile.name}: {why} and no coefficients to estimate from",
            f"Measure the device itself: `kasmina-edge profile calibrate --base {profile.name}` on it.",
        )
    kinds = [family(workload.ops[0]) for _, workload in known]
    main = max(set(kinds), key=kinds.count)
    plain = {kind: _plain(kind, 1.0) for kind in FAMILIES}
    logs = [
        math.log(anchor.latency_ms) + math.log(1e6 / _total_ns(workload, plain[main]))
        for (anchor, workload), kind in zip(known, kinds, strict=True)
        if kind == main
    ]
    scale = math.exp(sum(logs) / len(logs))
    found = {kind: _plain(kind, scale) for kind in FAMILIES}
    other = next(kind for kind in FAMILIES if kind != main)
    note = f"profile {profile.name} has anchors for {main} only: its {other} figures are a guess"
    return {main: replace(found[main], band=profile.error_band), other: replace(found[other], note=note)}


def _plain(kind: str, scale: float) -> CpuModel:
    """A core with vector units: so many multiplications a nanosecond, and overheads of the usual size."""
    tiles, speed = _PLAIN_TILES[kind], _MACS_PER_NS[kind]
    step = tiles.rows * tiles.columns * tiles.depth / speed
    ns = {
        "product_step": step,
        "conv_step": 1.1 * step,
        "vector_step": tiles.columns * tiles.depth / speed * 2.0,
        "depth9_tile": 9.0 * tiles.channels / speed * 2.5,
        "depth25_tile": 25.0 * tiles.channels / speed * 2.5,
        "depth_more_tile": 25.0 * tiles.channels / speed * 2.5,
    }
    return CpuModel(tiles, _Plain({name: scale * value for name, value in ns.items()}, scale), None)


class _Plain(dict[str, float]):
    """Nanoseconds of a term that is not named, by the last word of its name."""

    def __init__(self, named: Mapping[str, float], scale: float) -> None:
        super().__init__(named)
        self._scale = scale

    def get(self, term: str, default: float | None = None) -> float:  # type: ignore[override]
        """What the term costs."""
        if term in self:
            return self[term]
        return self._scale * _PLAIN_OVERHEAD_NS.get(term.rsplit("_", 1)[-1], default or 0.0)


def _scale_between(model: CpuModel, kind: str) -> float:
    """How much slower than the plain core a calibrated one is, by its dense products."""
    plain = _plain(kind, 1.0)
    of_plain = plain.ns["product_step"] / (plain.tiles.rows * plain.tiles.columns * plain.tiles.depth)
    of_model = model.ns.get("product_step", 0.0) / (model.tiles.rows * model.tiles.columns * model.tiles.depth)
    return of_model / of_plain if of_model > 0 else 1.0


def _op_cost(op: OpWork, model: CpuModel) -> OpCost:
    by_bound = {"compute": 0.0, "memory": 0.0, "overhead": 0.0}
    for term, count in terms_of(op, model.tiles):
        by_bound[bound_of(term)] += model.ns.get(term, 0.0) * count
    return OpCost(sum(by_bound.values()) / 1000.0, "cpu", max(by_bound, key=lambda bound: by_bound[bound]))


def _total_ns(workload: Workload, model: CpuModel) -> float:
    ops = sum(model.ns.get(term, 0.0) * n for op in workload.ops for term, n in terms_of(op, model.tiles))
    return ops + sum(model.ns.get(term, 0.0) * n for term, n in network_terms(workload).items())


def _names(profile: HardwareProfile) -> str:
    return ", ".join(anchor.network for anchor in profile.anchors)
