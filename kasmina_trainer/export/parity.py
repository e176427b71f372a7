"""Answers of the float network and of exported files to the same frames, on the engines that devices use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.contracts.manifest import ModelTensor, Preprocessing
from kasmina_edge.engines.tensors import InputConverter, OutputConverter
from kasmina_edge.errors import KasminaError
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.export.silence import quiet

Array = npt.NDArray[Any]

_PLAIN = Preprocessing()


def float_logits(module: nn.Module, frames: Array) -> Array:
    """The float network's answers, where it has one output; see `layout.float_outputs`.

    Args:
        module: Channels-first, in evaluation mode, on the CPU.
        frames: Model inputs.  # (N, ..., C)
    """
    return float_outputs(as_app(module, (1, *frames.shape[1:])), frames)[0]


def litert_raw(data: bytes, rows: Array, *, reference_kernels: bool = False) -> tuple[Array, ...]:
    """Raw answers of a TFLite file with one input, an array an output.

    Args:
        data: The file.
        rows: Inputs in the model's own dtype.  # (N, ...)
        reference_kernels: LiteRT's reference kernels instead of XNNPACK.

    Raises:
        KasminaError: The interpreter refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet():
        kind = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
        try:
            interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"LiteRT cannot run the exported file: {reason[:300]}") from exc
        entry = interpreter.get_input_details()[0]["index"]
        leaves = [d["index"] for d in interpreter.get_output_details()]
        answers: list[list[Array]] = [[] for _ in leaves]
        for row in rows:
            interpreter.set_tensor(entry, row[None])
            interpreter.invoke()
            for found, leave in zip(answers, leaves, strict=True):
                found.append(interpreter.get_tensor(leave)[0])
    return tuple(np.stack(found) for found in answers)


def litert_answers(data: bytes, quantized: Array, *, reference_kernels: bool = False) -> Array:
    """As `litert_raw`, of a file with one output."""
    return litert_raw(data, quantized, reference_kernels=reference_kernels)[0]


def litert_outputs(data: bytes, frames: Array, *, reference_kernels: bool = False) -> tuple[Array, ...]:
    """De-quantized answers of a TFLite file to float inputs, an array an output.  # (N, ...)"""
    inputs, outputs = flatbuffer.border(flatbuffer.parse(data), floats=True)
    return in_units(outputs, litert_raw(data, to_rows(frames, inputs[0]), reference_kernels=reference_kernels))


def in_units(outputs: Sequence[ModelTensor], raw: Sequence[Array]) -> tuple[Array, ...]:
    """Raw answers de-quantized as the runtime does it, an array an output.  # (N, ...)"""
    return tuple(
        np.concatenate([OutputConverter(tensor).convert(answer[None]) for answer in answers])
        for tensor, answers in zip(outputs, raw, strict=True)
    )


def litert_logits(data: bytes, frames: Array, *, reference_kernels: bool = False) -> Array:
    """As `litert_outputs`, of a file with one output."""
    return litert_outputs(data, frames, reference_kernels=reference_kernels)[0]


def onnx_outputs(data: bytes, frames: Array, *, optimize: bool = True) -> tuple[Array, ...]:
    """Answers of an ONNX file with float border, an array an output.  # (N, ...)

    Args:
        data: The file.
        frames: Model inputs.  # (N, ..., C)
        optimize: Fuse to integer kernels as a device does; without, every quantized step is computed in float.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: f[None].astype(np.float32, copy=False)}) for f in frames]
    return tuple(np.concatenate(answers) for answers in zip(*rows, strict=True))


def onnx_logits(data: bytes, frames: Array, *, optimize: bool = True) -> Array:
    """As `onnx_outputs`, of a file with one output."""
    return onnx_outputs(data, frames, optimize=optimize)[0]


def to_rows(frames: Array, tensor: ModelTensor, pre: Preprocessing = _PLAIN) -> Array:
    """Frames in the model's dtype, by the runtime's own rounding.  # (N, ...)"""
    with np.errstate(over="ignore"):
        converter = InputConverter(tensor, pre)
    return np.concatenate([converter.convert(converter.check(frame[None])).copy() for frame in frames])
