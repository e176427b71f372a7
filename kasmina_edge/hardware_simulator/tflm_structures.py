"""What TFLM keeps in its arena beside activations: a record for every tensor and operation, and what kernels prepare.

Two sizes follow from TFLM's headers: three pointers for ``TfLiteEvalTensor``, eight for ``NodeAndRegistration``
(tensorflow/lite/c/common.h, micro/micro_graph.h). A convolution prepares a multiplier and a shift for every channel.
A subgraph that gives variables their first values (``CALL_ONCE``) has a handle and an assignment for each.
What kernels keep besides was fitted to what TFLM's own recorder said of 172 networks on a 64-bit host; the same with
half of each pointer is an estimate for 32 bit that nobody has measured here.
"""

from __future__ import annotations

import math

from kasmina_edge.hardware_simulator.workload import BITS, OpWork, Workload

MEASURED_POINTER_BYTES = 8
_FIXED_BYTES = 700
_POINTERS_A_TENSOR, _POINTERS_AN_OPERATION = 3, 8
_BYTES_A_CHANNEL = 8
_KEPT_BYTES = {
    "conv_2d": 104, "depthwise_conv_2d": 104, "transpose_conv": 104, "fully_connected": 80, "batch_matmul": 152,
    "softmax": 112, "max_pool_2d": 48, "average_pool_2d": 48, "add": 56, "sub": 48, "mul": 32, "mean": 40, "sum": 40,
    "concatenation": 96, "reshape": 24, "strided_slice": 88,
}  # fmt: skip
_KEPT_OTHERS = 8
_CONSTANTS = {
    "conv_2d": 2, "depthwise_conv_2d": 2, "transpose_conv": 2, "fully_connected": 2, "mean": 1, "sum": 1, "pad": 1,
    "reshape": 1, "resize_nearest_neighbor": 1, "resize_bilinear": 1, "transpose": 1, "strided_slice": 3, "split": 1,
}  # fmt: skip
"""Constants that a file has for an operation; each is a tensor with a record."""


def structure_bytes(workload: Workload, pointer_bytes: int = MEASURED_POINTER_BYTES) -> int:
    """Bytes of TFLM's arena (its ``tail``) that no activation or scratch buffer takes; variables left out.

    Args:
        workload: The network.
        pointer_bytes: 8 on a host, 4 on a microcontroller.
    """
    tensors = len(workload.tensors) or len(workload.ops) + 1
    kept = channels = transposed = 0
    for op in workload.ops:
        tensors += _CONSTANTS.get(op.kind, 0)
        kept += _KEPT_BYTES.get(op.kind, _KEPT_OTHERS)
        if op.kind in ("conv_2d", "depthwise_conv_2d", "transpose_conv") and op.outputs:
            channels += op.outputs[0][-1]
        elif op.kind == "fully_connected" and op.weights and op.dtype != "float32":
            channels += op.weights[0]
        elif op.kind == "batch_matmul" and len(op.inputs) == 2:
            transposed += _transposed_bytes(op)
    operations = len(workload.ops)
    if any(op.kind == "call_once" for op in workload.ops):
        variables = sum(t.kept for t in workload.tensors)
        tensors, operations = tensors + 2 * variables, operations + 2 * variables
    records = (_POINTERS_A_TENSOR * tensors + _POINTERS_AN_OPERATION * operations) * pointer_bytes
    prepared = (_FIXED_BYTES + kept) * pointer_bytes // MEASURED_POINTER_BYTES
    return records + prepared + _BYTES_A_CHANNEL * channels + transposed


def _transposed_bytes(op: OpWork) -> int:
    """A product keeps its right operand transposed, unless it comes transposed already."""
    left, right = op.inputs
    if len(right) < 2 or right[-2] != left[-1]:
        return 0
    return math.prod(right) * BITS.get(op.dtype, 8) // 8
