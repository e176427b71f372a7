"""LiteRT and ONNX Runtime behind the interface, against the same libraries without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from worlds.bundles import answer, digits, make_bundle, make_profile
from worlds.tflite_models import counter_tflite

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile
from kasmina_edge.engines import Engine, choose_engine, engine_types, open_engine, self_test
from kasmina_edge.engines.litert import LitertEngine
from kasmina_edge.engines.onnx import OnnxEngine
from kasmina_edge.engines.tensors import from_model, to_model
from kasmina_edge.errors import BundleError, EngineError
from kasmina_edge.wrapping import WrapPlan, wrap


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(params=["litert", "onnxruntime"])
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    return engine_types()[request.param]


@pytest.fixture
def engine(kind: type[Engine], bundle: Bundle) -> Iterator[Engine]:
    with open_engine(bundle, make_profile(engines=(kind.name,))) as opened:
        yield opened


def remade(bundle: Bundle, kind: type[Engine], **changes: Any) -> ModelFile:
    return ModelFile.parse({**bundle.model_for(kind.takes).model_dump(), **changes})


def tensors(bundle: Bundle, kind: type[Engine], side: str, **changes: Any) -> dict[str, Any]:
    return {side: [{**getattr(bundle.model_for(kind.takes), side)[0].model_dump(), **changes}]}


def test_it_says_before_loading_that_its_library_is_missing(
    kind: type[Engine], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ai_edge_litert", "tflite_runtime", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    check = kind.check(make_profile(), bundle.model_for(kind.takes))
    assert not check.ok and "is not installed" in check.reason and "pip install" in check.reason
    with pytest.raises(EngineError, match=r"cannot run under profile test-cpu: .*is not installed"):
        choose_engine(bundle.manifest, make_profile(engines=(kind.name,)))


def test_it_answers_as_the_bare_library_does(engine: Engine, bundle: Bundle) -> None:
    raw_in, raw_out = answer(engine.name, bundle.files[engine.model.file.path], digits()[0][:40])
    tensor_in, tensor_out = engine.model.inputs[0], engine.model.outputs[0]
    for x, expected in zip(raw_in, raw_out, strict=True):
        got = engine.run({tensor_in.name: x[None]})
        assert list(got) == [tensor_out.name]
        assert np.array_equal(got[tensor_out.name][0], expected)


def test_the_probes_are_answered(engine: Engine, bundle: Bundle) -> None:
    assert bundle.manifest.probes is not None
    probes = bundle.arrays(bundle.manifest.probes.file)
    tensor, out = engine.model.inputs[0], engine.model.outputs[0]
    pre = bundle.manifest.preprocessing
    answers = [engine.run({tensor.name: to_model(x, tensor, pre)})[out.name] for x in probes["inputs"]]
    given = [int(from_model(raw, out).argmax()) for raw in answers]
    assert given == probes["labels"].tolist()
    assert len(set(given)) == 10


def test_the_self_test_measures_with_the_timer_it_is_given(engine: Engine, bundle: Bundle) -> None:
    ticks = iter(range(0, 10**9, 7_000))
    result = self_test(engine, bundle, timed_runs=10, timer_ns=lambda: next(ticks))
    assert (result.p50_us, result.p99_us) == (7.0, 7.0)


def test_the_self_test_finds_another_model(kind: type[Engine]) -> None:
    good, bad = make_bundle(), make_bundle(corrupt=True)
    model = good.model_for(kind.takes)
    with kind(model, bad.files[model.file.path], make_profile()) as engine:
        result = self_test(engine, good)
    assert not result.ok and result.passed == 0 and result.worst > model.selftest.tolerance


def test_self_test_vectors_must_fit(kind: type[Engine], bundle: Bundle) -> None:
    model = bundle.model_for(kind.takes)
    good = bundle.arrays(model.selftest.file)
    key = f"input_{model.inputs[0].name}"
    for arrays, message in (
        ({k: v for k, v in good.items() if k != key}, "no array"),
        ({**good, key: good[key][:3]}, "should be"),
        ({**good, key: good[key].astype(np.int32)}, "should be"),
    ):
        data = pack_arrays(arrays)
        entry = FileEntry.of(model.selftest.file.path, data)
        changed = remade(bundle, kind, selftest={**model.selftest.model_dump(), "file": entry.model_dump()})
        other = Bundle(bundle.manifest, {**bundle.files, entry.path: data}, {})
        with (
            kind(changed, bundle.files[model.file.path], make_profile()) as engine,
            pytest.raises(BundleError, match=message),
        ):
            self_test(engine, other)


def test_names_and_scales_are_compared_where_the_file_has_them(bundle: Bundle) -> None:
    model = remade(bundle, OnnxEngine, **tensors(bundle, OnnxEngine, "inputs", name="other"))
    with pytest.raises(BundleError, match=r"inputs\[0\]\.name: the manifest says 'other', the model 'x'"):
        OnnxEngine(model, bundle.files["model.onnx"], make_profile())
    for change, message in (({"scale": 0.5}, r"\.scale: the manifest says 0.5"), ({"zero_point": 5}, r"\.zero_point")):
        model = remade(bundle, LitertEngine, **tensors(bundle, LitertEngine, "outputs", **change))
        with pytest.raises(BundleError, match=message):
            LitertEngine(model, bundle.files["model.tflite"], make_profile())


def test_layouts_that_would_shuffle_values_are_refused(kind: type[Engine], bundle: Bundle) -> None:
    fields = bundle.manifest.model_dump()
    fields["inputs"][0]["shape"] = (1, 8, 32, 1)
    other = Bundle(BundleManifest.parse(fields), bundle.files, {})
    with pytest.raises(BundleError, match=r"inputs\[0\]\.shape is \(1, 8, 32, 1\)"):
        open_engine(other, make_profile(engines=(kind.name,)))


def test_litert_works_through_its_public_calls_too(bundle: Bundle) -> None:
    public = type("Public", (LitertEngine,), {"_fast": False})
    model = bundle.model_for("litert")
    with public(model, bundle.files[model.file.path], make_profile()) as engine:
        assert engine.input_buffers() is None
        assert self_test(engine, bundle).ok


def test_a_reset_of_what_remembers_is_a_new_beginning_where_the_librarys_own_is_not() -> None:
    from ai_edge_litert.interpreter import Interpreter

    bare = Interpreter(model_content=counter_tflite(start=5.0))
    bare.allocate_tensors()
    x, at = np.ones((1, 4), np.float32), bare.get_input_details()[0]["index"]

    def total() -> float:
        bare.set_tensor(at, x)
        bare.invoke()
        return float(bare.get_tensor(bare.get_output_details()[0]["index"])[0, 0])

    assert (total(), total()) == (6.0, 7.0)
    bare.reset_all_variables()
    assert total() == 8.0, "LiteRT's reset does not reach resource variables"
    bundle = wrap(counter_tflite(), "counter.tflite", WrapPlan("counter"), make_profile()).bundle
    with open_engine(bundle, make_profile()) as engine:
        totals = [float(engine.run({"x": x})["total"][0, 0]) for _ in range(2)]
        engine.reset()
        assert [*totals, float(engine.run({"x": x})["total"][0, 0])] == [6.0, 7.0, 6.0]
