"""An ONNX file as a form: pairs of QuantizeLinear and DequantizeLinear are a tensor's scheme, not steps.

Every value of a copy is an output of it, which also keeps ONNX Runtime from fusing; `OnnxForm.answers` are those of the
file as a device runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kasmina_edge.errors import EngineError, InputError
from kasmina_trainer.optimize.forms import Form, Scheme, Step, Weights

Array = npt.NDArray[Any]

_KINDS = {
    "Gemm": "fully_connected", "MatMul": "batch_matmul", "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div",
    "Relu": "relu", "Clip": "clip", "GlobalAveragePool": "mean", "ReduceMean": "mean", "AveragePool": "average_pool_2d",
    "MaxPool": "max_pool_2d", "Concat": "concatenation", "Split": "split", "Softmax": "softmax", "Sigmoid": "logistic",
    "Tanh": "tanh", "HardSwish": "hard_swish", "LeakyRelu": "leaky_relu", "BatchNormalization": "batch_norm",
    "ConvTranspose": "transpose_conv", "Flatten": "reshape", "Reshape": "reshape", "Squeeze": "reshape",
    "Unsqueeze": "reshape", "Transpose": "transpose", "Identity": "identity", "Cast": "cast", "Dropout": "dropout",
    "Pad": "pad", "Slice": "slice", "Resize": "resize_bilinear", "ReduceSum": "sum",
}  # fmt: skip
_BEFORE = "_before_its_range"
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_LIMITS = {
    onnx.TensorProto.UINT8: (0, 255), onnx.TensorProto.INT8: (-128, 127), onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767), onnx.TensorProto.INT4: (-8, 7), onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT32: (-(2**31), 2**31 - 1),
}  # fmt: skip


class OnnxForm(Form):
    """One ``.onnx`` file on ONNX Runtime's CPU provider.

    Args:
        data: The file.
        title: For people.

    Raises:
        InputError: Not such a file, or an input's shape is open.
        EngineError: ONNX Runtime refuses it.
    """

    def __init__(self, data: bytes, title: str) -> None:
        try:
            model = onnx.load_from_string(data)
        except Exception as exc:  # protobuf's decode error is private to the library
            raise InputError(f"{title}: not an ONNX file ({str(exc).splitlines()[0][:120]})") from exc
        self.data, self.title, self._model = data, title, model
        self._constants = {c.name: c for c in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._root, self.schemes, self._read_as = self._restatements()
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in self._constants)
        self.outputs = tuple(self._root.get(o.name, o.name) for o in model.graph.output)
        self._nodes = [n for n in model.graph.node if n.op_type not in (_Q, _DQ, "Constant")]
        given = [_shape(i) for i in model.graph.input if i.name not in self._constants]
        if any(0 in s for s in given):
            raise InputError(f"{title}: an input's shape is open {given}", "Export it with a fixed shape.")
        self._shapes: dict[str, tuple[int, ...]] = dict(zip(self.inputs, given, strict=True))
        self._measure(given)
        self.shapes = self._shapes
        self.steps = tuple(self._step(i, n) for i, n in enumerate(self._nodes))
        self._unrounded: OnnxForm | None = None

    def values(self, frames: Sequence[Array]) -> dict[str, Array]:
        """See `Form.values`."""
        fed = dict(zip(self.inputs, (x[:, None].astype(np.float32) for x in frames), strict=True))
        names = {key: self._read_as.get(key, key) for key in self.shapes}
        asked = [name for key, name in names.items() if name not in self.inputs]
        found = self._run(list(self._model.graph.node), self.inputs, asked, fed, {})
        return {key: found.get(name, fed.get(name)) for key, name in names.items()}  # type: ignore[misc]

    def answers(self, frames: Sequence[Array]) -> list[Array]:
        """The outputs of the untouched file, with the engine's own fusions."""
        session = _session(self.data, self.title)
        rows = [
            session.run(None, {k: x[n][None].astype(np.float32) for k, x in zip(self.inputs, frames, strict=True)})
            for n in range(len(frames[0]))
        ]
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def replay(self, target: str, given: Mapping[str, Array], constants: Mapping[str, Array] | None = None) -> Array:
        """See `Form.replay`."""
        asked = self._read_as.get(target, target)
        if target in self.inputs:
            scheme, value = self.schemes.get(target), given[target].astype(np.float32)
            return value if scheme is None else scheme.real(scheme.quantized(value))
        fed = {self._read_as.get(key, key): value for key, value in given.items() if key != target}
        nodes, entries = self._segment(asked, fed)
        return self._run(nodes, entries, [asked], fed, constants or {})[asked]

    def unrounded(self) -> OnnxForm:
        """See `Form.unrounded`."""
        if not self.schemes and not any(n.op_type == _DQ for n in self._model.graph.node):
            return self
        if self._unrounded is None:
            self._unrounded = OnnxForm(self._softened(), f"{self.title} in float")
        return self._unrounded

    def weights(self, step: Step) -> tuple[Weights, ...]:
        """See `Form.weights`."""
        node = self._nodes[step.index]
        if node.op_type not in ("Conv", "Gemm", "MatMul", "ConvTranspose") or len(node.input) < 2:
            return ()
        name = node.input[1]
        scheme: Scheme | None = None
        writer = next((n for n in self._model.graph.node if name in n.output and n.op_type == _DQ), None)
        if writer is not None and writer.input[0] in self._constants:
            scheme = self._scheme_of(writer)
            values = scheme.real(self._array(writer.input[0])) if scheme is not None else None
        else:
            values = self._array(name) if name in self._constants else None
        if values is None or values.ndim < 2:
            return ()
        axis = 0
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
            axis = values.ndim - 1
        if node.op_type == "ConvTranspose":
            axis = 1
        return (Weights(name, values.astype(np.float32), scheme, axis),)

    def _restatements(self) -> tuple[dict[str, str], dict[str, Scheme], dict[str, str]]:
        """Of what is restated: the value it stands for, its scheme, and under which name others read it."""
        root: dict[str, str] = {}
        schemes: dict[str, Scheme] = {}
        read_as: dict[str, str] = {}
        for node in self._model.graph.node:
            source = node.input[0] if node.input else ""
            if node.op_type == _Q and source not in self._constants:
                key = root.get(source, source)
                root[node.output[0]] = key
                scheme = self._scheme_of(node)
                if scheme is not None:
                    schemes[key] = scheme
            elif node.op_type == _DQ and source in root:
                root[node.output[0]] = root[source]
                read_as[root[source]] = node.output[0]
        return root, schemes, read_as

    def _scheme_of(self, node: onnx.NodeProto) -> Scheme | None:
        if len(node.input) < 2 or node.input[1] not in self._constants:
            return None
        scale = np.asarray(self._array(node.input[1]), np.float64).reshape(-1)
        zero, kind = np.zeros(len(scale), np.int64), onnx.TensorProto.UINT8
        if len(node.input) > 2 and node.input[2] in self._constants:
            kind = self._constants[node.input[2]].data_type
            zero = np.asarray(self._array(node.input[2]), np.int64).reshape(-1)
        elif node.op_type == _DQ and node.input[0] in self._constants:
            kind = self._constants[node.input[0]].data_type
        low, high = _LIMITS.get(kind, (-128, 127))
        return Scheme(scale, zero, int(_attribute(node, "axis", 1)), low, high)

    def _array(self, name: str) -> Array:
        value: Array = onnx.numpy_helper.to_array(self._constants[name])
        return value

    def _step(self, index: int, node: onnx.NodeProto) -> Step:
        kind = _KINDS.get(node.op_type, node.op_type.lower())
        weight = node.input[1] if len(node.input) > 1 else ""
        if node.op_type == "Conv":
            kind = "depthwise_conv_2d" if _attribute(node, "group", 1) > 1 else "conv_2d"
        elif node.op_type == "MatMul" and (weight in self._constants or self._is_stored(weight)):
            kind = "fully_connected"
        reads = dict.fromkeys(self._root.get(n, n) for n in node.input)
        return Step(
            index, kind, f"node {index} {node.op_type}", tuple(k for k in reads if k in self._shapes),
            tuple(k for k in node.output if k in self._shapes), layer=_layer(node.name),
        )  # fmt: skip

    def _is_stored(self, name: str) -> bool:
        return any(
            n.op_type == _DQ and name in n.output and n.input[0] in self._constants for n in self._model.graph.node
        )

    def _measure(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Run zeros once: which values are floats, and their shapes."""
        names = [o for n in self._nodes for o in n.output if o]
        zeros = {k: np.zeros((1, *s), np.float32) for k, s in zip(self.inputs, shapes, strict=True)}
        if not names:
            return
        for name, value in self._run(list(self._model.graph.node), self.inputs, names, zeros, {}).items():
            if value.dtype == np.float32 and value.size:
                self._shapes[name] = tuple(value.shape[1:])

    def _segment(self, target: str, given: Mapping[str, Array]) -> tuple[list[onnx.NodeProto], list[str]]:
        writers = {name: i for i, n in enumerate(self._model.graph.node) for name in n.output}
        needed: set[int] = set()
        entries: dict[str, None] = {}
        waiting = [target]
        while waiting:
            name = waiting.pop()
            if not name or name in self._constants:
                continue
            if name in given:
                entries[name] = None
                continue
            if name not in writers:
                raise InputError(f"{self.title}: {name} is computed by nothing and was not given")
            if writers[name] not in needed:
                needed.add(writers[name])
                waiting.extend(self._model.graph.node[writers[name]].input)
        return [self._model.graph.node[i] for i in sorted(needed)], list(entries)

    def _run(
        self, nodes: Sequence[onnx.NodeProto], entries: Sequence[str], targets: Sequence[str],
        fed: Mapping[str, Array], constants: Mapping[str, Array],
    ) -> dict[str, Array]:  # fmt: skip
        part = onnx.ModelProto()
        part.CopyFrom(self._model)
        graph = part.graph
        for repeated in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
            del repeated[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        for name in sorted(used & set(self._constants)):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(self._constants[name])
            if name in constants:
                tensor.CopyFrom(onnx.numpy_helper.from_array(constants[name].astype(np.float32), name))
            tensor.name = name
            graph.initializer.append(tensor)
        written = {c.name for c in graph.initializer}
        kept = [n for n in graph.node if n.op_type != "Constant" or n.output[0] not in written]
        del graph.node[:]
        graph.node.extend(kept)
        graph.input.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in entries)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in targets)
        session = _session(part.SerializeToString(), self.title)
        rows: list[list[Array]] = []
        for n in range(len(next(iter(fed.values())))):
            rows.append(session.run(list(targets), {k: fed[k][n].astype(np.float32) for k in entries}))
        return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(targets)}

    def _softened(self) -> bytes:
        """The file without rounding of activations, its stored weights as floats."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            if node.op_type == _Q and node.output[0] in self._root:
                continue
            if node.op_type == _DQ and node.output[0] in self._root:
                continue
            if node.op_type == _DQ and node.input[0] in self._constants:
                scheme = self._scheme_of(node)
                if scheme is not None:
                    real = scheme.real(self._array(node.input[0]))
                    graph.initializer.append(onnx.numpy_helper.from_array(real, node.output[0]))
                    continue
            own = graph.node.add()
            own.CopyFrom(node)
            own.input[:] = [self._root.get(name, name) for name in node.input]
            for place, name in enumerate(node.output):
                scheme = self.schemes.get(name)
                if scheme is not None and scheme.ends[0] == 0 and node.op_type != "Relu":
                    own.output[place] = f"{name}{_BEFORE}"  # its ReLU was left to the range
                    graph.node.append(onnx.helper.make_node("Relu", [own.output[place]], [name]))
        for output in graph.output:
            output.name = self._root.get(output.name, output.name)
        return bytes(model.SerializeToString())


def _session(data: bytes, title: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's own errors share no public base
        raise EngineError(f"{title}: ONNX Runtime cannot run it ({str(exc).splitlines()[0][:200]})") from exc


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Of an input; a batch of one where only the first axis is open, 0 for other open axes."""
    sizes = [int(d.dim_value) for d in value.type.tensor_type.shape.dim]
    return tuple(1 if i == 0 and not size else size for i, size in enumerate(sizes))


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _layer(name: str) -> str:
    return name if name and not name.replace("node_", "").isdigit() else ""
