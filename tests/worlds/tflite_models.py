"""Small .tflite files built by hand: one that remembers, one with a scalar input, one with an open axis."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as s

FLOAT, RESOURCE = s.TensorType.FLOAT32, s.TensorType.RESOURCE


class _Builder:
    def __init__(self) -> None:
        self.model = s.ModelT()
        self.model.version, self.model.description = 3, b"tests"
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [s.BufferT()], [], []

    def graph(self, name: str) -> Any:
        graph = s.SubGraphT()
        graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = name.encode(), [], [], [], []
        self.model.subgraphs.append(graph)
        return graph

    def tensor(
        self,
        graph: Any,
        name: str,
        shape: tuple[int, ...],
        kind: int = FLOAT,
        data: Any = None,
        open_axis: bool = False,
    ) -> int:
        tensor = s.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), list(shape), kind, 0
        tensor.hasRank = True
        if open_axis:
            tensor.shapeSignature = [-1, *shape[1:]]
        if data is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.asarray(data, np.float32).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def op(
        self, graph: Any, builtin: int, inputs: list[int], outputs: list[int], kind: int = 0, opts: Any = None
    ) -> None:
        codes = self.model.operatorCodes
        index = next((i for i, c in enumerate(codes) if c.builtinCode == builtin), len(codes))
        if index == len(codes):
            code = s.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
            codes.append(code)
        operator = s.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = index, inputs, outputs
        operator.builtinOptionsType, operator.builtinOptions = kind, opts
        graph.operators.append(operator)

    def bytes(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def counter_tflite(start: float = 5.0) -> bytes:
    """x float32 [1, 4] -> total float32 [1, 4]: a resource variable that begins with ``start`` and adds up every x."""
    b = _Builder()
    main, first = b.graph("main"), b.graph("init")

    def handle(graph: Any) -> int:
        options = s.VarHandleOptionsT()
        options.container, options.sharedName = b"", b"total"
        at = b.tensor(graph, "handle", (), RESOURCE)
        b.op(graph, s.BuiltinOperator.VAR_HANDLE, [], [at], s.BuiltinOptions.VarHandleOptions, options)
        return at

    assign = (s.BuiltinOptions.AssignVariableOptions, s.AssignVariableOptionsT())
    value = b.tensor(first, "start", (1, 4), data=np.full((1, 4), start))
    b.op(first, s.BuiltinOperator.ASSIGN_VARIABLE, [handle(first), value], [], *assign)
    x, old, new = (b.tensor(main, name, (1, 4)) for name in ("x", "old", "total"))
    once = s.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    b.op(main, s.BuiltinOperator.CALL_ONCE, [], [], s.BuiltinOptions.CallOnceOptions, once)
    at = handle(main)
    read = (s.BuiltinOptions.ReadVariableOptions, s.ReadVariableOptionsT())
    b.op(main, s.BuiltinOperator.READ_VARIABLE, [at], [old], *read)
    b.op(main, s.BuiltinOperator.ADD, [old, x], [new], s.BuiltinOptions.AddOptions, s.AddOptionsT())
    b.op(main, s.BuiltinOperator.ASSIGN_VARIABLE, [at, new], [], *assign)
    main.inputs, main.outputs = [x], [new]
    return b.bytes()


def scaled_tflite() -> bytes:
    """x float32 [1, 4], gain float32 [] -> y float32 [1, 4] = x * gain, twice float32 [] = gain + gain."""
    b = _Builder()
    main = b.graph("main")
    x, gain, y = b.tensor(main, "x", (1, 4)), b.tensor(main, "gain", ()), b.tensor(main, "y", (1, 4))
    b.op(main, s.BuiltinOperator.MUL, [x, gain], [y], s.BuiltinOptions.MulOptions, s.MulOptionsT())
    twice = b.tensor(main, "twice", ())
    b.op(main, s.BuiltinOperator.ADD, [gain, gain], [twice], s.BuiltinOptions.AddOptions, s.AddOptionsT())
    main.inputs, main.outputs = [x, gain], [y, twice]
    return b.bytes()


def leaky_tflite() -> bytes:
    """x float32 [1, 4], state [1, 4] -> y [1, 4], state_out [1, 4] = state + x: state as tensors."""
    b = _Builder()
    main = b.graph("main")
    x, state, y, out = (b.tensor(main, name, (1, 4)) for name in ("x", "state", "y", "state_out"))
    b.op(main, s.BuiltinOperator.ADD, [x, state], [out], s.BuiltinOptions.AddOptions, s.AddOptionsT())
    b.op(main, s.BuiltinOperator.MUL, [out, out], [y], s.BuiltinOptions.MulOptions, s.MulOptionsT())
    main.inputs, main.outputs = [x, state], [y, out]
    return b.bytes()


def open_tflite() -> bytes:
    """x float32 [?, 4] -> y [?, 4] = x + [1, 2, 3, 4]: an open first axis."""
    b = _Builder()
    main = b.graph("main")
    x = b.tensor(main, "x", (1, 4), open_axis=True)
    bias = b.tensor(main, "bias", (1, 4), data=[[1, 2, 3, 4]])
    y = b.tensor(main, "y", (1, 4), open_axis=True)
    b.op(main, s.BuiltinOperator.ADD, [x, bias], [y], s.BuiltinOptions.AddOptions, s.AddOptionsT())
    main.inputs, main.outputs = [x], [y]
    return b.bytes()


def conv_tflite() -> bytes:
    """x float32 [1, 8, 8, 8] -> y [1, 8, 8, 16]: a 3x3 convolution of random weights, to be quantized by a test."""
    rng = np.random.default_rng(0)
    b = _Builder()
    main = b.graph("main")
    x = b.tensor(main, "x", (1, 8, 8, 8))
    weights = b.tensor(main, "w", (16, 3, 3, 8), data=rng.normal(0, 0.2, (16, 3, 3, 8)))
    bias = b.tensor(main, "b", (16,), data=rng.normal(0, 0.2, 16))
    y = b.tensor(main, "y", (1, 8, 8, 16))
    options = s.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = s.Padding.SAME, 0
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    b.op(main, s.BuiltinOperator.CONV_2D, [x, weights, bias], [y], s.BuiltinOptions.Conv2DOptions, options)
    main.inputs, main.outputs = [x], [y]
    return b.bytes()
