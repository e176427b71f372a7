"""The Edge TPU's latency formula: what a network asks of chip, link and host, and what that costs.

A systolic array of 64 x 64 multipliers at 500 MHz is the data sheet's 4 TOPS. A layer fills it in tiles: an operation
of K inputs and O outputs a pixel takes ceil(K / 64) * ceil(O / 64) tiles, so narrow layers leave most of it idle, and a
depthwise filter, whose channels share nothing, uses a sliver. Parameters that are cached in the SRAM are still moved
into the array at every inference; the rest streams over the link, partly hidden behind the computing:

    computing = tiles / (array * share) + depthwise / (array * share) + moved bytes / rate + weights / rate + ops * cost
    streaming = streamed bytes / link
    total = fixed + activations / link + max(computing, streaming) + unhidden * min(computing, streaming) + host's part

Every term has one coefficient of a unit; benchmarks/coral.py fits them, the profiles carry them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from kasmina_edge.hardware_simulator.edgetpu_map import peak_activation_bytes
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

ARRAY = 64
FREE = ("concatenation", "reshape", "squeeze", "expand_dims")
"""Operations that only say where their inputs lie."""


@dataclass(frozen=True)
class Coefficients:
    """Numbers of the formula. Times in microseconds, rates per microsecond; arrays of any one shape fit as well.

    Attributes:
        fixed_us: Of one call: runtime, interrupts.
        link_bytes_per_us: Effective rate between host and chip.
        host_us_per_element: Of an operation left on the CPU that does not multiply, for each number read or written.
        host_macs_per_us: Of one left on the CPU that multiplies.
        array_share: Of full tiles' peak that dense layers reach.
        depthwise_share: Of the array's peak that depthwise layers reach.
        moved_bytes_per_us: Of operations that move and combine numbers: add, multiply, pool.
        weight_bytes_per_us: From the SRAM into the array.
        op_us: Of every operation on the chip.
        activation_sram_ratio: SRAM that a byte of the activations' peak takes from the parameters.
        unhidden_share: Of the shorter one of computing and streaming that does not hide behind the longer.
    """

    fixed_us: Any
    link_bytes_per_us: Any
    host_us_per_element: Any
    host_macs_per_us: Any
    array_share: Any
    depthwise_share: Any
    moved_bytes_per_us: Any
    weight_bytes_per_us: Any
    op_us: Any
    activation_sram_ratio: Any
    unhidden_share: Any


COEFFICIENTS = tuple(f.name for f in fields(Coefficients))


@dataclass(frozen=True)
class Demand:
    """What one operation, or a whole network, asks for; sums add up.

    Attributes:
        tile_macs: Multiplications of the full tiles that its dense layers occupy.
        depthwise_macs: Multiply-accumulates of depthwise layers.
        moved_bytes: Activations read and written by operations without weights.
        weight_bytes: Constants of operations on the chip.
        ops: Operations on the chip.
        host_elements: Numbers read and written by operations on the CPU that do not multiply.
        host_macs: Multiply-accumulates on the CPU.
        crossing_bytes: Activations that cross the link.
        peak_bytes: Of the activations on the chip, at one time.
    """

    tile_macs: Any = 0
    depthwise_macs: Any = 0
    moved_bytes: Any = 0
    weight_bytes: Any = 0
    ops: Any = 0
    host_elements: Any = 0
    host_macs: Any = 0
    crossing_bytes: Any = 0
    peak_bytes: Any = 0


def op_demand(op: OpWork, *, on_tpu: bool) -> Demand:
    """Of one operation; what belongs to the network as a whole, link and peak, stays 0."""
    if not on_tpu:
        if op.macs:
            return Demand(host_macs=op.macs)
        return Demand(host_elements=sum(math.prod(s) for s in (*op.inputs, *op.outputs)))
    if op.kind in FREE:
        return Demand(ops=1, weight_bytes=op.constant_bytes)
    if op.kind == "depthwise_conv_2d":
        return Demand(depthwise_macs=op.macs, weight_bytes=op.constant_bytes, ops=1)
    if op.macs:
        return Demand(tile_macs=tile_macs(op), weight_bytes=op.constant_bytes, ops=1)
    return Demand(moved_bytes=op.input_bytes + op.output_bytes, weight_bytes=op.constant_bytes, ops=1)


def tile_macs(op: OpWork) -> int:
    """Multiplications that the array's tiles would do if they were full.

    >>> narrow = OpWork("conv_2d", ((1, 8, 8, 16),), ((1, 8, 8, 16),), "int8", weights=(16, 1, 1, 16), macs=16384)
    >>> tile_macs(narrow) // narrow.macs
    16
    """
    if not op.weights:
        return op.macs
    outputs, inputs = op.weights[0], math.prod(op.weights[1:])
    pixels = op.macs // max(outputs * inputs, 1)
    return pixels * -(-outputs // ARRAY) * -(-inputs // ARRAY) * ARRAY * ARRAY


def network_demand(
    workload: Workload,
    on_tpu: Sequence[bool],
    parts: Sequence[Demand] | None = None,
    peak_bytes: int | None = None,
) -> Demand:
    """Of a whole network with its operations on the parts that a map gives them.

    Args:
        workload: The network.
        on_tpu: Of every operation.
        parts: `op_demand` of every operation, where it is known already.
        peak_bytes: Of the activations while the chip works, where it is known already.
    """
    if parts is None:
        parts = [op_demand(op, on_tpu=here) for op, here in zip(workload.ops, on_tpu, strict=True)]
    return Demand(
        tile_macs=sum([p.tile_macs for p in parts]),
        depthwise_macs=sum([p.depthwise_macs for p in parts]),
        moved_bytes=sum([p.moved_bytes for p in parts]),
        weight_bytes=sum([p.weight_bytes for p in parts]),
        ops=sum([p.ops for p in parts]),
        host_elements=sum([p.host_elements for p in parts]),
        host_macs=sum([p.host_macs for p in parts]),
        crossing_bytes=crossing_bytes(workload, on_tpu),
        peak_bytes=peak_activation_bytes(workload, on_tpu) if peak_bytes is None else peak_bytes,
    )


def crossing_bytes(workload: Workload, on_tpu: Sequence[bool]) -> int:
    """Bytes of activations that go between host and chip in one inference; inputs and outputs belong to the host."""
    steps = len(workload.ops)
    if not workload.tensors and steps:
        ends = (workload.input_bytes, on_tpu[0]), (workload.output_bytes, on_tpu[-1])
        return sum(size for size, here in ends if here)
    total, places = 0, (*on_tpu, False)  # before the first operation and after the last stands the host
    for tensor in workload.tensors:
        made, last = places[tensor.first], tensor.last
        if made and last >= steps:
            total += tensor.size_bytes
            continue
        for reader in tensor.readers or (last if last < steps else steps,):
            if places[reader] != made:
                total += tensor.size_bytes
                break
    return total


def streamed_bytes(demand: Demand, c: Coefficients, sram_bytes: float) -> Any:
    """Parameters that do not stay on the chip."""
    room = np.maximum(sram_bytes - c.activation_sram_ratio * demand.peak_bytes, 0.0)
    return np.maximum(demand.weight_bytes - room, 0.0)


def computing_us(demand: Demand, c: Coefficients, macs_per_us: float) -> Any:
    """Time that the chip works, nothing waited for."""
    return (
        demand.tile_macs / (macs_per_us * c.array_share)
        + demand.depthwise_macs / (macs_per_us * c.depthwise_share)
        + demand.moved_bytes / c.moved_bytes_per_us
        + demand.weight_bytes / c.weight_bytes_per_us
        + demand.ops * c.op_us
    )


def host_us(demand: Demand, c: Coefficients) -> Any:
    """Time of the operations on the CPU."""
    return demand.host_elements * c.host_us_per_element + demand.host_macs / c.host_macs_per_us


def total_us(demand: Demand, c: Coefficients, macs_per_us: float, sram_bytes: float) -> Any:
    """Latency of one inference.

    Args:
        demand: Of the network; its fields may be arrays, one entry a network.
        c: The coefficients.
        macs_per_us: The array's peak.
        sram_bytes: For parameters and activations.
    """
    work = computing_us(demand, c, macs_per_us)
    stream = streamed_bytes(demand, c, sram_bytes) / c.link_bytes_per_us
    core = np.maximum(work, stream) + c.unhidden_share * np.minimum(work, stream)
    return c.fixed_us + demand.crossing_bytes / c.link_bytes_per_us + core + host_us(demand, c)


def from_mapping(values: Mapping[str, float]) -> Coefficients:
    """Coefficients by name; `KeyError` names the first that is missing."""
    return Coefficients(**{name: values[name] for name in COEFFICIENTS})
