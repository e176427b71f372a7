"""Bundles with several inputs and outputs, and models that answer NaN; the models are written here with onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_profile

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import (
    BundleManifest,
    FileEntry,
    ModelFile,
    ModelIO,
    ModelTensor,
    Parity,
    SelfTest,
)
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.runtime import Runtime

onnx = pytest.importorskip("onnx")
PROFILE = make_profile(engines=("onnxruntime",))
A, B = np.array([[1, 2, 3]], np.float32), np.array([[5, 5, 4]], np.float32)


def make(nodes: list[tuple[str, list[str], str]], inputs: str, outputs: str, *, head: str = "other") -> Bundle:
    """A bundle around one ONNX graph whose tensors are all (1, 3)."""
    tensor, helper = onnx.TensorProto.FLOAT, onnx.helper
    info = {n: helper.make_tensor_value_info(n, tensor, [1, 3]) for n in inputs + outputs}
    graph = helper.make_graph(
        [helper.make_node(kind, sources, [sink]) for kind, sources, sink in nodes],
        "g",
        [info[n] for n in inputs],
        [info[n] for n in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    tests = pack_arrays({f"{side}_{n}": A for side, names in (("input", inputs), ("output", outputs)) for n in names})
    entry = ModelFile(
        file=FileEntry.of("m.onnx", model),
        engine="onnxruntime",
        inputs=tuple(ModelTensor(name=n, shape=(1, 3), dtype="float32") for n in inputs),
        outputs=tuple(ModelTensor(name=n, shape=(1, 3), dtype="float32") for n in outputs),
        selftest=SelfTest(file=FileEntry.of("t.npz", tests), samples=1, tolerance=0.0),
        parity=Parity(samples=1, top1_agreement=1.0, max_abs_difference=0.0),
    )
    manifest = BundleManifest.parse(
        {
            "name": "sums", "version": "1.0.0", "release": 1, "profile": "x86-cpu", "head": head,
            "inputs": [ModelIO(name=f"in-{n}", shape=(1, 3)).model_dump() for n in inputs],
            "outputs": [ModelIO(name=f"out-{n}", shape=(1, 3)).model_dump() for n in outputs],
            "models": [entry.model_dump()],
        }
    )  # fmt: skip
    return Bundle(manifest, {"m.onnx": model, "t.npz": tests})


def open_bundle(bundle: Bundle, folder: Path, taken: list[TelemetryRecord] | None = None) -> Runtime:
    path = folder / bundle.file_name
    path.write_bytes(pack(bundle))
    telemetry = taken.append if taken is not None else None
    return Runtime.open(path, profile=PROFILE, verify=lambda _: None, telemetry=telemetry)


def test_inputs_and_outputs_go_by_the_manifests_names(tmp_path: Path) -> None:
    bundle = make([("Add", ["a", "b"], "s"), ("Sub", ["a", "b"], "d")], "ab", "sd", head="classification")
    taken: list[TelemetryRecord] = []
    with open_bundle(bundle, tmp_path, taken) as runtime:
        result = runtime.infer({"in-b": B, "in-a": A[0].astype(np.float64)})
        assert result.outputs["out-s"].tolist() == (A + B).tolist()
        assert result.outputs["out-d"].tolist() == (A - B).tolist()
        assert (result.label, result.label_index) == ("1", 1), "by the first output, and by number without labels"
        assert runtime.flush()
        assert (taken[0].frames, taken[0].sampled, taken[0].labels) == (1, 0, {"1": 1}), "no single frame to look at"
        with pytest.raises(InputError, match=r"expected inputs \['in-a', 'in-b'\], got \['in-a'\]"):
            runtime.infer({"in-a": A})
        with pytest.raises(InputError, match=r"takes 2 inputs; pass a dict of \['in-a', 'in-b'\]"):
            runtime.infer(A)
        with pytest.raises(InputError, match="has 2 inputs; one can be captured"):
            runtime.capture({"in-a": A, "in-b": B})


def test_a_classifier_that_answers_nan_is_an_engine_error(tmp_path: Path) -> None:
    with open_bundle(make([("Log", ["a"], "y")], "a", "y", head="classification"), tmp_path) as runtime:
        assert runtime.infer(A).label_index == 2
        with pytest.raises(EngineError, match="ONNX Runtime CPU answered NaN"):
            runtime.infer(-A)
        assert runtime.infer(A).label_index == 2


def test_other_heads_may_say_what_they_like(tmp_path: Path) -> None:
    with open_bundle(make([("Log", ["a"], "y")], "a", "y"), tmp_path) as runtime:
        assert np.isnan(runtime.infer(-A).outputs["out-y"]).all()
