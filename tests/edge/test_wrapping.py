"""``bundle create``: a third party's file becomes a bundle with the right tensors, states and self-test, or is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from worlds.bundles import LABELS, answer, digits, make_profile, model_bytes
from worlds.tflite_models import counter_tflite, leaky_tflite, open_tflite, scaled_tflite
from worlds.third_party import adder_onnx, dense_onnx, leaky_onnx

from kasmina_edge.bundle import pack, read, read_file
from kasmina_edge.cli.app import app
from kasmina_edge.contracts.manifest import Preprocessing
from kasmina_edge.engines import open_engine, self_test
from kasmina_edge.engines.onnx import OnnxEngine
from kasmina_edge.engines.onnx_file import outside_part
from kasmina_edge.engines.tensors import from_model
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError
from kasmina_edge.fleet.gate import acceptance_fault, check_acceptance
from kasmina_edge.wrapping import Wrapped, WrapPlan, wrap
from kasmina_edge.wrapping.proof import LEAST_SHARE, make_frames


def made(data: bytes, name: str, **plan: Any) -> Wrapped:
    return wrap(data, name, WrapPlan("m", **plan), make_profile())


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_a_quantized_file_is_float32_for_the_app() -> None:
    wrapped = made(model_bytes("litert"), "digits.tflite", labels=LABELS, head="classification")
    manifest, model = wrapped.bundle.manifest, wrapped.model
    assert (model.inputs[0].dtype, manifest.inputs[0].dtype, manifest.inputs[0].shape) == (
        "int8",
        "float32",
        (1, 16, 16, 1),
    )
    assert model.inputs[0].scale is not None and manifest.outputs[0].labels == LABELS
    assert manifest.head == "classification" and model.parity is None
    assert manifest.provenance["wrapped"] == "digits.tflite" and "litert-plain" in manifest.provenance["agreeing"]
    assert read(pack(wrapped.bundle), where="here").manifest == manifest


def test_the_same_file_and_plan_give_the_same_bytes() -> None:
    first, again = (pack(made(model_bytes("litert"), "digits.tflite").bundle) for _ in range(2))
    assert first == again
    assert first != pack(made(model_bytes("litert"), "digits.tflite", seed=1).bundle)


def test_the_tolerance_covers_the_engines_that_are_here_and_no_more() -> None:
    wrapped = made(model_bytes("litert"), "digits.tflite")
    worst = {a.engine: a.worst for a in wrapped.agreements if a.worst is not None}
    assert worst["litert"] == 0 and worst["litert-plain"] == worst["litert-reference"] == 3
    assert wrapped.model.selftest.tolerance == 3
    for name in worst:
        with open_engine(wrapped.bundle, make_profile(), engine=name) as engine:
            assert self_test(engine, wrapped.bundle).ok
    floats = made(dense_onnx(), "dense.onnx")
    with open_engine(floats.bundle, make_profile()) as engine:
        assert self_test(engine, floats.bundle).ok
    outputs = floats.bundle.arrays(floats.model.selftest.file)["output_y"]
    assert floats.model.selftest.tolerance == pytest.approx(LEAST_SHARE * np.abs(outputs).max())


def test_real_samples_are_what_the_self_test_holds() -> None:
    frames = digits()[0][:20]
    wrapped = made(model_bytes("litert"), "digits.tflite", samples={"": frames})
    raw_in, raw_out = answer("litert", model_bytes("litert"), frames)
    arrays = wrapped.bundle.arrays(wrapped.model.selftest.file)
    tensor_in, tensor_out = wrapped.model.inputs[0], wrapped.model.outputs[0]
    assert np.array_equal(arrays[f"input_{tensor_in.name}"].reshape(raw_in.shape), raw_in)
    assert np.array_equal(arrays[f"output_{tensor_out.name}"].reshape(raw_out.shape), raw_out)
    assert wrapped.notes == ()
    ready = made(model_bytes("litert"), "digits.tflite", samples={"": raw_in})
    assert ready.model.selftest == wrapped.model.selftest, "samples in the model's own type are taken as they are"


def test_preprocessing_stands_in_the_manifest_and_in_the_vectors() -> None:
    pre = Preprocessing(mean=0.5, std=0.25, valid_range=(0.0, 1.0))
    wrapped = made(dense_onnx(), "dense.onnx", preprocessing=pre, samples={"x": np.full((3, 4), 0.75)})
    arrays = wrapped.bundle.arrays(wrapped.model.selftest.file)
    assert np.allclose(arrays["input_x"], 1.0) and wrapped.bundle.manifest.preprocessing == pre
    drawn = made(dense_onnx(), "dense.onnx", preprocessing=pre)
    values = drawn.bundle.arrays(drawn.model.selftest.file)["input_x"]
    assert values.min() >= -2.0 and values.max() <= 2.0 and np.ptp(values) > 2


def test_states_are_guessed_by_their_names_and_may_be_said() -> None:
    guessed = made(leaky_onnx(), "leaky.onnx", constants={"leak": 0.5})
    assert [(p.input, p.output) for p in guessed.model.states] == [("h", "hn")]
    said = made(leaky_onnx(), "leaky.onnx", constants={"leak": 0.5}, states={"h": "y"})
    assert [(p.input, p.output) for p in said.model.states] == [("h", "y")]
    none = made(leaky_onnx(), "leaky.onnx", constants={"leak": 0.5}, states={})
    assert not none.model.stateful and [t.name for t in none.model.app_inputs] == ["x", "h"]
    lite = made(leaky_tflite(), "leaky.tflite")
    assert [(p.input, p.output) for p in lite.model.states] == [("state", "state_out")]
    assert made(counter_tflite(), "counter.tflite").model.remembers
    assert not made(open_tflite(), "open.tflite").model.stateful


def test_input_and_output_of_one_shape_are_no_state() -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("input", "gate", "output")]
    graph = helper.make_graph([helper.make_node("Mul", ["input", "gate"], ["output"])], "g", value[:2], value[2:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    assert not made(data, "m.onnx").model.stateful


def test_a_stateful_bundle_answers_as_its_formula() -> None:
    wrapped = made(leaky_onnx(), "leaky.onnx", constants={"leak": 0.5})
    x = np.ones((1, 4), np.float32)
    with open_engine(wrapped.bundle, make_profile()) as engine:
        got = [float(engine.run({"x": x})["y"][0, 0]) for _ in range(3)]
        engine.reset()
        assert [*got, float(engine.run({"x": x})["y"][0, 0])] == [1.0, 1.5, 1.75, 1.0]


def test_whole_numbers_scalars_and_truth_values_reach_the_app_as_they_are() -> None:
    samples = {"ids": [[1, 2, 3]] * 2, "on": [True, False], "gain": [2.0, 2.0]}
    wrapped = made(adder_onnx(), "adder.onnx", samples=samples)
    ios = {io.name: (io.dtype, io.shape) for io in wrapped.bundle.manifest.inputs}
    assert ios == {"ids": ("int64", (1, 3)), "on": ("bool", ()), "gain": ("float64", ())}
    arrays = wrapped.bundle.arrays(wrapped.model.selftest.file)
    assert arrays["output_total"].tolist() == [[[2, 4, 6]], [[1, 2, 3]]]
    assert made(scaled_tflite(), "scaled.tflite").bundle.manifest.inputs[1].shape == ()


def test_names_that_are_no_file_names_stay_what_they_are() -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("serving_default_x:0", "größe/y:0")]
    graph = helper.make_graph([helper.make_node("Neg", [value[0].name], [value[1].name])], "g", value[:1], value[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    wrapped = made(data, "m.onnx")
    assert [t.name for t in (*wrapped.model.inputs, *wrapped.model.outputs)] == ["serving_default_x:0", "größe/y:0"]
    assert set(wrapped.bundle.arrays(wrapped.model.selftest.file)) == {"input_0", "output_0"}
    again = read(pack(wrapped.bundle), where="here")
    with open_engine(again, make_profile()) as engine:
        assert self_test(engine, again).ok


def test_open_axes_take_the_shape_that_is_said() -> None:
    wrapped = made(dense_onnx(), "dense.onnx", shapes={"x": (3, 4)})
    assert wrapped.model.inputs[0].shape == (3, 4) and wrapped.model.outputs[0].shape == (3, 2)
    lite = made(open_tflite(), "open.tflite", shapes={"x": (3, 4)})
    assert lite.model.outputs[0].shape == (3, 4)
    with open_engine(lite.bundle, make_profile()) as engine:
        assert self_test(engine, lite.bundle).ok


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"shapes": {"x": (3, 5)}}, r"--input x: the model takes \?x4, got 3x5"),
        ({"shapes": {"x": (3,)}}, r"--input x: the model takes \?x4, got 3"),
        ({"shapes": {"x": (0, 4)}}, r"--input x: the model takes \?x4, got 0x4"),
        ({"shapes": {"z": (1, 4)}}, "--input z: the model's inputs are x"),
        ({"constants": {"z": 1.0}}, "--constant z: the model's inputs are x"),
        ({"constants": {"x": 1.0}}, "nothing to pass"),
        ({"states": {"x": "z"}}, "--state x=z: the model's outputs are y"),
        ({"labels": ("a",)}, "1 labels, the first output has 2 values"),
        ({"samples": {"": np.zeros((2, 5))}}, r"input x is \(1, 4\), a sample is \(5,\)"),
        ({"samples": {"a": np.zeros(1), "b": np.zeros(1)}}, "samples: none for input x"),
        ({"samples": {"x": np.zeros((0, 4))}}, "at least one"),
        ({"samples": {"x": np.full((1, 4), np.nan)}}, "holds NaN"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(dense_onnx(), "dense.onnx", **plan)


def test_what_cannot_be_wrapped_is_refused() -> None:
    with pytest.raises(InputError, match=r"\.bin; \.tflite, \.onnx are known"):
        made(b"", "model.bin")
    for name in ("m.onnx", "m.tflite"):
        with pytest.raises(KasminaError, match=f"^{name}") as caught:
            made(b"not a model", name)
        assert isinstance(caught.value, BundleError | EngineError)


def test_a_model_that_answers_no_numbers_is_refused() -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Sqrt", ["x"], ["y"])], "g", value[:1], value[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match="output y holds NaN or infinity for self-test vector 0"):
        made(data, "root.onnx")
    assert made(data, "root.onnx", preprocessing=Preprocessing(valid_range=(0.0, 1.0))).model.selftest.samples == 16


def test_answers_that_are_all_the_same_are_pointed_out() -> None:
    wrapped = made(dense_onnx(), "dense.onnx", samples={"": np.zeros((4, 4))})
    assert "is the same for all 4 vectors" in wrapped.notes[0]


def test_drawn_vectors_cover_the_integer_range_and_keep_indices_small() -> None:
    wrapped = made(model_bytes("litert"), "digits.tflite", vectors=8)
    arrays = wrapped.bundle.arrays(wrapped.model.selftest.file)
    drawn = arrays[f"input_{wrapped.model.inputs[0].name}"]
    assert (drawn.min(), drawn.max()) == (-128, 127) and len(drawn) == 8
    adder = made(adder_onnx(), "adder.onnx")
    frames = make_frames(
        adder.model.app_inputs, adder.bundle.manifest.inputs, Preprocessing(), samples=None, count=50, seed=0
    )
    assert {int(v) for frame in frames for v in frame["ids"].ravel()} == {0, 1}


# ---- publication


def test_a_bundle_without_parity_is_published_only_by_insisting() -> None:
    manifest = made(dense_onnx(), "dense.onnx").bundle.manifest
    fault = acceptance_fault(manifest)
    assert fault is not None and "was never compared with a float network" in fault
    with pytest.raises(InputError, match="never compared"):
        check_acceptance(manifest, accept_anyway=False, audit=None)
    noted: list[dict[str, Any]] = []
    check_acceptance(manifest, accept_anyway=True, audit=lambda kind, **fields: noted.append({"kind": kind, **fields}))
    assert noted[0]["kind"] == "accept_anyway" and "parity" in noted[0]["fault"]


# ---- the program


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["bundle", *args])


def test_the_program_writes_a_bundle_that_verifies(tmp_path: Path) -> None:
    model, labels = tmp_path / "Digits v2.tflite", tmp_path / "labels.txt"
    model.write_bytes(model_bytes("litert"))
    labels.write_text("\n".join(LABELS) + "\n\n")
    np.save(tmp_path / "x.npy", digits()[0][:8])
    options = ("--labels", str(labels), "--samples", str(tmp_path / "x.npy"), "--valid-range", "0:1")
    done = run("create", str(model), "--out", str(tmp_path), *options)
    assert done.exit_code == 0, done.output
    assert "kasmina-edge deploy" in done.stdout and "not measured" in done.stdout and "agrees" in done.stdout
    path = tmp_path / "digits-v2-1.0.0.kasmina"
    manifest = read_file(path).manifest
    assert manifest.head == "classification" and manifest.preprocessing.valid_range == (0.0, 1.0)
    assert run("verify", str(path), "--data", str(tmp_path / "none")).exit_code == 0
    shown = run("show", str(path))
    assert "parity not measured" in shown.stdout
    again = run("create", str(model), "--out", str(tmp_path))
    assert isinstance(again.exception, InputError) and "is there already" in again.exception.message
    with open_engine(read_file(path), make_profile()) as engine:
        tensor, out = engine.model.inputs[0], engine.model.outputs[0]
        raw_in, _ = answer("litert", model_bytes("litert"), digits()[0][:8])
        given = [int(from_model(engine.run({tensor.name: x[None]})[out.name], out).argmax()) for x in raw_in]
    assert given == digits()[1][:8].tolist()


def test_the_program_says_what_two_bundles_differ_in(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_onnx())
    for version in ("1.0.0", "1.1.0"):
        assert run("create", str(model), "--out", str(tmp_path), "--version", version).exit_code == 0
    old, new = (str(tmp_path / f"m-{v}.kasmina") for v in ("1.0.0", "1.1.0"))
    value = json.loads(run("diff", old, new, "--json").stdout)
    assert value == {"same": False, "changed": {"version": {"old": "1.0.0", "new": "1.1.0"}}}
    assert json.loads(run("diff", old, old, "--json").stdout) == {"same": True, "changed": {}}
    assert "1.1.0" in run("diff", old, new).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--input", "x"), "expected NAME=VALUE"),
        (("--input", "x=ax4"), "expected lengths"),
        (("--constant", "x=many"), "expected a number"),
        (("--valid-range", "1:0"), "LOW below HIGH"),
        (("--valid-range", "1"), "expected a number"),
        (("--labels", "no-such-file"), "cannot be read"),
        (("--samples", "no-such-file"), "cannot be read"),
        (("--std", "0"), "std"),
        (("--version", "one"), "version"),
        (("--engine", "litert"), "litert"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_onnx())
    done = run("create", str(model), "--out", str(tmp_path), *options)
    assert isinstance(done.exception, KasminaError), done.output
    assert said in done.exception.message and not list(tmp_path.glob("*.kasmina"))


def test_samples_with_pickles_are_refused(tmp_path: Path) -> None:
    model, samples = tmp_path / "m.onnx", tmp_path / "x.npy"
    model.write_bytes(dense_onnx())
    np.save(samples, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = run("create", str(model), "--out", str(tmp_path), "--samples", str(samples))
    assert isinstance(done.exception, InputError) and "without pickles" in done.exception.message


def test_weights_beside_the_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 4), ("y", 2))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weights])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    good = made(whole.SerializeToString(), "m.onnx")
    path = tmp_path / "m.onnx"
    onnx.save_model(whole, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = onnx.load(str(path), load_external_data=False)
    for location in ("w.bin", "./w.bin", "../w.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""):
        outside.graph.initializer[0].external_data[0].value = location
        for folder in (tmp_path, tmp_path.parent):
            monkeypatch.chdir(folder)
            with pytest.raises(InputError, match=r"m\.onnx: the tensor 'w' lies in a file beside") as caught:
                made(outside.SerializeToString(), "m.onnx")
            assert "onnx.save_model" in caught.value.next_step
            with pytest.raises(BundleError, match=r"model\.onnx: the tensor 'w' lies in a file beside"):
                OnnxEngine(good.model, outside.SerializeToString(), make_profile())
    path.write_bytes(outside.SerializeToString())
    assert isinstance(run("create", str(path), "--out", str(tmp_path)).exception, InputError)


def test_weights_beside_the_model_are_found_wherever_they_hide() -> None:
    from onnx import GraphProto, ModelProto, TensorProto, helper

    far = TensorProto(name="far", data_location=TensorProto.EXTERNAL)
    said = TensorProto(name="said")
    said.external_data.add(key="location", value="w.bin")
    deep = GraphProto(initializer=[far])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [0]), [4]
    )
    sparse.indices.data_location = TensorProto.EXTERNAL
    nodes = {
        "value": helper.make_node("Constant", [], ["c"], value=far),
        "tensors": helper.make_node("Odd", [], ["c"], many=[far]),
        "branch": helper.make_node("If", ["b"], ["c"], then_branch=deep),
        "branches": helper.make_node("Odd", [], ["c"], many=[deep]),
        "sparse": helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        "sparses": helper.make_node("Odd", [], ["c"], many=[sparse]),
        "compiled": helper.make_node("EPContext", [], ["c"], domain="com.microsoft", embed_mode=0),
    }
    models = {name: ModelProto(graph=GraphProto(node=[node])) for name, node in nodes.items()}
    for name, node in nodes.items():
        models[f"function {name}"] = ModelProto(graph=GraphProto(name="g"))
        models[f"function {name}"].functions.add(name="f").node.append(node)
    models["initializer"] = ModelProto(graph=deep)
    models["said only"] = ModelProto(graph=GraphProto(initializer=[said]))
    models["sparse initializer"] = ModelProto(graph=GraphProto(sparse_initializer=[sparse]))
    models["default"] = ModelProto(graph=GraphProto(name="g"))
    models["default"].functions.add(name="f").attribute_proto.add(name="a", t=far)
    models["training"] = ModelProto(graph=GraphProto(name="g"))
    models["training"].training_info.add().algorithm.CopyFrom(deep)
    for name, model in models.items():
        assert outside_part(model.SerializeToString()) is not None, name
    assert outside_part(dense_onnx()) is None and outside_part(leaky_onnx()) is None
    assert outside_part(dense_onnx() + models["initializer"].SerializeToString()), "protobuf joins what comes twice"
    wide = models["said only"].SerializeToString()
    assert outside_part(wide) == "the tensor 'said'"


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_make_the_look_into_onnx_run_away(noise: bytes, cut: int) -> None:
    for data in (noise, dense_onnx()[:cut] + noise, dense_onnx()[:cut]):
        try:
            outside_part(data)
        except ValueError:
            continue


def test_the_libraries_write_nothing_below_the_home_folder(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "home").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    env = {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(root)}
    (tmp_path / "m.kasmina").write_bytes(pack(made(dense_onnx(), "m.onnx").bundle))
    engine = (
        "from pathlib import Path\n"
        "from kasmina_edge.bundle import read_file\n"
        "from kasmina_edge.contracts.profile import load_profile\n"
        "from kasmina_edge.engines import open_engine, self_test\n"
        "b = read_file(Path('m.kasmina'))\n"
        "with open_engine(b, load_profile('x86-cpu')) as e: assert e.name == 'onnxruntime' and self_test(e, b).ok"
    )
    for call in (["-c", engine], ["-m", "kasmina_edge", "doctor"]):
        done = subprocess.run(
            [sys.executable, *call], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "home").rglob("*")) == []


def test_a_model_without_inputs_is_one_sentence() -> None:
    from onnx import TensorProto, helper

    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]))
    graph = helper.make_graph([node], "g", [], [y])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match=r"^m\.onnx: the model has no inputs"):
        made(data, "m.onnx")


def test_a_zero_length_axis_and_a_missing_constant_are_one_sentence() -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 0]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match="x is 1x0, and an axis of length 0"):
        made(data, "m.onnx")
    value = [helper.make_tensor_value_info("x", TensorProto.INT32, [1]), helper.make_tensor_value_info("rate", 6, [])]
    out = helper.make_tensor_value_info("y", TensorProto.INT32, [1])
    nodes = [
        helper.make_node("Gather", ["x", "rate"], ["g"], axis=0),
        helper.make_node("Sub", ["rate", "one"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ][1:]
    numbers = [helper.make_tensor("one", 6, [], [5]), helper.make_tensor("table", 6, [3], [1, 2, 3])]
    graph = helper.make_graph(nodes, "g", value, [out], numbers)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match=r"^m\.onnx: .* while rate is 0 \(") as caught:
        made(data, "m.onnx")
    assert "--constant rate=" in caught.value.next_step
    assert made(data, "m.onnx", constants={"rate": 5}).model.inputs[1].constant == 5


@pytest.mark.parametrize("what", ["model", "labels", "samples"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, what: str) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_onnx())
    call = [str(model), f"--{what}", "/dev/zero"] if what != "model" else ["/dev/zero", "--engine", "onnxruntime"]
    done = run("create", *call, "--out", str(tmp_path))
    assert isinstance(done.exception, InputError) and done.exception.message == "/dev/zero: no regular file"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--name", "Door Camera"), "--name Door Camera"),
        (("--name", ""), "--name "),
        (("--version", "1.2"), "--version 1.2"),
        (("--std", "0"), "--std 0"),
        (("--std", "nan"), "--std nan"),
        (("--mean", "inf"), "--mean inf"),
        (("--constant", "x=nan"), "--constant nan"),
        (("--valid-range", "0:inf"), "--valid-range inf"),
        (("--valid-range", "nan:1"), "--valid-range nan"),
    ],
)
def test_a_value_out_of_range_names_its_option_and_an_example(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(dense_onnx())
    done = run("create", str(model), "--out", str(tmp_path), *options)
    assert isinstance(done.exception, InputError), done.output
    assert done.exception.message.startswith(said) and "example" in done.exception.next_step
    assert "[a-z" not in done.exception.message
    assert run("create", str(model), "--out", str(tmp_path), "--seed", "-1").exit_code == 2
