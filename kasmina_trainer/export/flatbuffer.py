"""TFLite files as data: read, write back in one canonical layout, and look at the operators.

Canonical: every tensor name but the inputs' and outputs' is empty (names take a third of a small int8 file), constant
buffers are 16-byte aligned as the schema's ``force_align`` asks, activations share the empty buffer 0, equal constants
share one buffer except for gates, which have one each, and tensors, buffers and operator codes are numbered by first
use - or, for a grown network, as its parent numbers them, with what is new behind. So a graft moves as few bytes of its
host as it can, and equal graphs give equal bytes.
Layout and terms: tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from kasmina_edge.contracts.manifest import ModelTensor
from kasmina_edge.errors import KasminaError

FILE_IDENTIFIER = b"TFL3"
BUFFER_ALIGNMENT = 16
INPUT, OUTPUT = "input", "output"
REARRANGING = ("RESHAPE", "TRANSPOSE", "EXPAND_DIMS", "SQUEEZE")
"""Operators that move values and compute nothing."""

_OPERATORS: dict[int, str] = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
_TYPES: dict[int, str] = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}


@dataclass(frozen=True)
class Operator:
    """One operator of the graph.

    Attributes:
        kind: Builtin name with its options, e.g. ``CONV_2D stride=...``; equal for operators that compute alike.
        inputs: Tensor indices; -1 where an optional input is absent.
        outputs: Tensor indices.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def parse(data: bytes) -> Any:
    """The object tree (``schema.ModelT``) of a file; every function here looks at its first subgraph.

    Raises:
        KasminaError: Not a TFLite file.
    """
    if data[4:8] != FILE_IDENTIFIER:
        raise KasminaError(f"not a TFLite file: identifier {data[4:8]!r}, expected {FILE_IDENTIFIER!r}")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # large files hold their constants behind the FlatBuffer (schema.fbs, Buffer.offset)
            if buffer.offset + buffer.size > len(data):
                raise KasminaError(
                    f"a constant of {buffer.size} bytes at {buffer.offset} lies outside of a file of {len(data)} bytes"
                )
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def serialize(model: Any) -> bytes:
    """The bytes of an object tree, constant buffers aligned to 16."""
    model.buffers = [_AlignedBuffer(b.data) for b in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def operators(model: Any) -> tuple[Operator, ...]:
    """The operators in order of execution."""
    found = []
    for op in model.subgraphs[0].operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = _OPERATORS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "UNKNOWN")
        options = sorted(vars(op.builtinOptions).items()) if op.builtinOptions is not None else []
        kind = " ".join([name, *(f"{k}={v}" for k, v in options)])
        found.append(Operator(name, kind, _indices(op.inputs), _indices(op.outputs)))
    return tuple(found)


def constant(model: Any, index: int) -> npt.NDArray[np.uint8] | None:
    """The bytes of a constant tensor; None for an activation or an absent input."""
    if index < 0:
        return None
    data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
    return None if data is None or len(data) == 0 else np.asarray(data, dtype=np.uint8)


def residual_gates(model: Any) -> dict[int, tuple[int, int]]:
    """The single constant numbers that multiply what is then added to something: the gates of residual branches.

    Returns:
        By the gate's tensor: the tensor that the branch is added to, and the one that the addition writes.
    """
    ops = operators(model)
    readers: dict[int, list[Operator]] = {}
    for op in ops:
        for index in op.inputs:
            readers.setdefault(index, []).append(op)
    found: dict[int, tuple[int, int]] = {}
    for op in ops:
        single = [i for i in op.inputs if math.prod(shape(model, i)) == 1 and constant(model, i) is not None]
        if op.name != "MUL" or len(single) != 1:
            continue
        product = op.outputs[0]
        while len(behind := readers.get(product, [])) == 1 and behind[0].name in REARRANGING:
            product = behind[0].outputs[0]
        if len(behind) == 1 and behind[0].name == "ADD":
            others = [i for i in behind[0].inputs if i != product]
            if len(others) == 1 and constant(model, others[0]) is None:
                found[single[0]] = (others[0], behind[0].outputs[0])
    return found


def type_name(model: Any, index: int) -> str:
    """``INT8``, ``FLOAT32``, ... of a tensor."""
    return _TYPES[model.subgraphs[0].tensors[index].type]


def shape(model: Any, index: int) -> tuple[int, ...]:
    """Shape of a tensor, batch first."""
    found = model.subgraphs[0].tensors[index].shape
    return () if found is None else tuple(int(n) for n in found)


def scale_and_zero(model: Any, index: int) -> tuple[float, int] | None:
    """Scale and zero point of a tensor that is quantized as a whole; None otherwise."""
    quantization = model.subgraphs[0].tensors[index].quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def border(model: Any, *, floats: bool = False) -> tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]]:
    """Inputs and outputs of a full-int8 file, in order.

    Args:
        model: The object tree.
        floats: Let float32 pass as well.

    Raises:
        KasminaError: One of them is not int8.
    """
    graph = model.subgraphs[0]
    inputs = tuple(_border_tensor(model, int(i), floats) for i in graph.inputs)
    return inputs, tuple(_border_tensor(model, int(i), floats) for i in graph.outputs)


def _border_tensor(model: Any, index: int, floats: bool) -> ModelTensor:
    scheme, kind = scale_and_zero(model, index), type_name(model, index)
    name = tensor_names(model)[index]
    if floats and kind == "FLOAT32":
        return ModelTensor(name=name, shape=shape(model, index), dtype="float32")
    if scheme is None or kind != "INT8":
        raise KasminaError(f"tensor {name or index} of the exported file is {kind}, INT8 is needed")
    return ModelTensor(name=name, shape=shape(model, index), dtype="int8", scale=scheme[0], zero_point=scheme[1])


def number_tensors(model: Any) -> None:
    """Name every tensor ``t<index>``: short, unique, and free of module paths."""
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = f"t{index}".encode()


def tensor_names(model: Any) -> list[str]:
    """Names by tensor index."""
    return [(t.name or b"").decode() for t in model.subgraphs[0].tensors]


def float_operators(model: Any) -> tuple[str, ...]:
    """Operators that read or write anything but whole numbers, with the types: ``ADD (FLOAT32)``."""
    whole = {"INT4", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL"}
    found = []
    for op in operators(model):
        types = sorted({type_name(model, i) for i in (*op.inputs, *op.outputs) if i >= 0} - whole)
        if types:
            found.append(f"{op.name} ({', '.join(types)})")
    return tuple(found)


def unsupported_operators(model: Any) -> tuple[str, ...]:
    """Operators, of any subgraph, that LiteRT's runtime has no kernel for: StableHLO left-overs and custom ones."""
    names = {_OPERATORS.get(max(c.builtinCode, c.deprecatedBuiltinCode), "UNKNOWN") for c in model.operatorCodes}
    return tuple(sorted(n for n in names if n.startswith("STABLEHLO_") or n in ("CUSTOM", "UNKNOWN")))


def canonical(model: Any, parent: Any | None = None, twins: Mapping[int, int] | None = None) -> dict[int, int]:
    """Renumber and strip a model in place.

    Args:
        model: The object tree to rewrite.
        parent: Canonical object tree of the network this one was grown from.
        twins: Tensor of ``model`` to the tensor of ``parent`` that it is; at most one each way.

    Returns:
        New tensor index by old one. Tensors that nothing uses are gone.
    """
    graph = model.subgraphs[0]
    order = _tensor_order(model, twins or {})
    moved = {old: new for new, old in enumerate(order)}
    tensors = [graph.tensors[old] for old in order]
    apart = residual_gates(model)
    buffers, seen = [schema.BufferT()], dict[bytes, int]()
    for old, tensor in zip(order, tensors, strict=True):
        data = constant(model, old)
        if data is None:
            tensor.buffer = 0
            continue
        if old in apart:
            tensor.buffer = len(buffers)
            buffers.append(_AlignedBuffer(data))
            continue
        key = data.tobytes()
        if key not in seen:
            seen[key] = len(buffers)
            buffers.append(_AlignedBuffer(data))
        tensor.buffer = seen[key]
    kept_metadata = []
    for entry in model.metadata or []:
        if entry.name == b"min_runtime_version":
            buffers.append(_AlignedBuffer(np.asarray(model.buffers[entry.buffer].data, dtype=np.uint8)))
            entry.buffer = len(buffers) - 1
            kept_metadata.append(entry)
    model.metadata, model.metadataBuffer = kept_metadata, None
    model.description = b"Kasmina"
    for tensor in tensors:
        tensor.name = b""
    for op in graph.operators:
        op.inputs = [moved[i] if i >= 0 else -1 for i in _indices(op.inputs)]
        op.outputs = [moved[i] for i in _indices(op.outputs)]
    graph.inputs = [moved[i] for i in _indices(graph.inputs)]
    graph.outputs = [moved[i] for i in _indices(graph.outputs)]
    graph.tensors, graph.name, model.buffers = tensors, b"", buffers
    _name_border(model)
    _order_codes(model, parent)
    return moved


def _name_border(model: Any) -> None:
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    for stem, indices, attribute in ((INPUT, graph.inputs, "inputs"), (OUTPUT, graph.outputs, "outputs")):
        maps = []
        for place, index in enumerate(indices):
            name = (stem if len(indices) == 1 else f"{stem}{place}").encode()
            graph.tensors[index].name = name
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            maps.append(entry)
        setattr(signature, attribute, maps)
    model.signatureDefs = [signature]


def _tensor_order(model: Any, twins: Mapping[int, int]) -> list[int]:
    graph = model.subgraphs[0]
    used: dict[int, None] = dict.fromkeys(_indices(graph.inputs))
    for op in graph.operators:
        used.update(dict.fromkeys(i for i in (*_indices(op.inputs), *_indices(op.outputs)) if i >= 0))
    used.update(dict.fromkeys(_indices(graph.outputs)))
    known = sorted((i for i in used if i in twins), key=lambda i: twins[i])
    return [*known, *(i for i in used if i not in twins)]


def _order_codes(model: Any, parent: Any | None) -> None:
    def key(code: Any) -> tuple[int, int]:
        return max(code.builtinCode, code.deprecatedBuiltinCode), code.version

    ranks = {key(c): i for i, c in enumerate(parent.operatorCodes)} if parent is not None else {}
    used = dict.fromkeys(op.opcodeIndex for op in model.subgraphs[0].operators)
    order = sorted(used, key=lambda i: ranks.get(key(model.operatorCodes[i]), len(ranks)))
    places = {old: new for new, old in enumerate(order)}
    for op in model.subgraphs[0].operators:
        op.opcodeIndex = places[op.opcodeIndex]
    model.operatorCodes = [model.operatorCodes[i] for i in order]


def _indices(values: Sequence[int] | npt.NDArray[Any] | None) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """The generated class forgets the schema's ``force_align: 16``."""

    def __init__(self, data: Any = None) -> None:
        super().__init__()
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated classes' name
        """Write the vector aligned, then the table."""
        vector = None
        if self.data is not None and len(self.data):
            body = np.asarray(self.data, dtype=np.uint8).tobytes()
            builder.StartVector(1, len(body), BUFFER_ALIGNMENT)
            builder.head -= len(body)
            builder.Bytes[builder.head : builder.head + len(body)] = body
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        end: int = schema.BufferEnd(builder)
        return end
