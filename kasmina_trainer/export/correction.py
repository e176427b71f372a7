"""Takes the mean error that rounding leaves on each class out of the last layer's bias.

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


def correct_tflite(model: Any, shift: Array) -> bool:
    """Subtract ``shift`` (classes,), in real units, from an int8 file's answers, in place.

    Returns:
        Whether the last layer has a bias to take it; if not, nothing was changed.
    """
    answer = int(model.subgraphs[0].outputs[0])
    head = next((o for o in flatbuffer.operators(model) if answer in o.outputs), None)
    if head is None or head.name not in _HEADS or len(head.inputs) < 3:
        return False
    tensor = model.subgraphs[0].tensors[head.inputs[2]] if head.inputs[2] >= 0 else None
    bias = flatbuffer.constant(model, head.inputs[2])
    if tensor is None or bias is None or len(bias) != 4 * len(shift):
        return False
    scale = np.asarray(tensor.quantization.scale, np.float64)
    moved = bias.view(np.int32) - np.rint(shift / scale).astype(np.int32)
    buffer = schema.BufferT()
    buffer.data = moved.astype(np.int32).view(np.uint8)
    model.buffers.append(buffer)  # its own: the old one may serve other tensors as well
    tensor.buffer = len(model.buffers) - 1
    return True


def correct_onnx(model: onnx.ModelProto, shift: Array, answer: str) -> bool:
    """As `correct_tflite`, for a float ONNX model whose output ``answer`` a Gemm or Conv with bias computes."""
    head = next((n for n in model.graph.node if answer in n.output), None)
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
