"""PyTorch to a quantized ONNX file in QDQ form: int8 weights, uint8 activations, float border.

uint8 activations are what ONNX Runtime has fast CPU kernels for. The app's channels-last layout is part of the file.
Names, tracing metadata and value annotations are replaced or dropped, so that equal networks give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT, ModelTensor
from kasmina_edge.errors import KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import parity
from kasmina_trainer.export.correction import correct_onnx
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.quantization import Candidate, Range

Array = npt.NDArray[Any]
OPSET = 20
INPUT, OUTPUT = "input", "output"
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class OnnxExport:
    """The file and its border."""

    data: bytes
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]


class _ChannelsLast(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.module(x.permute(0, 3, 1, 2))
        return answer


def convert(module: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """A float ONNX model with channels-last input.

    Args:
        module: In evaluation mode, on the CPU; takes (1, C, H, W).
        shape: The app's input shape.  # (1, H, W, C)

    Raises:
        KasminaError: The exporter refuses.
    """
    with quiet():
        try:
            program = torch.onnx.export(
                _ChannelsLast(module).eval(),
                (torch.zeros(shape),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            model: onnx.ModelProto = program.model_proto
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"the network cannot be converted to ONNX: {reason[:300]}") from exc
    return model


def watch(model: onnx.ModelProto, frames: Array) -> Iterator[dict[str, Array]]:
    """Every float value that the graph takes or computes, frame by frame.

    Args:
        model: A float model.
        frames: Model inputs.  # (N, H, W, C)
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = _session(watched.SerializeToString())
    for frame in frames:
        batch = frame[None].astype(np.float32, copy=False)
        values = dict(zip(names, session.run(names, {INPUT: batch}), strict=True))
        yield {n: v for n, v in ({INPUT: batch} | values).items() if v.dtype == np.float32 and v.size}


def quantize(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """QDQ with the given activation ranges.

    Raises:
        KasminaError: The quantizer refuses.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    data = {n: (np.asarray(a, np.float32), np.asarray(b, np.float32)) for n, (a, b) in ranges.items()}
    own = onnx.ModelProto()
    own.CopyFrom(model)
    with quiet():
        try:
            worker = QDQQuantizer(
                own,
                True,  # one scale a channel
                False,  # all eight bits
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                [],
                [],
                sorted({*QLinearOpsRegistry, *QDQRegistry}),
                {},
            )
            worker.quantize_model()
            worker.model.topological_sort()
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"the ONNX network cannot be quantized: {reason[:300]}") from exc
        result: onnx.ModelProto = worker.model.model
    return result


def canonical(model: onnx.ModelProto) -> bytes:
    """Deterministic bytes: values and constants renamed in order of use, tracing metadata and annotations dropped."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    names = {INPUT: INPUT, OUTPUT: OUTPUT, "": ""}
    constants = {c.name: c for c in graph.initializer}
    order: list[onnx.TensorProto] = []
    for node in graph.node:
        for name in node.input:
            if name not in names:
                names[name] = f"v{len(names)}"
                if name in constants:
                    order.append(constants[name])
        for name in node.output:
            names.setdefault(name, f"v{len(names)}")
    del graph.initializer[:]
    for constant in order:
        constant.name = names[constant.name]
        constant.doc_string = ""
        del constant.metadata_props[:]
    graph.initializer.extend(order)
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [names[n] for n in node.input]
        node.output[:] = [names[n] for n in node.output]
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    graph.name, graph.doc_string = "network", ""
    del out.metadata_props[:]
    out.producer_name, out.producer_version, out.doc_string, out.domain, out.model_version = "Kasmina", "", "", "", 0
    return bytes(out.SerializeToString(deterministic=True))


def export_onnx(
    module: nn.Module, *, calibration: Array, held_out: Array, labels: Array | None, float_logits: Array
) -> OnnxExport:
    """Convert, calibrate, quantize, choose and canonicalize.

    Args:
        module: As `convert`.
        calibration: Model inputs that show every domain the network is for.  # (N, H, W, C)
        held_out: Model inputs that nothing was trained or calibrated on.  # (M, H, W, C)
        labels: Their labels, or None.  # (M,)
        float_logits: The module's own answers on them.  # (M, classes)

    Raises:
        KasminaError: The network does not convert or quantize.
    """
    model = convert(fold_norms(module), (1, *calibration.shape[1:]))
    observed = quantization.observe(lambda: watch(model, calibration))
    float_calibration = parity.float_logits(module, calibration)
    candidates = []
    for name, headroom, whole in (("free", 0.0, False), ("free, whole range", 0.0, True), ("free, wide", 0.2, False)):
        ranges = quantization.free_ranges(observed, headroom=headroom, border=(INPUT, OUTPUT), whole=whole)
        data = canonical(quantize(model, ranges))
        shift = (parity.onnx_logits(data, calibration) - float_calibration).mean(axis=0)
        moved = onnx.ModelProto()
        moved.CopyFrom(model)
        if correct_onnx(moved, shift, OUTPUT):
            data = canonical(quantize(moved, ranges))
        agreement, accuracy = parity.measure(parity.onnx_logits(data, held_out), float_logits, labels)
        candidates.append(Candidate(name, data, 0, 0, agreement, accuracy))
        if agreement >= MINIMUM_AGREEMENT:
            break
    chosen = quantization.choose(candidates)
    session = _session(chosen.data)
    return OnnxExport(chosen.data, tuple(_border(session.get_inputs())), tuple(_border(session.get_outputs())))


def output_step(data: bytes) -> float:
    """One quantized step of the answer, in its own units: the scale of the last de-quantization."""
    model = onnx.load_from_string(data)
    constants = {c.name: c for c in model.graph.initializer}
    for node in reversed(model.graph.node):
        if node.op_type == "DequantizeLinear" and OUTPUT in node.output:
            return float(onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)[0])
    raise KasminaError("the ONNX file's answer is not quantized")


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _border(nodes: Any) -> Iterator[ModelTensor]:
    for node in nodes:
        if node.type != "tensor(float)":
            raise KasminaError(f"the ONNX file's {node.name} is {node.type}, tensor(float) is expected")
        yield ModelTensor(name=node.name, shape=tuple(node.shape), dtype="float32")
