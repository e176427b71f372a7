"""Accelerators that are no Edge TPU: cloud-TPU-like systolic arrays, NPUs and embedded GPUs, by a roofline.

Williams et al., "Roofline", CACM 2009: an operation takes what its products or its bytes take, whichever is longer.
Products run at a rate of their class, which a profile gives in one of three ways: an array (``array_rows``,
``array_columns``), multiply-accumulates a cycle, or a share of the peak. On an array of R x C, weights stand still
(Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing Unit", ISCA 2017): a product of M x K by
K x N takes ceil(K / R) * ceil(N / C) tiles of max(M, R) cycles, and R + C to fill and drain; a depthwise filter has a
column for itself and leaves the others idle. Anchors bring the whole to the board by one factor.
"""

from __future__ import annotations

import math
from typing import ClassVar

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.anchoring import anchor_power_mw, anchor_scale
from kasmina_edge.hardware_simulator.layer import Costs, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

COEFFICIENTS = (
    "array_rows", "array_columns", "product_macs_per_cycle", "depthwise_macs_per_cycle", "dense_macs_per_cycle",
    "product_share", "depthwise_share", "dense_share", "op_us", "call_us", "activations_moved_share", "value_bytes",
)  # fmt: skip
"""What this layer reads; shares are of the peak, ``value_bytes`` is 2 where it computes in 16 bits."""
_RATES = ("product_macs_per_cycle", "depthwise_macs_per_cycle", "dense_macs_per_cycle", "product_share",
          "depthwise_share", "dense_share")  # fmt: skip
_LEAST = {"array_rows": 1.0, "array_columns": 1.0}
CLASSES = ("product", "depthwise", "dense")
_CLASS_OF = {"depthwise_conv_2d": "depthwise", "fully_connected": "dense", "lstm": "dense"}


class NpuLayer(SimulationLayer):
    """One accelerator.

    Raises:
        InputError: No rate of multiply-accumulates follows from the profile, or a coefficient is unknown or negative.
    """

    kind: ClassVar[str] = "npu"

    def __init__(self, profile: HardwareProfile) -> None:
        super().__init__(profile)
        given = profile.coefficients
        wrong = [key for key, value in given.items() if key not in COEFFICIENTS or value < 0.0]
        if wrong:
            raise InputError(
                f"profile {profile.name}: coefficients {', '.join(wrong)}: unknown to an npu, or negative",
                f"An npu has {', '.join(COEFFICIENTS)}.",
            )
        for key, value in given.items():
            least = _LEAST.get(key, 0.0)
            if value < least or (key in _RATES and not value > 0.0):
                raise InputError(
                    f"profile {profile.name}: coefficients.{key} is {value:g}, expected "
                    f"{f'{least:g} or more' if least else 'more than 0'}",
                    "Correct it, or leave it out.",
                )
        self._array = (int(given.get("array_rows", 0)), int(given.get("array_columns", 0)))
        self._rates = {name: self._rate(name) for name in CLASSES}
        if not self._rates["product"] and not all(self._array):
            raise InputError(
                f"profile {profile.name}: no rate of multiply-accumulates",
                "Give array_rows and array_columns, product_macs_per_cycle, or peak_int8_tops.",
            )
        self._value_bytes = given.get("value_bytes", 1.0)
        self._op_us = given.get("op_us", 0.0)
        self._moved_share = given.get("activations_moved_share", 0.0)
        self._us_per_byte = self._value_bytes / profile.memory_bytes_per_s * 1e6 if profile.memory_bytes_per_s else 0.0
        self._scale, self._anchored = 1.0, False
        self._power_mw = anchor_power_mw(profile)
        scale = anchor_scale(profile, lambda work: self.costs(work).latency_ms)
        self._anchored, self._scale = scale is not None, scale or 1.0

    def costs(self, workload: Workload) -> Costs:
        """Time of every operation; band None where no anchor stands behind it."""
        streams = self._streams(workload)
        ops = tuple(self._op(op, streams) for op in workload.ops)
        fixed_us = self._fixed_us(workload) * self._scale
        notes = []
        if streams:
            held = self.profile.parameter_sram_bytes or 0
            notes.append(
                f"weights: {workload.constant_bytes} bytes, {held} are held on the chip; the rest streams every time"
            )
        if not self._anchored:
            notes.append(f"profile {self.profile.name} has no anchor of a known network: its speed is not measured")
        total_ms = (fixed_us + sum(op.latency_us for op in ops)) / 1e3
        band = self.profile.error_band if self._anchored else None
        return Costs(ops, fixed_us, band, tuple(notes), None if self._power_mw is None else self._power_mw * total_ms)

    def _rate(self, name: str) -> float:
        """Multiply-accumulates a microsecond; 0 where the profile has none."""
        given, profile = self.profile.coefficients, self.profile
        if f"{name}_macs_per_cycle" in given:
            return given[f"{name}_macs_per_cycle"] * profile.clock_mhz
        peak = (profile.peak_int8_tops or 0.0) * 1e6 / 2.0
        if f"{name}_share" in given:
            return given[f"{name}_share"] * peak
        if name != "product":
            return 0.0 if name == "depthwise" and all(self._array) else self._rate("product")
        return 0.0 if all(self._array) else peak

    def _op(self, op: OpWork, streams: bool) -> OpCost:
        compute_us = self._products_us(op) if op.macs else 0.0
        memory_us = 0.0
        if self._us_per_byte:
            moved = self._moved_share * (op.input_bytes + op.output_bytes) if self._moved_share else 0.0
            memory_us = (moved + (op.constant_bytes if streams else 0)) * self._us_per_byte
        overhead_us = self._op_us if op.kind != "reshape" else 0.0
        busy_us = compute_us if compute_us >= memory_us else memory_us
        bound = "overhead" if overhead_us > busy_us else "compute" if busy_us == compute_us else "memory"
        return OpCost((busy_us + overhead_us) * self._scale, "npu", bound)

    def _products_us(self, op: OpWork) -> float:
        kind = _CLASS_OF.get(op.kind, "product")
        if self._rates[kind]:
            return op.macs / self._rates[kind]
        rows, columns = self._array
        outputs = op.weights[-1] if kind == "depthwise" else op.weights[0] if op.weights else op.outputs[0][-1]
        pixels = max(op.output_elements // max(outputs, 1), 1)
        depth = max(op.macs // max(op.output_elements, 1), 1)
        tiles = math.ceil(depth / rows) * (outputs if kind == "depthwise" else math.ceil(outputs / columns))
        return (tiles * max(pixels, rows) + rows + columns) / self.profile.clock_mhz

    def _streams(self, workload: Workload) -> bool:
        held = self.profile.parameter_sram_bytes
        if not self._us_per_byte:
            return False
        return held is None or workload.constant_bytes * self._value_bytes > held

    def _fixed_us(self, workload: Workload) -> float:
        call_us, link = self.profile.coefficients.get("call_us", 0.0), self.profile.link_bytes_per_s
        return call_us + ((workload.input_bytes + workload.output_bytes) / link * 1e6 if link else 0.0)
