"""A TFLite file as a form: every activation of a copy is an output, so that each engine's own kernels are looked at.

Constants, schemes and wiring are read from the object tree (schema.fbs); a segment is replayed as a file of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from kasmina_edge.errors import EngineError, InputError, KasminaError
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.optimize.forms import Form, Scheme, Step, Weights, segment

Array = npt.NDArray[Any]
ENGINES = {"litert": "AUTO", "litert-plain": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "litert-reference": "BUILTIN_REF"}
"""Engine name to the interpreter's op resolver."""

_LIMITS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767), "INT4": (-8, 7),
           "INT32": (-(2**31), 2**31 - 1), "INT64": (-(2**63), 2**63 - 1)}  # fmt: skip
_NUMPY = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16,
          "INT32": np.int32, "INT64": np.int64, "FLOAT64": np.float64, "BOOL": np.bool_}  # fmt: skip
_OUTPUT_AXIS = {"conv_2d": 0, "depthwise_conv_2d": 3, "fully_connected": 0, "transpose_conv": 0, "batch_matmul": -1}
_WEIGHT_PLACE = {"transpose_conv": 1}
_FUSED = {1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh"}
_RESTATING = ("quantize", "dequantize")


class TfliteForm(Form):
    """One ``.tflite`` file on one engine.

    Args:
        data: The file.
        title: For people.
        engine: A key of `ENGINES`.
        aliases: Tensors that stand for others: what quantize and dequantize wrote in the file this was made of.

    Raises:
        InputError: Not such a file, or it has more than one subgraph.
        EngineError: LiteRT refuses the file.
    """

    def __init__(
        self, data: bytes, title: str, *, engine: str = "litert", aliases: Mapping[str, str] | None = None
    ) -> None:
        if engine not in ENGINES:
            raise InputError(f"engine {engine!r}: a TFLite file is looked into on one of {', '.join(ENGINES)}")
        self.data, self.title, self.engine = data, title, engine
        self._aliases = dict(aliases or {})
        self._model = model = _parsed(data, title)
        if len(model.subgraphs) != 1:
            raise InputError(f"{title}: {len(model.subgraphs)} subgraphs, one can be compared")
        graph = model.subgraphs[0]
        self._names = flatbuffer.tensor_names(model)
        self._constant = {i for i in range(len(graph.tensors)) if flatbuffer.constant(model, i) is not None}
        self.inputs = tuple(_key(i) for i in graph.inputs)
        self.outputs = tuple(_key(i) for i in graph.outputs)
        self._operators = flatbuffer.operators(model)
        self.steps = tuple(self._step(i) for i in range(len(self._operators)))
        active = [*self.inputs, *(key for step in self.steps for key in step.outputs)]
        self.shapes = {key: flatbuffer.shape(model, _index(key)) for key in active}
        self.schemes = {key: s for key in active if (s := self._scheme(_index(key))) is not None}
        self._unrounded: TfliteForm | None = None

    def values(self, frames: Sequence[Array]) -> dict[str, Array]:
        """See `Form.values`."""
        keys = [key for step in self.steps for key in step.outputs]
        fed = dict(zip(self.inputs, (x[:, None] for x in frames), strict=True))
        found = self._run(range(len(self.steps)), list(self.inputs), keys, fed, {})
        taken = {key: self._stored_and_back(key, value) for key, value in fed.items()}
        return {**taken, **found}

    def answers(self, frames: Sequence[Array]) -> list[Array]:
        """See `Form.answers`."""
        interpreter = _interpreter(self.data, self.engine, self.title)
        entries, leaves = interpreter.get_input_details(), interpreter.get_output_details()
        rows: list[list[Array]] = []
        for n in range(len(frames[0])):
            for detail, key, x in zip(entries, self.inputs, frames, strict=True):
                scheme = self.schemes.get(key)
                value = x[n] if scheme is None else scheme.quantized(x[n])
                interpreter.set_tensor(detail["index"], np.ascontiguousarray(value[None], dtype=detail["dtype"]))
            interpreter.invoke()
            rows.append([interpreter.get_tensor(detail["index"]) for detail in leaves])
        columns = zip(*rows, strict=True)
        return [self._to_real(key, np.stack(rows)) for key, rows in zip(self.outputs, columns, strict=True)]

    def replay(self, target: str, given: Mapping[str, Array], constants: Mapping[str, Array] | None = None) -> Array:
        """See `Form.replay`."""
        target = self._aliases.get(target, target)
        fed = {self._aliases.get(key, key): value for key, value in given.items()}
        if target in fed and self.producer(target) is None:
            return self._stored_and_back(target, fed[target])
        steps, entries = segment(self.steps, target, fed)
        return self._run([s.index for s in steps], entries, [target], fed, constants or {})[target]

    def unrounded(self) -> TfliteForm:
        """See `Form.unrounded`."""
        if self._unrounded is None:
            data, aliases = self._softened()
            self._unrounded = TfliteForm(data, f"{self.title} in float", engine=self.engine, aliases=aliases)
        return self._unrounded

    def weights(self, step: Step) -> tuple[Weights, ...]:
        """See `Form.weights`."""
        if step.kind not in _OUTPUT_AXIS:
            return ()
        inputs, place = self._operators[step.index].inputs, _WEIGHT_PLACE.get(step.kind, 1)
        index = inputs[place] if len(inputs) > place else -1
        if index not in self._constant or index < 0:
            return ()
        values = self._real_constant(index)
        return (Weights(_key(index), values, self._scheme(index), _OUTPUT_AXIS[step.kind] % values.ndim),)

    def _step(self, index: int) -> Step:
        op = self._operators[index]
        options = self._model.subgraphs[0].operators[index].builtinOptions
        fused = _FUSED.get(int(getattr(options, "fusedActivationFunction", 0) or 0), "")
        name = self._names[op.outputs[0]] if op.outputs else ""
        return Step(
            index, op.name.lower(), f"op {index} {op.name}",
            tuple(_key(i) for i in op.inputs if i >= 0 and i not in self._constant),
            tuple(_key(i) for i in op.outputs), layer=_layer(name), fused=fused,
        )  # fmt: skip

    def _scheme(self, index: int) -> Scheme | None:
        found = self._model.subgraphs[0].tensors[index].quantization
        kind = flatbuffer.type_name(self._model, index)
        if found is None or found.scale is None or not len(found.scale) or kind not in _LIMITS:
            return None
        scale = np.asarray(found.scale, np.float64)
        zero = np.asarray(found.zeroPoint if found.zeroPoint is not None else np.zeros(len(scale)), np.int64)
        low, high = _LIMITS[kind]
        return Scheme(scale, zero, int(found.quantizedDimension), low, high)

    def _stored_constant(self, index: int) -> Array:
        raw, kind = flatbuffer.constant(self._model, index), flatbuffer.type_name(self._model, index)
        assert raw is not None
        shape = flatbuffer.shape(self._model, index)
        if kind == "INT4":  # two a byte, the lower half first
            halves = np.stack([raw & 0xF, raw >> 4], axis=1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
            return np.where(halves > 7, halves - 16, halves).astype(np.int8).reshape(shape)
        if kind not in _NUMPY:
            raise InputError(f"{self.title}: constant {index} is {kind}, which this program cannot read")
        return np.frombuffer(raw.tobytes(), _NUMPY[kind]).reshape(shape)

    def _real_constant(self, index: int) -> Array:
        stored, scheme = self._stored_constant(index), self._scheme(index)
        return stored.astype(np.float32) if scheme is None else scheme.real(stored)

    def _stored_and_back(self, key: str, values: Array) -> Array:
        scheme = self.schemes.get(key)
        return values.astype(np.float32) if scheme is None else scheme.real(scheme.quantized(values))

    def _run(
        self, steps: Sequence[int], entries: Sequence[str], targets: Sequence[str], fed: Mapping[str, Array],
        constants: Mapping[str, Array],
    ) -> dict[str, Array]:  # fmt: skip
        data, places = self._part(steps, entries, targets, constants)
        interpreter = _interpreter(data, self.engine, self.title)
        details = {d["index"]: d for d in interpreter.get_tensor_details()}
        taken: dict[str, list[Array]] = {key: [] for key in targets}
        for n in range(len(next(iter(fed.values())))):
            for key in entries:
                scheme, place = self.schemes.get(key), places[key]
                value = fed[key][n] if scheme is None else scheme.quantized(fed[key][n])
                interpreter.set_tensor(place, np.ascontiguousarray(value, dtype=details[place]["dtype"]))
            interpreter.invoke()
            for key in targets:
                taken[key].append(interpreter.get_tensor(places[key]))
        return {key: self._to_real(key, np.stack(rows)) for key, rows in taken.items()}

    def _to_real(self, key: str, stored: Array) -> Array:
        scheme = self.schemes.get(key)
        return stored.astype(np.float32) if scheme is None else scheme.real(stored)

    def _part(
        self, steps: Sequence[int], entries: Sequence[str], targets: Sequence[str], constants: Mapping[str, Array]
    ) -> tuple[bytes, dict[str, int]]:
        """A file of some operators, and where the tensors named lie in it."""
        old = self._model.subgraphs[0]
        places: dict[int, int] = {}
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.name = [], [], b""
        model.buffers = [schema.BufferT()]

        def place(index: int) -> int:
            if index < 0 or index in places:
                return places.get(index, -1)
            tensor = copy.copy(old.tensors[index])
            tensor.buffer = 0
            if index in self._constant:
                buffer = schema.BufferT()
                own = constants.get(_key(index))
                given = own.astype(np.float32).reshape(-1).view(np.uint8) if own is not None else None
                buffer.data = given if given is not None else flatbuffer.constant(self._model, index)
                model.buffers.append(buffer)
                tensor.buffer = len(model.buffers) - 1
            graph.tensors.append(tensor)
            places[index] = len(graph.tensors) - 1
            return places[index]

        graph.inputs = [place(_index(key)) for key in entries]
        for number in steps:
            operator = copy.copy(old.operators[number])
            operator.inputs = [place(i) for i in self._operators[number].inputs]
            operator.outputs = [place(i) for i in self._operators[number].outputs]
            graph.operators.append(operator)
        graph.outputs = [place(_index(key)) for key in targets]
        model.subgraphs, model.operatorCodes, model.version = [graph], self._model.operatorCodes, 3
        return flatbuffer.serialize(model), {_key(old_index): new for old_index, new in places.items()}

    def _softened(self) -> tuple[bytes, dict[str, str]]:
        """The file with every stored number as a float, and what its dropped operators' tensors stand for."""
        model = flatbuffer.parse(self.data)
        graph = model.subgraphs[0]
        aliases: dict[str, str] = {}
        kept = []
        for step, operator in zip(self.steps, graph.operators, strict=True):
            operator.inputs = [_index(aliases.get(_key(i), _key(i))) if i >= 0 else -1 for i in operator.inputs]
            if step.kind in _RESTATING:
                aliases[step.outputs[0]] = _key(operator.inputs[0])
            else:
                kept.append(operator)
        graph.operators = kept
        graph.outputs = [_index(aliases.get(_key(i), _key(i))) for i in graph.outputs]
        for index, tensor in enumerate(graph.tensors):
            if self._scheme(index) is None and flatbuffer.type_name(self._model, index) != "FLOAT16":
                continue
            if index in self._constant:
                buffer = schema.BufferT()
                buffer.data = self._real_constant(index).astype(np.float32).reshape(-1).view(np.uint8)
                model.buffers.append(buffer)
                tensor.buffer = len(model.buffers) - 1
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        model.signatureDefs = None
        return flatbuffer.serialize(model), aliases


def _parsed(data: bytes, title: str) -> Any:
    try:
        return flatbuffer.parse(data)
    except KasminaError as exc:
        raise InputError(f"{title}: {exc.message}") from exc
    except Exception as exc:  # the generated reader meets a damaged file with whatever numpy or struct raises
        raise InputError(f"{title}: not a whole TFLite file ({str(exc)[:120]})") from exc


def _interpreter(data: bytes, engine: str, title: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with quiet():
            made = Interpreter(
                model_content=data, num_threads=1, experimental_op_resolver_type=OpResolverType[ENGINES[engine]]
            )
            made.allocate_tensors()
    except (RuntimeError, ValueError) as exc:
        raise EngineError(f"{title}: LiteRT cannot run it ({str(exc).splitlines()[0][:200]})") from exc
    return made


def _key(index: int) -> str:
    return f"t{int(index)}"


def _index(key: str) -> int:
    return int(key[1:])


def _layer(name: str) -> str:
    """What a tensor's name says of its layer; "" for names that programs made up."""
    short = name.partition(";")[0].strip()
    return "" if not short or short[1:].isdigit() or short in ("input", "output") else short[-60:]
