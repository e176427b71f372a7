"""The wiring of a TFLite file, read in place: which operator reads and writes which tensor, and where constants lie.

A device needs no more than that to find a graft's branch, so no flatbuffers library is asked for. Layout: the
FlatBuffers binary format (flatbuffers.dev/internals) and tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kasmina_edge.engines.tflite_file import IDENTIFIER, FlatFile
from kasmina_edge.errors import BundleError

_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_CODE_DEPRECATED, _CODE_BUILTIN = 0, 3
_GRAPH_TENSORS, _GRAPH_OPERATORS = 0, 3
_TENSOR_BUFFER = 2
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_ADD = 0  # BuiltinOperator.ADD
_REARRANGING = (22, 39, 43, 70)  # RESHAPE, TRANSPOSE, SQUEEZE, EXPAND_DIMS


@dataclass(frozen=True)
class Operator:
    """One step of the graph.

    Attributes:
        kind: ``BuiltinOperator`` code of schema.fbs.
        inputs: Tensor indices; -1 where an optional input is absent.
        outputs: Tensor indices.
    """

    kind: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class TfliteGraph:
    """The first subgraph of a file.

    Args:
        data: The file's bytes.

    Raises:
        BundleError: Not a TFLite file, or one that points outside of itself.

    Attributes:
        operators: In order of execution.
        buffers: Of each tensor, the number of its constant buffer; 0 is the empty one of activations.
    """

    def __init__(self, data: bytes) -> None:
        if data[4:8] != IDENTIFIER:
            raise BundleError(f"not a TFLite file: identifier {data[4:8]!r}, expected {IDENTIFIER!r}")
        file = self._file = FlatFile(data)
        self._data = data
        try:
            model = file.follow(0)
            graphs = file.tables(model, _MODEL_SUBGRAPHS)
            self._buffer_tables = list(file.tables(model, _MODEL_BUFFERS))
            graph = next(graphs)
            codes = [
                max(file.scalar(code, _CODE_DEPRECATED, "<b"), file.scalar(code, _CODE_BUILTIN, "<i"))
                for code in file.tables(model, _MODEL_CODES)
            ]
            self.operators = tuple(
                Operator(
                    codes[file.scalar(op, _OPERATOR_CODE, "<I")],
                    file.numbers(op, _OPERATOR_INPUTS),
                    file.numbers(op, _OPERATOR_OUTPUTS),
                )
                for op in file.tables(graph, _GRAPH_OPERATORS)
            )
            self.buffers = tuple(
                file.scalar(tensor, _TENSOR_BUFFER, "<I") for tensor in file.tables(graph, _GRAPH_TENSORS)
            )
        except (struct.error, StopIteration, IndexError) as exc:
            raise BundleError(f"a TFLite file of {len(data)} bytes points outside of itself") from exc

    def producer(self, tensor: int) -> Operator | None:
        """The operator that writes ``tensor``; None for inputs and constants."""
        return next((op for op in self.operators if tensor in op.outputs), None)

    def constant(self, tensor: int) -> tuple[int, int] | None:
        """Where a constant tensor's bytes lie: offset and length; None for an activation.

        Raises:
            BundleError: They lie outside of the file.
        """
        if not 0 <= tensor < len(self.buffers):
            return None
        number, file = self.buffers[tensor], self._file
        if not 0 < number < len(self._buffer_tables):
            return None
        try:
            place = file.field(self._buffer_tables[number], _BUFFER_DATA)
            if place is None:
                return self._constant_behind(tensor, self._buffer_tables[number])
            start = file.follow(place)
            (length,) = struct.unpack_from("<I", self._data, start)
        except struct.error as exc:
            raise BundleError(f"constant {tensor} of a TFLite file lies outside of it") from exc
        if start + 4 + length > len(self._data):
            raise BundleError(f"constant {tensor}: {length} bytes at {start + 4} of a file of {len(self._data)}")
        return (start + 4, length) if length else None

    def _constant_behind(self, tensor: int, buffer: int) -> tuple[int, int] | None:
        """Large files hold their constants behind the FlatBuffer (schema.fbs, Buffer.offset)."""
        file = self._file
        start, length = file.scalar(buffer, _BUFFER_OFFSET, "<Q"), file.scalar(buffer, _BUFFER_SIZE, "<Q")
        if start <= 1 or not length:
            return None
        if start + length > len(self._data):
            raise BundleError(f"constant {tensor}: {length} bytes at {start} of a file of {len(self._data)}")
        return start, length

    def branch(self, entry: int, leave: int) -> tuple[Operator, ...] | None:
        """The operators of a residual branch: what nothing needs but the addition of something to ``entry``.

        A branch reads ``entry``, or what ``entry`` was computed from: what others need as well is the host's.

        Args:
            entry: The tensor that is added to.
            leave: The sum.

        Returns:
            In order of execution; None where the file is built otherwise: ``leave`` is not the sum of ``entry`` and one
            other activation.
        """
        last = self.producer(leave)
        if last is None or last.kind != _ADD or entry == leave or len(last.inputs) != 2 or entry not in last.inputs:
            return None
        wanted = {i for i in last.inputs if i != entry}
        found: list[Operator] = []
        for op in reversed(self.operators[: self.operators.index(last)]):
            if entry in op.outputs or wanted.isdisjoint(op.outputs):
                continue
            if all(id(reader) in {id(last), *map(id, found)} for reader in self._readers(op)):
                found.append(op)
                wanted.update(op.inputs)
        return tuple(reversed(found)) or None

    def _readers(self, operator: Operator) -> list[Operator]:
        return [op for op in self.operators if not set(operator.outputs).isdisjoint(op.inputs)]

    def silenced(
        self, branches: Sequence[tuple[Operator, ...]], zero_points: Mapping[int, int] | None = None
    ) -> bytes | None:
        """The file with branches that add nothing: the constants of each one's last operator are zero - its gate.

        Args:
            branches: As `branch` gives them.
            zero_points: Of 8-bit constants whose zero is not 0.

        Returns:
            None where a last operator has no constants, or shares them with an operator that has to go on: then it
            cannot be silenced alone.
        """
        last = [self._closing(branch) for branch in branches]
        kept = {
            span[0]
            for op in self.operators
            if op not in last
            for tensor in op.inputs
            if (span := self.constant(tensor)) is not None
        }
        data = bytearray(self._data)
        for operator in last:
            spans = [(t, span) for t in operator.inputs if (span := self.constant(t)) is not None]
            if not spans:
                return None
            for tensor, (start, length) in spans:
                zeros = bytes([(zero_points or {}).get(tensor, 0) & 0xFF]) * length
                if start in kept and data[start : start + length] != zeros:
                    return None
                data[start : start + length] = zeros
        return bytes(data)

    def _closing(self, branch: tuple[Operator, ...]) -> Operator:
        """The last operator of a branch that computes something."""
        return next((op for op in reversed(branch) if op.kind not in _REARRANGING), branch[-1])
