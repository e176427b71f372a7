"""The other forms of a file - float, 4-bit weights, packed ONNX matrices - and the papers that travel with a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from worlds import sources
from worlds.bundles import digits

import kasmina_trainer as kt
from kasmina_edge import bundle as container
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import BundleManifest, Graft, Preprocessing
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines import open_engine, self_test
from kasmina_edge.errors import BundleError, InputError, KasminaError
from kasmina_edge.hardware_simulator.edgetpu_map import SPLIT, map_edgetpu
from kasmina_edge.hardware_simulator.networks.building import LayerTable
from kasmina_trainer.export import culprits, documents, flatbuffer, judging, mapping, parity
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.export.documents import ModelCard
from kasmina_trainer.export.float_tflite import FloatNetwork, convert, refuse_float
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.export.packed_weights import with_packed_weights
from kasmina_trainer.export.selftest_vectors import affordable, drawn_rows, spoilt_files, telling_rows
from kasmina_trainer.quantization import QuantizeConfig

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CARD = ModelCard(
    description="Tells four textures apart.",
    intended_use=("sorting tiles",),
    out_of_scope=("medical use",),
    training_data=("textures 1.2",),
    evaluation_data=("textures 1.2, held out",),
    limitations=("blind to colour",),
    ethics=("no people are shown",),
    licence="Apache-2.0",
)


N = onnx.helper.make_node


class Wide(nn.Module):
    """Matrices large enough to be packed, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.conv, self.first, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(512, 64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.first(torch.relu(self.conv(x)).flatten(1))))
        return logits


def bundle_of(form: str, **more: Any) -> Bundle:
    x = sources.frames("plain", 120)
    given: dict[str, Any] = {"calibration": x[:80], "held_out": (x[80:], None), "minimum_agreement": 0.9}
    quantize = QuantizeConfig(weight_bits=4) if form == "int4" else None
    return export_bundle(
        Wide().eval(), "wide", version="1.0.0", profile="x86-cpu", quantize=quantize,
        form="float" if form == "float" else "quantized", card=CARD, **(given | more),
    )  # fmt: skip


@pytest.fixture(scope="module")
def packed() -> Bundle:
    """4-bit weights where the engines have them."""
    return bundle_of("int4")


@pytest.fixture(scope="module")
def forms(packed: Bundle) -> dict[str, Bundle]:
    """The same network in three forms."""
    return {"int8": bundle_of("int8"), "int4": packed, "float": bundle_of("float")}


@pytest.fixture(scope="module")
def floats() -> FloatNetwork:
    """The network as float TFLite."""
    return convert(Wide().eval(), (1, 16, 16, 1))


@pytest.mark.slow
def test_every_form_runs_and_is_proven(forms: dict[str, Bundle]) -> None:
    sizes = {}
    for form, bundle in forms.items():
        again = container.read(container.pack(bundle), where=form)
        assert again.manifest == bundle.manifest and dict(again.files) == dict(bundle.files)
        for entry in bundle.manifest.models:
            profile = load_profile("x86-cpu").model_copy(update={"engines": (entry.engine,)})
            with open_engine(bundle, profile) as engine:
                result = self_test(engine, bundle, timed_runs=1)
            assert result.ok and result.samples == 40, (form, entry.engine)
            assert entry.parity is not None and entry.parity.top1_agreement >= 0.9
            sizes[form, entry.engine] = entry.file.size_bytes
    assert sizes["int8", "litert"] < 0.35 * sizes["float", "litert"]
    assert sizes["int4", "litert"] < 0.65 * sizes["int8", "litert"]
    assert sizes["int4", "onnxruntime"] < 0.7 * sizes["int8", "onnxruntime"] < 0.3 * sizes["float", "onnxruntime"]
    exact = forms["float"].model_for("litert").parity
    assert exact is not None and exact.max_abs_difference < 1e-5


@pytest.mark.slow
def test_what_the_files_hold(forms: dict[str, Bundle]) -> None:
    kinds = {}
    for form, bundle in forms.items():
        model = flatbuffer.parse(bundle.files["model.tflite"])
        operators = flatbuffer.operators(model)
        kinds[form] = {flatbuffer.type_name(model, op.inputs[1]) for op in operators if len(op.inputs) == 3}
        assert sorted(filter(None, flatbuffer.tensor_names(model))) == ["input", "output"]
    assert kinds == {"int8": {"INT8"}, "int4": {"INT4", "INT8"}, "float": {"FLOAT32"}}  # depthwise stays at 8
    graphs = {form: onnx.load_from_string(bundle.files["model.onnx"]) for form, bundle in forms.items()}
    packed = [n for n in graphs["int4"].graph.node if n.op_type == "MatMulNBits"]
    assert len(packed) == 1 and "Conv" in {n.op_type for n in graphs["int4"].graph.node}
    assert not any(n.op_type.endswith("QuantizeLinear") for n in graphs["float"].graph.node)
    for graph in graphs.values():
        assert not graph.metadata_props and all(not n.name for n in graph.graph.node)


@pytest.mark.slow
def test_packed_matrices_compute_the_same(forms: dict[str, Bundle]) -> None:
    model = onnx.load_from_string(forms["float"].files["model.onnx"])
    packed, count = with_packed_weights(model)
    assert count == 1 and len(packed.SerializeToString()) < 0.4 * len(model.SerializeToString())
    x = sources.frames("plain", 20)
    before, after = (parity.onnx_logits(m.SerializeToString(), x) for m in (model, packed))
    assert judging.figures("y", before, after).sqnr_db > 15
    small = sources.onnx_model([N("MatMul", ["x", "w"], ["y"])], {"w": np.ones((8, 4), np.float32)}, [1, 8], ["y"])
    assert with_packed_weights(small) == (small, 0)


@pytest.mark.slow
def test_equal_arguments_give_equal_bytes(packed: Bundle) -> None:
    again = bundle_of("int4")
    assert again.manifest.digest() == packed.manifest.digest() and again.files == packed.files


def test_the_papers(packed: Bundle) -> None:
    bundle = packed
    body = bundle.files[documents.PATH]
    assert len(body) < 4096 and bundle.manifest.documents[0].path == documents.PATH
    bill = json.loads(body)
    hashes = {c["name"]: c["hashes"][0]["content"] for c in bill["components"] if c["type"] == "file"}
    assert hashes == {e.path: e.sha256 for e in bundle.manifest.files() if e.path != documents.PATH}
    libraries = {c["name"]: c["version"] for c in bill["components"] if c["type"] == "library"}
    assert libraries["torch"] == torch.__version__ and {"litert-torch", "ai-edge-quantizer", "onnx"} <= set(libraries)
    assert {c["name"] for c in bill["components"] if c["type"] == "data"} == {"textures 1.2", "textures 1.2, held out"}
    assert "timestamp" not in bill["metadata"]
    card = documents.markdown(body)
    for text in ("Tells four textures apart.", "sorting tiles", "not for: medical use", "blind to colour",
                 "no people are shown", "answers beside the float network's", "SQNR", "model.onnx"):  # fmt: skip
        assert text in card
    assert "output output" not in card and "output: output" not in card
    with pytest.raises(BundleError, match="not the papers"):
        documents.markdown(body[:-200])


def test_the_papers_are_covered_and_no_device_needs_them(packed: Bundle) -> None:
    bundle = packed
    changed = Bundle(bundle.manifest, {**bundle.files, documents.PATH: b"{}"})
    with pytest.raises(BundleError, match=documents.PATH):
        container.pack(changed)
    assert all(documents.PATH not in {e.path for e in bundle.manifest.files_for(m)} for m in bundle.manifest.models)
    without = bundle.manifest.model_copy(update={"documents": ()})
    assert b"documents" not in without.to_bytes() and without.digest() != bundle.manifest.digest()
    assert BundleManifest.from_bytes(bundle.manifest.to_bytes()) == bundle.manifest


def test_the_bill_of_materials_is_valid_cyclonedx(packed: Bundle) -> None:
    """Against the standard's own schema, where the oracle is installed."""
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    pytest.importorskip("jsonschema")
    checker = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = packed.files[documents.PATH].decode()
    assert checker.validate_str(text) is None
    assert checker.validate_str(text.replace('"type":"library"', '"type":"book"')) is not None


def faulty(module: nn.Module, fault: str) -> tuple[nn.Module, dict[str, Any]]:
    x = sources.frames("plain", 60)
    given: dict[str, Any] = {"calibration": x[:40], "held_out": (x[40:], None)}
    if fault == "nan weights":
        module.first.weight.data[0, 0] = float("nan")  # type: ignore[union-attr, operator, index]
    elif fault == "half weights":
        module = module.half()
    elif fault == "valid range":
        given["preprocessing"] = Preprocessing(valid_range=(0.0, 1.0))
    elif fault == "few":
        given["calibration"] = x[:15]
    elif fault == "infinite":
        given["held_out"] = (np.where(x[40:] > 2, np.inf, x[40:]), None)
    elif fault == "constant":
        given["calibration"] = np.ones_like(x[:40])
    elif fault == "scaled":
        given["calibration"] = x[:40] * 255
    elif fault == "none":
        given["calibration"] = None
    elif fault == "axes":
        given = {"calibration": x[:40, ..., None], "held_out": (x[40:, ..., None], None)}
    elif fault == "layout":
        given = {k: np.zeros((20, 1, 16, 16), np.float32) + np.arange(16) for k in ("calibration",)}
        given["held_out"] = (given["calibration"], None)
    return module, given


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan weights", "layer first: 1 of 32768 numbers of parameter first.weight are not finite"),
        ("half weights", "6 weights are not float32"),
        ("valid range", "outside of the valid range 0 to 1"),
        ("few", "15 frames, at least 16"),
        ("infinite", r"held-out frames: \d+ of 5120 values are not finite"),
        ("constant", "values are 1"),
        ("scaled", r"held-out frames run from .* a hundredth of calibration's"),
        ("none", "calibration frames were not given"),
        ("axes", r"expected \(N, H, W, C\), \(N, L, C\)"),
        ("layout", r"does not run on an input of \(1, 1, 16, 16\) \(given channels first\)"),
    ],
)
def test_bad_input_is_refused_before_any_work(fault: str, message: str) -> None:
    module, given = faulty(Wide().eval(), fault)
    with pytest.raises(InputError, match=message) as caught:
        export_bundle(module, "wide", version="1.0.0", profile="x86-cpu", **given)
    assert "\n" not in caught.value.message and caught.value.next_step


def test_a_float_island_is_named_with_its_layer(floats: FloatNetwork) -> None:
    with pytest.raises(KasminaError, match=r"stayed in floating point: .*FLOAT32.*; in .*Conv2d_conv") as caught:
        refuse_float(flatbuffer.parse(floats.data), floats)
    assert "Edge TPU" in caught.value.next_step


def test_a_float_layer_is_refused_for_an_edge_tpu() -> None:
    x = sources.frames("plain", 40)
    config = QuantizeConfig(per_layer={"first": 32})
    with pytest.raises(InputError, match=r"per_layer\.first: 32 bits asked, .* Edge TPU .* splits the graph"):
        export_bundle(
            Wide().eval(), "wide", version="1.0.0", profile="coral", calibration=x, held_out=(x, None), quantize=config
        )


def test_the_mapping_is_required_on_demand() -> None:
    whole = mapping.Mapped(3, 3, True, (), (("conv_2d", True, ""),) * 3, 100, 0)
    parts = replace(whole, on_tpu=2, whole=False, off=(("exp: not supported", 1),))
    profile = load_profile("coral")
    mapping.require(whole, profile)
    mapping.require(None, profile)
    with pytest.raises(KasminaError, match=r"2 of 3 operators map; on the CPU: exp: not supported"):
        mapping.require(parts, profile)


def test_what_does_not_map_is_said(floats: FloatNetwork) -> None:
    found = mapping.report(floats.data, load_profile("coral"))
    assert found is not None and not found.whole and found.on_tpu < found.operators
    assert "on the CPU:" in found.sentence
    assert mapping.report(b"", load_profile("x86-cpu")) is None


def test_few_self_test_vectors_find_what_many_do() -> None:
    """One weight in one place is wrong, 150 times: 24 chosen rows find as many as 64 drawn ones do."""
    data = (GOLDEN / "digits.tflite").read_bytes()
    inputs, _ = flatbuffer.border(flatbuffer.parse(data))
    x = parity.to_rows(digits()[0][:200], inputs[0])
    right = parity.litert_raw(data, x)[0].astype(int)
    other = np.random.default_rng(7)  # not those that rows were chosen by
    moved = [np.abs(parity.litert_raw(f, x)[0] - right).max(1) for f in spoilt_files(data, 150, other)]

    def found(rows: Any, tolerance: int = 3) -> int:
        return int(sum(m[rows].max() > tolerance for m in moved))

    chosen, again = telling_rows(data, x, 0), telling_rows(data, x, 0)
    assert np.array_equal(chosen, again) and len(set(chosen.tolist())) == 64
    drawn = drawn_rows(len(x), 0)
    few = [found(np.random.default_rng(seed).permutation(len(x))[:24]) for seed in range(9)]
    assert found(chosen[:24]) >= found(drawn) - 1, (found(chosen[:24]), found(drawn))
    assert found(chosen[:24]) > np.median(few), few


@given(st.integers(1, 10**9), st.integers(1, 10**8))
def test_vectors_take_little_beside_a_file_and_can_be_read(model: int, vector: int) -> None:
    count = affordable(model, vector)
    assert 1 <= count <= 64 and count * vector <= max(64 * 2**20, vector)
    assert count >= 24 or 24 * vector > 32 * 2**20
    assert count <= 24 or count * vector <= max(96 * 1024, model)


def line_of(*kinds: str, version: int = 4) -> mapping.Mapped:
    """A convolution, operations one after another, and a matrix, as an Edge TPU would take them."""
    t = LayerTable("t")
    x = t.conv(t.input((1, 8, 8, 3)), 8, 3)
    for kind in kinds:
        x = t.unary(kind, x)
    work = t.build(x)
    last = replace(work.ops[0], kind="fully_connected", version=version, inputs=((1, 16),), outputs=((1, 4),))
    return mapping.shortened(map_edgetpu(replace(work, ops=(*work.ops, last))))


def test_the_cause_is_said_before_what_follows_it() -> None:
    """Six operations only follow one hard_swish: the new user's question is what it was, not how many."""
    found = line_of(*["relu"] * 2, "hard_swish", *["logistic"] * 5)
    assert found.off == (("hard_swish: not an operation of the Edge TPU (use relu6)", 1),) and found.followers == 6
    told = found.sentence
    assert told.index("hard_swish") < told.index("6 more that depend on it") and SPLIT not in told
    rows = found.summary()
    assert rows[0] == ("hard_swish", "0 of 1: not an operation of the Edge TPU (use relu6)")
    assert rows[1] == ("logistic", "0 of 5: 5 depend on what stays on the CPU")
    whole = line_of("relu", "logistic")
    assert whole.whole and "CPU" not in whole.sentence and whole.summary()[0] == ("conv_2d", "1 of 1")


def test_a_version_that_was_never_seen_to_map_is_said_where_all_map() -> None:
    for version, doubted in ((4, False), (5, True)):
        found = line_of("relu", version=version)
        mapping.require(found, load_profile("coral"))
        assert found.whole and ("not certain: fully_connected: version 5" in found.sentence) == doubted
        assert any("not certain" in text for _, text in found.summary()) == doubted


class Lines(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12) to (N, ...)."""
        if self.kind == "cumsum":
            return torch.cumsum(x, dim=1)
        if self.kind == "median":
            return torch.median(x, dim=1, keepdim=True).values
        return torch.relu(x)


@pytest.mark.parametrize(("kind", "line", "advice"), [("median", "torch.median(", "iterated maximum"),
                                                      ("cumsum", "torch.cumsum(", "triangle of ones")])  # fmt: skip
def test_culprits_have_a_line_and_a_replacement(kind: str, line: str, advice: str) -> None:
    app = as_app(Lines(kind).eval(), (1, 12))
    error = culprits.refusal(RuntimeError(f"Lowering not found: aten.{kind}.dim\nmore"), app)
    assert f"{kind} (test_export_forms.py, line" in error.message and line in error.message
    assert advice in error.next_step and "\n" not in error.message


def test_layouts_of_the_app() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1))
    app = as_app(module, (1, 8, 10, 3), output_names=["map"])
    assert (app.output_names, app.output_shapes) == (("map",), ((1, 8, 10, 6),))
    x = np.random.default_rng(0).normal(size=(4, 8, 10, 3)).astype(np.float32)
    with torch.no_grad():
        own = module(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    assert np.array_equal(float_outputs(app, x)[0], np.moveaxis(own, 1, -1))
    plain = as_app(module, (1, 3, 8, 10), channels_last=False)
    assert plain.output_shapes == ((1, 6, 8, 10),)
    with pytest.raises(InputError, match="1 outputs, the names given are a, b"):
        as_app(module, (1, 8, 10, 3), output_names=["a", "b"])
    with pytest.raises(InputError, match=r"output 0 of the network is torch\.int64"):
        as_app(Argmax(), (1, 12))


class Argmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12) to (N, 1)."""
        return x.argmax(1, keepdim=True)


def test_figures_of_one_output() -> None:
    x = np.random.default_rng(0).normal(size=(50, 7))
    same = judging.figures("y", x, x)
    assert (same.cosine, same.sqnr_db, same.max_abs_difference) == (pytest.approx(1), 200, 0)
    noisy = judging.figures("y", x, x + 0.1 * np.sqrt((x * x).mean()))
    assert noisy.sqnr_db == pytest.approx(20, abs=1e-6) and noisy.cosine == pytest.approx(1 / np.sqrt(1.01), abs=0.02)
    assert judging.figures("y", np.zeros((2, 2)), np.zeros((2, 2))).cosine == 1
    assert judging.resemblance((x,), (-x,))[0] == 0
    with pytest.raises(KasminaError, match="2 of 350 answers are not finite"):
        judging.figures("y", x, np.where(np.arange(350).reshape(50, 7) < 2, np.nan, x))


class Grown:
    """What `evolve` gives, as far as export looks at it."""

    sites = ()
    acceptance = None
    grafts = (Graft(blueprint="noop", blueprint_version=1, site="s", intensity=1, parameters=0),)

    def module_for_export(self) -> nn.Module:
        return Wide().eval()


def test_what_evolve_gives_brings_its_grafts() -> None:
    x = sources.frames("plain", 40)
    with pytest.raises(InputError, match="1 grafts and no parent") as caught:
        kt.export(Grown(), "wide", version="1.1.0", profile="coral", calibration=x, held_out=(x, None))
    assert "parent" in caught.value.next_step
    with pytest.raises(InputError, match="wide: calibration frames were not given") as caught:
        kt.export(Grown(), "wide", version="1.1.0", profile="coral")
    assert "held_out=(x, y)" in caught.value.next_step
