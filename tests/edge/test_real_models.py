"""Third parties' real models, end to end: wrapped by the program, deployed, and answering as the bare library does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from worlds.bundles import make_profile
from worlds.third_party import NotFetchedError, fetch, speech_like, wakeword_features

from kasmina_edge import Runtime
from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.cli.app import app
from kasmina_edge.engines import open_engine, self_test
from kasmina_edge.engines.conformance import Subject, hold
from kasmina_edge.engines.conformance.promises import (
    carries_state,
    hot_path_answers_alike,
    inputs_are_not_kept,
    outputs_belong_to_the_caller,
)
from kasmina_edge.engines.registry import engine_type


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def real(name: str) -> Path:
    try:
        return fetch(name)
    except NotFetchedError as exc:
        pytest.skip(f"NOT TESTED on a real model: {exc}")


def create(folder: Path, model: Path, samples: Any, *options: str) -> tuple[Path, dict[str, Any]]:
    np.save(folder / "samples.npy", samples)
    call = ["bundle", "create", str(model), "--out", str(folder), "--samples", str(folder / "samples.npy"), "--json"]
    done = CliRunner().invoke(app, [*call, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    return Path(value["file"]), value


def bare_litert(model: Path, frames: Any) -> list[Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    index_in, index_out = (d[0]["index"] for d in (interpreter.get_input_details(), interpreter.get_output_details()))
    answers = []
    for frame in frames:
        interpreter.set_tensor(index_in, frame)
        interpreter.invoke()
        answers.append(interpreter.get_tensor(index_out))
    return answers


def bare_silero(model: Path, frames: Any) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    state, answers = np.zeros((2, 1, 128), np.float32), []
    for frame in frames:
        feeds = {"input": frame, "state": state, "sr": np.array(16000, np.int64)}
        output, state = session.run(["output", "stateN"], feeds)
        answers.append(output)
    return answers


def deploy(folder: Path, bundle: Path) -> str:
    call = ["deploy", str(bundle), "--data", str(folder / "data"), "--json"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(json.loads(done.stdout))


def test_a_streaming_wake_word_that_keeps_variables_of_its_own(tmp_path: Path) -> None:
    model, frames = real("okay_nabu.tflite"), wakeword_features()
    path, value = create(tmp_path, model, frames)
    bundle = read_file(path)
    entry = bundle.manifest.models[0]
    assert entry.remembers and entry.stateful and entry.parity is None
    assert [(t.dtype, t.shape) for t in (*entry.inputs, *entry.outputs)] == [("int8", (1, 3, 40)), ("uint8", (1, 1))]
    assert entry.selftest.tolerance <= 2, value["engines"]
    wanted = bare_litert(model, frames)
    assert len({int(y[0, 0]) for y in wanted}) >= 4, "the answers move"
    with open_engine(bundle, make_profile()) as engine:
        for _ in range(2):
            name = entry.inputs[0].name
            got = [next(iter(engine.run({name: frame}).values())) for frame in frames]
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
            engine.reset()
        assert self_test(engine, bundle).ok
        assert engine.batch_of(4) is None
    _promises(bundle, "litert")
    assert "okay-nabu" in deploy(tmp_path, path)
    with Runtime.open(tmp_path / "data", telemetry=None) as runtime:
        for _ in range(2):
            assert [int(runtime.infer(frame).raw[0, 0]) for frame in frames] == [int(y[0, 0]) for y in wanted]
            runtime.reset()


def test_a_voice_detector_with_open_axes_a_state_tensor_and_a_constant(tmp_path: Path) -> None:
    model, frames = real("silero_vad.onnx"), speech_like()
    path, _ = create(tmp_path, model, frames, "--input", "input=1x576", "--constant", "sr=16000", "--name", "vad")
    bundle = read_file(path)
    entry = bundle.manifest.models[0]
    assert [(pair.input, pair.output) for pair in entry.states] == [("state", "stateN")]
    assert [t.name for t in entry.app_inputs] == ["input"] and [t.name for t in entry.app_outputs] == ["output"]
    constant = next(t for t in entry.inputs if t.name == "sr")
    assert (constant.shape, constant.dtype, constant.constant) == ((), "int64", 16000.0)
    wanted = bare_silero(model, frames)
    assert np.ptp([y[0, 0] for y in wanted]) > 0.02, "the answers move"
    with open_engine(bundle, make_profile()) as engine:
        for _ in range(2):
            got = [engine.run({"input": frame})["output"] for frame in frames]
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
            engine.reset()
        assert self_test(engine, bundle).ok
    _promises(bundle, "onnxruntime")
    assert "vad" in deploy(tmp_path, path)
    with Runtime.open(tmp_path / "data", telemetry=None) as runtime:
        for _ in range(2):
            got = [runtime.infer(frame).outputs["output"] for frame in frames]
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
            runtime.reset()


def test_a_voice_detector_needs_the_length_of_its_open_axis(tmp_path: Path) -> None:
    from kasmina_edge.errors import InputError

    model = real("silero_vad.onnx")
    call = ["bundle", "create", str(model), "--constant", "sr=16000", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, call)
    assert isinstance(done.exception, InputError)
    assert "axis 1 has no length" in done.exception.message and "--input input=1x1" in done.exception.next_step


def _promises(bundle: Bundle, engine: str) -> None:
    """Those that a model with state is there for; the whole suite runs on small models."""
    subject = Subject(engine_type(engine), bundle, make_profile())
    for promise in (carries_state, hot_path_answers_alike, outputs_belong_to_the_caller, inputs_are_not_kept):
        hold(promise, subject)
