"""What goes wrong around a runtime: loads that fail for a moment, signals, forks, frames that are none."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds.bundles import digits, make_bundle, make_profile

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelIO
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import BundleError, EngineError, InputError, StorageError
from kasmina_edge.runtime import Runtime
from kasmina_edge.runtime.follow import RETRY_S, Follower, require_fit
from kasmina_edge.runtime.recorder import QUEUE_OTHERS, Recorder
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import hold_lock

PROFILE = make_profile()
WAIT_S = 20.0
X = digits()[0][0]
Deploy = Callable[..., SlotStore]


@pytest.fixture
def newer() -> Bundle:
    return make_bundle(version="1.1.0", release=2, seed=1)


# Following ------------------------------------------------------------------------------------------------------------


class Failing(SlotStore):
    """Slots whose bundle cannot be read for the first few times."""

    def __init__(self, data: Path, *faults: Exception) -> None:
        super().__init__(data)
        self.faults, self.tries = list(faults), 0

    def bundle(self, slot: Any) -> Bundle:
        self.tries += 1
        if self.faults:
            raise self.faults.pop(0)
        return super().bundle(slot)


def follower_of(runtime: Runtime, store: SlotStore, data: Path, now_s: list[float]) -> Follower:
    """A second one, without a thread and on a clock of the test's."""
    own = runtime._follower
    assert own is not None
    own.close()
    return Follower(
        data, store, own._how, current=lambda: runtime._serving, hand_over=runtime._take_over,
        seen=own._seen, timer=lambda: now_s[0],
    )  # fmt: skip


def caused(exc: Exception, cause: Exception) -> Exception:
    exc.__cause__ = cause
    return exc


def test_what_may_pass_is_tried_again_ever_later(runtime: Runtime, newer: Bundle, deploy: Deploy, data: Path) -> None:
    starved = caused(EngineError("cannot load it"), MemoryError())
    store = Failing(data, StorageError("full"), MemoryError("for a moment"), starved, ValueError("?"))
    now_s = [100.0]
    follower = follower_of(runtime, store, data, now_s)
    deploy(newer)
    for tries in range(1, 5):
        follower.follow()
        follower.follow()
        assert (store.tries, runtime.bundle) == (tries, "digits 1.0.0"), "not before its time"
        now_s[0] += RETRY_S * 2 ** (tries - 1)
    follower.follow()
    assert (runtime.bundle, follower.last_error) == (newer.id, None)


def test_what_stays_wrong_waits_for_the_record_or_for_the_caller(
    runtime: Runtime, newer: Bundle, deploy: Deploy, data: Path
) -> None:
    store, now_s = Failing(data, BundleError("damaged"), EngineError("no such operator")), [100.0]
    follower = follower_of(runtime, store, data, now_s)
    deploy(newer)
    for tries in (1, 2):
        follower.follow(now=True)
        now_s[0] += 1e6
        follower.follow()
        assert (store.tries, runtime.bundle) == (tries, "digits 1.0.0")
    follower.follow(now=True)
    assert runtime.bundle == newer.id


def test_a_bundle_of_another_name_or_other_inputs_is_not_followed(
    runtime: Runtime, host: Bundle, deploy: Deploy, data: Path
) -> None:
    deploy(make_bundle(name="letters", version="2.0.0", release=7))
    assert runtime.refresh() == host.id and runtime.infer(X).bundle == host.id
    assert isinstance(runtime.last_swap_error, BundleError)
    assert "letters 2.0.0: its name is letters, this app opened digits 1.0.0" in runtime.last_swap_error.message
    with hold_lock(data / "slots" / "b.lock"):
        pass  # what was loaded has let go of its slot
    side = ModelIO(name="image", shape=(1, 8, 8, 1))
    other = host.manifest.model_copy(update={"inputs": (side,)})
    with pytest.raises(BundleError, match=r"its inputs is .*\(1, 8, 8, 1\).*, this app opened digits 1.0.0 with"):
        require_fit(host.manifest, other)
    require_fit(host.manifest, make_bundle(version="1.1.0", release=2).manifest)


# Closing --------------------------------------------------------------------------------------------------------------


def test_nothing_brings_a_closed_runtime_back(runtime: Runtime, newer: Bundle, deploy: Deploy, data: Path) -> None:
    runtime.close()
    deploy(newer)
    for call in (runtime.refresh, runtime.stream, lambda: runtime.capture(X), lambda: runtime.infer_batch([])):
        with pytest.raises(EngineError, match="closed"):
            call()
    for slot in "ab":
        with hold_lock(data / "slots" / f"{slot}.lock"):
            pass


def test_a_load_that_ends_after_close_is_let_go_of(runtime: Runtime, newer: Bundle, deploy: Deploy, data: Path) -> None:
    loaded, closed = threading.Event(), threading.Event()

    def late(serving: Serving, trial: bool) -> None:
        loaded.set()
        assert closed.wait(WAIT_S)
        runtime._take_over(serving, trial)

    assert runtime._follower is not None
    runtime._follower._hand_over = late
    deploy(newer)
    closing = threading.Thread(target=lambda: (loaded.wait(WAIT_S), runtime.close()))
    closing.start()
    assert loaded.wait(WAIT_S)
    while not runtime._closed:
        time.sleep(0.001)
    closed.set()
    closing.join(WAIT_S)
    assert runtime.swaps == 0
    with pytest.raises(EngineError, match="closed"):
        runtime.infer(X)
    for slot in "ab":
        with hold_lock(data / "slots" / f"{slot}.lock"):
            pass


class Interrupting:
    """A frame that has a signal arrive while it is read: in the middle of an inference."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        signal.raise_signal(signal.SIGUSR1)
        return X


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda do: signal.signal(signal.SIGUSR1, lambda *_: do()) and None
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_close(
    host: Bundle, deploy: Deploy, data: Path, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    deploy(host)
    taken: list[TelemetryRecord] = []
    runtime = Runtime.open(data, profile=PROFILE, telemetry=taken.append)
    on_signal(runtime.close)
    runtime.infer(X)
    assert runtime.infer(Interrupting()).label is not None, "what was interrupted is answered"
    runtime.close()
    assert sum(r.frames for r in taken) == 2, "telemetry was written out"
    with pytest.raises(EngineError, match="closed"):
        runtime.infer(X)
    with hold_lock(data / "slots" / "a.lock"):
        pass


def test_a_signal_handler_that_infers_is_told_so(
    runtime: Runtime, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    told: list[str] = []

    def handler() -> None:
        for call in (lambda: runtime.infer(X), lambda: runtime.infer_batch([X]), runtime.reset, runtime.refresh):
            try:
                call()
            except EngineError as exc:
                told.append(exc.message)
        assert runtime.flush()

    on_signal(handler)
    expected = runtime.infer(X).label
    assert runtime.infer(Interrupting()).label == expected
    assert len(told) == 4 and all("in the middle of an inference" in message for message in told)
    assert runtime.infer(X).label == expected


def test_who_takes_telemetry_may_close(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    opened: list[Runtime] = []
    opened.append(Runtime.open(data, profile=PROFILE, telemetry=lambda record: opened[0].close()))
    opened[0].infer(X)
    began = time.monotonic()
    opened[0].flush()
    opened[0].close()
    assert time.monotonic() - began < 4.0
    with hold_lock(data / "slots" / "a.lock"):
        pass


# Forks ----------------------------------------------------------------------------------------------------------------


def in_a_child(do: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            os._exit(0 if do() else 1)
        except BaseException:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_infers(host: Bundle, newer: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    with Runtime.open(data, profile=PROFILE) as runtime:
        expected = runtime.infer(X).label
        assert asyncio.run(runtime.infer_async(X)).label == expected
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                runtime.infer_batch([X] * 50)

        thread = threading.Thread(target=work)
        thread.start()

        def child() -> bool:
            answered = [runtime.infer(X), runtime.infer_batch([X])[0], asyncio.run(runtime.infer_async(X))]
            runtime.close()
            return [r.label for r in answered] == [expected] * 3 and runtime._recorder is None

        try:
            assert [in_a_child(child) for _ in range(5)] == [True] * 5
        finally:
            stop.set()
            thread.join(WAIT_S)
        deploy(newer)
        assert runtime.refresh() == newer.id, "the parent goes on"
    assert not in_a_child(lambda: False), "a child that fails is seen"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_without_the_engines_threads_says_so(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    with Runtime.open(data, profile=PROFILE.model_copy(update={"threads": 2}), telemetry=None) as runtime:

        def child() -> bool:
            try:
                runtime.infer(X)
            except EngineError as exc:
                return "stayed in the parent" in exc.message
            return False

        assert in_a_child(child)
        assert runtime.infer(X).label is not None


# Telemetry ------------------------------------------------------------------------------------------------------------


def test_writing_into_an_answer_changes_no_statistics(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    taken: list[TelemetryRecord] = []
    with Runtime.open(data, profile=PROFILE, telemetry=taken.append) as runtime:
        label = runtime.infer(X).label
        for result in [runtime.infer(X) for _ in range(50)] + runtime.infer_batch([X] * 50):
            result.raw[...] = -128
            result.raw[0, 1] = 127
            assert result.raw[0, 1] == 127 and result.label == label
    counts: dict[str, int] = {}
    for record in taken:
        for key, count in record.labels.items():
            counts[key] = counts.get(key, 0) + count
    assert list(counts.values()) == [101]


def recorder_of(serving: Serving, emit: Callable[[TelemetryRecord], None], clock: Callable[[], float]) -> Recorder:
    settings = Settings.read(None, environ={}, system_file=Path("/nonexistent"))
    return Recorder(serving, emit=emit, data_folder=None, settings=settings, boot=0, clock=clock)


def test_events_that_nobody_takes_are_bounded_and_counted(host: Bundle, newer: Bundle) -> None:
    servings = [Serving(host, PROFILE), Serving(newer, PROFILE)]
    go_on, stands = threading.Event(), threading.Event()
    taken: list[TelemetryRecord] = []

    def emit(record: TelemetryRecord) -> None:
        taken.append(record)
        stands.set()
        assert go_on.wait(WAIT_S)

    recorder = recorder_of(servings[0], emit, lambda: 1e9)
    raw = servings[0].answer(X).raw
    recorder.take(servings[0], [25_000], raw.tobytes(), 0)
    assert not recorder.flush(0.0) and stands.wait(WAIT_S)
    for _ in range(5_000):
        recorder.check(True)
        recorder.accelerator("LiteRT CPU", "hang", "")
    for _ in range(100):
        recorder.switch(servings[1], trial=False)
    recorder.take(servings[1], [25_000], raw.tobytes(), 0)
    assert len(recorder._queue) <= QUEUE_OTHERS + 1
    assert recorder._left_out == 10_000 - QUEUE_OTHERS + 100 + 1
    go_on.set()
    deadline = time.monotonic() + WAIT_S
    while recorder._missed is not None or recorder._queue:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    recorder.take(servings[1], [25_000], raw.tobytes(), 0)
    recorder.close()
    for serving in servings:
        serving.retire()
    assert [r.bundle for r in taken if r.frames] == [host.manifest.digest(), newer.manifest.digest()]
    assert taken[-1].dropped_records > 0


def test_a_clock_that_gives_no_number_costs_no_frame(host: Bundle) -> None:
    serving, now_s = Serving(host, PROFILE), [1e9]
    taken: list[TelemetryRecord] = []
    recorder = recorder_of(serving, taken.append, lambda: now_s[0])
    raw = serving.answer(X).raw
    for at_s in (1e9, float("nan"), float("inf"), 1e9 + 5):
        now_s[0] = at_s
        recorder.take(serving, [25_000], raw.tobytes(), time.perf_counter_ns())
        assert recorder.flush(WAIT_S)
    recorder.close()
    serving.retire()
    assert sum(r.frames for r in taken) == 4
    assert all(1e9 - 1 <= r.started_s <= 1e9 + WAIT_S for r in taken)


# What is no frame -----------------------------------------------------------------------------------------------------


class Broken:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("the camera is gone")


class Once:
    """Converts but once."""

    def __init__(self) -> None:
        self.asked = 0

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("read already")
        return X


def test_objects_that_are_no_frames(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    with Runtime.open(data, profile=PROFILE, telemetry=lambda record: None) as runtime:
        with pytest.raises(InputError, match="the camera is gone"):
            runtime.infer(Broken())
        with pytest.raises(InputError, match=r"frame 1 of the batch: .*the camera is gone"):
            runtime.infer_batch([X, Broken()])
        assert runtime.infer(Once()).label is not None, "telemetry asks for it once more, and does without"


@pytest.mark.parametrize(
    "xs", [None, 3, {"image": X}, np.float32(1), np.array(1.0), X, X[None][0], (x for x in [None])]
)
def test_what_is_no_batch(runtime: Runtime, xs: Any) -> None:
    with pytest.raises(InputError):
        runtime.infer_batch(xs)
    if xs is X:
        with pytest.raises(InputError, match="a batch is expected, got one frame"):
            runtime.infer_batch(xs)


def test_a_batch_may_be_anything_to_iterate_over(runtime: Runtime) -> None:
    expected = runtime.infer(X).label
    assert [r.label for r in runtime.infer_batch(X for _ in range(3))] == [expected] * 3  # type: ignore[arg-type]


def test_telemetry_is_auto_none_or_a_function(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    with pytest.raises(InputError, match="expected 'auto', None or a function, got 'on'"):
        Runtime.open(data, profile=PROFILE, telemetry="on")  # type: ignore[arg-type]
