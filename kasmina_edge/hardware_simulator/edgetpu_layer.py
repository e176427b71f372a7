"""The simulation layer of Coral's Edge TPU: mapping, systolic utilisation, streaming, and what stays on the host."""

from __future__ import annotations

from functools import partial
from itertools import compress
from typing import ClassVar, NamedTuple

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.edgetpu_map import EdgeTpuMap, map_edgetpu
from kasmina_edge.hardware_simulator.edgetpu_ops import obstacle
from kasmina_edge.hardware_simulator.edgetpu_timing import (
    ARRAY,
    COEFFICIENTS,
    Demand,
    computing_us,
    from_mapping,
    host_us,
    network_demand,
    op_demand,
    streamed_bytes,
)
from kasmina_edge.hardware_simulator.layer import Costs, Known, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

LINK_KEY = "link_bytes_per_us"
MOSTLY_HOST = 0.5
"""Above this share of time on the CPU the band is unknown: it was measured on networks that run on the chip."""


class _Part(NamedTuple):
    """What an operation asks for and costs on one part, nothing streamed, and why it cannot run there."""

    demand: Demand
    cost: OpCost
    obstacle: str = ""


class EdgeTpuLayer(SimulationLayer):
    """What the profile's Edge TPU would take; the formula is that of `edgetpu_timing`.

    Args:
        profile: Of kind ``edgetpu``, with `COEFFICIENTS`, ``link_bytes_per_s`` and ``parameter_sram_bytes``.

    Raises:
        InputError: Another kind, or a number is missing; the message names the key.
    """

    kind: ClassVar[str] = "edgetpu"

    def __init__(self, profile: HardwareProfile) -> None:
        super().__init__(profile)
        if profile.parameter_sram_bytes is None:
            raise InputError(f"profile {profile.name}: parameter_sram_bytes is missing, no estimate can be made")
        if profile.link_bytes_per_s is None:
            raise InputError(f"profile {profile.name}: link_bytes_per_s is missing, no estimate can be made")
        values = {**profile.coefficients, LINK_KEY: profile.link_bytes_per_s / 1e6}
        missing = [name for name in COEFFICIENTS if name not in values]
        if missing:
            raise InputError(
                f"profile {profile.name}: coefficients.{missing[0]} is missing, no estimate can be made",
                "Take the coefficients of profile coral-usb, or fit them with `python -m benchmarks.coral --fit`.",
            )
        wrong = [name for name in COEFFICIENTS if not values[name] > 0]
        if wrong:
            raise InputError(
                f"profile {profile.name}: coefficients.{wrong[0]} is {values[wrong[0]]}, expected more than 0"
            )
        self._sram_bytes = profile.parameter_sram_bytes
        self._macs_per_us = ARRAY * ARRAY * profile.clock_mhz
        self._c = from_mapping(values)
        self._fastest_ms = min((a.latency_ms for a in profile.anchors), default=0.0)
        self._mapped = partial(map_edgetpu, sram_bytes=self._sram_bytes, reserved=float(self._c.activation_sram_ratio))
        self._on_chip_known, self._on_host_known = Known(self._chip_part), Known(self._host_part)

    def map(self, source: bytes | Workload, *, several: bool = False) -> EdgeTpuMap:
        """Which operations run where, with this profile's memory; arguments as `map_edgetpu`."""
        return self._mapped(source, several=several)

    def costs(self, workload: Workload, plan: EdgeTpuMap | None = None) -> Costs:
        """Time of every operation; the sum is that of `edgetpu_timing.total_us`.

        Args:
            workload: The network.
            plan: Its map, where it is known already.
        """
        c, parts = self._c, [self._on_chip_known[op] for op in workload.ops]
        plan = plan or self._mapped(workload, obstacles=[part.obstacle for part in parts])
        if plan.mapped < len(parts):
            places = zip(workload.ops, parts, plan.on_tpu, strict=True)
            parts = [part if here else self._on_host_known[op] for op, part, here in places]
        whole = network_demand(workload, plan.on_tpu, [part.demand for part in parts], plan.peak_bytes)
        to_stream = float(streamed_bytes(whole, c, self._sram_bytes))
        work_us = float(computing_us(whole, c, self._macs_per_us))
        stream_us = to_stream / c.link_bytes_per_us
        ops = [part.cost for part in parts]
        if to_stream:
            shown = (1.0, c.unhidden_share) if work_us >= stream_us else (c.unhidden_share, 1.0)
            cached = whole.weight_bytes - to_stream
            for i in compress(range(len(ops)), plan.on_tpu):
                demand = parts[i].demand
                kept = min(cached, demand.weight_bytes)
                cached -= kept
                ops[i] = self._on_chip(demand, (demand.weight_bytes - kept) / c.link_bytes_per_us, shown)
        fixed = c.fixed_us * plan.parts + whole.crossing_bytes / c.link_bytes_per_us
        total = fixed + sum(op.latency_us for op in ops)
        host = float(host_us(whole, c))
        mostly_host, faster = host > MOSTLY_HOST * total, total < 1000.0 * self._fastest_ms
        notes = self._notes(plan, whole, to_stream, host)
        if faster:
            notes += (f"faster than every anchor ({self._fastest_ms:g} ms): no band was measured there",)
        band = None if faster or (mostly_host and whole.host_macs) else self.profile.error_band
        why = "most of its time is the CPU's, and the profile's power is the accelerator's" if mostly_host else ""
        return Costs(tuple(ops), float(fixed), band, notes, no_energy=why)

    def _host_part(self, op: OpWork) -> _Part:
        demand = op_demand(op, on_tpu=False)
        cost = OpCost(float(host_us(demand, self._c)), "cpu", "compute" if demand.host_macs else "memory")
        return _Part(demand, cost)

    def _chip_part(self, op: OpWork) -> _Part:
        demand = op_demand(op, on_tpu=True)
        return _Part(demand, self._on_chip(demand, 0.0, (1.0, 1.0)), obstacle(op))

    def _on_chip(self, demand: Demand, streaming_us: float, shown: tuple[float, float]) -> OpCost:
        """One operation: its computing and its share of the streaming, as far as either shows in the total."""
        c, peak = self._c, self._macs_per_us
        computing = demand.tile_macs / (peak * c.array_share) + demand.depthwise_macs / (peak * c.depthwise_share)
        moving = demand.moved_bytes / c.moved_bytes_per_us + demand.weight_bytes / c.weight_bytes_per_us
        calling = demand.ops * c.op_us
        most, bound = max((computing, "compute"), (moving, "memory"), (calling, "overhead"))
        if shown[1] * streaming_us > shown[0] * most:
            bound = "transfer"
        return OpCost(shown[0] * (computing + moving + calling) + shown[1] * streaming_us, "edgetpu", bound)

    def _notes(self, plan: EdgeTpuMap, whole: Demand, to_stream: float, host: float) -> tuple[str, ...]:
        notes = [plan.line()]
        notes += [f"the compiler would refuse the file: {why}" for why in plan.refused[:1]]
        if to_stream:
            notes.append(
                f"{to_stream / 1e6:.1f} of {whole.weight_bytes / 1e6:.1f} MB of parameters stream over "
                f"{self.profile.link or 'the link'} at every inference"
            )
        if host:
            left = len(plan.network) - plan.mapped
            notes.append(f"{left} ops stay on the CPU and take {host / 1000:.2f} ms; that figure is rough")
        return tuple(notes)
