"""Whether operations that were read from a file have the shapes that their kinds need.

Readers follow a file's words, and a damaged or hostile file may say anything; layers count on what is checked here.
"""

from __future__ import annotations

from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

MAX_OPS = 20_000
"""Large language models have a few thousand; packing the arena takes the square of it."""
_CONVOLUTIONS = ("conv_2d", "depthwise_conv_2d", "transpose_conv")
_WEIGHT_AXES = {**dict.fromkeys(_CONVOLUTIONS, 4), "fully_connected": 2}
_READ = (*_CONVOLUTIONS, "fully_connected", "batch_matmul", "mean", "sum", "max_pool_2d", "average_pool_2d", "lstm")
_WRITE = (*_READ, "add", "sub", "mul", "div", "maximum", "minimum", "squared_difference", "concatenation", "pad",
          "resize_bilinear", "resize_nearest_neighbor", "softmax", "reduce_max")  # fmt: skip
_UNCOUNTED = frozenset({
    "einsum", "attention", "multiheadattention", "groupqueryattention", "qattention", "deformconv", "fusedmatmul",
    "fusedgemm", "dynamicquantizematmul", "matmulintegertofloat", "loop", "scan", "conv_3d_transpose",
    "bidirectional_sequence_lstm", "bidirectional_sequence_rnn", "stablehlo_dot_general", "stablehlo_convolution",
    "while", "call", "stablehlo_while", "stablehlo_composite",
})  # fmt: skip
"""Kinds that multiply, or run what does, and whose multiplications no reader counts."""
_AGAIN = "The file is damaged, or its exporter is wrong; export the model again."


def sound(workload: Workload) -> Workload:
    """The same workload.

    Raises:
        BundleError: There are more than `MAX_OPS` operations, or one has not the operands that its kind needs; the
            message names it.
    """
    if len(workload.ops) > MAX_OPS:
        raise BundleError(f"a model of {len(workload.ops)} operations, at most {MAX_OPS} are read")
    for op in workload.ops:
        fault = _fault(op)
        if fault:
            raise BundleError(f"{op.place or op.kind}: {fault}", _AGAIN)
    return workload


def uncounted(workload: Workload) -> tuple[str, ...]:
    """Places of operations whose multiplications are not counted: an estimate of theirs is too low."""
    return tuple(op.place or op.kind for op in workload.ops if op.kind in _UNCOUNTED and not op.macs)


def _fault(op: OpWork) -> str:
    """What an operation lacks, or ""."""
    if op.kind in _READ and not op.inputs:
        return "it reads nothing that is computed"
    if op.kind in _WRITE and not op.outputs:
        return "it writes nothing"
    if op.macs and not (op.outputs and op.outputs[0]):
        return "it multiplies, and its output has no axis"
    axes = _WEIGHT_AXES.get(op.kind)
    if axes and op.weights and (len(op.weights) != axes or min(op.weights) < 1):
        return f"weights of shape {op.weights}, expected {axes} axes of 1 or more"
    if op.kind in _CONVOLUTIONS:
        if len(op.inputs[0]) != 4 or len(op.outputs[0]) != 4:
            return f"input {op.inputs[0]} and output {op.outputs[0]}, expected four axes each"
        if op.kind != "conv_2d" and not (op.weights and op.inputs[0][-1]):
            return "it has no weights or no channels"
        if min(*op.stride, *op.dilation, op.groups) < 1:
            return f"stride {op.stride}, dilation {op.dilation} and groups {op.groups}, expected 1 or more"
    if op.kind in ("fully_connected", "batch_matmul") and not op.inputs[0]:
        return "its input has no axis"
    return ""
