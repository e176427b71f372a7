"""A user's own .pt2 and .onnx: what they hold arrives, and nothing in them is ever run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import fx, nn
from worlds import sources

from kasmina_edge.errors import InputError
from kasmina_trainer.export.layout import tensors_of
from kasmina_trainer.export.source import load_model, load_source
from kasmina_trainer.export.source.onnx_operators import OPERATORS
from kasmina_trainer.export.source.program import line_of

MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/model_weights_config.json", "data/constants/"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of network as a .pt2."""
    folder = tmp_path_factory.mktemp("sources")
    kinds = ("plain", "residual", "ecg", "heads")
    return {k: sources.save_pt2(sources.network(k), folder / f"{k}.pt2", sources.SHAPES[k]) for k in kinds}


def answers(module: nn.Module, x: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [t.numpy() for t in tensors_of(module(x))]


@pytest.mark.parametrize("kind", ["plain", "residual", "ecg", "heads"])
def test_a_program_arrives_whole(saved: dict[str, Path], kind: str) -> None:
    source = load_source(saved[kind])
    assert (source.kind, source.input_shape) == ("pt2", sources.SHAPES[kind])
    assert source.output_names == (("place", "share") if kind == "heads" else ("",))
    x = torch.randn(sources.SHAPES[kind])
    for mine, own in zip(answers(source.module, x), answers(sources.network(kind), x), strict=True):
        assert np.array_equal(mine, own)


def test_layers_keep_kind_and_name(saved: dict[str, Path]) -> None:
    module = load_model(saved["plain"])
    layers = {name: type(layer).__name__ for name, layer in module.named_children()}
    assert layers["features_0"] == "Conv2d" and layers["features_1"] == "BatchNorm2d" and layers["head"] == "Linear"
    assert "Dropout" not in layers.values()
    assert isinstance(module, fx.GraphModule)
    lines = [line_of(n.meta["stack_trace"]) for n in module.graph.nodes if n.op == "call_module"]
    assert all("sources.py, line" in line for line in lines)


class Bomb:
    """Says on unpickling that somebody ran it."""

    def __reduce__(self) -> Any:
        return (exec, ("import builtins; builtins.kasmina_bomb = True",))


def exploded() -> bool:
    import builtins

    return hasattr(builtins, "kasmina_bomb")


def changed(program: dict[str, Any], attack: str) -> dict[str, Any]:
    graph = program["graph_module"]["graph"]
    first = graph["nodes"][0]
    if attack == "operator":
        first["target"] = "torch.os.system"
    elif attack == "deeper operator":
        first["target"] = "torch.ops.aten.conv2d.default.__init__"
    elif attack == "file operator":
        first |= {"target": "torch.ops.aten.from_file.default", "inputs": [
            {"name": "filename", "arg": {"as_string": "/etc/passwd"}, "kind": 1}]}  # fmt: skip
    elif attack == "mutation":
        first["target"] = "torch.ops.aten.resize_.default"
    elif attack == "symbols":
        bomb = "__import__('builtins').__dict__.update(kasmina_bomb=True)"
        name = graph["inputs"][-1]["as_tensor"]["name"]
        graph["tensor_values"][name]["sizes"][0] = {"as_expr": {"expr_str": bomb, "hint": {"as_int": 1}}}
    return program


@pytest.mark.parametrize("attack", ["operator", "deeper operator", "file operator", "mutation", "symbols"])
def test_a_program_cannot_reach_out(saved: dict[str, Path], tmp_path: Path, attack: str) -> None:
    import json

    program = changed(sources.member(saved["plain"], MODEL), attack)
    path = sources.repacked(saved["plain"], tmp_path / "x.pt2", {MODEL: json.dumps(program).encode()})
    with pytest.raises(InputError, match=r"x\.pt2: .*(cannot be taken|dynamic shape)"):
        load_source(path)
    assert not exploded()


def test_guards_and_names_are_not_code(saved: dict[str, Path], tmp_path: Path) -> None:
    """torch.export.load compiles both; here they are not looked at."""
    import json

    program = sources.member(saved["plain"], MODEL)
    program["guards_code"] = ["__import__('builtins').__dict__.update(kasmina_bomb=True)"]
    text = json.dumps(program).replace('"relu"', '"relu = exec(str(1)); relu"')
    path = sources.repacked(saved["plain"], tmp_path / "x.pt2", {MODEL: text.encode()})
    module = load_model(path)
    assert "exec" not in module.code and not exploded()  # type: ignore[operator]


@pytest.mark.parametrize("place", ["weight", "constant", "legacy weights", "example inputs"])
def test_pickles_are_never_read(saved: dict[str, Path], tmp_path: Path, place: str) -> None:
    import json

    bomb = pickle.dumps(Bomb())
    weights = sources.member(saved["plain"], WEIGHTS)
    changes: dict[str, bytes | None] = {}
    if place == "weight":
        entry = next(iter(weights["config"].values()))
        entry["use_pickle"] = True
        changes = {WEIGHTS: json.dumps(weights).encode(), f"data/weights/{entry['path_name']}": bomb}
    elif place == "constant":
        config = {"config": {"k": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
        changes = {
            f"{CONSTANTS}model_constants_config.json": json.dumps(config).encode(), f"{CONSTANTS}opaque_obj_0": bomb
        }  # fmt: skip
    elif place == "legacy weights":
        changes = {WEIGHTS: None, "data/weights/model.pt": bomb}
    else:
        changes = {"data/sample_inputs/model.pt": bomb}
    path = sources.repacked(saved["plain"], tmp_path / "x.pt2", changes)
    if place == "example inputs":
        load_source(path)  # they are not needed, and not looked at
    else:
        with pytest.raises(InputError, match="pickle"):
            load_source(path)
    assert not exploded()


def test_the_bomb_works(saved: dict[str, Path], tmp_path: Path) -> None:
    """What torch itself does with such a file: the reason for all of this."""
    import builtins
    import warnings

    path = sources.repacked(saved["plain"], tmp_path / "x.pt2", {"data/sample_inputs/model.pt": pickle.dumps(Bomb())})
    try:
        with warnings.catch_warnings(), pytest.raises(Exception):  # noqa: B017 - whatever it says afterwards
            warnings.simplefilter("ignore")
            torch.export.load(path)
        assert exploded()
    finally:
        vars(builtins).pop("kasmina_bomb", None)


def test_checkpoints_and_torchscript_are_refused(tmp_path: Path) -> None:
    module = sources.network("heads")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    (tmp_path / "whole.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("state.pt", "whole.pth"):
        with pytest.raises(InputError, match="pickle") as caught:
            load_source(tmp_path / name)
        assert "torch.export.save" in caught.value.next_step
    assert not exploded()


class InPlace(nn.Module):
    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.view = view
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12) to (N, 12)."""
        y = x * 2
        z = y.view(12) if self.view else y
        self.act(y)
        y += 1
        return y + z.reshape(1, 12)


def test_operations_in_place_are_taken_where_that_is_exact(tmp_path: Path) -> None:
    source = load_source(sources.save_pt2(InPlace(), tmp_path / "i.pt2", (1, 12)))
    x = torch.randn(1, 12)
    assert np.array_equal(answers(source.module, x)[0], answers(InPlace(), x)[0])
    with pytest.raises(InputError, match=r"relu_, which changes a tensor in place, .*line"):
        load_source(sources.save_pt2(InPlace(view=True), tmp_path / "v.pt2", (1, 12)))


class Dynamic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12) to (N, 12)."""
        return torch.relu(x)


def test_dynamic_shapes_are_refused(tmp_path: Path) -> None:
    shapes = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}}
    path = sources.save_pt2(Dynamic(), tmp_path / "d.pt2", (3, 12), **shapes)
    with pytest.raises(InputError, match="axis 0 of x has an open length") as caught:
        load_source(path)
    assert "fixed shapes" in caught.value.next_step


def test_training_mode_is_refused(tmp_path: Path) -> None:
    module = sources.network("plain").train()
    path = sources.save_pt2(module, tmp_path / "t.pt2", (2, 1, 16, 16))
    with pytest.raises(InputError, match=r"training mode|changes its own") as caught:
        load_source(path)
    assert "model.eval()" in caught.value.next_step


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_nan_weights_are_refused(tmp_path: Path, kind: str) -> None:
    module = sources.network("heads")
    with torch.no_grad():
        module.share.weight[1, 2] = float("nan")  # type: ignore[union-attr, index, operator]
    if kind == "pt2":
        path = sources.save_pt2(module, tmp_path / "n.pt2", (1, 12))
    else:
        w = np.full((12, 4), np.nan, np.float32)
        model = sources.onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, [1, 12], ["y"])
        path = tmp_path / "n.onnx"
        onnx.save(model, path)
    with pytest.raises(InputError, match=r"not finite|differs from ONNX"):
        load_source(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_get_one_sentence(saved: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    whole = saved["heads"].read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    body = data.draw(
        st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :], bytes(at % 40), b"PK"])
    )
    path = tmp_path / "damaged.pt2"
    path.write_bytes(body)
    try:
        load_source(path)
    except InputError as exc:
        assert "\n" not in exc.message and "damaged.pt2" in exc.message


N = helper.make_node
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


GRAPHS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray[Any, Any]], list[int]]] = {
    "conv": (
        [
            N("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
            N("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"]), N("Clip", ["n", "low", "high"], ["y"]),
        ],
        {"w": floats(4, 3, 3, 3), "b": floats(4), "s": floats(4), "o": floats(4), "m": floats(4),
         "v": np.abs(floats(4)) + 1, "low": np.float32(0).reshape(()), "high": np.float32(6).reshape(())},
        [1, 3, 8, 8],
    ),
    "transposed": (
        [N("ConvTranspose", ["x", "w"], ["c"], kernel_shape=[2, 2], strides=[2, 2]), N("LeakyRelu", ["c"], ["y"])],
        {"w": floats(3, 4, 2, 2)}, [1, 3, 4, 4],
    ),
    "pools": (
        [
            N("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
            N("AveragePool", ["x"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
            N("Concat", ["a", "b"], ["c"], axis=1), N("GlobalAveragePool", ["c"], ["d"]),
            N("Flatten", ["d"], ["e"]), N("Softmax", ["e"], ["y"], axis=-1),
        ],
        {}, [1, 3, 8, 8],
    ),
    "moves": (
        [
            N("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), N("Reshape", ["a", "shape"], ["b"]),
            N("Slice", ["b", "start", "end", "axes"], ["c"]), N("Split", ["c"], ["d", "e"], axis=2, num_outputs=2),
            N("Mul", ["d", "e"], ["f"]), N("Unsqueeze", ["f", "one"], ["g"]), N("Squeeze", ["g", "one"], ["h"]),
            N("Gather", ["h", "index"], ["i"], axis=1), N("Pad", ["i", "pads"], ["y"]),
        ],
        {"shape": ints(1, -1, 4), "start": ints(1), "end": ints(9), "axes": ints(1), "one": ints(1),
         "index": ints(0, 2, 5), "pads": ints(0, 1, 0, 0, 0, 2)},
        [1, 4, 4, 4],
    ),
    "resize": (
        [
            N("Resize", ["x", "", "scales"], ["a"], mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor"),
            N("DepthToSpace", ["a"], ["b"], blocksize=2), N("Resize", ["b", "", "", "sizes"], ["y"], mode="linear"),
        ],
        {"scales": np.array([1, 1, 2, 2], np.float32), "sizes": ints(1, 1, 24, 24)}, [1, 4, 4, 4],
    ),
    "products": (
        [
            N("MatMul", ["x", "w"], ["a"]), N("Add", ["a", "b"], ["c"]), N("Gemm", ["c", "g", "h"], ["d"], transB=1),
            N("LayerNormalization", ["d", "s", "o"], ["e"]), N("HardSwish", ["e"], ["f"]),
            N("ReduceMean", ["f", "axes"], ["m"], keepdims=1), N("Sub", ["f", "m"], ["z"]), N("Tanh", ["z"], ["y"]),
        ],
        {"w": floats(6, 8), "b": floats(8), "g": floats(5, 8), "h": floats(5), "s": floats(5), "o": floats(5),
         "axes": ints(1)},
        [1, 6],
    ),
    "one-dimensional": (
        [
            N("Conv", ["x", "w"], ["a"], kernel_shape=[5], pads=[2, 2], group=2), N("Relu", ["a"], ["b"]),
            N("AveragePool", ["b"], ["c"], kernel_shape=[4], strides=[4]), N("Sigmoid", ["c"], ["y"]),
        ],
        {"w": floats(4, 1, 5)}, [1, 2, 32],
    ),
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnx_operators_compute_as_onnxruntime_does(tmp_path: Path, graph: str) -> None:
    """`read_onnx` compares every import with ONNX Runtime itself; a wrong converter raises."""
    nodes, constants, shape = GRAPHS[graph]
    path = tmp_path / f"{graph}.onnx"
    onnx.save(sources.onnx_model(nodes, constants, ["batch", *shape[1:]], ["y"], opset=18), path)
    source = load_source(path)
    assert source.input_shape == tuple(shape) and source.output_names == ("y",)


def test_a_wrong_converter_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Tanh", OPERATORS["Sigmoid"])  # type: ignore[arg-type]
    path = tmp_path / "t.onnx"
    onnx.save(sources.onnx_model([N("Tanh", ["x"], ["y"])], {}, [1, 4], ["y"]), path)
    with pytest.raises(InputError, match="differs from ONNX Runtime"):
        load_source(path)


def test_pytorchs_own_onnx_comes_back(tmp_path: Path) -> None:
    module = sources.network("residual")
    program = torch.onnx.export(module, (torch.zeros(1, 3, 16, 16),), dynamo=True, verbose=False)
    assert program is not None
    path = tmp_path / "r.onnx"
    program.save(path)
    source = load_source(path)
    x = torch.randn(1, 3, 16, 16)
    assert np.allclose(answers(source.module, x)[0], answers(module, x)[0], atol=1e-4)
    kinds = {type(m).__name__ for m in source.module.children()}
    assert {"Conv2d", "Linear", "ReLU6"} <= kinds and "BatchNorm2d" not in kinds


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        ([N("Einsum", ["x"], ["y"], equation="ij->ji", name="encoder/mix")], [1, 4], "Einsum .*encoder/mix"),
        ([N("TopK", ["x", "k"], ["y", "i"])], [1, 4], "TopK"),
        ([N("Relu", ["x"], ["y"])], [1, 3, "height", 8], r"axis 2 of input x has an open length \(height"),
        ([N("Bernoulli", ["x"], ["y"])], [1, 4], "Bernoulli"),
        ([N("QuantizeLinear", ["x", "s"], ["q"]), N("DequantizeLinear", ["q", "s"], ["y"])], [1, 4], "quantized"),
    ],
)
def test_onnx_that_cannot_be_taken_is_named(
    tmp_path: Path, nodes: list[onnx.NodeProto], shape: list[Any], message: str
) -> None:
    constants = {"k": ints(2), "s": np.array([0.1], np.float32)}
    used = {n for node in nodes for n in node.input}
    path = tmp_path / "bad.onnx"
    onnx.save(sources.onnx_model(nodes, {k: v for k, v in constants.items() if k in used}, shape, ["y"]), path)
    with pytest.raises(InputError, match=message):
        load_source(path)


def test_an_open_axis_can_be_fixed(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    onnx.save(sources.onnx_model([N("Relu", ["x"], ["y"])], {}, ["n", 3, "h", 8], ["y"]), path)
    assert load_source(path, input_shape=(1, 3, 6, 8)).input_shape == (1, 3, 6, 8)
    with pytest.raises(InputError, match="axis 3 is 8 in the file"):
        load_source(path, input_shape=(1, 3, 6, 9))


@pytest.mark.parametrize("body", [b"", b"text", b"\x08\x07", b"\x00" * 30, b"....TFL3...."])
def test_other_files_are_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(body)
    with pytest.raises(InputError, match=r"some\.bin"):
        load_source(path)
    with pytest.raises(InputError, match="no such model file"):
        load_source(tmp_path / "missing.pt2")


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Both(), (torch.zeros(1, 4), torch.zeros(1, 4))), buffer)
    (tmp_path / "two.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="2 inputs, one is exported"):
        load_source(tmp_path / "two.pt2")
