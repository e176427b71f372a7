"""PyTorch to a quantized ONNX file in QDQ form: int8 weights, uint8 activations, float border.

uint8 activations are what ONNX Runtime has fast CPU kernels for. The app's channels-last layout is part of the file.
Names, tracing metadata and value annotations are replaced or dropped, so that equal networks give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from kasmina_trainer.export import gates, parity
from kasmina_trainer.export.collector import without_collector
from kasmina_trainer.export.correction import correct_onnx, mean_error
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.judging import Judge
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.export.lookups import looked_up_once
from kasmina_trainer.export.onnx_lineage import Lineage, lineage
from kasmina_trainer.export.packed_weights import PACKED, with_packed_weights
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.quantization import ACCURACY_PRICE, Candidate, Prepared, QuantizeConfig, Range

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


def convert(module: nn.Module, shape: tuple[int, ...], *, channels_last: bool = True) -> onnx.ModelProto:
    """A float ONNX model with channels-last input.

    Args:
        module: In evaluation mode, on the CPU; takes (1, C, ...). Or an `AppModule`.
        shape: The app's input shape.  # (1, ..., C)
        channels_last: As `layout.as_app`.

    Raises:
        InputError: The network does not run on such an input.
        KasminaError: The exporter refuses.
    """
    app = as_app(module, shape, channels_last=channels_last)
    count = len(app.output_names)
    with quiet(), without_collector(), looked_up_once():
        try:
            program = torch.onnx.export(
                app,
                (torch.zeros(shape),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT] if count == 1 else [f"{OUTPUT}{i}" for i in range(count)],
                verbose=False,
            )
            assert program is not None
            model: onnx.ModelProto = program.model_proto
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"the network cannot be converted to ONNX: {reason[:300]}") from exc
    gates.part(model, gates.gate_values(app))
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


def quantize(model: onnx.ModelProto, ranges: Mapping[str, Range], *, leave: Collection[str] = ()) -> onnx.ModelProto:
    """QDQ with the given activation ranges.

    Args:
        model: A float model.
        ranges: Of every float value that is computed or fed.
        leave: Kinds of operators that stay as they are.

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
                sorted({*QLinearOpsRegistry, *QDQRegistry} - set(leave)),
                {},
            )
            worker.quantize_model()
            worker.model.topological_sort()
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"the ONNX network cannot be quantized: {reason[:300]}") from exc
        result: onnx.ModelProto = worker.model.model
    return result


def canonical(model: onnx.ModelProto, kin: Lineage | None = None) -> bytes:
    """Deterministic bytes: values and constants renamed in order of use, tracing metadata and annotations dropped.

    Args:
        model: Any model.
        kin: What it shares with its parent: that keeps the parent's names, and its constants the parent's order.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    names = {INPUT: INPUT, "": "", **{o.name: o.name for o in graph.output}}
    kept = {a: b for a, b in kin.names.items() if a not in names and b not in names.values()} if kin else {}
    first = kin.first if kin else 0
    constants = {c.name: c for c in graph.initializer}
    order: list[onnx.TensorProto] = []

    def rename(name: str) -> None:
        names[name] = kept.get(name) or f"v{first + len(names)}"

    for node in graph.node:
        for name in node.input:
            if name not in names:
                rename(name)
                if name in constants:
                    order.append(constants[name])
        for name in node.output:
            if name not in names:
                rename(name)
    if kin:
        places = {name: i for i, name in enumerate(kin.order)}
        order.sort(key=lambda c: places.get(names[c.name], len(places)))
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
    module: nn.Module,
    *,
    calibration: Array,
    held_out: Array,
    judge: Judge,
    parent: bytes | None = None,
    headroom: float = 0.0,
    config: QuantizeConfig | None = None,
    prepared: Prepared | None = None,
    channels_last: bool = True,
) -> OnnxExport:
    """Convert, calibrate, quantize, choose and canonicalize.

    Args:
        module: As `convert`.
        calibration: Model inputs that show every domain the network is for.  # (N, ..., C)
        held_out: Model inputs that nothing was trained or calibrated on.  # (M, ..., C)
        judge: Compares answers on them with the network's own.
        parent: ONNX file of the bundle this network grew from; its quantization and names are kept where that costs
            little.
        headroom: Share by which ranges are widened, for a network that something may grow on.
        config: With 4-bit weights, matrix products keep float activations and take MatMulNBits weights; the rest is
            int8. None: int8 throughout.
        prepared: What `quantization.prepare` made of the module for ``config``; it is converted in the module's place.
        channels_last: As `layout.as_app`.

    Raises:
        KasminaError: The network does not convert or quantize.
    """
    shape = (1, *calibration.shape[1:])
    model = convert(fold_norms(prepared.module if prepared else module), shape, channels_last=channels_last)
    float_calibration = float_outputs(as_app(module, shape, channels_last=channels_last), calibration)
    leave: tuple[str, ...] = ()
    if config is not None and config.weight_bits == 4:
        model, packed = with_packed_weights(model)
        leave = PACKED if packed else ()
    border = (INPUT, *(o.name for o in model.graph.output))
    observed = quantization.observe(lambda: watch(model, calibration))
    corrects = config is None or config.bias_correction != "none"
    versions = _versions(observed, border, headroom)
    kin = None
    if parent is not None:
        kin = lineage(onnx.load_from_string(parent), quantize(model, versions["free"], leave=leave))
        fits = {
            f"pinned (strain {most:g})": quantization.pinned(versions["free"], kin.ranges, observed, most_strain=most)
            for most in (math.inf, *quantization.STRAINS)
        }
        versions = {**fits, **versions}
    mark = judge.float_accuracy
    candidates: list[Candidate] = []
    for name, ranges in versions.items():
        data = canonical(quantize(model, ranges, leave=leave), kin)
        if corrects:
            data = _corrected(model, data, ranges, calibration, float_calibration, leave, kin)
        agreement, accuracy = judge.measure(parity.onnx_outputs(data, held_out))
        inherited = kin.ranges if kin else {}
        pinned = sum(ranges.get(n) == r for n, r in inherited.items())
        candidates.append(Candidate(name, data, pinned, len(inherited), agreement, accuracy))
        costs_nothing = parent is None or accuracy is None or mark is None or accuracy >= mark - ACCURACY_PRICE
        if agreement >= MINIMUM_AGREEMENT and costs_nothing:
            break
    chosen = quantization.choose(candidates, mark if parent is not None else None)
    return OnnxExport(chosen.data, *border_of(chosen.data))


def _versions(
    observed: Mapping[str, quantization.Observed], border: Sequence[str], headroom: float
) -> dict[str, dict[str, Range]]:
    """Ranges that owe nothing to a parent, by version; the first is the one to begin with."""
    kinds = {"free": (0.0, False), "free, whole range": (0.0, True), "free, wide": (0.2, False)}
    return {
        name: quantization.free_ranges(observed, headroom=headroom + more, border=border, whole=whole)
        for name, (more, whole) in kinds.items()
    }


def export_float_onnx(module: nn.Module, shape: tuple[int, ...], *, channels_last: bool = True) -> OnnxExport:
    """The float network as an ONNX file with deterministic bytes.

    Args:
        module: As `convert`.
        shape: The app's input shape.  # (1, ..., C)
        channels_last: As `layout.as_app`.
    """
    data = canonical(convert(fold_norms(module), shape, channels_last=channels_last))
    return OnnxExport(data, *border_of(data))


def _corrected(
    model: onnx.ModelProto,
    data: bytes,
    ranges: Mapping[str, Range],
    calibration: Array,
    float_calibration: Sequence[Array],
    leave: Collection[str],
    kin: Lineage | None,
) -> bytes:
    """A quantized file with the mean error of its answers taken out, where a last layer's bias can take it."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    changed = False
    answers = parity.onnx_outputs(data, calibration)
    for output, given, wanted in zip(model.graph.output, answers, float_calibration, strict=True):
        changed |= correct_onnx(moved, mean_error(given, wanted), output.name)
    return canonical(quantize(moved, ranges, leave=leave), kin) if changed else data


def output_steps(data: bytes) -> tuple[float, ...]:
    """One quantized step of every output, in its own units; 0.0 where an output is not quantized."""
    model = onnx.load_from_string(data)
    constants = {c.name: c for c in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}

    def step(name: str) -> float:
        node = makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return 0.0
        return float(onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)[0])

    return tuple(step(output.name) for output in model.graph.output)


def border_of(data: bytes) -> tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]]:
    """Inputs and outputs of a file with float border, in order."""
    session = _session(data)
    return tuple(_border(session.get_inputs())), tuple(_border(session.get_outputs()))


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
