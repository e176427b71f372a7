"""``engine = "auto"``: the fastest engine that agrees with the self-test, measured once and remembered."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.bundles import make_bundle, make_profile, model_bytes
from worlds.tflite_models import counter_tflite, open_tflite

from kasmina_edge.bundle import Bundle
from kasmina_edge.engines import Measured, choose_engine, choose_for, fastest, measure_engines, open_engine
from kasmina_edge.engines.measure import VERDICTS_FILE, Verdicts, auto_names, chosen_by_measurement, verdict_key
from kasmina_edge.engines.registry import GROUP, OURS, engine_types
from kasmina_edge.errors import BundleError, EngineError, InputError
from kasmina_edge.wrapping import WrapPlan, wrap

AUTO = make_profile().chosen(engine="auto")


def measured(name: str, p50: float | None, *, passed: int = 4, spread: float = 0.0) -> Measured:
    return Measured(name, "CPU", 4, passed, p50, spread)


def test_our_entry_points_are_those_of_the_distribution() -> None:
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GROUP] == OURS
    assert list(engine_types())[: len(OURS)] == list(OURS)


def test_the_fastest_that_passed_is_chosen() -> None:
    assert fastest([measured("a", 50.0), measured("b", 20.0), measured("c", 90.0)]) == measured("b", 20.0)
    assert fastest([measured("a", 50.0), measured("b", 1.0, passed=3)]) == measured("a", 50.0)
    assert fastest([measured("a", None), measured("b", 1.0, passed=0)]) is None
    assert fastest([]) is None


def test_a_difference_within_the_noise_keeps_the_order() -> None:
    assert fastest([measured("a", 20.5), measured("b", 20.0)]) == measured("a", 20.5)
    loud = [measured("a", 26.0, spread=4.0), measured("b", 20.0, spread=3.0)]
    assert fastest(loud) == loud[0]
    quiet = [measured("a", 26.0, spread=1.0), measured("b", 20.0, spread=1.0)]
    assert fastest(quiet) == quiet[1]


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 10), st.integers(0, 4)), max_size=6))
def test_what_is_chosen_passed_and_nothing_is_clearly_faster(rows: list[tuple[float, float, int]]) -> None:
    found = [measured(f"e{i}", p50, passed=n, spread=s) for i, (p50, s, n) in enumerate(rows)]
    best = fastest(found)
    passed = [m for m in found if m.passed == 4]
    assert (best is None) == (not passed)
    if best is not None:
        assert best in passed
        least = min(passed, key=lambda m: m.p50_us or 0)
        assert best.p50_us - least.p50_us <= max(0.03 * least.p50_us, best.spread_us + least.spread_us)  # type: ignore[operator]


def test_every_engine_is_held_to_the_self_test_before_it_is_timed() -> None:
    found = {m.name: m for m in measure_engines(make_bundle(), AUTO, blocks=2)}
    assert found["litert"].ok and found["onnxruntime"].ok
    plain = found["litert-plain"]  # rounds up to three steps otherwise, and this bundle allows one
    assert not plain.ok and plain.p50_us is None and "self-test vectors fail" in plain.reason
    assert "litert-reference" not in found, "slow on purpose, never measured"
    assert found["onnxruntime"].p50_us and found["onnxruntime"].p50_us > 0


def test_the_timer_decides() -> None:
    """Times come from the timer alone: where it says the same for both, the profile's order decides."""
    ticks = [0]

    def timer() -> int:
        ticks[0] += 100_000
        return ticks[0]

    found = measure_engines(make_bundle(), AUTO, names=("litert", "onnxruntime"), timer_ns=timer, blocks=3)
    assert [m.p50_us for m in found] == [100.0, 100.0]
    assert fastest(found) is found[0]


def test_auto_opens_the_fastest_and_a_name_opens_that() -> None:
    bundle = make_bundle()
    assert chosen_by_measurement(bundle, AUTO) == "litert"
    with open_engine(bundle, AUTO) as engine:
        assert engine.name == "litert"
    with open_engine(bundle, make_profile(), engine="onnxruntime") as engine:
        assert engine.name == "onnxruntime"
    with open_engine(bundle, make_profile().chosen(engine="onnxruntime")) as engine:
        assert engine.name == "onnxruntime"
    assert choose_for(bundle, AUTO)[0].name == "litert"
    assert choose_for(bundle, make_profile(), engine="onnxruntime")[1].file.path == "model.onnx"


def test_an_engine_that_fails_the_self_test_is_never_chosen() -> None:
    good, bad = make_bundle(), make_bundle(corrupt=True)
    entry = good.manifest.models[0].file.of("model.tflite", bad.files["model.tflite"])
    models = (good.manifest.models[0].model_copy(update={"file": entry}), *good.manifest.models[1:])
    files = {**good.files, "model.tflite": bad.files["model.tflite"]}
    rotten = Bundle(good.manifest.model_copy(update={"models": models}), files, {})
    with open_engine(rotten, AUTO) as engine:
        assert engine.name == "onnxruntime"
    only = Bundle(rotten.manifest, {p: d for p, d in rotten.files.items() if "onnx" not in p}, {})
    with pytest.raises(EngineError, match="no engine that is here passes its self-test"):
        open_engine(only, AUTO)


def test_the_verdict_is_kept_and_holds_for_this_bundle_and_machine_only(tmp_path: Path) -> None:
    bundle, other = make_bundle(), make_bundle(version="1.1.0")
    assert chosen_by_measurement(bundle, AUTO, folder=tmp_path) == "litert"
    key = verdict_key(bundle, AUTO)
    assert Verdicts(tmp_path).get(key) == "litert"
    Verdicts(tmp_path).put(key, "onnxruntime")
    assert chosen_by_measurement(bundle, AUTO, folder=tmp_path) == "onnxruntime", "it was not measured again"
    with open_engine(bundle, AUTO, verdicts=tmp_path) as engine:
        assert engine.name == "onnxruntime"
    keys = {key, verdict_key(other, AUTO), verdict_key(bundle, AUTO.model_copy(update={"threads": 2}))}
    keys.add(verdict_key(Bundle(bundle.manifest, {p: d for p, d in bundle.files.items() if "onnx" not in p}, {}), AUTO))
    assert len(keys) == 4
    assert chosen_by_measurement(other, AUTO, folder=tmp_path) == "litert"


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"x": 3}', b"\xff" * 200])
def test_a_damaged_verdict_is_measured_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / VERDICTS_FILE).write_bytes(damage)
    assert chosen_by_measurement(make_bundle(), AUTO, folder=tmp_path) == "litert"
    assert "litert" in json.loads((tmp_path / VERDICTS_FILE).read_text()).values()


def test_a_verdict_for_an_engine_that_is_gone_is_measured_again(tmp_path: Path) -> None:
    bundle = make_bundle()
    Verdicts(tmp_path).put(verdict_key(bundle, AUTO), "no-such-engine")
    assert chosen_by_measurement(bundle, AUTO, folder=tmp_path) == "litert"


def test_only_the_newest_verdicts_are_kept(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    for i in range(20):
        verdicts.put(f"{i:02}", "litert")
    assert sorted(json.loads((tmp_path / VERDICTS_FILE).read_text())) == [f"{i:02}" for i in range(4, 20)]


def test_a_device_whose_disk_refuses_measures_every_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert chosen_by_measurement(make_bundle(), AUTO, folder=blocked) == "litert"


def test_settings_choose_over_the_profile() -> None:
    profile = make_profile()
    assert profile.chosen() == profile
    assert profile.chosen(engine="openvino").engines == ("openvino",)
    assert profile.chosen(engine="auto").engines == ("litert", "onnxruntime", "auto")
    assert profile.chosen(accelerator_device="pci:1").accelerator_device == "pci:1"
    assert auto_names(AUTO)[:2] == ["litert", "onnxruntime"]
    for wrong in ({"engine": "Open VINO"}, {"accelerator_device": "usb3"}, {"accelerator_device": ":"}):
        with pytest.raises(InputError, match="with the device's settings"):
            profile.chosen(**wrong)


def test_an_engine_that_nobody_brings_is_named_with_those_that_are_there() -> None:
    bundle = make_bundle()
    with pytest.raises(EngineError, match="no engine is called 'tensorrt'; there are litert, litert-plain"):
        choose_engine(bundle.manifest, make_profile(), engine="tensorrt")
    profile = make_profile(engines=("tensorrt", "onnxruntime"))
    assert choose_engine(bundle.manifest, profile)[0].name == "onnxruntime"


def test_the_next_engine_takes_over_where_one_refuses_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from kasmina_edge.engines.litert import LitertEngine

    def refuses(*_: Any) -> Any:
        raise EngineError("four bits")

    bundle = make_bundle()
    monkeypatch.setattr(LitertEngine, "_load", refuses)
    with open_engine(bundle, make_profile()) as engine:
        assert engine.name == "onnxruntime"
    with pytest.raises(EngineError, match="four bits"):
        open_engine(bundle, make_profile(engines=("litert",)))


# ---- several frames a call


def test_a_batch_is_offered_where_the_model_can(tmp_path: Path) -> None:
    made = wrap(open_tflite(), "m.tflite", WrapPlan("m"), make_profile())
    with open_engine(made.bundle, make_profile()) as engine:
        assert engine.resizable
        batch = engine.batch_of(5)
        assert batch is not None and batch.model.inputs[0].shape == (5, 4)
        batch.close()
        for size in (0, 5000):
            with pytest.raises(InputError, match="frames are possible"):
                engine.batch_of(size)
    made = wrap(counter_tflite(), "m.tflite", WrapPlan("m"), make_profile())
    with open_engine(made.bundle, make_profile()) as engine:
        assert not engine.resizable and engine.batch_of(2) is None


def test_a_batch_that_does_not_agree_is_not_offered() -> None:
    """A softmax over axis 0 looks like one over the frame, until there are two frames."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "crosstalk",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    made = wrap(data, "m.onnx", WrapPlan("m"), make_profile())
    with open_engine(made.bundle, make_profile()) as engine:
        assert engine.resizable and engine.batch_of(2) is None
        one = engine.batch_of(1)
        assert one is not None
        one.close()


def test_a_cut_off_tflite_file_is_refused_by_the_look_into_it() -> None:
    from kasmina_edge.engines.tflite_file import tensor_types

    data = model_bytes("litert")
    assert 9 in tensor_types(data) and 17 not in tensor_types(data)
    for size in range(0, len(data), 97):
        try:
            tensor_types(data[:size])
        except ValueError:
            continue
    with pytest.raises(ValueError, match="TFL3"):
        tensor_types(b"\0" * 64)


@given(st.binary(min_size=8, max_size=300), st.integers(0, 2**32 - 1))
def test_no_bytes_make_the_look_run_away(noise: bytes, root: int) -> None:
    from kasmina_edge.engines.tflite_file import tensor_types

    try:
        types = tensor_types(root.to_bytes(4, "little") + b"TFL3" + noise)
    except ValueError:
        return
    assert all(0 <= t <= 255 for t in types)


def test_a_manifest_that_does_not_fit_is_refused_before_measuring() -> None:
    bundle = make_bundle()
    fields = bundle.manifest.model_dump()
    fields["inputs"][0]["shape"] = (1, 8, 32, 1)
    with pytest.raises(BundleError, match=r"inputs\[0\]\.shape"):
        measure_engines(Bundle(type(bundle.manifest).parse(fields), bundle.files, {}), AUTO)
