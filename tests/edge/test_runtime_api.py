"""The ways to ask: the model's own integers, batches, asyncio, several runtimes side by side, and reopening."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import digits, make_bundle, make_frames, make_profile

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.engines.accelerator.events import AcceleratorEvent
from kasmina_edge.engines.tensors import to_model
from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.runtime import Runtime
from kasmina_edge.runtime.asynchronous import AsyncLane
from kasmina_edge.runtime.batches import SIZE
from kasmina_edge.runtime.recorder import Recorder
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import hold_lock

PROFILE = make_profile()
WAIT_S = 20.0
Deploy = Callable[..., SlotStore]


def quantized(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    return to_model(x, bundle.model_for("litert").inputs[0], bundle.manifest.preprocessing).copy()


def write(bundle: Bundle, folder: Path) -> Path:
    path = folder / bundle.file_name
    path.write_bytes(pack(bundle))
    return path


# The model's own integers ---------------------------------------------------------------------------------------------


def test_the_models_own_integers_go_in_as_they_are(runtime: Runtime, host: Bundle) -> None:
    for x in digits()[0][:20]:
        q = quantized(host, x)
        assert q.dtype == np.int8
        expected = runtime.infer(x)
        for same in (q, q[0], {"image": q}, np.asfortranarray(q)):
            answer = runtime.infer(same)
            assert np.array_equal(answer.raw, expected.raw) and answer.raw.dtype == np.int8
            assert np.array_equal(answer.outputs["logits"], expected.outputs["logits"])
    every = np.resize(np.arange(-128, 128), (1, 16, 16, 1)).astype(np.int8)
    assert runtime.infer(every).label is not None, "every value of the type is allowed"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 16, 16, 1), np.uint8), "expected float32 or int8, got uint8"),
        (np.zeros((1, 16, 16, 1), np.int16), "expected float32 or int8, got int16"),
        (np.zeros((16, 16), np.int8), r"expected shape \(1, 16, 16, 1\), got \(16, 16\)"),
        (np.zeros((2, 16, 16, 1), np.float32), r"expected shape \(1, 16, 16, 1\), got \(2, 16, 16, 1\)"),
        (np.full((16, 16, 1), np.nan, np.float32), "holds NaN"),
        (np.full((16, 16, 1), -0.001, np.float32), "expected values from 0 to 1"),
    ],
)
def test_what_is_refused_is_refused_every_way(runtime: Runtime, x: np.ndarray, message: str) -> None:
    good = digits()[0][0]
    expected = runtime.infer(good).raw
    for call in (runtime.infer, lambda x: asyncio.run(runtime.infer_async(x)), lambda x: runtime.infer({"image": x})):
        with pytest.raises(InputError, match=message):
            call(x)
    with pytest.raises(InputError, match=f"frame 2 of the batch: .*{message}"):
        runtime.infer_batch([good, good, x])
    assert np.array_equal(runtime.infer(good).raw, expected)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_a_frame_is_read_and_never_kept(host: Bundle, deploy: Deploy, data: Path, engine: str) -> None:
    """The engines' own memory is written in place of a buffer of ours: neither side may see the other's."""
    deploy(host, engine=engine)
    with Runtime.open(data, profile=PROFILE) as runtime:
        x = digits()[0][0].copy()
        before = x.copy()
        first = runtime.infer(x)
        kept = first.raw.copy()
        x[...] = 1.0
        second = runtime.infer(x)
        first.raw[...] = 0
        assert not np.array_equal(second.raw, kept) and np.array_equal(runtime.infer(before).raw, kept)
        assert not any(np.shares_memory(a, b) for a in (first.raw, second.raw) for b in runtime._serving._ready)


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
@pytest.mark.parametrize("count", [0, 1, SIZE, 2 * SIZE + 3])
def test_a_batch_answers_as_single_frames_do(host: Bundle, deploy: Deploy, data: Path, engine: str, count: int) -> None:
    deploy(host, engine=engine)
    frames = make_frames(count or 1, seed=2)[:count, 0]
    tolerance = host.model_for(engine).selftest.tolerance
    taken: list[TelemetryRecord] = []
    with Runtime.open(data, profile=PROFILE, telemetry=taken.append) as runtime:
        alone = [runtime.infer(x).raw.astype(float) for x in frames]
        for xs in (frames, list(frames), [x[None].astype(np.float64) for x in frames]):
            results = runtime.infer_batch(xs)
            assert len(results) == count
            for result, expected in zip(results, alone, strict=True):
                assert np.abs(result.raw.astype(float) - expected).max() <= tolerance
                assert result.bundle == host.id and result.latency_us > 0
        runtime.flush()
    assert sum(record.frames for record in taken) == 4 * count


def test_floats_and_own_integers_mix_in_a_batch(runtime: Runtime, host: Bundle) -> None:
    frames = make_frames(SIZE, seed=4)[:, 0]
    mixed = [x if i % 2 else quantized(host, x) for i, x in enumerate(frames)]
    assert [r.label for r in runtime.infer_batch(mixed)] == [runtime.infer(x).label for x in frames]


def test_many_frames_a_call_only_where_it_was_faster(runtime: Runtime) -> None:
    runtime.infer_batch(make_frames(SIZE, seed=1)[:, 0])
    assert runtime._serving._batches is not None, "tried once"
    tried = runtime._serving._batches
    runtime.infer_batch(make_frames(SIZE, seed=1)[:, 0])
    assert runtime._serving._batches is tried


def test_a_batch_is_one_bundles(deploy: Deploy, data: Path) -> None:
    frames = make_frames(40, seed=3)[:, 0]
    versions = [make_bundle(version=f"1.{i}.0", release=i + 1, corrupt=bool(i % 2)) for i in range(4)]
    deploy(versions[0])
    with Runtime.open(data, profile=PROFILE, telemetry=None) as runtime:
        stop = threading.Event()
        mixed: list[set[str]] = []

        def work() -> None:
            while not stop.is_set():
                mixed.append({result.bundle for result in runtime.infer_batch(frames)})

        thread = threading.Thread(target=work)
        thread.start()
        for bundle in versions[1:]:
            deploy(bundle, data=data)
            assert runtime.refresh() == bundle.id
        stop.set()
        thread.join(WAIT_S)
    assert mixed and all(len(names) == 1 for names in mixed)


# asyncio --------------------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_a_thread_answers(runtime: Runtime) -> None:
    frames = make_frames(50, seed=5)[:, 0]
    expected = [runtime.infer(x).label for x in frames]

    async def run() -> list[str | None]:
        return [r.label for r in await asyncio.gather(*(runtime.infer_async(x) for x in frames))]

    assert asyncio.run(run()) == expected
    assert asyncio.run(run()) == expected, "another event loop"


class Gate:
    """A call that waits until it is let, and knows what it was asked."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked: list[int] = []

    def __call__(self, x: int) -> int:
        self.asked.append(x)
        assert self.open.wait(WAIT_S)
        if x < 0:
            raise InputError(f"{x} is negative")
        return 10 * x


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_is_with_the_thread_and_none_is_lost() -> None:
    async def run() -> None:
        gate, lane = Gate(), AsyncLane()
        tasks = [asyncio.create_task(lane.run(gate, i)) for i in range(10)]
        await settle()
        assert len(gate.asked) <= 1
        gate.open.set()
        assert await asyncio.gather(*tasks) == [10 * i for i in range(10)]
        assert gate.asked == list(range(10)), "in the order they came"
        lane.close()

    asyncio.run(run())


def test_cancelling_costs_nobody_else_a_frame() -> None:
    async def run() -> None:
        gate, lane = Gate(), AsyncLane()
        tasks = [asyncio.create_task(lane.run(gate, i)) for i in range(8)]
        await settle()
        while gate.asked != [0]:
            await asyncio.sleep(0.001)
        for i in (0, 1, 2, 5):  # the running one, the next, and two further back
            tasks[i].cancel()
        await settle()
        assert len(lane._waiting) == 4, "the frame of who gave up is let go of at once"
        gate.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [i for i, f in enumerate(found) if isinstance(f, asyncio.CancelledError)] == [0, 1, 2, 5]
        assert [found[i] for i in (3, 4, 6, 7)] == [30, 40, 60, 70]
        assert gate.asked == [0, 3, 4, 6, 7], "what was cancelled before its turn never ran"
        with pytest.raises(InputError, match="-1 is negative"):
            await lane.run(gate, -1)
        assert await lane.run(gate, 9) == 90
        lane.close()
        with pytest.raises(EngineError, match="the runtime is closed"):
            await lane.run(gate, 1)

    asyncio.run(run())


def test_loops_that_were_closed_or_stand_still_hold_nobody_up(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    x = digits()[0][0]

    async def one() -> str | None:
        return (await asyncio.wait_for(runtime.infer_async(x), WAIT_S)).label

    gate = Gate()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(runtime._lane().run(gate, i)) for i in range(20)]
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    standing = asyncio.new_event_loop()
    waiting = [standing.create_task(runtime.infer_async(x)) for _ in range(20)]
    standing.run_until_complete(asyncio.sleep(0))
    gate.open.set()
    assert asyncio.run(one()) is not None
    assert len(gate.asked) <= 1, "nobody waits for the others"
    assert len(standing.run_until_complete(asyncio.gather(*waiting))) == 20
    standing.close()
    assert not caplog.records


def test_closing_wakes_all_that_wait() -> None:
    async def run() -> None:
        gate, lane = Gate(), AsyncLane()
        tasks = [asyncio.create_task(lane.run(gate, i)) for i in range(30)]
        await settle()
        while gate.asked != [0]:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(asyncio.to_thread(lane.close))
        late = await asyncio.wait_for(asyncio.gather(*tasks[1:], return_exceptions=True), WAIT_S)
        assert all(isinstance(found, EngineError) and "closed" in str(found) for found in late)
        gate.open.set()
        assert await tasks[0] == 0, "the one that ran is answered"
        await closing

    asyncio.run(run())


def test_async_calls_of_a_closed_runtime_say_so(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    x = digits()[0][0]

    async def run() -> None:
        runtime = Runtime.open(data, profile=PROFILE, telemetry=None)
        assert (await runtime.infer_async(x)).label is not None
        tasks = [asyncio.create_task(runtime.infer_async(x)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(runtime.close)
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert not isinstance(found, BaseException) or (isinstance(found, EngineError) and "closed" in str(found))
        with pytest.raises(EngineError, match="closed"):
            await runtime.infer_async(x)

    asyncio.run(run())


# Several, and again ---------------------------------------------------------------------------------------------------


def test_folders_and_files_side_by_side(deploy: Deploy, tmp_path: Path) -> None:
    """Two data folders and two bare bundles in one process, each with a thread, one of them swapping."""
    frames = make_frames(8, seed=6)
    plain, turned = make_bundle(), make_bundle(name="turned", version="2.0.0", corrupt=True)
    following = make_bundle(version="1.1.0", release=2, seed=1)
    deploy(plain, data=tmp_path / "one")
    deploy(turned, data=tmp_path / "two", engine="onnxruntime")
    files = [write(plain, tmp_path), write(turned, tmp_path)]
    runtimes = [Runtime.open(tmp_path / name, profile=PROFILE) for name in ("one", "two")]
    runtimes += [Runtime.open(path, profile=PROFILE, verify=lambda _: None) for path in files]
    before = [[runtime.infer(x).label for x in frames] for runtime in runtimes]
    faults: list[str] = []
    stop = threading.Event()

    def work(runtime: Runtime, labels: list[str | None]) -> None:
        own = runtime.bundle
        for i in itertools.cycle(range(8)):
            if stop.is_set():
                return
            result = runtime.infer(frames[i])
            if result.bundle == own and result.label != labels[i]:
                faults.append(f"{own}: {result.label} in place of {labels[i]}")

    threads = [threading.Thread(target=work, args=pair) for pair in zip(runtimes, before, strict=True)]
    for thread in threads:
        thread.start()
    deploy(following, data=tmp_path / "one")
    assert runtimes[0].refresh() == following.id
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert [runtime.bundle for runtime in runtimes] == [following.id, turned.id, plain.id, turned.id]
    assert faults == [] and before[0] == before[2] and before[1] != before[0]
    for runtime in runtimes:
        runtime.close()


def test_closed_and_opened_again(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    threads = threading.active_count()
    for _ in range(3):
        with Runtime.open(data, profile=PROFILE) as runtime:
            assert runtime.infer(digits()[0][0]).label is not None
        runtime.close()
        with hold_lock(data / "slots" / "a.lock"):
            pass
    assert threading.active_count() == threads, "no thread stays behind"


def test_the_engine_can_be_named(host: Bundle, tmp_path: Path) -> None:
    path = write(host, tmp_path)
    for engine, runs_on in (("litert", "LiteRT CPU"), ("onnxruntime", "ONNX Runtime CPU"), ("", "LiteRT CPU")):
        with Runtime.open(path, profile=PROFILE, engine=engine, verify=lambda _: None) as runtime:
            assert runtime.runs_on == runs_on
    with pytest.raises(EngineError):
        Runtime.open(path, profile=PROFILE, engine="abacus", verify=lambda _: None)


# What the recorder is given -------------------------------------------------------------------------------------------


class Eyes:
    """Taps that remember."""

    def __init__(self, bundle: str) -> None:
        self.bundle, self.seen, self.closed = bundle, [], False  # type: ignore[var-annotated]

    def look(self, model_inputs: list[np.ndarray]) -> None:
        self.seen.append(model_inputs)
        if len(self.seen) == 2:
            raise RuntimeError("a fault of the taps")

    def close(self) -> None:
        self.closed = True


def look_now(runtime: Runtime) -> None:
    """Let the next frame be one that is looked at."""
    assert runtime._recorder is not None and runtime.flush()
    runtime._attend_at = runtime._recorder._look_at_ns = 0


def test_taps_see_sampled_frames_in_the_models_numbers(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    opened: list[Eyes] = []

    def taps(serving: Serving) -> Eyes:
        opened.append(Eyes(serving.id))
        return opened[-1]

    taken: list[TelemetryRecord] = []
    x = digits()[0][0]
    with Runtime.open(data, profile=PROFILE, telemetry=taken.append, taps=taps) as runtime:
        for frame in (x, quantized(host, x), {"image": x}):
            look_now(runtime)
            runtime.infer(frame)
        deploy(make_bundle(version="1.1.0", release=2, seed=1), data=data)
        runtime.refresh()
        look_now(runtime)
        runtime.infer(x)
    assert [(eyes.bundle, len(eyes.seen), eyes.closed) for eyes in opened] == [
        ("digits 1.0.0", 3, True), ("digits 1.1.0", 1, True),
    ]  # fmt: skip
    for inputs in (*opened[0].seen, *opened[1].seen):
        assert len(inputs) == 1 and np.array_equal(inputs[0], quantized(host, x))
    assert [r.frames for r in taken] == [1, 1, 1, 1], "a fault of the taps loses no record"
    assert taken[0].input is not None and taken[0].input.mean == pytest.approx(float(x.mean()), abs=0.005)


def test_events_of_the_accelerator_are_counted(host: Bundle) -> None:
    serving = Serving(host, PROFILE)
    serving.engine.on_change = None  # type: ignore[attr-defined]
    settings = Settings.read(None, environ={}, system_file=Path("/nonexistent"))
    taken: list[TelemetryRecord] = []
    recorder = Recorder(serving, emit=taken.append, data_folder=None, settings=settings, boot=0, clock=lambda: 1e9)
    event = AcceleratorEvent("hang", 1e9, "a call took 2 s", "LiteRT CPU", 1, 1.0)
    serving.engine.on_change(event)  # type: ignore[attr-defined]
    recorder.take(serving, [25_000], serving.answer(digits()[0][0]).raw.tobytes(), 0)
    recorder.close()
    serving.retire()
    assert taken[-1].accelerator is not None and "hang" in taken[-1].accelerator.model_dump_json()


def test_dropped_records_stay_within_the_contract(host: Bundle) -> None:
    serving = Serving(host, PROFILE)
    settings = Settings.read(None, environ={}, system_file=Path("/nonexistent"))
    taken: list[TelemetryRecord] = []
    recorder = Recorder(serving, emit=taken.append, data_folder=None, settings=settings, boot=0, clock=lambda: 1e9)
    recorder._left_out = 2**70
    recorder.take(serving, [25_000], serving.answer(digits()[0][0]).raw.tobytes(), 0)
    recorder.close()
    serving.retire()
    assert [r.dropped_records for r in taken] == [2**53]
    assert TelemetryRecord.from_bytes(taken[0].to_bytes()) == taken[0]
