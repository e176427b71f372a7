"""Working memory that kernels take from the arena beside the tensors, while one operation runs.

Told by the kernels' sources, LiteRT's (tflite/kernels/{conv,batch_matmul,reduce}.cc) and TFLM's reference kernels
(tensorflow/lite/micro/kernels/), and held against what both allocate. Vendors' kernels (CMSIS-NN, ESP-NN) take other
amounts.
"""

from __future__ import annotations

import math

from kasmina_edge.hardware_simulator.workload import BITS, OpWork

_WORD = 4
_SUMS = ("mean", "sum")
_REDUCES = (*_SUMS, "reduce_max", "reduce_min", "reduce_prod", "reduce_any", "reduce_all")
TAKE_SCRATCH = frozenset((*_REDUCES, "transpose_conv", "batch_matmul", "conv_2d"))
"""Kinds of operations that may; besides, TFLM unpacks 4-bit weights."""


def scratch_sizes(op: OpWork, planner: str) -> tuple[int, ...]:
    """Bytes of each piece of scratch memory.

    Args:
        op: The operation.
        planner: As `arena.Planner`.
    """
    if op.kind in _REDUCES:
        return _reduction(op, planner)
    if planner == "tflm":
        if op.kind == "transpose_conv" and op.dtype != "float32":
            return (op.output_elements * (8 if op.dtype == "int16" else _WORD),)
        if op.weights_dtype == "int4" and op.weights:
            return (math.prod(op.weights),)  # unpacked to a byte each
        return ()
    width = BITS.get(op.dtype, 8) // 8
    if op.kind == "batch_matmul":
        return tuple(math.prod(shape) * width for shape in op.inputs[:2])  # both operands' transposes
    if op.kind == "conv_2d" and planner == "litert-plain" and len(op.weights) == 4:
        _, high, wide, channels = op.weights
        if (high, wide, *op.stride, *op.dilation) != (1, 1, 1, 1, 1, 1):
            return (math.prod(op.outputs[0][:-1]) * high * wide * channels * width,)  # im2col
    return ()


def _reduction(op: OpWork, planner: str) -> tuple[int, ...]:
    if not op.inputs or not op.outputs:
        return ()
    axes = len(op.inputs[0]) - len(op.outputs[0]) or sum(
        a != b for a, b in zip(op.inputs[0], op.outputs[0], strict=True)
    )
    counters = (len(op.inputs[0]) * _WORD, max(axes, 1) * _WORD)
    if op.kind in _SUMS and (planner != "tflm" or op.dtype != "float32"):
        return (*counters, op.output_elements * _WORD)
    return counters
