"""An estimate as values to draw: time of every operation, bytes alive at every moment, and the roofline."""

from __future__ import annotations

from dataclasses import dataclass

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.arena import live_bytes
from kasmina_edge.hardware_simulator.context import Estimate
from kasmina_edge.hardware_simulator.workload import Workload


@dataclass(frozen=True)
class Slice:
    """One operation on the time axis.

    Attributes:
        place: ``op 3 CONV_2D``.
        kind: The operation's word.
        begin_us: Since the inference began; fixed costs come first.
        latency_us: How long.
        where: The part that runs it.
        bound: What limits it.
        live_bytes: Activations that are alive meanwhile.
        macs: Multiply-accumulates.
    """

    place: str
    kind: str
    begin_us: float
    latency_us: float
    where: str
    bound: str
    live_bytes: int
    macs: int


@dataclass(frozen=True)
class RooflinePoint:
    """One operation under the roof.

    Attributes:
        place: ``op 3 CONV_2D``.
        intensity: Multiply-accumulates for every byte that it moves (activations in and out, constants).
        achieved_gmacs: Billions of multiply-accumulates a second, as estimated.
        roof_gmacs: What the roof allows at that intensity; None where the profile gives no peak.
        latency_us: How long.
    """

    place: str
    intensity: float
    achieved_gmacs: float
    roof_gmacs: float | None
    latency_us: float


@dataclass(frozen=True)
class Roof:
    """The two limits of a target (Williams, Waterman, Patterson 2009, doi 10.1145/1498765.1498785).

    Attributes:
        peak_gmacs: Billions of multiply-accumulates a second; None where the profile gives no peak. An operation of
            ``peak_int8_tops`` is half a multiply-accumulate.
        bytes_per_s: Of the memory; None where the profile does not say.
    """

    peak_gmacs: float | None
    bytes_per_s: float | None

    def at(self, intensity: float) -> float | None:
        """Billions of multiply-accumulates a second that are allowed at an intensity (MAC a byte)."""
        limits = [self.peak_gmacs, None if self.bytes_per_s is None else self.bytes_per_s * intensity / 1e9]
        known = [limit for limit in limits if limit is not None]
        return min(known) if known else None


def timeline(workload: Workload, estimate: Estimate) -> tuple[Slice, ...]:
    """Every operation in the order of execution.

    Raises:
        InputError: The estimate is of another workload.
    """
    _belongs(workload, estimate)
    alive, at, found = live_bytes(workload), estimate.fixed_us, []
    for i, (op, cost) in enumerate(zip(workload.ops, estimate.ops, strict=True)):
        place = op.place or f"op {i} {op.kind.upper()}"
        found.append(Slice(place, op.kind, at, cost.latency_us, cost.where, cost.bound, alive[i], op.macs))
        at += cost.latency_us
    return tuple(found)


def roof_of(profile: HardwareProfile) -> Roof:
    """The limits that a profile states."""
    peak = None if profile.peak_int8_tops is None else profile.peak_int8_tops * 1000.0 / 2.0
    return Roof(peak, profile.memory_bytes_per_s)


def roofline(workload: Workload, estimate: Estimate, profile: HardwareProfile) -> tuple[RooflinePoint, ...]:
    """A point for every operation that multiplies and takes time.

    Raises:
        InputError: The estimate is of another workload.
    """
    _belongs(workload, estimate)
    roof, found = roof_of(profile), []
    for i, (op, cost) in enumerate(zip(workload.ops, estimate.ops, strict=True)):
        moved = op.input_bytes + op.output_bytes + op.constant_bytes
        if not (op.macs and moved and cost.latency_us > 0):
            continue
        intensity = op.macs / moved
        place = op.place or f"op {i} {op.kind.upper()}"
        achieved = op.macs / cost.latency_us / 1000.0
        found.append(RooflinePoint(place, intensity, achieved, roof.at(intensity), cost.latency_us))
    return tuple(found)


def _belongs(workload: Workload, estimate: Estimate) -> None:
    if len(workload.ops) != len(estimate.ops):
        raise InputError(
            f"the estimate of {estimate.network} has {len(estimate.ops)} operations, {workload.name} has "
            f"{len(workload.ops)}",
            "Estimate this workload first.",
        )
