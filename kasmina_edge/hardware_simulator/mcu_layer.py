"""Microcontrollers: every operation at what its kernel does, at the speed that the board's anchors show.

A profile gives cycles of the nine terms of `mcu_kernels` as coefficients, fitted for its toolchain and core by
`mcu_fit`. A profile with anchors alone gets the cycles as they stand in CMSIS-NN's source. Anchors then bring both to
the board: flash wait states, caches and compiler are one common factor. Energy is the anchors' power times the time.
"""

from __future__ import annotations

from typing import ClassVar

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.anchoring import anchor_power_mw, anchor_scale
from kasmina_edge.hardware_simulator.layer import Costs, Known, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.mcu_kernels import BOUNDS, TERMS, counted, cycles, network_counts, op_counts
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

DEAD_FILTERS = "dead_filters_removed_share"
"""1: the toolchain leaves filters of zeros out of the program, so that a file may cost less than its shapes say."""


class McuLayer(SimulationLayer):
    """One microcontroller with one toolchain.

    Raises:
        InputError: The profile gives some of the nine costs and not the others, or one that is negative.
    """

    kind: ClassVar[str] = "mcu"

    def __init__(self, profile: HardwareProfile) -> None:
        super().__init__(profile)
        self._costs = kernel_costs(profile)
        self._microseconds = 1.0 / profile.clock_mhz
        scale = anchor_scale(profile, lambda work: cycles(network_counts(work), self._costs) / profile.clock_mhz / 1e3)
        self._anchored = scale is not None
        self._microseconds *= scale or 1.0
        self._power_mw = anchor_power_mw(profile)
        self._known = Known(self._cost)

    def costs(self, workload: Workload) -> Costs:
        """Time of every operation; band None where no anchor stands behind it, or where kernels are not of int8."""
        ops = [self._known[op] for op in workload.ops]
        notes = []
        other = [dtype for dtype in workload.dtypes if dtype not in ("int8", "int32", "bool")]
        if other:
            notes.append(f"the kernels' costs are of int8; {', '.join(other)} takes longer, by how much is unknown")
        if not self._anchored:
            notes.append(f"profile {self.profile.name} has no anchor of a known network: its speed is not measured")
        if self.profile.coefficients.get(DEAD_FILTERS):
            notes.append(f"{self.profile.runtime} leaves filters of zeros out; a file that has such may be faster")
        total_ms = sum(op.latency_us for op in ops) / 1e3
        return Costs(
            tuple(ops),
            0.0,
            self.profile.error_band if self._anchored and not other else None,
            tuple(notes),
            None if self._power_mw is None else self._power_mw * total_ms,
        )

    def _cost(self, op: OpWork) -> OpCost:
        parts = [n * c for n, c in zip(op_counts(op), self._costs, strict=True)]
        return OpCost(sum(parts) * self._microseconds, "mcu", BOUNDS[parts.index(max(parts))])


def kernel_costs(profile: HardwareProfile) -> tuple[float, ...]:
    """Cycles of every term, in the order of `mcu_kernels.TERMS`: the profile's, or as counted in CMSIS-NN.

    Raises:
        InputError: Some are given and others are not, or one is negative.
    """
    given = profile.coefficients
    missing = [term for term in TERMS if term not in given]
    if len(missing) == len(TERMS):
        return tuple(counted(profile.chip).values())
    if missing:
        raise InputError(
            f"profile {profile.name}: coefficients lack {', '.join(missing)}",
            "Give all nine costs of hardware_simulator/mcu_kernels.py, or none.",
        )
    wrong = [f"{term} = {given[term]}" for term in TERMS if given[term] < 0.0]
    if wrong:
        raise InputError(f"profile {profile.name}: coefficients {', '.join(wrong)}: a kernel takes no negative time")
    return tuple(given[term] for term in TERMS)
