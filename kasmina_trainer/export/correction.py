"""Takes the mean error that rounding leaves on each class, or channel, of an output out of its last layer's bias.

Weights and activations that are rounded the same way on every input shift the answers; the mean of that shift over the
calibration frames goes into the bias (Nagel et al. 2019, empirical bias correction, for the last layer alone). It costs
one number a class, which is all that a small update should pay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema

from kasmina_trainer.export import flatbuffer

Array = npt.NDArray[Any]
_HEADS = ("FULLY_CONNECTED", "CONV_2D")
_LEAST, _MOST = -(2**31), 2**31 - 1


def correct_tflite(model: Any, shift: Array, output: int = 0) -> bool:
    """Subtract ``shift`` (channels,), in real units, from one output of an int8 file, in place.

    Returns:
        Whether the last layer has a bias to take it; if not, nothing was changed.
    """
    answer = int(model.subgraphs[0].outputs[output])
    head = next((o for o in flatbuffer.operators(model) if answer in o.outputs), None)
    if head is None or head.name not in _HEADS or len(head.inputs) < 3:
        return False
    tensor = model.subgraphs[0].tensors[head.inputs[2]] if head.inputs[2] >= 0 else None
    bias = flatbuffer.constant(model, head.inputs[2])
    if tensor is None or bias is None or len(bias) != 4 * len(shift):
        return False
    scale = np.asarray(tensor.quantization.scale, np.float64)
    moved = np.clip(bias.view(np.int32) - np.rint(shift / scale), _LEAST, _MOST)  # float64 holds every int32
    buffer = schema.BufferT()
    buffer.data = moved.astype(np.int32).view(np.uint8)
    model.buffers.append(buffer)  # its own: the old one may serve other tensors as well
    tensor.buffer = len(model.buffers) - 1
    return True


def correct_onnx(model: onnx.ModelProto, shift: Array, answer: str) -> bool:
    """As `correct_tflite`, for a float ONNX model whose output ``answer`` a Gemm or Conv with bias computes.

    A Conv in front of the transposition to channels last counts as well.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    head = makers.get(answer)
    if head is not None and head.op_type == "Transpose":
        head = makers.get(head.input[0])
    if head is None or head.op_type not in ("Gemm", "Conv") or len(head.input) < 3:
        return False
    for constant in model.graph.initializer:
        if constant.name == head.input[2]:
            bias = onnx.numpy_helper.to_array(constant)
            if bias.shape != shift.shape or sum(constant.name in n.input for n in model.graph.node) != 1:
                return False
            constant.CopyFrom(onnx.numpy_helper.from_array((bias - shift).astype(bias.dtype), constant.name))
            return True
    return False


def mean_error(answers: Array, reference: Array) -> Array:
    """Mean of what an output gained over the float network's, by its last axis.  # (channels,)"""
    gap = answers - reference
    error: Array = gap.mean(axis=tuple(range(gap.ndim - 1)))
    return error
