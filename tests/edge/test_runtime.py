"""The embedding API on a data folder and on a bare bundle, with real engines, slots and outbox."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import LABELS, answer, digits, make_bundle, make_frames, make_graft, make_profile

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.contracts.change_plan import CaptureBudget, ChangePlan, HealthLimits
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.engines.tensors import from_model
from kasmina_edge.errors import BundleError, EngineError, InputError, LockedError, TrustError
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.runtime import Result, Runtime
from kasmina_edge.runtime.recorder import QUEUE_EVENTS, Recorder
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.safety.drift import domain_statistics
from kasmina_edge.safety.encryption import new_sealing_key, public_hex
from kasmina_edge.settings import Settings, write_settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import hold_lock
from kasmina_edge.telemetry.outbox import open_outbox
from kasmina_edge.updates.trust import TrustStore

Deploy = Callable[..., SlotStore]
PROFILE = make_profile()
DEADLINE_S = 20.0


@pytest.fixture
def grown(host: Bundle) -> Bundle:
    return make_bundle(version="1.1.0", release=2, seed=1, grafts=(make_graft(),), parent=host)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def runtime(host: Bundle, deploy: Deploy, data: Path) -> Iterator[Runtime]:
    deploy(host)
    with Runtime.open(data, profile=PROFILE, telemetry=None) as opened:
        yield opened


def records(data: Path) -> list[TelemetryRecord]:
    box = open_outbox(data)
    try:
        return [TelemetryRecord.from_bytes(e.payload) for e in box.peek(10_000, 1 << 30) if e.stream == "stats"]
    finally:
        box.close()


def expected_logits(bundle: Bundle, engine: str, frames: np.ndarray) -> np.ndarray:
    model = bundle.model_for(engine)
    _, raw = answer(engine, bundle.files[model.file.path], frames)
    return from_model(raw, model.outputs[0].model_copy(update={"shape": raw.shape}))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_it_answers_what_the_model_says(host: Bundle, deploy: Deploy, data: Path, engine: str) -> None:
    deploy(host, engine=engine)
    frames, _ = digits()
    logits = expected_logits(host, engine, frames[:50])
    with Runtime.open(data, profile=PROFILE, telemetry=None) as runtime:
        for x, expected in zip(frames[:50], logits, strict=True):
            result = runtime.infer(x)
            assert np.array_equal(result.outputs["logits"][0], expected)
            assert result.outputs["logits"].dtype == np.float32
            assert result.label_index == int(expected.argmax()) and result.label == LABELS[result.label_index]
            share = np.exp(expected.astype(np.float64) - expected.max())
            assert result.score == pytest.approx(float(1 / share.sum()), rel=1e-4)
            assert result.latency_us > 0 and result.bundle == "digits 1.0.0"


def test_it_is_right_about_real_digits(runtime: Runtime) -> None:
    frames, labels = digits()
    right = np.mean([runtime.infer(x).label_index == y for x, y in zip(frames, labels, strict=True)])
    assert right > 0.9


def test_shapes_dicts_and_float64_mean_the_same_frame(runtime: Runtime) -> None:
    x = digits()[0][3]
    expected = runtime.infer(x).outputs["logits"]
    for same in (x[None], x.astype(np.float64), {"image": x}, {"image": x[None].astype(np.float64)}):
        assert np.array_equal(runtime.infer(same).outputs["logits"], expected)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_results_belong_to_the_caller(host: Bundle, deploy: Deploy, data: Path, engine: str) -> None:
    deploy(host, engine=engine)
    with Runtime.open(data, profile=PROFILE, telemetry=None) as runtime:
        first = runtime.infer(digits()[0][0])
        kept, told = first.outputs["logits"].copy(), repr(runtime.infer(digits()[0][0]).outputs)
        runtime.infer(digits()[0][1])
        assert np.array_equal(first.outputs["logits"], kept)
        assert isinstance(first, Result) and told in repr(first)
        first.outputs["logits"][...] = 0.0
    again = (first.label_index, first.label)
    assert again == (int(kept.argmax()), LABELS[int(kept.argmax())]), "asked late, after the runtime was closed"
    assert first.score is not None and 0.1 < first.score <= 1.0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((8, 8, 1), np.float32), r"expected shape \(1, 16, 16, 1\), got \(8, 8, 1\)"),
        (np.zeros((16, 16, 1), np.uint8), "expected float32 or int8, got uint8"),
        (np.full((16, 16, 1), 2, np.float32), "expected values from 0 to 1, got 2 to 2"),
        (np.full((16, 16, 1), np.nan, np.float32), "holds NaN"),
        ({"frame": np.zeros((16, 16, 1), np.float32)}, r"expected inputs \['image'\], got \['frame'\]"),
        (None, "expected float32 or int8"),
    ],
)
def test_a_wrong_frame_changes_nothing(runtime: Runtime, x: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runtime.infer(x)
    with pytest.raises(InputError, match=message):
        runtime.capture(x)
    assert runtime.infer(digits()[0][0]).label is not None


def test_a_bare_bundle_is_verified_before_it_runs(host: Bundle, tmp_path: Path) -> None:
    path = tmp_path / host.file_name
    path.write_bytes(pack(host))
    with pytest.raises(TrustError, match=r"digits 1\.0\.0: carries no signatures"):
        Runtime.open(path, profile=PROFILE)
    seen: list[Bundle] = []
    with Runtime.open(path, profile=PROFILE, verify=seen.append) as runtime:
        assert seen == [host]
        assert (runtime.slot, runtime.trial, runtime.runs_on) == ("-", False, "LiteRT CPU")
        assert runtime.infer(digits()[0][0]).bundle == runtime.bundle == host.id
        assert runtime.refresh() == host.id and runtime.last_swap_error is None and runtime.flush()
        assert not runtime.capture(digits()[0][0]), "no data folder, no plan"

    def refuse(bundle: Bundle) -> None:
        raise TrustError(f"{bundle.id}: forged")

    with pytest.raises(TrustError, match="forged"):
        Runtime.open(path, profile=PROFILE, verify=refuse)


def test_a_bare_bundle_signed_at_the_desk_opens_and_a_tampered_one_does_not(host: Bundle, tmp_path: Path) -> None:
    desk = Repository.desk(tmp_path / "desk", clock=time.time)
    signed = desk.sign_bundle(host)
    path = tmp_path / "signed.kasmina"
    path.write_bytes(pack(signed))
    for root in (None, desk.root_bytes()):
        with Runtime.open(path, profile=PROFILE, pinned_root=root) as runtime:
            assert runtime.infer(digits()[0][0]).bundle == host.id
    with Runtime.open(path, profile=PROFILE, clock=lambda: time.time() + 1e9) as runtime:
        assert runtime.infer(digits()[0][0]).bundle == host.id, "an app does not stop when its signatures age"
    other = make_bundle(seed=5)
    path.write_bytes(pack(Bundle(other.manifest, other.files, signed.metadata)))
    with pytest.raises(TrustError):
        Runtime.open(path, profile=PROFILE)


def test_a_bare_bundle_runs_under_the_profile_it_was_made_for(host: Bundle, tmp_path: Path) -> None:
    path = tmp_path / host.file_name
    path.write_bytes(pack(host))
    with Runtime.open(str(path), verify=lambda _: None) as runtime:
        assert runtime.manifest.profile == "x86-cpu"
    with pytest.raises(InputError, match="no profile is called 'nonsense'"):
        Runtime.open(path, profile="nonsense", verify=lambda _: None)
    with pytest.raises(EngineError, match="has no accelerator to require"):
        Runtime.open(path, profile=PROFILE, verify=lambda _: None, require_accelerator=True)


def test_places_without_a_bundle_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        Runtime.open(tmp_path / "gone")
    with pytest.raises(InputError, match="not a data folder"):
        Runtime.open(tmp_path)
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    SlotStore(tmp_path / "data")
    with pytest.raises(BundleError, match="no bundle is committed here"):
        Runtime.open(tmp_path / "data", profile=PROFILE)


def test_a_damaged_slot_does_not_open(host: Bundle, deploy: Deploy, data: Path) -> None:
    store = deploy(host)
    model = store.folder("a") / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"model\.tflite: the manifest says sha256"):
        Runtime.open(data, profile=PROFILE)
    with hold_lock(data / "slots" / "a.lock"):
        pass  # the failed attempt has let go


def test_the_settings_of_the_data_folder_count(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    write_settings(data / "kasmina.toml", {"device.id": "cam-7", "device.profile": "raspberry-pi-4"})
    with Runtime.open(data) as runtime:
        runtime.infer(digits()[0][0])
        assert runtime.flush()
    assert [r.device for r in records(data)] == ["cam-7"]


def test_a_closed_runtime_says_so(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    runtime = Runtime.open(data, profile=PROFILE)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="the runtime is closed"):
        runtime.infer(digits()[0][0])
    with hold_lock(data / "slots" / "a.lock"):
        pass


def test_it_follows_trial_commit_and_roll_back(runtime: Runtime, host: Bundle, grown: Bundle, data: Path) -> None:
    store = SlotStore(data)
    x = digits()[0][0]
    store.begin_trial(store.install(grown, engine="litert"))
    assert runtime.refresh() == "digits 1.0.0", "a trial that is not live is the agent's alone"
    store.go_live()
    assert runtime.refresh() == runtime.infer(x).bundle == "digits 1.1.0"
    assert (runtime.slot, runtime.trial, runtime.swaps) == ("b", True, 1)
    store.confirm()
    assert (runtime.refresh(), runtime.trial, runtime.swaps) == ("digits 1.1.0", False, 1)
    store.roll_back("an operator wishes it")
    assert (runtime.refresh(), runtime.slot, runtime.swaps) == ("digits 1.0.0", "a", 2)
    expected = expected_logits(host, "litert", x[None])
    assert np.array_equal(runtime.infer(x).outputs["logits"], expected), "bit for bit the host's"


def test_inference_alone_notices_a_new_bundle(runtime: Runtime, grown: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(grown, data=data)
    x = digits()[0][0]
    until(lambda: runtime.infer(x).bundle == "digits 1.1.0", "frames kept coming, the swap did not")
    assert runtime.last_swap_error is None


def test_an_app_that_stopped_inferring_lets_go_of_the_old_slot(
    runtime: Runtime, grown: Bundle, deploy: Deploy, data: Path
) -> None:
    with pytest.raises(LockedError), hold_lock(data / "slots" / "a.lock"):
        pass
    deploy(grown, data=data)
    until(lambda: runtime.slot == "b", "nobody looked")
    with hold_lock(data / "slots" / "a.lock", wait_s=DEADLINE_S):
        pass


def test_a_bundle_that_does_not_load_leaves_the_old_one_in_service(
    runtime: Runtime, host: Bundle, grown: Bundle, data: Path
) -> None:
    store = SlotStore(data)
    slot = store.install(grown, engine="litert")
    store.begin_trial(slot)
    model = store.folder(slot) / "model.tflite"
    good = model.read_bytes()
    model.write_bytes(good[:-1] + b"!")
    store.go_live()
    assert runtime.refresh() == "digits 1.0.0"
    assert isinstance(runtime.last_swap_error, BundleError)
    assert "model.tflite" in runtime.last_swap_error.message
    first = runtime.last_swap_error
    model.write_bytes(good)
    assert runtime._follower is not None
    runtime._follower.follow()
    assert runtime.bundle == "digits 1.0.0" and runtime.last_swap_error is first, "one try a record"
    store.roll_back("it does not load")
    assert runtime.refresh() == "digits 1.0.0" and runtime.last_swap_error is None
    assert runtime.infer(digits()[0][0]).bundle == "digits 1.0.0"


def test_an_engine_that_is_not_there_leaves_the_old_one_in_service(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    with Runtime.open(data, profile=make_profile(engines=("litert",)), telemetry=None) as runtime:
        deploy(make_bundle(version="2.0.0", release=3, seed=2), engine="onnxruntime", data=data)
        assert runtime.refresh() == "digits 1.0.0"
        assert isinstance(runtime.last_swap_error, EngineError)


def test_a_slot_that_is_being_replaced_is_tried_again(
    runtime: Runtime, grown: Bundle, deploy: Deploy, data: Path
) -> None:
    with hold_lock(data / "slots" / "b.lock"):
        store = SlotStore(data)
        # what the agent does, less the installation that needs the same lock
        with pytest.raises(LockedError):
            SlotStore(data, lock_wait_s=0.0).install(grown, engine="litert")
        assert runtime.refresh() == "digits 1.0.0"
    store.begin_trial(store.install(grown, engine="litert"))
    with hold_lock(data / "slots" / "b.lock"):
        store.go_live()
        runtime.refresh()
        assert isinstance(runtime.last_swap_error, LockedError)
        assert runtime.infer(digits()[0][0]).bundle == "digits 1.0.0"
    until(lambda: runtime.infer(digits()[0][0]).bundle == "digits 1.1.0", "the lock is free")
    until(lambda: runtime.last_swap_error is None, "the error is over")


def test_threads_get_whole_answers_while_bundles_swap(host: Bundle, deploy: Deploy, data: Path) -> None:
    """Six swaps under four threads: every answer is exactly one bundle's, nothing raises, nobody waits long."""
    frames = make_frames(16, seed=3)
    versions = [make_bundle(version=f"1.{i}.0", release=i + 1, seed=i) for i in range(7)]
    expected = {b.id: expected_logits(b, "litert", frames[:, 0]) for b in versions}
    assert len({e.tobytes() for e in expected.values()}) > 4, "the bundles answer differently"
    deploy(versions[0])
    stop = threading.Event()
    faults: list[str] = []
    seen: list[set[str]] = [set() for _ in range(4)]
    longest = [0.0] * 4
    frames_done = [0] * 4

    def work(me: int, runtime: Runtime) -> None:
        for i in itertools.count(me):
            if stop.is_set():
                return
            began = time.perf_counter()
            try:
                result = runtime.infer(frames[i % 16])
            except Exception as exc:
                faults.append(repr(exc))
                return
            longest[me] = max(longest[me], time.perf_counter() - began)
            seen[me].add(result.bundle)
            frames_done[me] += 1
            if not np.array_equal(result.outputs["logits"][0], expected[result.bundle][i % 16]):
                faults.append(f"{result.bundle}: an answer of another bundle")

    with Runtime.open(data, profile=PROFILE, telemetry=lambda record: None) as runtime:
        threads = [threading.Thread(target=work, args=(me, runtime)) for me in range(4)]
        for thread in threads:
            thread.start()
        try:
            for bundle in versions[1:]:
                deploy(bundle, data=data)
                until(lambda wanted=bundle.id: runtime.bundle == wanted, "no swap")  # type: ignore[misc]
                counts = list(frames_done)
                until(lambda now=counts: all(a > b for a, b in zip(frames_done, now, strict=True)), "a thread stands")  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)
        assert faults == []
        assert runtime.swaps == 6
    assert all(versions[-1].id in names for names in seen)
    assert max(longest) < 2.0, f"an inference took {max(longest):.3f} s"


def test_telemetry_reaches_the_outbox(host: Bundle, grown: Bundle, deploy: Deploy, data: Path) -> None:
    frames = digits()[0]
    domain = domain_statistics("clean", frames, None, 20, 0)
    deploy(make_bundle(domains=(domain,)))
    with Runtime.open(data, profile=PROFILE) as runtime:
        for x in frames[:30]:
            runtime.infer(x)
        right = runtime.infer(frames[0]).label_index
        assert right is not None
        runtime.check(frames[0], right)
        runtime.check(frames[0], (right + 1) % 10)
        store = SlotStore(data)
        store.begin_trial(store.install(grown, engine="litert"))
        store.go_live()
        runtime.refresh()
        runtime.infer(frames[1])
        store.confirm()
        runtime.refresh()
        runtime.infer(frames[2])
    first, second, third = records(data)
    assert (first.frames, first.check_frames, first.check_correct) == (33, 2, 1)
    assert first.labels is not None and sum(first.labels.values()) == 33
    assert first.latency_us is not None and first.latency_us["max"] >= first.latency_us["p50"] > 0
    assert first.sampled >= 1 and first.features is not None and first.score is not None
    assert (first.bundle, first.slot, first.trial) == (make_bundle(domains=(domain,)).manifest.digest(), "a", False)
    assert (second.bundle, second.slot, second.trial, second.frames) == (grown.manifest.digest(), "b", True, 1)
    assert (third.bundle, third.slot, third.trial, third.frames) == (grown.manifest.digest(), "b", False, 1)
    assert first.source == third.source and [r.sequence for r in (first, second, third)] == [0, 1, 2]
    assert first.dropped_records == 0


def test_a_bare_bundle_can_hand_its_records_to_a_function(host: Bundle, tmp_path: Path) -> None:
    path = tmp_path / host.file_name
    path.write_bytes(pack(host))
    taken: list[TelemetryRecord] = []
    now = itertools.count(1_700_000_000)
    with Runtime.open(
        path, profile=PROFILE, verify=lambda _: None, telemetry=taken.append, clock=lambda: next(now)
    ) as r:
        r.infer(digits()[0][0])
        assert r.flush()
        assert [t.frames for t in taken] == [1]
        assert taken[0].slot == "-" and 1_700_000_000 < taken[0].started_s < 1_700_000_100


def test_a_window_ends_though_the_camera_stopped(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    write_settings(data / "kasmina.toml", {"telemetry.window_s": 0.05})
    with Runtime.open(data, profile=PROFILE) as runtime:
        runtime.infer(digits()[0][0])
        until(lambda: len(records(data)) == 1, "the window never ended")


def test_a_full_window_ends_but_not_in_no_time(host: Bundle) -> None:
    serving = Serving(host, PROFILE)
    settings = Settings.read(None, environ={}, system_file=Path("/nonexistent"), flags={"telemetry.window_frames": 10})
    raw = serving.answer(digits()[0][0]).raw
    for period_s, expected in ((0.1, [10, 10, 5]), (0.001, [25]), (0.02, [14, 11])):
        taken: list[TelemetryRecord] = []
        recorder = Recorder(
            serving, emit=taken.append, data_folder=None, settings=settings, boot=0, clock=lambda: 1e9,
            timer_ns=lambda: 0,
        )  # fmt: skip
        for i in range(25):
            recorder.take(serving, [25_000], raw.tobytes(), int(period_s * 1e9) * i)
        recorder.close()
        assert [r.frames for r in taken] == expected, period_s
    serving.retire()


class Slow:
    """Takes records only when it is let."""

    def __init__(self) -> None:
        self.taken: list[TelemetryRecord] = []
        self.go = threading.Event()

    def __call__(self, record: TelemetryRecord) -> None:
        assert self.go.wait(DEADLINE_S)
        self.taken.append(record)


def test_a_slow_disk_never_blocks_and_losses_are_counted(host: Bundle) -> None:
    slow = Slow()
    serving = Serving(host, PROFILE)
    settings = Settings.read(None, environ={}, system_file=Path("/nonexistent"))
    recorder = Recorder(
        serving, emit=slow, data_folder=None, settings=settings, boot=3, clock=time.time, capacity=100,
        shortest_window_s=0.0,
    )  # fmt: skip
    result = serving.answer(digits()[0][0])
    longest = 0.0
    for i in range(1000):
        began = time.perf_counter()
        recorder.take(serving, [result.latency_ns], result.raw.tobytes(), result.ended_ns + i)
        longest = max(longest, time.perf_counter() - began)
    assert not recorder.flush(wait_s=0.01), "the disk stands still"
    slow.go.set()
    assert recorder.flush()
    recorder.close()
    serving.retire()
    counted = sum(r.frames for r in slow.taken)
    assert 100 <= counted <= 300
    assert slow.taken[-1].dropped_records == -(-(1000 - counted) // 60)
    assert {r.boot for r in slow.taken} == {3}
    assert longest < 1.0
    assert 2 * settings["telemetry.window_frames"] < QUEUE_EVENTS


def test_a_taker_that_fails_does_not_end_telemetry(host: Bundle, deploy: Deploy, data: Path) -> None:
    deploy(host)
    taken: list[TelemetryRecord] = []

    def fails_once(record: TelemetryRecord) -> None:
        taken.append(record)
        if len(taken) == 1:
            raise RuntimeError("a fault of the app's")

    with Runtime.open(data, profile=PROFILE, telemetry=fails_once) as runtime:
        runtime.infer(digits()[0][0])
        runtime.flush()
        runtime.infer(digits()[0][0])
        assert runtime.flush()
    assert len(taken) == 2


def test_check_frames_need_a_class(runtime: Runtime) -> None:
    for wrong in (10, -1, True):
        with pytest.raises(InputError, match="has classes 0 to 9"):
            runtime.check(digits()[0][0], wrong)


def test_a_bundle_without_classes_gives_outputs_only(deploy: Deploy, data: Path) -> None:
    plain = make_bundle()
    manifest = BundleManifest.parse({**plain.manifest.model_dump(), "head": "other"})
    deploy(Bundle(manifest, plain.files, {}))
    with Runtime.open(data, profile=PROFILE) as runtime:
        result = runtime.infer(digits()[0][0])
        assert (result.label, result.label_index, result.score) == (None, None, None)
        assert result.outputs["logits"].shape == (1, 10)
        with pytest.raises(InputError, match="does not classify"):
            runtime.check(digits()[0][0], 1)


def plan_for(host: Bundle, key: str | None, frames: int = 2) -> ChangePlan:
    assert host.manifest.probes is not None
    return ChangePlan(
        bundle="digits", serial=1, hosts=(host.manifest.content_digest(),), blueprints={}, sites=(),
        maximum_parameters=0, maximum_growth_bytes=0,
        health=HealthLimits(probes=host.manifest.probes.file.sha256, minimum_accuracy=0.9),
        capture=CaptureBudget(max_frames=frames, max_bytes=10**6), controller_key=key,
    )  # fmt: skip


def test_frames_are_captured_as_the_plan_allows(
    runtime: Runtime, host: Bundle, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = digits()[0]
    assert not runtime.capture(x[0]), "no plan"
    trust = data / "trust"
    trust.mkdir()
    TrustStore(trust, clock=time.time).accept_plan(plan_for(host, public_hex(new_sealing_key(tmp_path / "key"))))
    assert [runtime.capture(f) for f in (x[0], {"image": x[1]}, x[2])] == [True, True, False]
    assert len(list((data / "capture").glob("*.sealed"))) == 2
    (trust / "plan.json").write_bytes(b"{")
    assert not runtime.capture(x[3])
    assert "nothing is captured" in caplog.text
    (trust / "plan.json").unlink()
    assert not runtime.capture(x[3])


def test_only_the_verified_plan_for_the_bundle_in_service_allows_a_capture(
    runtime: Runtime, host: Bundle, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x, trust = digits()[0], data / "trust"
    trust.mkdir()
    store = TrustStore(trust, clock=time.time)
    key, stranger = (public_hex(new_sealing_key(tmp_path / name)) for name in ("key", "stranger"))
    (trust / "plan.json").write_bytes(plan_for(host, stranger, frames=100).to_bytes())
    assert not runtime.capture(x[0]), "a plan that nobody verified"
    plan = plan_for(host, key, frames=100)
    store.accept_plan(plan)
    assert runtime.capture(x[0])
    (trust / "plan.json").write_bytes(plan.model_copy(update={"controller_key": stranger}).to_bytes())
    assert not runtime.capture(x[1]), "edited by hand: the frames would be sealed to somebody else"
    assert "not a verified plan for digits" in caplog.text
    store.accept_plan(plan)
    assert runtime.capture(x[1])
    store.accept_plan(plan.model_copy(update={"bundle": "letters"}))
    assert not runtime.capture(x[2]), "verified, and for another bundle"
    store.accept_plan(plan)
    (trust / "floor").write_bytes(b"{")
    assert not runtime.capture(x[2]), "the floor is damaged: no plan is known"
    assert len(list((data / "capture").glob("*.sealed"))) == 2


def test_a_plan_seen_before_the_floor_knew_it_counts_once_it_does(
    runtime: Runtime, host: Bundle, data: Path, tmp_path: Path
) -> None:
    """The agent writes the plan, then the floor; an app may look in between."""
    x, trust = digits()[0], data / "trust"
    trust.mkdir()
    plan = plan_for(host, public_hex(new_sealing_key(tmp_path / "key")))
    (trust / "plan.json").write_bytes(plan.to_bytes())
    assert not runtime.capture(x[0])
    floor = TrustStore(tmp_path / "other", clock=time.time)
    (tmp_path / "other").mkdir()
    floor.accept_plan(plan)
    (trust / "floor").write_bytes((tmp_path / "other" / "floor").read_bytes())
    assert runtime.capture(x[0])


def test_a_plan_for_another_bundle_than_the_one_in_service_allows_nothing(
    runtime: Runtime, host: Bundle, deploy: Deploy, data: Path, tmp_path: Path
) -> None:
    x, trust = digits()[0], data / "trust"
    trust.mkdir()
    TrustStore(trust, clock=time.time).accept_plan(plan_for(host, public_hex(new_sealing_key(tmp_path / "key"))))
    assert runtime.capture(x[0])
    deploy(make_bundle(name="letters", version="2.0.0", release=7))
    with Runtime.open(data, profile=PROFILE, telemetry=None) as other:
        assert other.bundle == "letters 2.0.0" and not other.capture(x[1])


@pytest.mark.parametrize("index", [True, np.True_, 1.0, np.float32(1), "1", None, -1, 10, 10**30])
def test_a_check_frame_wants_the_index_of_a_class(runtime: Runtime, index: object) -> None:
    with pytest.raises(InputError, match="has classes 0 to 9, got "):
        runtime.check(digits()[0][0], index)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_every_kind_of_integer_names_a_class(runtime: Runtime, kind: Callable[[int], int]) -> None:
    assert runtime.check(digits()[0][0], kind(9)).label is not None
