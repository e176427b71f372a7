"""What a grown network's ONNX file shares with its parent's: activation ranges, and the names of values.

Both files are in QDQ form. Seen without their Q and DQ nodes they are lists of operators, which are matched as
`alignment` matches TFLite's: same kind and shapes, preferably the same weights, in the same order. With the parent's
ranges and names the constants and nodes of the host keep their bytes, and an update is the graft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from kasmina_trainer.export.alignment import best_pairs
from kasmina_trainer.quantization import Range

_LEVELS = 255
_SAME_KIND, _SAME_WEIGHTS = 1.0, 4.0
_QUANTIZE, _RESTORE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class _Operator:
    node: onnx.NodeProto
    kind: str
    weights: bytes


class _Graph:
    """A QDQ graph without its Q and DQ nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {c.name: c for c in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.quantizers = {n.input[0]: n for n in model.graph.node if n.op_type == _QUANTIZE}
        self.operators = [self._operator(n) for n in model.graph.node if n.op_type not in (_QUANTIZE, _RESTORE)]
        self.inputs = [i.name for i in model.graph.input]

    def source(self, name: str) -> str:
        """The value behind Q and DQ nodes; of a stored constant, its own name."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in (_QUANTIZE, _RESTORE):
            name = maker.input[0]
            maker = self.makers.get(name)
        return name

    def scheme(self, value: str) -> tuple[float, int] | None:
        """Scale and zero point of a value that is quantized as a whole; None otherwise."""
        node = self.quantizers.get(value)
        if node is None or len(node.input) < 3 or not {node.input[1], node.input[2]} <= self.constants.keys():
            return None
        scale, zero = (numpy_helper.to_array(self.constants[n]) for n in node.input[1:3])
        return (float(scale), int(zero)) if scale.size == zero.size == 1 else None

    def _operator(self, node: onnx.NodeProto) -> _Operator:
        constants = [self.constants[s] for s in map(self.source, node.input) if s in self.constants]
        options = sorted(f"{a.name}={helper.get_attribute_value(a)}" for a in node.attribute)
        shapes = [f"{c.data_type}{tuple(c.dims)}" for c in constants]
        weights = numpy_helper.to_array(constants[0]).tobytes() if constants else b""
        return _Operator(node, " ".join([node.domain, node.op_type, *options, *shapes]), weights)


@dataclass(frozen=True)
class Lineage:
    """A grown model against its parent.

    Attributes:
        ranges: The parent's activation ranges, by value name of the grown model.
        names: Value or constant of the grown model to the parent's that it is; at most one each way.
        order: The parent's constants, in its order.
        first: A number above all that the parent's names carry.
    """

    ranges: Mapping[str, Range]
    names: Mapping[str, str]
    order: tuple[str, ...]
    first: int


def lineage(parent: onnx.ModelProto, grown: onnx.ModelProto) -> Lineage:
    """Match a grown model with its parent.

    Args:
        parent: In canonical form, quantized.
        grown: Quantized in any way, under the names of its float model.
    """
    theirs, ours = _Graph(parent), _Graph(grown)
    pairs = best_pairs([[_gain(g, p) for p in theirs.operators] for g in ours.operators])
    couples = [(ours.operators[g].node, theirs.operators[p].node) for g, p in sorted(pairs.items())]
    stands_for: dict[str, str] = dict(zip(ours.inputs, theirs.inputs, strict=False))
    for mine, other in couples:
        stands_for |= dict(zip(mine.output, other.output, strict=True))
    for mine, other in couples:
        for a, b in zip(mine.input, other.input, strict=True):
            stands_for.setdefault(ours.source(a), theirs.source(b))
    ranges = {
        value: ((0 - found[1]) * found[0], (_LEVELS - found[1]) * found[0])
        for value, other in stands_for.items()
        if value not in ours.constants and (found := theirs.scheme(other)) is not None
    }
    names = _twins(ours, theirs, couples)
    used = {n for node in parent.graph.node for n in (*node.input, *node.output)}
    numbers = [int(n[1:]) for n in used if n[:1] == "v" and n[1:].isdecimal()]
    order = tuple(c.name for c in parent.graph.initializer)
    return Lineage(ranges, names, order, max(numbers, default=0) + 1)


def _gain(mine: _Operator, other: _Operator) -> float | None:
    if mine.kind != other.kind:
        return None
    return _SAME_KIND + (_SAME_WEIGHTS if mine.weights == other.weights and mine.weights else 0.0)


def _twins(ours: _Graph, theirs: _Graph, couples: list[tuple[onnx.NodeProto, onnx.NodeProto]]) -> dict[str, str]:
    names: dict[str, str] = {}
    taken: set[str] = set()

    def same(a: str, b: str) -> None:
        if a and b and a not in names and b not in taken:
            names[a] = b
            taken.add(b)

    def quantizer(a: str, b: str) -> None:
        mine, other = ours.quantizers.get(a), theirs.quantizers.get(b)
        if mine is not None and other is not None:
            for pair in zip((*mine.input[1:], *mine.output), (*other.input[1:], *other.output), strict=False):
                same(*pair)

    def chain(a: str, b: str) -> None:
        """An operator's input, back through the Q and DQ nodes before it."""
        mine, other = ours.makers.get(a), theirs.makers.get(b)
        if ours.source(a) in names and names[ours.source(a)] != theirs.source(b):
            return  # the site's output, where the parent reads the site itself
        same(a, b)
        if mine is not None and other is not None and mine.op_type == other.op_type == _RESTORE:
            for pair in zip(mine.input, other.input, strict=False):
                same(*pair)

    for pair in zip(ours.inputs, theirs.inputs, strict=False):
        same(*pair)
        quantizer(*pair)
    for mine, other in couples:
        for a, b in zip(mine.output, other.output, strict=True):
            same(a, b)
            quantizer(a, b)
    for mine, other in couples:
        for a, b in zip(mine.input, other.input, strict=True):
            chain(a, b)
    return names
