"""Workloads read from model files: what the libraries read. Damaged and hostile files: test_workload_hostile.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from worlds.bundles import GOLDEN
from worlds.flat_files import constants_behind
from worlds.tflite_models import counter_tflite, open_tflite
from worlds.third_party import NotFetchedError, fetch

from benchmarks._wired_nets import WiredNet, wired_net
from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator import read_workload
from kasmina_edge.hardware_simulator.tflite_operators import OPERATORS, OPTIONS

TFLITE, ONNX = (GOLDEN / "digits.tflite").read_bytes(), (GOLDEN / "digits.onnx").read_bytes()
DIGITS_MACS = 26_096
"""Four convolutions, three depthwise ones and a dense layer of the golden digits network, by hand."""


def details(data: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    return interpreter


# ---- TFLite


def test_the_words_of_the_schema_are_those_of_the_library() -> None:
    codes = {v: k.lower() for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    assert dict(enumerate(OPERATORS)) == codes
    assert all(kind in OPERATORS for kind in OPTIONS)


def test_a_file_is_told_as_its_library_tells_it() -> None:
    work = read_workload(TFLITE)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(TFLITE, 0))
    operators, tensors = model.subgraphs[0].operators, model.subgraphs[0].tensors
    codes = [model.operatorCodes[op.opcodeIndex] for op in operators]
    assert [op.kind for op in work.ops] == [OPERATORS[c.builtinCode] for c in codes]
    assert [op.version for op in work.ops] == [c.version for c in codes]
    assert [op.outputs for op in work.ops] == [tuple(tuple(tensors[i].shape) for i in op.outputs) for op in operators]
    for told, op in zip(work.ops, operators, strict=True):
        if told.kind in ("conv_2d", "depthwise_conv_2d"):
            o = op.builtinOptions
            assert told.stride == (o.strideH, o.strideW) and told.dilation == (o.dilationHFactor, o.dilationWFactor)
            assert told.activation == ("", "relu")[o.fusedActivationFunction]
            assert told.weights == tuple(tensors[op.inputs[1]].shape) and told.weights_dtype == "int8"
    used = {tensors[i].buffer for op in operators for i in op.inputs}
    assert work.constant_bytes == sum(len(model.buffers[b].data) for b in used if model.buffers[b].data is not None)
    assert (work.source, work.input_bytes, work.output_bytes, work.kept_bytes) == ("tflite", 256, 10, 0)
    assert work.dtypes == ("int8",) and work.notes == ()


def test_multiplications_are_counted_right() -> None:
    assert read_workload(TFLITE).macs == read_workload(ONNX).macs == DIGITS_MACS
    net = WiredNet("int8")
    x = net.input((1, 8, 8, 4))
    y = net.transpose_conv(net.conv(x, 6, 3, stride=2, dilation=1), 5, kernel=3)
    q = net.reshape(y, (1, 64, 5))
    work = read_workload(net.bytes(net.dense(net.reshape(net.matmul(q, q, adj_y=True), (1, 4096)), 7)))
    assert [op.macs for op in work.ops if op.macs] == [
        4 * 4 * 6 * 9 * 4,
        4 * 4 * 6 * 9 * 5,  # every input number meets every tap of every filter
        64 * 64 * 5,
        4096 * 7,
    ]


def test_lives_begin_with_the_writer_and_end_with_the_last_reader() -> None:
    net = WiredNet("int8")
    x = net.input((1, 8, 8, 4))
    a = net.conv(x, 4, 1)
    b = net.conv(a, 4, 3)
    data = net.bytes(net.binary("ADD", a, b), b)
    lives = {t.name: (t.first, t.last, t.readers) for t in read_workload(data).tensors}
    assert list(lives.values()) == [(-1, 0, (0,)), (0, 2, (1, 2)), (1, 3, (2,)), (2, 3, ())]


def test_variables_are_kept_and_further_subgraphs_are_said() -> None:
    work = read_workload(counter_tflite())
    assert work.kept_bytes == 16 and [t.dtype for t in work.tensors if t.kept] == ["float32"]
    assert work.notes == ("the file has 2 subgraphs, only the first is counted",)
    assert work.input_bytes == work.output_bytes == 16


def test_an_open_batch_counts_as_one_and_any_other_open_axis_is_refused() -> None:
    assert read_workload(open_tflite()).input_bytes > 0
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(open_tflite(), 0))
    model.subgraphs[0].tensors[0].shapeSignature = [1, -1]
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(BundleError, match="only the first axis"):
        read_workload(bytes(builder.Output()))


def test_constants_behind_the_flatbuffer_are_counted_alike() -> None:
    assert read_workload(constants_behind(TFLITE)).constant_bytes == read_workload(TFLITE).constant_bytes


def test_four_bit_weights_count_half_a_byte() -> None:
    quantizer = pytest.importorskip("ai_edge_quantizer")
    from worlds.tflite_models import conv_tflite

    plain = conv_tflite()
    recipe = quantizer.recipe.dynamic_wi4_afp32()
    small = bytes(quantizer.Quantizer(bytearray(plain), recipe).quantize().quantized_model)
    (conv,) = [op for op in read_workload(small).ops if op.kind == "conv_2d"]
    assert conv.weights_dtype == "int4"
    bias = 4 * conv.weights[0]
    assert conv.constant_bytes == -(-math.prod(conv.weights) // 2) + bias
    (before,) = [op for op in read_workload(plain).ops if op.kind == "conv_2d"]
    assert before.constant_bytes == 4 * math.prod(before.weights) + bias


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("seed", range(4))
def test_shapes_of_random_networks_are_the_interpreters(seed: int, dtype: str) -> None:
    data = wired_net(seed, dtype)
    work, interpreter = read_workload(data), details(data)
    found = {d["name"]: (tuple(d["shape"]), np.dtype(d["dtype"]).name) for d in interpreter.get_tensor_details()}
    assert all(found[t.name] == (t.shape, t.dtype) for t in work.tensors) and len(work.tensors) > 8


# ---- ONNX


def test_a_qdq_file_counts_as_integer_and_its_pairs_disappear() -> None:
    work = read_workload(ONNX)
    convolutions = [op for op in work.ops if "conv" in op.kind]
    assert {op.dtype for op in convolutions} == {"uint8"} and {op.weights_dtype for op in convolutions} == {"int8"}
    same = [op for op in read_workload(TFLITE).ops if "conv" in op.kind]
    assert [op.weights[1:3] for op in convolutions] == [op.weights[1:3] for op in same]
    assert [op.outputs for op in convolutions] == [op.outputs for op in same], "channels last"
    assert [op.kind for op in work.ops if "quantize" in op.kind] == ["dequantize", "dequantize"], "a mean runs as float"


def onnx_model(nodes: Any, inputs: Any, outputs: Any, constants: dict[str, Any]) -> bytes:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    graph = helper.make_graph(
        [helper.make_node(kind, reads, writes, domain=more.pop("domain", ""), **more)
         for kind, reads, writes, more in nodes],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


F = np.float32


def test_operators_of_common_models_have_onnx_runtimes_shapes() -> None:
    """Every tensor against what ONNX Runtime computes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes: list[Any] = [
        ("Conv", ["x", "w"], ["c"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["n"], {}),
        ("Relu", ["n"], ["r"], {}),
        ("Conv", ["r", "d"], ["e"], {"group": 6, "auto_pad": "SAME_UPPER", "dilations": [1, 1]}),
        ("Clip", ["e", "low", "six"], ["k"], {}),
        ("MaxPool", ["k"], ["m"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("ConvTranspose", ["m", "t"], ["u"], {"strides": [2, 2], "output_padding": [1, 1]}),
        ("Resize", ["u", "", "scales"], ["z"], {"mode": "nearest"}),
        ("Concat", ["z", "z"], ["cc"], {"axis": 1}),
        ("Split", ["cc"], ["s1", "s2"], {"axis": 1, "num_outputs": 2}),
        ("Pad", ["s1", "pads"], ["p"], {}),
        ("Slice", ["p", "from", "to", "axes", "steps"], ["sl"], {}),
        ("AveragePool", ["sl"], ["ap"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("DepthToSpace", ["ap"], ["ds"], {"blocksize": 2}),
        ("Transpose", ["ds"], ["tr"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["tr", "shape"], ["rs"], {}),
        ("MatMul", ["rs", "mm"], ["ma"], {}),
        ("Softmax", ["ma"], ["so"], {"axis": -1}),
        ("ReduceMean", ["so", "last"], ["rm"], {"keepdims": 0}),
        ("Unsqueeze", ["rm", "last1"], ["un"], {}),
        ("Expand", ["un", "wide"], ["ex"], {}),
        ("Flatten", ["ex"], ["fl"], {"axis": 1}),
        ("Shape", ["fl"], ["sh"], {}),
        ("Gather", ["sh", "at"], ["ga"], {"axis": 0}),
        ("Mul", ["ga", "two"], ["mu"], {}),
        ("Concat", ["mu", "rest"], ["to2"], {"axis": 0}),
        ("Reshape", ["fl", "to2"], ["y"], {}),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((6, 3, 3, 3)).astype(F), "one": np.ones(6, F), "zero": np.zeros(6, F),
        "d": rng.standard_normal((6, 1, 3, 3)).astype(F), "low": F(0), "six": F(6),
        "t": rng.standard_normal((6, 4, 2, 2)).astype(F), "scales": np.array([1, 1, 2, 2], F),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 2]), "from": np.array([1, 0]), "to": np.array([2**62, -1]),
        "axes": np.array([2, 3]), "steps": np.array([1, 1]), "shape": np.array([1, -1, 6]),
        "mm": rng.standard_normal((6, 5)).astype(F), "last": np.array([-1]), "last1": np.array([-1]),
        "wide": np.array([1, 1, 4]), "at": np.array([0]), "two": np.array([2]), "rest": np.array([-1]),
    }  # fmt: skip
    constants["shape"] = np.array([1, -1, 1])
    constants["mm"] = rng.standard_normal((1, 5)).astype(F)
    data = onnx_model(nodes, [("x", 1, ["N", 3, 20, 24])], ["y"], constants)
    work = read_workload(data)
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = dict(zip(names, session.run(None, {"x": np.zeros((1, 3, 20, 24), F)}), strict=True))
    assert not work.notes
    compared = 0
    for tensor in work.tensors:
        if tensor.name in given:
            raw = given[tensor.name].shape
            assert tensor.shape in (raw, (raw[0], *raw[2:], raw[1])), tensor.name
            compared += 1
    assert compared >= 15
    kinds = [op.kind for op in work.ops]
    assert kinds[:3] == ["conv_2d", "depthwise_conv_2d", "max_pool_2d"], "normalisation and activations are folded"
    assert [op.activation for op in work.ops[:2]] == ["relu", "relu6"]
    assert not {"shape", "gather", "mul"} & set(kinds), "arithmetic on shapes is no work"
    assert work.ops[1].groups == 6 and work.ops[1].weights == (1, 3, 3, 6)


def test_the_onnx_package_s_own_models_are_read_with_their_shapes() -> None:
    onnx = pytest.importorskip("onnx")
    files = sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("model.onnx"))
    compared = refused = 0
    for path in files:
        data = path.read_bytes()
        try:
            work = read_workload(data)
        except BundleError:
            refused += 1
            continue
        told = {}
        for value in onnx.load_from_string(data).graph.output:
            axes = value.type.tensor_type.shape.dim
            if value.type.HasField("tensor_type") and all(axis.HasField("dim_value") for axis in axes):
                told[value.name] = tuple(axis.dim_value for axis in axes)
        for tensor in (t for t in work.tensors if t.name in told and not work.notes):
            raw = told[tensor.name]
            last = (raw[0], *((1,) if len(raw) == 3 else ()), *raw[2:], raw[1]) if len(raw) > 2 else raw
            assert tensor.shape in (raw, last), (path, tensor)
            compared += 1
    assert len(files) > 100 and compared > 100 and refused <= 3


def test_four_bit_products_count_as_such() -> None:
    nodes = [("MatMulNBits", ["x", "b", "s"], ["y"], {"domain": "com.microsoft", "K": 64, "N": 32, "bits": 4,
                                                      "block_size": 32})]  # fmt: skip
    constants = {"b": np.zeros((32, 2, 16), np.uint8), "s": np.zeros(64, F)}
    (op,) = read_workload(onnx_model(nodes, [("x", 1, [1, 64])], ["y"], constants)).ops
    assert (op.kind, op.weights, op.weights_dtype, op.macs) == ("fully_connected", (32, 64), "int4", 2048)
    assert op.constant_bytes == 1024 + 256


def test_an_open_axis_that_nobody_gives_is_refused_and_a_given_one_counts() -> None:
    data = onnx_model([("Relu", ["x"], ["y"], {})], [("x", 1, ["N", "length", 8])], ["y"], {})
    with pytest.raises(BundleError, match="only the first axis"):
        read_workload(data)
    work = read_workload(data, inputs={"x": (1, 50, 8)})
    assert work.input_bytes == 1600


def test_an_unknown_operator_keeps_its_word() -> None:
    data = onnx_model([("Whatever", ["x"], ["y"], {"domain": "com.microsoft"})], [("x", 1, [1, 8])], ["y"], {})
    work = read_workload(data)
    assert [op.kind for op in work.ops] == ["whatever"]
    assert work.notes == ("Whatever: shapes of its outputs are a guess",)


def test_an_if_is_decided_by_a_constant_and_counted_at_its_dearer_branch_without_one() -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def branch(name: str, width: int) -> Any:
        weights = onnx.numpy_helper.from_array(np.zeros((8, width), F), f"w{name}")
        out = helper.make_tensor_value_info(f"o{name}", 1, None)
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{name}"], [f"o{name}"])], name, [], [out], [weights]
        )

    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a", 4), else_branch=branch("b", 16)),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [1, 8]), helper.make_tensor_value_info("rate", 7, [])],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.int64(16000), "sixteen")],
    )  # fmt: skip
    data = bytes(helper.make_model(graph).SerializeToString())
    assert [read_workload(data, constants={"rate": rate}).macs for rate in (16000, 8000)] == [32, 128]
    dearer = read_workload(data)
    assert dearer.macs == 128 and "multiplies more" in dearer.notes[0]


# ---- real models


def real(name: str) -> Path:
    try:
        return fetch(name)
    except NotFetchedError as exc:
        pytest.skip(f"NOT TESTED on a real model: {exc}")


def test_a_real_streaming_wake_word_is_read() -> None:
    work = read_workload(real("okay_nabu.tflite").read_bytes())
    assert (work.input_bytes, work.output_bytes, work.macs) == (120, 1, 36_480)
    assert work.kept_bytes == (2 * 40 + (2 + 8 + 12 + 14 + 16) * 64), "six ring buffers of int8"


def test_a_real_voice_detector_is_read() -> None:
    inputs = {"input": (1, 576), "state": (2, 1, 128), "sr": ()}
    work = read_workload(real("silero_vad.onnx").read_bytes(), "vad", inputs, {"sr": 16000.0})
    assert work.notes == () and work.macs == 679_552
    assert {op.kind for op in work.ops} >= {"conv_2d", "lstm", "logistic", "pad"}
