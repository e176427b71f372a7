"""4-bit weights for ONNX Runtime: matrix products with constant weights become MatMulNBits, a contributed operator.

It is the one form in which ONNX Runtime stores and multiplies real 4-bit numbers on a CPU: weights in blocks with a
scale each, activations in float (onnxruntime/docs/ContribOperators.md, com.microsoft.MatMulNBits). Convolutions have
none; QInt4 weights in front of them are unpacked when the file is loaded, and save nothing while it runs.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kasmina_edge.errors import KasminaError
from kasmina_trainer.export.silence import quiet

BLOCK = 32
PACKED = ("MatMul", "Gemm", "MatMulNBits")
LEAST_WEIGHTS = 512
"""Smaller matrices stay as they are: their scales would take what four bits save."""


def with_packed_weights(model: onnx.ModelProto, *, block: int = BLOCK) -> tuple[onnx.ModelProto, int]:
    """A float model whose large constant matrices are MatMulNBits weights.

    Args:
        model: A float model; it is not changed.
        block: Weights that share a scale: a power of two, at least 16.

    Returns:
        The model, and how many matrices were packed.

    Raises:
        KasminaError: The quantizer refuses; the message carries its reason.
    """
    own = _without_gemm(model)
    constants = {c.name: c for c in own.graph.initializer}
    large = [
        n.name
        for n in own.graph.node
        if n.op_type == "MatMul" and n.input[1] in constants and _fits(constants[n.input[1]])
    ]
    small = [n.name for n in own.graph.node if n.op_type == "MatMul" and n.name not in large]
    if not large:
        return model, 0
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        try:
            worker = MatMulNBitsQuantizer(own, block_size=block, is_symmetric=True, bits=4, nodes_to_exclude=small)
            worker.process()
            made: onnx.ModelProto = worker.model.model
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise KasminaError(f"4-bit weights cannot be made for ONNX: {reason[:300]}") from exc
    return made, len(large)


def _fits(weights: onnx.TensorProto) -> bool:
    return len(weights.dims) == 2 and int(np.prod(weights.dims)) >= LEAST_WEIGHTS


def _without_gemm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every large Gemm with a constant matrix as MatMul and Add, which the quantizer knows."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = own.graph
    constants = {c.name: c for c in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node{index}"
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
        weights = constants.get(node.input[1]) if node.op_type == "Gemm" else None
        if weights is None or not plain or not _fits(weights):
            nodes.append(node)
            continue
        matrix = numpy_helper.to_array(weights)
        if options.get("transB", 0):
            matrix = np.ascontiguousarray(matrix.T)
        name = f"{node.name}_matrix"
        graph.initializer.append(numpy_helper.from_array(np.array(matrix), name))
        bias = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.name}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_bias"))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [c for c in graph.initializer if c.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return own
