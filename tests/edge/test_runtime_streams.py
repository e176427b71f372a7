"""State: streams of their own, reset, what a swap does to it, and that bundles never see each other's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_profile

from kasmina_edge.bundle import pack
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import EngineError
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore

pytest.importorskip("onnx")
from worlds.counters import make_counter

PROFILE = make_profile(engines=("onnxruntime",))
ONE = np.ones((1, 3), np.float32)
Deploy = Callable[..., SlotStore]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def runtime(deploy: Deploy, data: Path) -> Iterator[Runtime]:
    deploy(make_counter(), engine="onnxruntime")
    with Runtime.open(data, profile=PROFILE, telemetry=None) as opened:
        yield opened


def total(channel: object) -> float:
    return float(channel.infer(ONE).outputs["sum"][0, 0])  # type: ignore[attr-defined]


def test_state_is_carried_and_reset(runtime: Runtime) -> None:
    results = [runtime.infer(ONE) for _ in range(3)]
    assert [float(r.outputs["sum"][0, 0]) for r in results] == [1.0, 2.0, 3.0]
    assert [r.fresh_state for r in results] == [True, False, False]
    runtime.reset()
    again = runtime.infer(ONE)
    assert (float(again.outputs["sum"][0, 0]), again.fresh_state) == (1.0, True)


def test_a_batch_is_a_sequence(runtime: Runtime) -> None:
    total(runtime)
    results = runtime.infer_batch([ONE] * 20)
    assert [float(r.outputs["sum"][0, 0]) for r in results] == [float(i) for i in range(2, 22)]


def test_streams_know_nothing_of_each_other(runtime: Runtime) -> None:
    total(runtime)
    with runtime.stream() as left, runtime.stream() as right:
        assert [total(left), total(left), total(right), total(left), total(runtime)] == [1.0, 2.0, 1.0, 3.0, 2.0]
        right.reset()
        assert (total(right), total(left)) == (1.0, 4.0)
    left.close()
    with pytest.raises(EngineError, match="the stream is closed"):
        left.infer(ONE)
    assert total(runtime) == 3.0


def test_many_threads_with_a_stream_each(runtime: Runtime) -> None:
    found: dict[int, list[float]] = {}

    def work(me: int) -> None:
        with runtime.stream() as stream:
            found[me] = [total(stream) for _ in range(200)]

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert list(found.values()) == [[float(i) for i in range(1, 201)]] * 6


def test_a_swap_begins_state_anew_and_says_so(runtime: Runtime, deploy: Deploy, data: Path) -> None:
    with runtime.stream() as stream:
        assert [total(stream), total(stream), total(runtime)] == [1.0, 2.0, 1.0]
        deploy(make_counter(factor=10.0, version="1.1.0", release=2), engine="onnxruntime")
        assert runtime.refresh() == "counter 1.1.0"
        for channel in (stream, runtime):
            first, second = channel.infer(ONE), channel.infer(ONE)
            assert (first.bundle, first.fresh_state, second.fresh_state) == ("counter 1.1.0", True, False)
            assert [float(r.outputs["sum"][0, 0]) for r in (first, second)] == [10.0, 20.0], "nothing of the old state"
        SlotStore(data).roll_back("an operator wishes it")
        assert runtime.refresh() == "counter 1.0.0"
        assert [total(stream), total(runtime)] == [1.0, 1.0], "the returning bundle does not take its old state up"


def test_streams_follow_from_a_model_with_state_to_one_without_and_back(
    runtime: Runtime, deploy: Deploy, data: Path
) -> None:
    with runtime.stream() as stream:
        assert total(stream) == 1.0
        deploy(make_counter(factor=5.0, version="2.0.0", release=2, stateful=False), engine="onnxruntime")
        runtime.refresh()
        result = stream.infer(ONE)
        assert (result.bundle, result.fresh_state) == ("counter 2.0.0", False)
        assert [total(stream), total(stream)] == [5.0, 5.0]
        SlotStore(data).roll_back("an operator wishes it")
        runtime.refresh()
        assert [total(stream), total(stream), total(runtime)] == [1.0, 2.0, 1.0]


def test_a_stream_of_a_model_without_state_costs_no_second_model(tmp_path: Path) -> None:
    bundle = make_counter(stateful=False)
    path = tmp_path / bundle.file_name
    path.write_bytes(pack(bundle))
    taken: list[TelemetryRecord] = []
    with Runtime.open(path, profile=PROFILE, verify=lambda _: None, telemetry=taken.append) as runtime:
        stream = runtime.stream()
        assert stream._serving is runtime._serving
        for _ in range(4):
            stream.infer(ONE)
        stream.close()
        runtime.infer(ONE)
        assert runtime.flush()
        assert [t.frames for t in taken] == [5], "streams are counted too"
        with pytest.raises(EngineError, match="the stream is closed"):
            stream.infer_batch([ONE])


def test_closing_the_runtime_closes_its_streams(deploy: Deploy, data: Path) -> None:
    deploy(make_counter(), engine="onnxruntime")
    runtime = Runtime.open(data, profile=PROFILE, telemetry=None)
    stream = runtime.stream()
    runtime.close()
    stream.close()
    for call in (stream.infer, runtime.infer):
        with pytest.raises(EngineError, match="is closed"):
            call(ONE)
    for opened in (runtime.stream, runtime.reset, stream.reset):
        with pytest.raises(EngineError, match="is closed"):
            opened()
