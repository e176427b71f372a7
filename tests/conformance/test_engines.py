"""Every engine keeps every promise of the interface, on every kind of model, by the suite that the package ships."""

from __future__ import annotations

import functools
import inspect
import os
import pkgutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tflite_models, third_party
from worlds.bundles import make_bundle, make_profile, model_bytes
from worlds.venvs import ROOT, python_of, run_python

import kasmina_edge.engines
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.engines import (
    Engine,
    engine_types,
    measure_engines,
    open_engine,
    registered_engines,
    self_test,
)
from kasmina_edge.engines.accelerator.supervisor import supervise
from kasmina_edge.engines.conformance import (
    PROMISES,
    BrokenPromiseError,
    NotAskedError,
    Promise,
    Subject,
    hold,
    verdicts,
)
from kasmina_edge.engines.conformance.__main__ import main
from kasmina_edge.engines.litert import LitertEngine
from kasmina_edge.engines.onnx import OnnxEngine
from kasmina_edge.wrapping import WrapPlan, wrap

TFLITE: dict[str, Callable[[], bytes]] = {
    "digits": lambda: model_bytes("litert"),
    "remembers": tflite_models.counter_tflite,
    "scalars": tflite_models.scaled_tflite,
    "state tensor": tflite_models.leaky_tflite,
    "open axis": tflite_models.open_tflite,
}
ONNX: dict[str, Callable[[], bytes]] = {
    "digits": lambda: model_bytes("onnxruntime"),
    "whole numbers and scalars": third_party.adder_onnx,
    "state tensor and constant": third_party.leaky_onnx,
    "open axis": third_party.dense_onnx,
}
HERE = {
    "litert": TFLITE, "litert-plain": TFLITE, "litert-reference": TFLITE, "onnxruntime": ONNX, "simulated": TFLITE,
    "simulated-onnx": ONNX,
}  # fmt: skip
ELSEWHERE = {
    "tflite-runtime": ("tflite-runtime==2.14.0", "numpy<2"),
    "openvino": ("onnxruntime-openvino==1.24.1",),
}
"""Engines whose libraries cannot live beside the others: they are held to the suite in environments of their own."""
NOT_KEPT_BY = {("tflite-runtime", "input_buffers_are_the_inputs"): "its wrapper's memory is not used"}
REHEARSED = {"simulated": "coral-usb", "simulated-onnx": "raspberry-pi-4"}
"""Simulated engines need a profile that can be predicted from."""
SUBJECTS = [(engine, model) for engine, models in HERE.items() for model in models]


@functools.cache
def wrapped(ending: str, model: str) -> Bundle:
    data = (TFLITE if ending == ".tflite" else ONNX)[model]()
    constants = {"leak": 0.5} if model == "state tensor and constant" else {}
    return wrap(data, f"m{ending}", WrapPlan("m", constants=constants), make_profile()).bundle


@functools.cache
def subject(engine: str, model: str) -> Subject:
    kind = engine_types()[engine]
    profile = load_profile(REHEARSED[engine]) if engine in REHEARSED else make_profile()
    return Subject(kind, wrapped(".tflite" if kind.takes == "litert" else ".onnx", model), profile)


def test_every_engine_is_a_subject() -> None:
    assert set(engine_types()) == HERE.keys() | ELSEWHERE.keys()
    assert [r.reason for r in registered_engines()] == [""] * 8
    assert (len(SUBJECTS), len(PROMISES)) == (28, 18)


NOT_REGISTERED = {"SupervisedEngine": "made by supervise() around a registered engine; held to the suite below"}


def test_every_engine_class_of_the_package_is_registered() -> None:
    for module in pkgutil.walk_packages(kasmina_edge.engines.__path__, "kasmina_edge.engines."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    todo, found = [Engine], set()
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            if kind.__module__.startswith("kasmina_edge.") and not inspect.isabstract(kind):
                found.add(kind)
    assert {k.__name__ for k in found - set(engine_types().values())} == NOT_REGISTERED.keys()


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
@pytest.mark.parametrize(("engine", "model"), SUBJECTS)
def test_it_keeps_its_promise(engine: str, model: str, promise: Promise) -> None:
    try:
        hold(promise, subject(engine, model))
    except NotAskedError:
        assert promise.__name__ in ALLOWED_SILENCE[model], "nobody asked, though this model gives occasion"


_STATELESS = {"carries_state"}
_STATEFUL = {"threads_get_their_own_answers", "a_batch_is_its_frames"}
ALLOWED_SILENCE = {
    "digits": _STATELESS | {"a_batch_is_its_frames"},
    "remembers": _STATEFUL | {"input_buffers_are_the_inputs"},
    "scalars": _STATELESS | {"input_buffers_are_the_inputs", "a_batch_is_its_frames"},
    "whole numbers and scalars": _STATELESS | {"a_batch_is_its_frames"},
    "state tensor": _STATEFUL,
    "state tensor and constant": _STATEFUL,
    "open axis": _STATELESS,
}


def test_every_promise_is_asked_of_every_engine() -> None:
    asked = defaultdict(set)
    for engine, model in SUBJECTS:
        asked[engine] |= {p.__name__ for p in PROMISES} - ALLOWED_SILENCE[model]
    assert {engine: len(names) for engine, names in asked.items()} == dict.fromkeys(HERE, 18)


# ---- engines that live elsewhere


def _hold_in(python: Path, engine: str, models: dict[str, Callable[[], bytes]], folder: Path) -> None:
    kept = set()
    for i, model in enumerate(models):
        path = folder / f"{i}.kasmina"
        path.write_bytes(pack(wrapped(".tflite" if models is TFLITE else ".onnx", model)))
        done = run_python(python, "-m", "kasmina_edge.engines.conformance", engine, str(path))
        assert done.returncode == 0, f"{model}:\n{done.stdout}\n{done.stderr}"
        kept |= {line[9:].strip().replace(" ", "_") for line in done.stdout.splitlines() if line.startswith("kept ")}
    excused = {promise for who, promise in NOT_KEPT_BY if who == engine}
    assert kept == {p.__name__ for p in PROMISES} - excused


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime 2.14.0 has no wheel for Python 3.12 and later")
def test_tflite_runtime_keeps_every_promise(tmp_path: Path) -> None:
    python = python_of("tflite-runtime", *ELSEWHERE["tflite-runtime"])
    _hold_in(python, "tflite-runtime", TFLITE, tmp_path)
    stands_in = run_python(
        python,
        "-c",
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from worlds.bundles import make_profile\n"
        "from kasmina_edge.bundle import read_file\n"
        "from kasmina_edge.engines import open_engine\n"
        "from pathlib import Path\n"
        "print(open_engine(read_file(Path(sys.argv[1])), make_profile()).runs_on)",
        str(tmp_path / "0.kasmina"),
    )
    assert stands_in.stdout.strip() == "tflite-runtime CPU", stands_in


@pytest.mark.slow
def test_openvino_keeps_every_promise(tmp_path: Path) -> None:
    python = python_of("openvino", *ELSEWHERE["openvino"])
    _hold_in(python, "openvino", ONNX, tmp_path)
    _hold_in(python, "onnxruntime", {"digits": ONNX["digits"], **ONNX}, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime 2.14.0 has no wheel for Python 3.12 and later")
def test_tflite_runtime_refuses_four_bits_because_it_answers_nan(tmp_path: Path) -> None:
    quantizer = pytest.importorskip("ai_edge_quantizer")
    plain, small = tmp_path / "plain.tflite", tmp_path / "int4.tflite"
    plain.write_bytes(tflite_models.conv_tflite())
    recipe = quantizer.recipe.dynamic_wi4_afp32()
    small.write_bytes(bytes(quantizer.Quantizer(str(plain), recipe).quantize().quantized_model))
    bundle = wrap(small.read_bytes(), small.name, WrapPlan("four-bits"), make_profile())
    path = tmp_path / "four-bits.kasmina"
    path.write_bytes(pack(bundle.bundle))
    python = python_of("tflite-runtime", *ELSEWHERE["tflite-runtime"])
    bare = run_python(
        python,
        "-c",
        "import numpy as np, sys\n"
        "from tflite_runtime.interpreter import Interpreter\n"
        "i = Interpreter(model_path=sys.argv[1]); i.allocate_tensors(); d = i.get_input_details()[0]\n"
        "i.set_tensor(d['index'], np.ones(d['shape'], np.float32)); i.invoke()\n"
        "y = i.get_tensor(i.get_output_details()[0]['index']); print(bool(np.isnan(y).any() or abs(y).max() > 1e6))",
        str(small),
    )
    assert bare.stdout.strip() == "True", f"the bare library answers garbage and says nothing: {bare}"
    refused = run_python(python, "-m", "kasmina_edge.engines.conformance", "tflite-runtime", str(path))
    assert refused.returncode == 1 and "4-bit tensors" in refused.stdout
    with open_engine(bundle.bundle, make_profile()) as engine:
        assert self_test(engine, bundle.bundle).ok, "LiteRT itself answers"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits", "state tensor"])
def test_a_supervised_engine_keeps_every_promise(model: str) -> None:
    """The worker process and the CPU twin behind it are an engine like any other, but for who is said to answer."""

    class Supervised(LitertEngine):
        def __new__(cls, entry: ModelFile, data: bytes, profile: HardwareProfile, **_: Any) -> Any:
            manifest = bundle.manifest.model_copy(update={"models": (entry,)})
            held = Bundle(manifest, {**bundle.files, entry.file.path: data}, {})
            engine = supervise(held, profile, (LitertEngine, entry), (LitertEngine, entry), label="worker")
            engine.started(10.0)
            return engine

    bundle = wrapped(".tflite", model)
    found = list(verdicts(Subject(Supervised, bundle, make_profile())))
    assert [(name, detail) for name, verdict, detail in found if verdict == "broken"] == [
        ("says_what_it_runs_on", "check said otherwise: LiteRT CPU (worker: on probation)")
    ]
    silent = ALLOWED_SILENCE[model] | {"input_buffers_are_the_inputs"}
    assert {name for name, verdict, _ in found if verdict == "not asked"} == silent


def test_engines_that_are_not_here_say_what_to_install() -> None:
    for name, said in (
        ("tflite-runtime", "pip install tflite-runtime"),
        ("openvino", "pip install onnxruntime-openvino"),
    ):
        kind = engine_types()[name]
        model = wrapped(".tflite" if kind.takes == "litert" else ".onnx", "digits").manifest.models[0]
        check = kind.check(make_profile(), model)
        assert check.ok or said in check.reason


# ---- the suite can fail


def _engine(**changes: Any) -> type[Engine]:
    return type("Broken", (OnnxEngine,), changes)


def _run_of(self: Any, inputs: list[Any]) -> list[Any]:
    return OnnxEngine._run(self, inputs)


class _ForgetsToForget(OnnxEngine):
    def reset(self) -> None:
        pass


class _TakesAnything(OnnxEngine):
    def _load(self, data: bytes, profile: Any) -> Any:
        try:
            return super()._load(data, profile)
        except Exception:
            from kasmina_edge.engines import LoadedTensor

            def told(t: Any) -> Any:
                return LoadedTensor(t.name, t.shape, t.dtype)

            return list(map(told, self.model.inputs)), list(map(told, self.model.outputs))


class _TellsWhatTheManifestTells(OnnxEngine):
    def _load(self, data: bytes, profile: Any) -> Any:
        from kasmina_edge.engines import LoadedTensor

        mine = self.model
        self.model = subject("onnxruntime", "digits").model
        super()._load(data, profile)
        self.model = mine
        return tuple([LoadedTensor(t.name, t.shape, t.dtype) for t in side] for side in (mine.inputs, mine.outputs))


class _SharesOneFrame(OnnxEngine):
    frame: Any = None

    def run(self, inputs: Any) -> Any:
        self.frame = inputs
        time.sleep(0.001)  # others take their turn, and put their frame there
        return super().run(self.frame)


class _Lenient(OnnxEngine):
    def run(self, inputs: Any) -> Any:
        filled = {t.name: np.zeros(t.shape, t.dtype) for t in self.model.app_inputs}
        return super().run({**filled, **{k: v for k, v in inputs.items() if k in filled}})


class _LivesOn(OnnxEngine):
    def close(self) -> None:
        pass


class _TurnsItsBatch(OnnxEngine):
    def batch_of(self, size: int) -> Any:
        batch = super().batch_of(size)
        if batch is not None:
            run = batch.run
            batch.run = lambda inputs: {k: v[::-1] for k, v in run(inputs).items()}  # type: ignore[method-assign]
        return batch


class _MoreThreadsMoreSum(OnnxEngine):
    def _load(self, data: bytes, profile: Any) -> Any:
        self._more = profile.threads - 1
        return super()._load(data, profile)

    def _run(self, inputs: list[Any]) -> list[Any]:
        return [y + self._more for y in super()._run(inputs)]


class _KeepsInputs(OnnxEngine):
    last: Any = None

    def _run(self, inputs: list[Any]) -> list[Any]:
        self.last, now = inputs, self.last or inputs
        return super()._run(now)


class _SaysNothingBefore(OnnxEngine):
    @classmethod
    def check(cls, profile: Any, model: Any) -> Any:
        from kasmina_edge.engines import EngineCheck

        return EngineCheck(True, "ONNX Runtime CPU", "")


class _SaysNothingAfter(OnnxEngine):
    def _load(self, data: bytes, profile: Any) -> Any:
        found = super()._load(data, profile)
        self.runs_on = ""
        return found


BROKEN: dict[str, tuple[type[Engine], str]] = {
    "says_before_loading_that_it_can": (_SaysNothingBefore, "digits"),
    "says_what_it_runs_on": (_SaysNothingAfter, "digits"),
    "passes_the_self_test": (_engine(_run=lambda s, x: [y + 1 for y in _run_of(s, x)]), "digits"),
    "gives_what_the_manifest_names": (_engine(_run=lambda s, x: [y.astype("f8") for y in _run_of(s, x)]), "digits"),
    "answers_alike_after_a_reset": (_ForgetsToForget, "state tensor and constant"),
    "carries_state": (_ForgetsToForget, "state tensor and constant"),
    "hot_path_answers_alike": (_engine(hot_path=lambda s: lambda x: [y + 1 for y in _run_of(s, x)]), "digits"),
    "input_buffers_are_the_inputs": (_engine(input_buffers=lambda s: [np.zeros(3)]), "digits"),
    "outputs_belong_to_the_caller": (
        _engine(_run=lambda s, x: _run_of(s, x) and list(s._bound_outputs)),
        "digits",
    ),
    "inputs_are_not_kept": (_KeepsInputs, "digits"),
    "wrong_inputs_are_input_errors": (_Lenient, "digits"),
    "what_is_no_model_is_a_bundle_error": (_TakesAnything, "digits"),
    "a_manifest_that_differs_is_refused": (_TellsWhatTheManifestTells, "digits"),
    "a_closed_engine_says_so": (_LivesOn, "digits"),
    "threads_get_their_own_answers": (_SharesOneFrame, "digits"),
    "any_number_of_threads_agrees": (_MoreThreadsMoreSum, "digits"),
    "a_batch_is_its_frames": (_TurnsItsBatch, "open axis"),
}
CANNOT_BE_BROKEN = {"fails_a_self_test_with_other_answers": "the verdict is the suite's, not the engine's"}


@pytest.mark.parametrize("name", BROKEN)
def test_an_engine_that_breaks_a_promise_is_caught(name: str) -> None:
    kind, model = BROKEN[name]
    promise = next(p for p in PROMISES if p.__name__ == name)
    with pytest.raises(BrokenPromiseError):
        hold(promise, Subject(kind, wrapped(".onnx", model), make_profile()))


def test_every_promise_has_an_engine_that_breaks_it() -> None:
    assert BROKEN.keys() | CANNOT_BE_BROKEN.keys() == {p.__name__ for p in PROMISES}


def test_an_error_that_is_not_the_interfaces_is_a_broken_promise() -> None:
    def loses_its_mind(self: Any, inputs: Any) -> Any:
        raise ZeroDivisionError("1/0")

    kind = _engine(run=loses_its_mind)
    with pytest.raises(BrokenPromiseError, match="ZeroDivisionError: 1/0"):
        hold(PROMISES[4], Subject(kind, wrapped(".onnx", "digits"), make_profile()))


# ---- a third party's engine, by entry point


def install_toy(folder: Path, entry: str = "toy = toy_engine:ToyEngine") -> Path:
    """What pip would leave behind: the module, and a dist-info that names the entry point."""
    source = Path(third_party.__file__).parent / "toy" / "toy_engine.py"
    (folder / "toy_engine.py").write_bytes(source.read_bytes())
    info = folder / "toy_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kasmina_edge.engines]\n{entry}\n")
    return folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    monkeypatch.syspath_prepend(str(install_toy(tmp_path)))
    yield engine_types()["toy"]
    sys.modules.pop("toy_engine", None)


@pytest.mark.parametrize("remembers", [False, True])
def test_a_third_partys_engine_is_found_and_passes(toy: type[Engine], remembers: bool) -> None:
    data = b'{"weights": [[1, 2], [3, -4], [0.5, 0]], "remembers": %s}' % (b"true" if remembers else b"false")
    made = wrap(data, "m.toy", WrapPlan("m", engine="toy"), make_profile())
    assert made.model.engine == "toy" and made.model.remembers is remembers
    found = {name: verdict for name, verdict, _ in verdicts(Subject(toy, made.bundle, make_profile()))}
    assert "broken" not in found.values() and list(found.values()).count("kept") >= 14
    with open_engine(made.bundle, make_profile(engines=("litert", "toy"))) as engine:
        assert (engine.name, engine.runs_on) == ("toy", "numpy")


def test_the_suite_runs_from_a_shell(toy: type[Engine], tmp_path: Path) -> None:
    data = b'{"weights": [[1, 2], [3, -4]], "remembers": true}'
    path = tmp_path / "m.kasmina"
    path.write_bytes(pack(wrap(data, "m.toy", WrapPlan("m", engine="toy"), make_profile()).bundle))
    done = subprocess.run(
        [sys.executable, "-m", "kasmina_edge.engines.conformance", "toy", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "18 promises: " in done.stdout and " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("toy = toy_engine:Nothing", "cannot be loaded"),
        ("toy = no_such_module:X", "cannot be loaded"),
        ("toy = toy_engine:json", "is no subclass of"),
        ("other = toy_engine:ToyEngine", "calls itself 'toy'"),
        ("toy = toy_engine:Engine", "does not define"),
        ("litert = toy_engine:ToyEngine", "one of Kasmina's own engines"),
    ],
)
def test_a_broken_entry_point_harms_nobody(
    entry: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install_toy(tmp_path, entry)))
    (found,) = [r for r in registered_engines() if r.source == "toy-engine"]
    assert found.kind is None and reason in found.reason
    assert set(engine_types()) == HERE.keys() | ELSEWHERE.keys()
    bundle = make_bundle()
    name = entry.split(" = ")[0]
    with open_engine(bundle, make_profile(engines=(name, "onnxruntime"))) as engine:
        assert engine.name == ("litert" if name == "litert" else "onnxruntime"), "the runtime goes on without it"
    sys.modules.pop("toy_engine", None)


@pytest.mark.parametrize("method", ["check", "_load", "__init__", "_run", "hot_path"])
def test_a_strangers_engine_that_fails_is_passed_over(
    method: str, toy: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("1/0")

    monkeypatch.setattr(toy, method, classmethod(fails) if method == "check" else fails)
    monkeypatch.setattr(toy, "takes", "litert")
    bundle = make_bundle()
    if method in ("check", "_load", "__init__"):
        with open_engine(bundle, make_profile(engines=("toy", "litert"))) as engine:
            assert engine.name == "litert"
    measured = {m.name: m for m in measure_engines(bundle, make_profile(), blocks=1)}
    assert measured["litert"].ok and not measured["toy"].ok and measured["toy"].reason


def test_the_suite_refuses_a_bundle_without_a_file_for_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "m.kasmina"
    path.write_bytes(pack(wrapped(".onnx", "digits")))
    assert main(["litert", str(path)]) == 1
    assert main(["no-such-engine", str(path)]) == 4
    assert main(["litert"]) == 2
