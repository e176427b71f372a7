"""An ``.onnx`` file as a workload, as ONNX Runtime would run it after its own simplifications.

A quantize-dequantize pair is folded onto its neighbours: an operation between a DequantizeLinear and a QuantizeLinear
counts as int8, and its weights behind a DequantizeLinear as int8 constants. A batch normalisation, a Relu or a
Clip(0, 6) that alone reads a convolution, product or sum is part of it. Images are told channels last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.onnx_folding import folded
from kasmina_edge.hardware_simulator.onnx_graph import MAX_KNOWN, Constant, Graph, Node, OpenShape, checked
from kasmina_edge.hardware_simulator.onnx_operators import ALIASES, FUSED_BEHIND
from kasmina_edge.hardware_simulator.onnx_shapes import output_shapes
from kasmina_edge.hardware_simulator.onnx_values import MISFITS, Draft, Value, constant_value, misfit
from kasmina_edge.hardware_simulator.onnx_workload import workload_of
from kasmina_edge.hardware_simulator.workload import Shape, Workload

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
"""Operators that no constants make constant."""
_SECOND_TYPES = {"ArgMax": "int64", "ArgMin": "int64", "Shape": "int64", "ConvInteger": "int32",
                 "MatMulInteger": "int32", "NonZero": "int64"}  # fmt: skip


def read_onnx(
    graph: Graph,
    name: str = "",
    inputs: Mapping[str, Shape] | None = None,
    constants: Mapping[str, float] | None = None,
) -> Workload:
    """The main graph of a file; of an If, the branch that multiplies more.

    Args:
        graph: Of the file (`onnx_graph.read_graph`).
        name: For people; "" takes the file's own.
        inputs: Whole shapes by input name, for open axes. An open first axis counts as 1 without it.
        constants: Inputs that are always fed the same number; an If that hangs on them is decided by it.

    Raises:
        BundleError: A shape is open that nobody gives, or a node does not fit its operands.
    """
    reader = _Reader(dict(inputs or {}), dict(constants or {}))
    fed = reader.feed(graph)
    reader.run(graph)
    given = [reader.value(n) for n in graph.outputs if n in reader.scope]
    return workload_of(name or graph.name or "model", reader.drafts, fed, given, reader.notes)


class _Reader:
    """Goes through the nodes once, in order, and knows every tensor's shape when it comes to it."""

    def __init__(self, told: dict[str, Shape], same: dict[str, float]) -> None:
        self._told, self._same = told, same
        self.scope: dict[str, Value] = {}
        self.drafts: list[Draft] = []
        self.notes: dict[str, None] = {}
        self._uses: Counter[str] = Counter()
        self._ends: set[str] = set()
        self._count = 0

    def value(self, name: str) -> Value:
        return self.scope[name]

    def feed(self, graph: Graph) -> list[Value]:
        """The graph's inputs with fixed shapes."""
        found = []
        for name, (dtype, shape) in graph.inputs.items():
            value = Value(name, self._fixed(name, shape), dtype)
            if name in self._same and math.prod(value.shape) <= MAX_KNOWN:
                value.numbers = (self._same[name],) * math.prod(value.shape)
            self.scope[name] = value
            found.append(value)
        return found

    def run(self, graph: Graph) -> None:
        """Append a graph's operations."""
        for name, constant in graph.constants.items():
            self.scope[name] = constant_value(name, constant)
        for node in graph.nodes:
            self._uses.update(node.inputs)
        self._ends |= set(graph.outputs)
        readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        for node in graph.nodes:
            try:
                self._step(node, graph, readers)
            except MISFITS as exc:
                raise misfit(f"op {self._count} {node.kind}") from exc

    # ---- one node

    def _step(self, node: Node, graph: Graph, readers: Mapping[str, list[Node]]) -> None:
        operands = [self._operand(name, node) for name in node.inputs]
        if node.kind == "If":
            return self._branch(node)
        if node.kind == "Constant":
            self.scope[node.outputs[0]] = constant_value(node.outputs[0], node.constant or Constant((), "float32"))
            return None
        known = folded(node, [(v.shape, v.numbers) for v in operands])
        if known is not None:
            shape, numbers = known
            self.scope[node.outputs[0]] = Value(node.outputs[0], shape, "int64", constant=True, numbers=numbers)
            return None
        shapes = self._shapes(node, operands, graph)
        dtype = self._dtype(node, operands, graph)
        if operands and all(v.constant for v in operands) and node.kind not in RANDOM and not node.graphs:
            for name, shape in zip(node.outputs, shapes, strict=False):
                self.scope[name] = Value(name, shape, _kept_type(node, operands, dtype), constant=True)
            return None
        if node.kind in ALIASES and operands:
            self.scope[node.outputs[0]] = operands[0]
            return None
        if node.kind in ("QuantizeLinear", "DequantizeLinear") and self._folds(node, operands[0], dtype, readers):
            return None
        if self._joins(node, operands):
            return None
        self._append(node, operands, shapes, dtype)
        return None

    def _append(self, node: Node, operands: list[Value], shapes: Sequence[Shape], dtype: str) -> None:
        draft = Draft(node, operands, [], f"op {self._count} {node.kind}")
        self._count += 1
        for i, name in enumerate(node.outputs):
            if name:
                kind = "int64" if node.kind == "TopK" and i == 1 else dtype
                value = Value(name, shapes[i] if i < len(shapes) else (), kind, writer=draft)
                self.scope[name] = value
                draft.outputs.append(value)
        if node.graphs:
            self.notes[f"what {node.kind} runs inside is not counted"] = None
        self.drafts.append(draft)

    def _folds(self, node: Node, source: Value, dtype: str, readers: Mapping[str, list[Node]]) -> bool:
        """Whether a QuantizeLinear or DequantizeLinear is no operation of its own."""
        out = node.outputs[0]
        if node.kind == "DequantizeLinear":
            if source.constant:
                self.scope[out] = Value(out, source.shape, source.dtype, constant=True)
                return True
            behind = readers.get(out, [])
            quantized = all(
                self._uses[name] and all(n.kind == "QuantizeLinear" for n in readers.get(name, []))
                for reader in behind
                for name in reader.outputs
                if name and reader.kind != "QuantizeLinear"
            )
            if behind and out not in self._ends and quantized:
                self.scope[out] = source
                return True
            return False
        alone = self._uses[node.inputs[0]] == 1 and node.inputs[0] not in self._ends
        if source.constant or source.dtype == dtype:
            self.scope[out] = Value(out, source.shape, dtype, True) if source.constant else source
            return True
        if alone and source.writer is not None and source.writer.node.kind != "DequantizeLinear":
            source.dtype = dtype
            self.scope[out] = source
            return True
        return False

    def _joins(self, node: Node, operands: list[Value]) -> bool:
        """Whether a normalisation or activation is part of the operation that it alone reads."""
        if not operands or operands[0].writer is None or not node.outputs:
            return False
        source, before = operands[0], operands[0].writer
        alone = self._uses[node.inputs[0]] == 1 and node.inputs[0] not in self._ends
        if not alone or before.node.kind not in FUSED_BEHIND or before.activation or len(before.outputs) != 1:
            return False
        if node.kind == "BatchNormalization":
            if before.node.kind not in ("Conv", "ConvTranspose"):
                return False
        elif node.kind in ("Relu", "Clip"):
            before.activation = "relu6" if node.kind == "Clip" else "relu"
        else:
            return False
        self.scope[node.outputs[0]] = source
        return True

    def _branch(self, node: Node) -> None:
        """Of an If, the branch that costs more."""
        best: tuple[int, list[Draft], list[Value], int] | None = None
        kept, count = self.drafts, self._count
        condition = self._operand(node.inputs[0], node).numbers if node.inputs else None
        keys = (
            ("then_branch", "else_branch") if condition is None else (("else", "then")[condition[0] != 0] + "_branch",)
        )
        for key in keys:
            graph = node.graphs.get(key)
            if graph is None:
                continue
            outer = dict(self.scope)
            self.drafts, self._count = [], count
            self.run(graph)
            macs = sum(d.description.macs for d in self.drafts)
            found = [self.scope[n] for n in graph.outputs if n in self.scope]
            if best is None or macs > best[0] or (macs == best[0] and len(self.drafts) > len(best[1])):
                best = (macs, self.drafts, found, self._count)
            self.scope = outer
        self.drafts, self._count = kept, count
        if best is None:
            raise BundleError("an If without branches")
        self.drafts += best[1]
        self._count = best[3]
        self.scope.update(zip(node.outputs, best[2], strict=False))
        if condition is None:
            self.notes["of an If, the branch that multiplies more is counted"] = None

    # ---- shapes and types

    def _operand(self, name: str, node: Node) -> Value:
        if not name:
            return Value("", (), "float32", constant=True)
        if name not in self.scope:
            raise BundleError(f"{node.kind}: input {name!r} is written by no operation before it")
        return self.scope[name]

    def _shapes(self, node: Node, operands: Sequence[Value], graph: Graph) -> list[Shape]:
        found = output_shapes(node, [v.shape for v in operands], [v.numbers for v in operands]) or []
        for i, name in enumerate(node.outputs):
            if i < len(found) or not name:
                continue
            _, told = graph.told.get(name) or graph.outputs.get(name) or ("", None)
            if told is not None and all(isinstance(n, int) for n in told):
                found.append(tuple(int(n) for n in told))
            elif operands:
                self.notes[f"{node.kind}: shapes of its outputs are a guess"] = None
                found.append(operands[0].shape)
            else:
                raise BundleError(
                    f"{node.kind}: the shape of {name!r} is not known",
                    "Run onnx.shape_inference.infer_shapes on the model, or export it with fixed shapes.",
                )
        return [checked(shape, node.outputs[i] if i < len(node.outputs) else "") for i, shape in enumerate(found)]

    def _dtype(self, node: Node, operands: Sequence[Value], graph: Graph) -> str:
        if node.kind in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return operands[2].dtype if len(operands) > 2 and node.inputs[2] else "uint8"
        if node.kind == "DequantizeLinear":
            return "float32"
        for name in node.outputs[:1]:
            if name in graph.told:
                return graph.told[name][0]
            if name in graph.outputs:
                return graph.outputs[name][0]
        if node.kind in _SECOND_TYPES:
            return _SECOND_TYPES[node.kind]
        return next((v.dtype for v in operands if not v.constant), operands[0].dtype if operands else "float32")

    def _fixed(self, name: str, shape: OpenShape | None) -> Shape:
        if name in self._told:
            return checked(tuple(self._told[name]), name)
        fixed = [1 if i == 0 and not isinstance(n, int) else n for i, n in enumerate(shape or ())]
        if shape is None or not all(isinstance(n, int) for n in fixed):
            raise BundleError(
                f"input {name!r}: shape {shape}; only the first axis, the batch, may be open",
                f"Give its shape: read_workload(data, inputs={{{name!r}: (1, ...)}}).",
            )
        return checked(tuple(int(n) for n in fixed), name)


def _kept_type(node: Node, operands: Sequence[Value], dtype: str) -> str:
    """Weights behind a DequantizeLinear stay what they are in the file."""
    return operands[0].dtype if node.kind == "DequantizeLinear" else dtype
