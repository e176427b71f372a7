"""How well an exported file reproduces the float network, measured on held-out data on the engines that devices use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT, ModelTensor, Parity, Preprocessing
from kasmina_edge.engines.tensors import InputConverter, OutputConverter
from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.silence import quiet

Array = npt.NDArray[Any]

_PLAIN = Preprocessing()
_BATCH = 256


def float_logits(module: nn.Module, frames: Array) -> Array:
    """The float network's answers.

    Args:
        module: Channels-first, in evaluation mode, on the CPU.
        frames: Model inputs.  # (N, H, W, C)
    """
    channels_first = np.ascontiguousarray(np.moveaxis(frames, -1, 1), dtype=np.float32)
    with torch.no_grad():
        parts = [
            module(torch.from_numpy(channels_first[i : i + _BATCH])).numpy() for i in range(0, len(frames), _BATCH)
        ]
    return np.concatenate(parts)


def litert_answers(data: bytes, quantized: Array, *, reference_kernels: bool = False) -> Array:
    """Raw answers of a TFLite file with one input and one output.

    Args:
        data: The file.
        quantized: Inputs in the model's own dtype.  # (N, ...)
        reference_kernels: LiteRT's reference kernels instead of XNNPACK.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet():
        kind = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
        interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
        interpreter.allocate_tensors()
        entry, leave = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        answers = []
        for frame in quantized:
            interpreter.set_tensor(entry, frame[None])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(leave)[0])
    return np.stack(answers)


def litert_logits(data: bytes, frames: Array, *, reference_kernels: bool = False) -> Array:
    """De-quantized answers of an int8 TFLite file to float inputs.  # (N, classes)"""
    inputs, outputs = flatbuffer.border(flatbuffer.parse(data))
    quantized = to_rows(frames, inputs[0])
    converter = OutputConverter(outputs[0])
    answers = litert_answers(data, quantized, reference_kernels=reference_kernels)
    return np.concatenate([converter.convert(answer[None]) for answer in answers])


def onnx_logits(data: bytes, frames: Array, *, optimize: bool = True) -> Array:
    """Answers of an ONNX file with float border.  # (N, classes)

    Args:
        data: The file.
        frames: Model inputs.  # (N, H, W, C)
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
    return np.concatenate([session.run(None, {name: f[None].astype(np.float32, copy=False)})[0] for f in frames])


def to_rows(frames: Array, tensor: ModelTensor, pre: Preprocessing = _PLAIN) -> Array:
    """Frames in the model's dtype, by the runtime's own rounding.  # (N, ...)"""
    with np.errstate(over="ignore"):
        converter = InputConverter(tensor, pre)
    return np.concatenate([converter.convert(converter.check(frame[None])).copy() for frame in frames])


def measure(logits: Array, reference: Array, labels: Array | None) -> tuple[float, float | None]:
    """Share of equal top answers, and share of right ones (None without labels)."""
    if logits.shape != reference.shape or not len(logits):
        raise InputError(f"parity: {logits.shape} answers against {reference.shape}; at least one and as many needed")
    top = logits.argmax(axis=1)
    return float((top == reference.argmax(axis=1)).mean()), _accuracy(top, labels)


def parity(logits: Array, reference: Array, labels: Array | None) -> Parity:
    """The manifest's numbers for one file.

    Args:
        logits: De-quantized answers of the file.  # (N, classes)
        reference: Answers of the float network.  # (N, classes)
        labels: True classes, or None.  # (N,)
    """
    agreement, accuracy = measure(logits, reference, labels)
    return Parity(
        samples=len(logits),
        top1_agreement=agreement,
        accuracy=accuracy,
        float_accuracy=_accuracy(reference.argmax(axis=1), labels),
        max_abs_difference=float(np.abs(logits.astype(np.float64) - reference).max()),
    )


def require(path: str, found: Parity, minimum: float = MINIMUM_AGREEMENT) -> None:
    """Fail an export that answers differently from the network it was made of. Pure.

    Raises:
        KasminaError: Top-1 agreement is below ``minimum``; the message carries both numbers.
    """
    if found.top1_agreement < minimum:
        raise KasminaError(
            f"{path}: top-1 agreement with the float network is {found.top1_agreement:.2%} on {found.samples} held-out "
            f"inputs, at least {minimum:.0%} is required",
            "Calibrate with frames of every domain, or train with weight decay so that the ranges stay small.",
        )


def _accuracy(top: Array, labels: Array | None) -> float | None:
    return None if labels is None else float((top == labels).mean())
