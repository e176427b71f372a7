"""A ``.tflite`` file as a workload: shapes, options, constants and lives, read in place.

The layout is that of schema.fbs (tensorflow/compiler/mlir/lite/schema); `FlatFile` checks every offset. A file cannot
make this code read more than it has bytes for: tables, indices and shapes are counted against its length.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kasmina_edge.engines.tflite_file import IDENTIFIER, FlatFile
from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.tflite_operators import ACTIVATIONS, CUSTOM, OPERATORS, OPTIONS, RESOURCE, TYPES
from kasmina_edge.hardware_simulator.workload import OpWork, Shape, TensorWork, Workload

MAX_RANK = 8
MAX_ELEMENTS = 1 << 40
_MODEL_CODES, _MODEL_GRAPHS, _MODEL_DESCRIPTION, _MODEL_BUFFERS = 1, 2, 3, 4
_CODE_DEPRECATED, _CODE_CUSTOM, _CODE_VERSION, _CODE_BUILTIN = 0, 1, 2, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS, _GRAPH_NAME = 0, 1, 2, 3, 4
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_VARIABLE, _TENSOR_SIGNATURE = 0, 1, 2, 3, 5, 7
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS, _OPERATOR_OPTIONS = 0, 1, 2, 4
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_WORDS = {"arg_max": "argmax", "padv2": "pad"}
"""Where `KINDS` says it otherwise than the schema."""
_WEIGHTED = ("conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected", "batch_matmul", "conv_3d", "svdf",
             "lstm", "unidirectional_sequence_lstm", "rnn", "unidirectional_sequence_rnn", "prelu",
             "embedding_lookup")  # fmt: skip
_UNFOLLOWED = ("if", "while", "call", "stablehlo_while", "stablehlo_composite")


Wiring = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Of each operation, the tensors that it reads and writes."""


@dataclass(frozen=True)
class _Tensor:
    shape: Shape
    kind: int
    buffer: int
    name: str
    variable: bool


@dataclass(frozen=True)
class _Code:
    kind: str
    word: str
    version: int


def read_tflite(data: bytes, name: str = "") -> Workload:
    """The first subgraph of a file.

    Args:
        data: The file's bytes.
        name: For people; "" takes the file's own.

    Raises:
        BundleError: Not a TFLite file, one that points outside of itself, or one whose shapes are not fixed.
    """
    if data[4:8] != IDENTIFIER:
        raise BundleError(f"not a TFLite file: identifier {data[4:8]!r}, expected {IDENTIFIER!r}")
    try:
        return _Reader(data).workload(name)
    except (struct.error, IndexError, StopIteration, UnicodeDecodeError) as exc:
        raise BundleError(f"a TFLite file of {len(data)} bytes points outside of itself") from exc


class _Reader:
    """One file; its tables are each gone through once."""

    def __init__(self, data: bytes) -> None:
        self._file = FlatFile(data)
        self._room = len(data)
        self._used: set[int] = set()
        self._unpacked: set[int] = set()

    def workload(self, name: str) -> Workload:
        file = self._file
        model = file.follow(0)
        codes = [self._code(code) for code in file.tables(model, _MODEL_CODES)]
        self._buffers = list(file.tables(model, _MODEL_BUFFERS))
        graphs = list(file.tables(model, _MODEL_GRAPHS))
        graph = next(iter(graphs))
        self._tensors = [self._tensor(tensor, i) for i, tensor in enumerate(file.tables(graph, _GRAPH_TENSORS))]
        self._sizes = [self._buffer_size(t.buffer) for t in self._tensors]
        operators = list(file.tables(graph, _GRAPH_OPERATORS))
        wiring = [(self._indices(op, _OPERATOR_INPUTS), self._indices(op, _OPERATOR_OUTPUTS)) for op in operators]
        self._fed = {i for i in self._indices(graph, _GRAPH_INPUTS) if i >= 0}
        given = {i for i in self._indices(graph, _GRAPH_OUTPUTS) if i >= 0}
        self._written = {t for _, outputs in wiring for t in outputs if t >= 0}
        self._find_unpacked(operators, wiring, codes)
        ops = tuple(
            self._operation(i, op, codes[file.scalar(op, _OPERATOR_CODE, "<I")], *wires)
            for i, (op, wires) in enumerate(zip(operators, wiring, strict=True))
        )
        notes = self._notes(len(graphs), {op.kind for op in ops})
        shown = name or self._text(graph, _GRAPH_NAME) or "model"
        return Workload(shown, ops, self._lives(wiring, given), "tflite", notes)

    # ---- the file's tables

    def _code(self, code: int) -> _Code:
        file = self._file
        number = max(file.scalar(code, _CODE_DEPRECATED, "<b"), file.scalar(code, _CODE_BUILTIN, "<i"))
        version = file.scalar(code, _CODE_VERSION, "<i") or 1
        if number == CUSTOM:
            word = self._text(code, _CODE_CUSTOM) or "custom"
            return _Code(word.lower(), word, version)
        word = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"builtin_{number}"
        return _Code(_WORDS.get(word, word), word.upper(), version)

    def _tensor(self, table: int, index: int) -> _Tensor:
        file = self._file
        name = self._text(table, _TENSOR_NAME)
        shape = file.numbers(table, _TENSOR_SHAPE)
        signature = file.numbers(table, _TENSOR_SIGNATURE)
        if len(shape) > MAX_RANK or any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise BundleError(
                f"tensor {index} {name!r}: shape {shape[: MAX_RANK + 1]}; every axis is fixed, there are at most "
                f"{MAX_RANK}, and {MAX_ELEMENTS} elements"
            )
        if any(n < 0 for n in signature[1:]):
            raise BundleError(
                f"tensor {index} {name!r}: shape {signature}; only the first axis, the batch, may be open",
                "Export the model with fixed shapes.",
            )
        return _Tensor(
            shape,
            file.scalar(table, _TENSOR_TYPE, "<b"),
            file.scalar(table, _TENSOR_BUFFER, "<I"),
            name or f"t{index}",
            bool(file.scalar(table, _TENSOR_VARIABLE, "<B")),
        )

    def _indices(self, table: int, number: int) -> tuple[int, ...]:
        found = self._file.numbers(table, number)
        self._room -= 4 * len(found)
        if self._room < 0:
            raise struct.error("more indices than the file has room for")
        if any(not -1 <= i < len(self._tensors) for i in found):
            raise IndexError("a tensor that is not there")
        return found

    def _buffer_size(self, number: int) -> int:
        """Bytes of a constant; 0 for an activation."""
        if not number:
            return 0
        file, table = self._file, self._buffers[number]
        place = file.field(table, _BUFFER_DATA)
        if place is None:
            start, size = file.scalar(table, _BUFFER_OFFSET, "<Q"), file.scalar(table, _BUFFER_SIZE, "<Q")
            if start <= 1:
                return 0
        else:
            start = file.follow(place) + 4
            (size,) = struct.unpack_from("<I", file.data, start - 4)
        if start + size > len(file.data):
            raise BundleError(f"constant {number}: {size} bytes at {start} of a file of {len(file.data)}")
        return int(size)

    def _text(self, table: int, number: int) -> str:
        place = self._file.field(table, number)
        if place is None:
            return ""
        start = self._file.follow(place)
        (size,) = struct.unpack_from("<I", self._file.data, start)
        return self._file.data[start + 4 : start + 4 + min(size, 80)].decode(errors="replace")

    # ---- operations

    def _constant(self, index: int) -> bool:
        """Whether a tensor's numbers stand in the file, as they are or packed."""
        return index in self._unpacked or (
            self._sizes[index] > 0 and index not in self._written and index not in self._fed
        )

    def _find_unpacked(self, operators: list[int], wiring: Wiring, codes: list[_Code]) -> None:
        """Outputs of operations that only unpack a constant: half-precision or sparse weights."""
        for op, (inputs, outputs) in zip(operators, wiring, strict=True):
            kind = codes[self._file.scalar(op, _OPERATOR_CODE, "<I")].kind
            if kind in ("dequantize", "densify") and all(i >= 0 and self._constant(i) for i in inputs):
                self._unpacked |= set(outputs)

    def _operation(
        self, index: int, table: int, code: _Code, reads: tuple[int, ...], writes: tuple[int, ...]
    ) -> OpWork:
        tensors = self._tensors
        moving = [i for i in reads if i >= 0 and not self._constant(i) and tensors[i].kind != RESOURCE]
        fixed = [i for i in reads if i >= 0 and self._constant(i)]
        outputs = tuple(tensors[i].shape for i in writes if i >= 0)
        inputs = tuple(tensors[i].shape for i in moving)
        main = _main_constant(code.kind, reads)
        weights: Shape = ()
        weights_type = ""
        if main >= 0 and self._constant(main):
            weights, weights_type = tensors[main].shape, _type(tensors[main].kind)
        options = self._options(table, code.kind)
        first = [*moving[:1], *(i for i in writes[:1] if i >= 0)]
        return OpWork(
            kind=code.kind,
            inputs=inputs,
            outputs=outputs,
            dtype=_type(tensors[first[0]].kind) if first else "int32",
            weights=weights,
            weights_dtype=weights_type,
            constant_bytes=sum(self._once(i) for i in fixed),
            macs=_macs(code.kind, [tensors[i].shape if i >= 0 else () for i in reads], outputs, options),
            stride=(options.get("stride_h", 1) or 1, options.get("stride_w", 1) or 1),
            dilation=(options.get("dilation_h", 1) or 1, options.get("dilation_w", 1) or 1),
            groups=_groups(code.kind, inputs, weights),
            version=code.version,
            activation=_activation(options.get("activation", 0)),
            place=f"op {index} {code.word}",
        )

    def _once(self, index: int) -> int:
        """A constant's bytes at its first reader, 0 at every later one."""
        buffer = self._tensors[index].buffer
        if buffer in self._used or index in self._unpacked:
            return 0
        self._used.add(buffer)
        return self._sizes[index]

    def _options(self, operator: int, kind: str) -> dict[str, int]:
        place = self._file.field(operator, _OPERATOR_OPTIONS)
        if place is None or kind not in OPTIONS:
            return {}
        table = self._file.follow(place)
        return {key: self._file.scalar(table, number, how) for key, (number, how) in OPTIONS[kind].items()}

    # ---- lives

    def _lives(self, wiring: Wiring, given: set[int]) -> tuple[TensorWork, ...]:
        readers, first = defaultdict(list), dict.fromkeys(sorted(self._fed), -1)
        for i, (reads, writes) in enumerate(wiring):
            for tensor in dict.fromkeys(reads):
                readers[tensor].append(i)
            for tensor in writes:
                if tensor >= 0:
                    first.setdefault(tensor, i)
        end = len(wiring)
        kept = [i for i, t in enumerate(self._tensors) if t.variable and i not in first]
        first.update(dict.fromkeys(kept, 0))
        found = []
        for index, born in first.items():
            held, read = self._tensors[index], tuple(readers[index])
            last = end if index in given else max((*read, born))
            if held.variable:
                born, last = 0, max(end - 1, 0)
            found.append(TensorWork(held.name, held.shape, _type(held.kind), born, last, read, held.variable))
        return (*_unique(found), *self._resources(wiring, end))

    def _resources(self, wiring: Wiring, end: int) -> list[TensorWork]:
        """Variables behind handles: their shape is that of what is read from them or written to them."""
        found: dict[str, TensorWork] = {}
        for reads, writes in wiring:
            handles = [i for i in reads[:1] if i >= 0 and self._tensors[i].kind == RESOURCE]
            values = [i for i in (*reads[1:2], *writes[:1]) if i >= 0 and self._tensors[i].kind != RESOURCE]
            if handles and values:
                name, value = self._tensors[handles[0]].name, self._tensors[values[0]]
                kept = TensorWork(f"variable {name}", value.shape, _type(value.kind), 0, max(end - 1, 0), kept=True)
                found.setdefault(name, kept)
        return list(found.values())

    def _notes(self, graphs: int, kinds: set[str]) -> tuple[str, ...]:
        notes = []
        if graphs > 1:
            notes.append(f"the file has {graphs} subgraphs, only the first is counted")
        inside = sorted(kinds & set(_UNFOLLOWED))
        if inside:
            notes.append(f"what {', '.join(inside)} runs inside is not counted")
        return tuple(notes)


def _unique(tensors: Sequence[TensorWork]) -> list[TensorWork]:
    """Files may give one name twice."""
    seen: set[str] = set()
    found = []
    for i, tensor in enumerate(tensors):
        found.append(replace(tensor, name=f"{tensor.name}#{i}") if tensor.name in seen else tensor)
        seen.add(found[-1].name)
    return found


def _type(number: int) -> str:
    return TYPES[number] if 0 <= number < len(TYPES) else "float32"


def _activation(number: int) -> str:
    return ACTIVATIONS[number] if 0 <= number < len(ACTIVATIONS) else ""


def _main_constant(kind: str, reads: tuple[int, ...]) -> int:
    """Which operand holds an operation's weights; -1 where there is none."""
    if kind == "gather":
        return reads[0] if reads else -1
    return reads[1] if kind in _WEIGHTED and len(reads) > 1 else -1


def _groups(kind: str, inputs: tuple[Shape, ...], weights: Shape) -> int:
    if kind == "depthwise_conv_2d" and inputs and inputs[0]:
        return inputs[0][-1]
    if kind == "conv_2d" and inputs and inputs[0] and weights and weights[-1]:
        return max(1, inputs[0][-1] // weights[-1])
    return 1


def _macs(kind: str, reads: list[Shape], outputs: tuple[Shape, ...], options: dict[str, int]) -> int:
    """Multiply-accumulates from the operands' shapes; 0 for what does not multiply or lacks an operand."""
    results = math.prod(outputs[0]) if outputs else 0
    weights = reads[1] if len(reads) > 1 else ()
    if kind in ("conv_2d", "depthwise_conv_2d") and len(weights) == 4:
        return results * math.prod(weights[1:] if kind == "conv_2d" else weights[1:3])
    if kind == "transpose_conv" and len(weights) == 4 and len(reads) > 2:
        return math.prod(reads[2]) * math.prod(weights[:3])
    if kind == "conv_3d" and len(weights) == 5:
        return results * math.prod(weights[:4])
    if kind == "fully_connected" and weights:
        return results * weights[-1]
    if kind == "batch_matmul" and len(reads[0]) >= 2:
        return results * reads[0][-2 if options.get("adj_x") else -1]
    if kind in ("lstm", "unidirectional_sequence_lstm"):
        steps = math.prod(reads[0][:-1])
        return steps * sum(math.prod(s) for s in (*reads[1:9], *reads[16:17]) if len(s) == 2)
    if kind in ("rnn", "unidirectional_sequence_rnn"):
        return math.prod(reads[0][:-1]) * sum(math.prod(s) for s in reads[1:3] if len(s) == 2)
    if kind == "svdf":
        return math.prod(reads[0][:-1]) * sum(math.prod(s) for s in reads[1:3] if len(s) == 2)
    return 0
