"""What a microcontroller's int8 kernels do for an operation: multiplications, copies, requantizations, each counted.

An operation's time is a sum of nine terms, each a count that follows from the shapes times cycles. `COUNTED` holds the
cycles as they stand in CMSIS-NN's source for a core with the DSP extension (github.com/ARM-software/CMSIS-NN, commit
99f736a; single-cycle instructions, loads and taken branches two or three):

- matrix product, ``arm_nn_mat_mult_kernel_s8_s16``: 6 loads, 4 extensions, 8 SMLAD and the loop for 16 products;
- fully connected, ``arm_nn_vec_mat_mult_t_s8``: 3 loads, 6 extensions, 4 SMLAD and the loop for 8 products;
- depthwise, ``arm_depthwise_conv_s8_opt``: its own loop and the copy of every tap to 16 bits;
- copy, ``arm_q7_to_q15_with_offset`` of the patch under a kernel of more than one tap;
- output, ``arm_nn_requantize``, offset, clamp, store and the channel's constants;
- weights: a line of flash of 16 bytes behind five wait states (STM32L4+ at 120 MHz, RM0432), read once.

`COUNTED_HELIUM` is the same for a core with the vector extension, Cortex-M55 and M85, where a vector instruction takes
two cycles and a load overlaps with the product before it (assumed after Yiu 2020, "Introduction to the Cortex-M55"):

- matrix product, ``arm_nn_mat_mult_nt_t_s8``: 5 loads, 4 VMLADAVA and a VADDVA for 64 products, loop for nothing;
- fully connected, ``arm_nn_vec_mat_mult_t_s8``: as many, a predicate and six scalar instructions for 64 products;
- depthwise, ``arm_nn_depthwise_conv_nt_t_s8``: 5 loads, 4 products, 5 sums and six scalar for 16, and the copy;
- output, four at a time through ``arm_requantize_mve_32x4``.

What a toolchain or a core really takes differs from this; `mcu_fit` finds by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kasmina_edge.hardware_simulator.workload import OpWork, Workload

COUNTED: Mapping[str, float] = {
    "product_cycles_per_mac": 1.5,
    "depthwise_cycles_per_mac": 5.25,
    "dense_cycles_per_mac": 2.25,
    "copy_cycles_per_byte": 2.1,
    "output_cycles_per_element": 25.5,
    "sum_cycles_per_element": 30.0,
    "pool_cycles_per_element": 3.0,
    "weight_cycles_per_byte": 0.3,
    "call_cycles_per_op": 1500.0,
}
"""Cycles of every term, by the key that profiles use: ``dense`` is a fully connected layer."""
COUNTED_HELIUM: Mapping[str, float] = {
    "product_cycles_per_mac": 0.19,
    "depthwise_cycles_per_mac": 2.1,
    "dense_cycles_per_mac": 0.36,
    "copy_cycles_per_byte": 0.5,
    "output_cycles_per_element": 8.0,
    "sum_cycles_per_element": 20.0,
    "pool_cycles_per_element": 1.0,
    "weight_cycles_per_byte": 0.3,
    "call_cycles_per_op": 1500.0,
}
TERMS = tuple(COUNTED)
HELIUM_CORES = ("m55", "m85")
BOUNDS = ("compute", "compute", "compute", "memory", "compute", "compute", "memory", "memory", "overhead")
"""What limits an operation whose largest term this is."""
_SUMS = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "squared_difference", "exp", "log", "softmax",
                   "logistic", "tanh", "rsqrt", "sqrt", "hard_swish", "lstm"})  # fmt: skip
_COPIES = frozenset({"concatenation", "split", "slice", "pad", "transpose", "resize_bilinear", "gather",
                     "resize_nearest_neighbor", "depth_to_space", "space_to_depth"})  # fmt: skip
_FREE = frozenset({"reshape"})

Counts = tuple[float, ...]


def counted(core: str) -> Mapping[str, float]:
    """Cycles as they stand in CMSIS-NN's source for a core, told by its name: ``m4``, ``Cortex-M85``.

    >>> counted("Cortex-M85 with Helium") is COUNTED_HELIUM, counted("m4") is COUNTED
    (True, True)
    """
    words = core.lower().replace("cortex-", "").replace(",", " ").replace("+", " ").split()
    return COUNTED_HELIUM if any(word in HELIUM_CORES for word in words) else COUNTED


def op_counts(op: OpWork) -> Counts:
    """How often every term of `TERMS` occurs in an operation.

    Args:
        op: Of any kind; one that is not known is taken to touch every element it reads once.
    """
    weights = math.prod(op.weights) if op.weights else 0
    out = float(op.output_elements)
    if op.kind in ("conv_2d", "transpose_conv", "batch_matmul"):
        patch = math.prod(op.weights[1:]) if math.prod(op.weights[1:3]) > 1 else 0
        copied = out / op.weights[0] * patch if patch else 0.0
        return (float(op.macs), 0.0, 0.0, copied, out, 0.0, 0.0, float(weights), 1.0)
    if op.kind == "depthwise_conv_2d":
        return (0.0, float(op.macs), 0.0, 0.0, out, 0.0, 0.0, float(weights), 1.0)
    if op.kind in ("fully_connected", "lstm"):
        return (0.0, 0.0, float(op.macs), 0.0, out, 0.0, 0.0, float(weights), 1.0)
    if op.kind in _FREE:
        return (0.0,) * 8 + (1.0,)
    if op.kind in _COPIES:
        return (0.0, 0.0, 0.0, out, 0.0, 0.0, 0.0, 0.0, 1.0)
    if op.kind in _SUMS:
        return (0.0, 0.0, 0.0, 0.0, 0.0, out, 0.0, 0.0, 1.0)
    read = float(sum(math.prod(shape) for shape in op.inputs))
    return (0.0,) * 6 + (read, 0.0, 1.0)


def network_counts(workload: Workload) -> Counts:
    """The sum of `op_counts` over a network."""
    return tuple(map(sum, zip(*map(op_counts, workload.ops), strict=True)))


def cycles(counts: Sequence[float], costs: Sequence[float]) -> float:
    """What the counts take.

    Args:
        counts: Of `op_counts` or `network_counts`.
        costs: Cycles of every term, in the order of `TERMS`.
    """
    return sum(n * c for n, c in zip(counts, costs, strict=True))
