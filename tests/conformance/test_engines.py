"""Every engine keeps the promises of the interface, on the same bundle, by the same tests."""

from __future__ import annotations

import inspect
import pkgutil
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from worlds.bundles import answer, digits, make_bundle, make_profile

import kasmina_edge.engines
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile
from kasmina_edge.engines import Engine, choose_engine, engine_types, open_engine, self_test
from kasmina_edge.engines.tensors import from_model, to_model
from kasmina_edge.errors import BundleError, EngineError, InputError

SUBJECTS = {"litert", "onnxruntime"}
IGNORED: dict[str, str] = {}
"""Engines that are left out, each with the reason."""


def found_engines() -> dict[str, type[Engine]]:
    """Every concrete engine in the package, whether or not `engine_types` knows it."""
    for module in pkgutil.iter_modules(kasmina_edge.engines.__path__, "kasmina_edge.engines."):
        import_module(module.name)
    kinds = Engine.__subclasses__()
    return {k.name: k for k in kinds if not inspect.isabstract(k) and k.__module__.startswith("kasmina_edge.")}


def test_every_engine_is_a_subject() -> None:
    assert set(found_engines()) - set(IGNORED) == SUBJECTS
    assert engine_types() == found_engines()
    assert len(SUBJECTS) == 2


@pytest.fixture(params=sorted(SUBJECTS))
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    return engine_types()[request.param]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture
def engine(kind: type[Engine], bundle: Bundle) -> Iterator[Engine]:
    with open_engine(bundle, make_profile(engines=(kind.name,))) as opened:
        yield opened


def frame(engine: Engine, bundle: Bundle, i: int = 0) -> dict[str, np.ndarray]:
    tensor = engine.model.inputs[0]
    return {tensor.name: to_model(digits()[0][i], tensor, bundle.manifest.preprocessing)}


def remade(bundle: Bundle, kind: type[Engine], **changes: Any) -> ModelFile:
    return ModelFile.parse({**bundle.model_for(kind.name).model_dump(), **changes})


def tensors(bundle: Bundle, kind: type[Engine], side: str, **changes: Any) -> dict[str, Any]:
    return {side: [{**getattr(bundle.model_for(kind.name), side)[0].model_dump(), **changes}]}


def test_it_says_before_loading_that_it_can(kind: type[Engine], bundle: Bundle) -> None:
    check = kind.check(make_profile(), bundle.model_for(kind.name))
    assert check.ok and check.runs_on.endswith("CPU") and check.accelerator == ""
    assert any(c.isdigit() for c in check.reason), "the version is part of the reason"


def test_it_says_before_loading_that_its_library_is_missing(
    kind: type[Engine], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ai_edge_litert", "tflite_runtime", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    check = kind.check(make_profile(), bundle.model_for(kind.name))
    assert not check.ok and "is not installed" in check.reason and "pip install" in check.reason
    with pytest.raises(EngineError, match=r"cannot run under profile test-cpu: .*is not installed"):
        choose_engine(bundle.manifest, make_profile(engines=(kind.name,)))


def test_it_answers_as_the_bare_library_does(engine: Engine, bundle: Bundle) -> None:
    raw_in, raw_out = answer(engine.name, bundle.files[engine.model.file.path], digits()[0][:40])
    tensor_in, tensor_out = engine.model.inputs[0], engine.model.outputs[0]
    for x, expected in zip(raw_in, raw_out, strict=True):
        got = engine.run({tensor_in.name: x[None]})
        assert list(got) == [tensor_out.name]
        assert got[tensor_out.name].dtype == tensor_out.dtype
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


def test_outputs_belong_to_the_caller(engine: Engine, bundle: Bundle) -> None:
    name = engine.model.outputs[0].name
    first = engine.run(frame(engine, bundle, 0))[name]
    kept = first.copy()
    second = engine.run(frame(engine, bundle, 1))[name]
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_inputs_are_not_kept(engine: Engine, bundle: Bundle) -> None:
    inputs = frame(engine, bundle, 0)
    first = engine.run(inputs)[engine.model.outputs[0].name]
    next(iter(inputs.values()))[...] = 0
    again = engine.run(frame(engine, bundle, 0))[engine.model.outputs[0].name]
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n, x: {},
        lambda n, x: {"other": x},
        lambda n, x: {n: x, "other": x},
        lambda n, x: {n: x[0]},
        lambda n, x: {n: x.astype(np.float64)},
    ],
)
def test_wrong_inputs_are_input_errors(engine: Engine, bundle: Bundle, wrong: Any) -> None:
    ((name, x),) = frame(engine, bundle).items()
    with pytest.raises(InputError, match=engine.model.file.path):
        engine.run(wrong(name, x))


def test_a_closed_engine_says_so(engine: Engine, bundle: Bundle) -> None:
    inputs = frame(engine, bundle)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.run(inputs)


def test_several_threads_get_their_own_answers(engine: Engine, bundle: Bundle) -> None:
    name = engine.model.outputs[0].name
    frames = [frame(engine, bundle, i) for i in range(4)]
    expected = [engine.run(f)[name].copy() for f in frames]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(150):
            if not np.array_equal(engine.run(frames[i])[name], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_self_test_passes_and_times(engine: Engine, bundle: Bundle) -> None:
    result = self_test(engine, bundle)
    assert result.ok and (result.samples, result.passed) == (16, 16)
    assert result.worst <= engine.model.selftest.tolerance
    assert 0 < result.p50_us <= result.p99_us


def test_the_self_test_measures_with_the_timer_it_is_given(engine: Engine, bundle: Bundle) -> None:
    ticks = iter(range(0, 10**9, 7_000))
    result = self_test(engine, bundle, timed_runs=10, timer_ns=lambda: next(ticks))
    assert (result.p50_us, result.p99_us) == (7.0, 7.0)


def test_the_self_test_finds_another_model(kind: type[Engine]) -> None:
    good, bad = make_bundle(), make_bundle(corrupt=True)
    mixed = Bundle(good.manifest, {**good.files, good.model_for(kind.name).file.path: b""}, {})
    model = good.model_for(kind.name)
    with kind(model, bad.files[model.file.path], make_profile()) as engine:
        result = self_test(engine, mixed)
    assert not result.ok and result.passed == 0 and result.worst > model.selftest.tolerance


def test_self_test_vectors_must_fit(kind: type[Engine], bundle: Bundle) -> None:
    model = bundle.model_for(kind.name)
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


@pytest.mark.parametrize("data", [b"", b"not a model", b"\0" * 400])
def test_what_is_no_model_is_a_bundle_error(kind: type[Engine], bundle: Bundle, data: bytes) -> None:
    model = bundle.model_for(kind.name)
    with pytest.raises(BundleError, match=f"{model.file.path}: {kind.name} cannot load it"):
        kind(model, data, make_profile())


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 3, 3, 7)}, r"\.shape: the manifest says \(1, 3, 3, 7\), the model \(1, "),
        ({"shape": (1,)}, r"\.shape"),
        ({"dtype": "int32"}, r"\.dtype: the manifest says int32, the model "),
    ],
)
def test_a_model_that_differs_from_the_manifest_is_refused(
    kind: type[Engine], bundle: Bundle, side: str, change: dict[str, Any], message: str
) -> None:
    model = remade(bundle, kind, **tensors(bundle, kind, side, **change))
    with pytest.raises(BundleError, match=rf"{side}\[0\]{message}"):
        kind(model, bundle.files[model.file.path], make_profile())


def test_a_model_with_another_number_of_tensors_is_refused(kind: type[Engine], bundle: Bundle) -> None:
    fields = bundle.model_for(kind.name).model_dump()
    model = ModelFile.parse({**fields, "inputs": [*fields["inputs"], {**fields["inputs"][0], "name": "second"}]})
    with pytest.raises(BundleError, match="the manifest says 2 inputs, the model has 1"):
        kind(model, bundle.files[model.file.path], make_profile())


def test_names_and_scales_are_compared_where_the_file_has_them(bundle: Bundle) -> None:
    onnx, lite = engine_types()["onnxruntime"], engine_types()["litert"]
    model = remade(bundle, onnx, **tensors(bundle, onnx, "inputs", name="other"))
    with pytest.raises(BundleError, match=r"inputs\[0\]\.name: the manifest says 'other', the model 'x'"):
        onnx(model, bundle.files["model.onnx"], make_profile())
    for change, message in (({"scale": 0.5}, r"\.scale: the manifest says 0.5"), ({"zero_point": 5}, r"\.zero_point")):
        model = remade(bundle, lite, **tensors(bundle, lite, "outputs", **change))
        with pytest.raises(BundleError, match=message):
            lite(model, bundle.files["model.tflite"], make_profile())


def test_layouts_that_would_shuffle_values_are_refused(kind: type[Engine], bundle: Bundle) -> None:
    fields = bundle.manifest.model_dump()
    fields["inputs"][0]["shape"] = (1, 8, 32, 1)
    other = Bundle(BundleManifest.parse(fields), bundle.files, {})
    with pytest.raises(BundleError, match=r"inputs\[0\]\.shape is \(1, 8, 32, 1\)"):
        open_engine(other, make_profile(engines=(kind.name,)))
