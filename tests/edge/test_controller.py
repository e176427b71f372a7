"""The controller: what it publishes and in which order, that it publishes again, and what it refuses to believe."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from worlds.brokers import DEADLINE_S, SUBJECTS, Inbox, Subject, wait_for
from worlds.bundles import make_bundle
from worlds.repositories import DAY_S, World

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.presence import ControllerState
from kasmina_edge.contracts.record import Desired, DeviceAlert, DeviceState, Reported, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.contracts.transfer import ChunkRequest
from kasmina_edge.errors import LinkError, StorageError
from kasmina_edge.fleet.chunk_server import ChunkServer
from kasmina_edge.fleet.controller import Controller, is_retained, order_of_publication
from kasmina_edge.fleet.intake import MAX_STATUS_BYTES, Intake, Store
from kasmina_edge.fleet.presence import Presence
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.telemetry.publisher import encode_batch
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.transport import Message

TOPICS = Topics(site="lab")
TIMESTAMP = TOPICS.metadata("timestamp.json")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = World(tmp_path_factory.mktemp("template"))
    made.publish(make_bundle(), to=("cam-1",))
    folder: Path = made.folder
    return folder


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    return World(tmp_path / "world", template)


@pytest.fixture
def memory() -> Iterator[Subject]:
    with SUBJECTS["memory"]() as running:
        yield running


@contextmanager
def running(
    subject: Subject, world: World, store: Store, *, ready: bool = True, **options: Any
) -> Iterator[Controller]:
    transport = subject.client("controller", clean_start=False)
    controller = Controller(world.folder / "repository", transport, TOPICS, store, world.clock, poll_s=0.02, **options)
    stop, began = threading.Event(), threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"ready": began})
    thread.start()
    try:
        assert not ready or began.wait(DEADLINE_S)
        yield controller
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        transport.close()
        assert not thread.is_alive()


class Notebook:
    """A store that remembers calls."""

    full = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def record_telemetry(self, records: list[TelemetryRecord]) -> None:
        self.calls.append(("telemetry", records))

    def set_reported(self, reported: Reported) -> None:
        self.calls.append(("reported", reported))

    def set_state(self, state: DeviceState) -> None:
        self.calls.append(("state", state))

    def add_alert(self, alert: DeviceAlert) -> None:
        self.calls.append(("alert", alert))

    def add_event(self, device: str, payload: bytes) -> None:
        self.calls.append(("event", (device, payload)))

    def add_capture(self, device: str, payload: bytes) -> None:
        if self.full:
            raise StorageError("fleet.db: no space left on the disk")
        if payload == b"not for this table":
            raise StorageError("fleet.db: SQLite refused") from sqlite3.IntegrityError("NOT NULL")
        self.calls.append(("capture", (device, payload)))


def record(device: str = "cam-1") -> TelemetryRecord:
    return TelemetryRecord(
        device=device, bundle="b", release=1, sequence=1, started_s=0.0, duration_s=1.0, frames=3, sampled=1
    )


def reported(device: str = "cam-1", **changes: Any) -> Reported:
    return Reported.parse({"device": device, "boot": 1, "sequence": 1, "at_s": 0.0, **changes})


def _release(message: Message) -> int:
    return Desired.from_bytes(message.payload).release


# What is published ----------------------------------------------------------------------------------------------------


def test_small_targets_are_retained_and_whole_models_and_long_files_are_not() -> None:
    assert is_retained("grafts/d/2/ab.manifest.json", 3000)
    assert is_retained("grafts/d/2/ab.model.tflite.0123456789ab.delta", 5600)
    assert is_retained("desired/cam-1/ab.d.json", 300)
    assert not is_retained("bundles/d/1/ab.model.tflite", 3000)
    assert not is_retained("bundles/d/1/ab.model.onnx", 3000)
    assert not is_retained("bundles/d/1/ab.probes.npz", 200_000)
    assert not is_retained("grafts/d/2/ab.empty", 0), "an empty payload would delete what is retained"


def test_only_news_is_published_and_the_timestamp_follows_it() -> None:
    wanted = {"m/timestamp": b"t2", "m/2.snapshot": b"s2", "t/a": b"a"}
    everything = order_of_publication(wanted, {}, last="m/timestamp")
    assert [topic for topic, _ in everything] == ["m/2.snapshot", "t/a", "m/timestamp"]
    known = {topic: sha256_hex(data) for topic, data in wanted.items()}
    assert order_of_publication(wanted, known, last="m/timestamp") == []
    changed = order_of_publication({**wanted, "t/a": b"b"}, known, last="m/timestamp")
    assert changed == [("t/a", b"b"), ("m/timestamp", b"t2")]
    renewed = order_of_publication({**wanted, "m/timestamp": b"t3"}, known, last="m/timestamp")
    assert renewed == [("m/timestamp", b"t3")]


@pytest.mark.parametrize("kind", sorted(SUBJECTS))
def test_everything_a_device_needs_is_there_before_the_timestamp_and_again_after_a_crash(
    kind: str, world: World
) -> None:
    expected = {TOPICS.metadata(name): data for name, data in world.repository.metadata_files().items()}
    sizes = world.repository.target_sizes()
    small = [p for p, size in sizes.items() if is_retained(p, size)]
    expected |= {TOPICS.target(p): world.repository.target_bytes(p) for p in small}
    assert 0 < len(small) < len(sizes)
    with SUBJECTS[kind]() as subject:
        watcher, inbox = subject.client("watcher"), Inbox()
        watcher.subscribe(f"{TOPICS.root}/{TOPICS.site}/repo/#", inbox)
        watcher.connect(DEADLINE_S)
        with running(subject, world, Notebook()) as controller:
            first = inbox.wait(len(expected))
            assert {m.topic: m.payload for m in first} == expected
            assert first[-1].topic == TIMESTAMP
            subject.kill()
            wait_for(lambda: not watcher.connected, "the loss")
            before = len(inbox.messages)
            subject.start()
            wait_for(lambda: controller.publications == 2, "the second publication")
            late = Inbox()
            reader = subject.connected("reader")
            reader.subscribe(f"{TOPICS.root}/{TOPICS.site}/repo/#", late)
            late.wait(len(expected))
            assert {m.topic: m.payload for m in late.messages} == expected
            assert all(m.retain for m in late.messages)
            again = inbox.wait(before + 1)[before:]
            assert {m.topic for m in again} <= set(expected)


def test_a_publication_while_it_runs_reaches_the_broker_and_old_files_are_forgotten_one_later(
    memory: Subject, world: World
) -> None:
    inbox = Inbox()
    watcher = memory.connected("watcher")
    watcher.subscribe(f"{TOPICS.root}/{TOPICS.site}/repo/m/+", inbox)
    with running(memory, world, Notebook()) as controller:
        first = set(world.repository.metadata_files())
        for i in (1, 2):
            world.publish(make_bundle(version=f"1.0.{i}", seed=i), to=("cam-1",))
            wait_for(lambda i=i: controller.publications == 1 + i, "the publication")
        gone = {TOPICS.metadata(n) for n in first - set(world.repository.metadata_files())}
        assert gone
        inbox.wait_until(lambda found: gone <= {m.topic for m in found if not m.payload}, "the deletions")
        topics = [m.topic if m.payload else "" for m in inbox.messages]
        assert topics[: topics.index("")].count(TIMESTAMP) == 3, "forgotten at the publication after the next"
        newest = world.repository.metadata_files()["timestamp.json"]
        assert [m.payload for m in inbox.messages if m.topic == TIMESTAMP][-1] == newest


def test_signatures_are_renewed_before_they_run_out(memory: Subject, world: World) -> None:
    with running(memory, world, Notebook()) as controller:
        before = world.repository.metadata_files()["timestamp.json"]
        world.clock.now_s += 5 * DAY_S
        wait_for(lambda: controller.publications == 2, "the renewal")
        assert world.repository.metadata_files()["timestamp.json"] != before


def test_devices_are_nudged_and_a_group_reaches_whoever_was_heard(memory: Subject, world: World) -> None:
    cams = {name: Inbox() for name in ("cam-1", "cam-2")}
    for name, inbox in cams.items():
        memory.connected(name).subscribe(TOPICS.desired(name), inbox)
    with running(memory, world, Notebook()) as controller:
        assert Desired.from_bytes(cams["cam-1"].wait()[0].payload).release == 1
        speaker = memory.connected("speaker")
        speaker.publish(TOPICS.reported("cam-2"), reported("cam-2").to_bytes())
        wait_for(lambda: "cam-2" in controller.intake.devices, "cam-2 to be heard")
        world.publish(make_bundle(version="1.0.1", seed=1), to=("@all",))
        for inbox in cams.values():
            inbox.wait_until(lambda found: [*map(_release, found)][-1:] == [2], "release 2")
        assert len(cams["cam-2"].messages) == 1, "a nudge is sent once"


def test_an_unreadable_repository_does_not_end_the_controller(
    memory: Subject, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with running(memory, world, Notebook()) as controller:
        timestamp = world.folder / "repository/metadata/timestamp.json"
        away = timestamp.with_name("away")
        timestamp.rename(away)
        wait_for(lambda: "timestamp.json" in caplog.text, "the complaint")
        away.rename(timestamp)
        world.publish(make_bundle(version="1.0.1", seed=1), to=("cam-1",))
        wait_for(lambda: controller.publications >= 2, "the next publication")


class Faulty(ChunkServer):
    """Has a fault of its own at its first offers, of a kind that nobody foresaw."""

    faults = 2

    def offer(self, metadata: Mapping[str, bytes], targets: frozenset[str]) -> None:
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a fault that nobody foresaw")
        super().offer(metadata, targets)


def test_a_fault_in_kasmina_itself_is_logged_and_does_not_end_the_controller(
    memory: Subject, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    server = Faulty(world.repository.target_bytes, clock=time.monotonic)
    store = Notebook()
    with running(memory, world, store, serve=server) as controller:
        assert controller.publications == 1 and server.faults == 0
        memory.connected("cam-1").publish(TOPICS.reported("cam-1"), reported().to_bytes())
        wait_for(lambda: store.calls, "what a device says to be stored as ever")
    told = [r for r in caplog.records if "a fault in Kasmina" in r.getMessage()]
    assert len(told) == 2 and all(r.levelname == "ERROR" and r.exc_info for r in told)
    assert "ZeroDivisionError" in caplog.text, "with its traceback"


def test_a_controller_starts_without_a_broker_and_publishes_when_there_is_one(memory: Subject, world: World) -> None:
    memory.kill()
    with running(memory, world, Notebook(), ready=False) as controller:
        assert controller.publications == 0
        memory.start()
        wait_for(lambda: controller.publications == 1, "the first publication")


class Torn(MemoryTransport):
    """Loses its link just before the timestamp, once."""

    tears = 1

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        if topic == TIMESTAMP and self.tears:
            self.tears -= 1
            raise LinkError("memory:: not connected")
        super().publish(topic, payload, **options)


def test_a_publication_that_was_cut_is_finished(world: World) -> None:
    broker = MemoryBroker()
    transport = Torn(broker, "controller")
    transport.connect()
    controller = Controller(world.folder / "repository", transport, TOPICS, Notebook(), world.clock, poll_s=0.02)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"ready": ready})
    thread.start()
    assert ready.wait(DEADLINE_S)
    inbox = Inbox()
    with MemoryTransport(broker, "reader") as reader:
        reader.subscribe(TIMESTAMP, inbox)
        inbox.wait()
    stop.set()
    thread.join(DEADLINE_S)
    transport.close()


# What is believed -----------------------------------------------------------------------------------------------------


def test_what_devices_say_is_stored(memory: Subject, world: World, tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.db", clock=world.clock)
    event = json.dumps({"device": "cam-1", "at_s": 1.0, "event": "agent_started", "fields": {}}).encode()
    with running(memory, world, store):
        cam = memory.connected("cam-1")
        cam.publish(TOPICS.state("cam-1"), DeviceState(device="cam-1", online=True, boot=1).to_bytes(), retain=True)
        cam.publish(TOPICS.reported("cam-1"), reported(name="digits", version="1.0.0").to_bytes(), retain=True)
        cam.publish(TOPICS.telemetry("cam-1"), encode_batch([record().to_bytes()]))
        cam.publish(TOPICS.event("cam-1"), event)
        wait_for(lambda: store.events("cam-1"), "the event")
        (view,) = store.devices()
        assert view.online and view.reported is not None and view.reported.version == "1.0.0"
        assert [r.frames for r in store.telemetry("cam-1")] == [3]
        assert store.events("cam-1")[0].payload == event
    store.close()


FOREIGN = [
    ("state", DeviceState(device="cam-2", online=True, boot=1).to_bytes()),
    ("reported", reported("cam-2").to_bytes()),
    ("t/stats", encode_batch([record().to_bytes(), record("cam-2").to_bytes()])),
    ("ev", b'{"device":"cam-2","event":"agent_started"}'),
    ("ev", b'{"event":"agent_started"}'),
]
MALFORMED = [
    ("state", b"{"),
    ("state", b'{"device":"cam-1"}'),
    ("reported", b"[]"),
    ("reported", reported(reason="x" * MAX_STATUS_BYTES).to_bytes()),
    ("t/stats", b"not zlib"),
    ("t/stats", encode_batch([b'{"device":"cam-1"}'])),
    ("ev", b"\xff"),
    ("ev", b'{"device":"cam-1"}'),
    ("ev", b"[" * 60_000),
    ("ev", b"x" * 70_000),
    ("t/capture", b"not for this table"),
    ("req", b"{}"),
]


@pytest.mark.parametrize(("leaf", "payload"), FOREIGN + MALFORMED)
def test_what_does_not_hold_is_dropped_counted_and_logged_and_the_next_message_is_taken(
    memory: Subject, world: World, caplog: pytest.LogCaptureFixture, leaf: str, payload: bytes
) -> None:
    store = Notebook()
    with running(memory, world, store) as controller, caplog.at_level(logging.WARNING):
        cam = memory.connected("cam-1")
        cam.publish(TOPICS.device("cam-1", leaf), payload)
        cam.publish(TOPICS.reported("cam-1"), reported().to_bytes())
        wait_for(lambda: store.calls, "the next message")
        assert [name for name, _ in store.calls] == ["reported"]
        assert sum(controller.intake.dropped.values()) == 1
    (line,) = [r for r in caplog.records if "dropped a message" in r.getMessage()]
    assert line.topic == TOPICS.device("cam-1", leaf)  # type: ignore[attr-defined]


def test_a_controller_with_a_full_disk_says_that_it_is_away_and_loses_nothing(memory: Subject, world: World) -> None:
    heard, store = Inbox(), Notebook()
    memory.connected("watcher").subscribe(TOPICS.controller(), heard)

    def says(online: bool) -> None:
        heard.wait_until(
            lambda found: bool(found) and ControllerState.from_bytes(found[-1].payload).online is online, f"{online}"
        )

    transport = memory.client("controller", clean_start=False)
    Presence(transport, TOPICS, world.clock)
    intake = Intake(transport, TOPICS, store)
    intake.subscribe()
    transport.connect(DEADLINE_S)
    says(online=True)
    store.full = True
    cam = memory.connected("cam-1")
    for i in range(3):
        cam.publish(TOPICS.telemetry("cam-1", "capture"), b"%d" % i)
    says(online=False)
    wait_for(lambda: transport.connections > 2, "other links")
    assert store.calls == [] and intake.dropped == {}
    assert not ControllerState.from_bytes(heard.messages[-1].payload).online, "also on a new link"
    store.full = False
    says(online=True)
    assert [value for _, value in store.calls] == [("cam-1", b"%d" % i) for i in range(3)]


def test_a_name_that_is_no_device_id_is_dropped_and_a_deletion_is_silent(memory: Subject, world: World) -> None:
    store = Notebook()
    with running(memory, world, store) as controller:
        cam = memory.connected("cam-1")
        cam.publish(f"{TOPICS.root}/{TOPICS.site}/d/CAM 1/reported", reported().to_bytes())
        cam.publish(TOPICS.reported("cam-1"), b"", retain=True)
        cam.publish(TOPICS.telemetry("cam-1", "capture"), b"sealed")
        wait_for(lambda: store.calls, "the capture")
        assert store.calls == [("capture", ("cam-1", b"sealed"))]
        assert controller.intake.dropped == {"InputError": 1}


@pytest.mark.parametrize(
    "options",
    [{}, {"correlation": b"1", "response_topic": TOPICS.response("cam-2")}],
    ids=["no correlation", "another device's topic"],
)
def test_a_request_is_answered_on_the_askers_own_topic_or_not_at_all(
    memory: Subject, world: World, options: dict[str, Any]
) -> None:
    request = ChunkRequest(place="metadata", path="timestamp.json", offset=0).to_bytes()
    with running(memory, world, Notebook()) as controller:
        cam, own, others = memory.connected("cam-1"), Inbox(), Inbox()
        cam.subscribe(TOPICS.response("cam-1"), own)
        cam.subscribe(TOPICS.response("cam-2"), others)
        cam.publish(TOPICS.request("cam-1"), request, **options)
        cam.publish(TOPICS.request("cam-1"), request, correlation=b"2")
        assert [m.correlation for m in own.wait()] == [b"2"]
        assert others.messages == []
        assert controller.intake.dropped == {"InputError": 1}


def test_a_disk_that_cannot_answer_a_request_does_not_stop_the_intake(world: World) -> None:
    def unreadable(device: str, message: Message) -> None:
        raise StorageError("bundles/a: the disk failed")

    intake = Intake(MemoryTransport(MemoryBroker(), "c"), TOPICS, Notebook())
    request = Message(TOPICS.request("cam-1"), b"{}", correlation=b"1")
    intake.guarded(unreadable)(request)
    assert intake.dropped == {"StorageError": 1}
    with pytest.raises(StorageError):
        intake.guarded(unreadable, stores=True)(request)


class Mute(MemoryTransport):
    """Cannot send answers."""

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        if topic.endswith("/rsp"):
            raise LinkError("memory:: not connected")
        super().publish(topic, payload, **options)


def test_an_answer_that_is_lost_is_no_reason_to_stop(world: World) -> None:
    broker, store = MemoryBroker(), Notebook()
    with Mute(broker, "controller") as transport, MemoryTransport(broker, "cam-1") as cam:
        controller = Controller(world.folder / "repository", transport, TOPICS, store, world.clock)
        request = ChunkRequest(place="metadata", path="timestamp.json", offset=0).to_bytes()
        cam.publish(TOPICS.request("cam-1"), request, correlation=b"1")
        cam.publish(TOPICS.reported("cam-1"), reported().to_bytes())
        wait_for(lambda: store.calls, "the report")
        assert controller.intake.dropped == {}


def test_messages_that_waited_in_the_session_are_stored_after_a_restart(world: World) -> None:
    with SUBJECTS["mosquitto"]() as subject:
        with running(subject, world, Notebook()):
            pass
        cam = subject.connected("cam-1")
        cam.publish(TOPICS.telemetry("cam-1"), encode_batch([record().to_bytes()]), wait_s=DEADLINE_S)
        store = Notebook()
        with running(subject, world, store):
            wait_for(lambda: store.calls, "what had waited")
        assert [name for name, _ in store.calls] == ["telemetry"]


def test_a_handler_for_nothing_is_harmless(world: World) -> None:
    controller = Controller(
        world.folder / "repository", MemoryTransport(MemoryBroker(), "c"), TOPICS, Notebook(), world.clock
    )
    controller.intake.guarded(lambda device, message: None)(Message("elsewhere", b"x"))
    assert controller.intake.dropped == {"InputError": 1}
