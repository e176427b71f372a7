"""TUF over MQTT with real repository, controller and brokers: proof of absence, long files, lost links."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from worlds.brokers import DEADLINE_S, SUBJECTS, Inbox, Subject, wait_for
from worlds.bundles import make_bundle
from worlds.repositories import World

from kasmina_edge.contracts.topics import Topics
from kasmina_edge.contracts.transfer import ChunkRequest, ChunkResponse
from kasmina_edge.errors import LinkError
from kasmina_edge.fleet.controller import Controller
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.transport import Message, Transport
from kasmina_edge.updates.client import METADATA_URL, TARGETS_URL
from kasmina_edge.updates.mqtt_fetcher import LOOK_S, MqttFetcher

TOPICS = Topics(site="lab")
BROKERS = sorted(SUBJECTS)


@contextmanager
def serving(subject: Subject, world: World, **options: Any) -> Iterator[Controller]:
    """A running controller that has published everything."""
    transport = subject.client("controller", clean_start=False)
    store = FleetStore(world.folder / "fleet.db", clock=world.clock)
    controller = Controller(world.folder / "repository", transport, TOPICS, store, world.clock, poll_s=0.02, **options)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"ready": ready})
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        yield controller
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        transport.close()
        store.close()
        assert not thread.is_alive()


@pytest.fixture(params=BROKERS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with SUBJECTS[request.param]() as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with one host published."""
    made = World(tmp_path_factory.mktemp("template"))
    made.publish(make_bundle())
    folder: Path = made.folder
    return folder


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    return World(tmp_path / "world", template)


def read(fetcher: MqttFetcher, url: str, limit_bytes: int = 2**20) -> bytes:
    return fetcher.download_bytes(url, limit_bytes)


def test_a_device_refreshes_downloads_and_looks_again_over_every_broker(subject: Subject, world: World) -> None:
    bundle = make_bundle()
    with serving(subject, world):
        cam = subject.connected("cam-1")
        device = world.device("cam-1")
        got = device.take(MqttFetcher(cam, TOPICS, "cam-1"))
        assert got.files[bundle.manifest.models[0].file.path] == bundle.files[bundle.manifest.models[0].file.path]
        for _ in range(5):
            device.look(MqttFetcher(cam, TOPICS, "cam-1"))
        world.publish(make_bundle(version="1.0.1", seed=3))
        newest = world.repository.metadata_files()["timestamp.json"]
        fetcher = MqttFetcher(cam, TOPICS, "cam-1")
        wait_for(lambda: read(fetcher, METADATA_URL + "timestamp.json") == newest, "the new timestamp")
        assert device.take(MqttFetcher(cam, TOPICS, "cam-1")).manifest.version == "1.0.1"


def test_absence_is_proven_again_and_again_and_presence_is_never_missed(subject: Subject, world: World) -> None:
    with serving(subject, world):
        fetcher = MqttFetcher(subject.connected("cam-1"), TOPICS, "cam-1")
        root, timestamp = world.repository.root_bytes(), world.repository.metadata_files()["timestamp.json"]
        for _ in range(100):
            with pytest.raises(DownloadHTTPError) as caught:
                read(fetcher, METADATA_URL + "2.root.json")
            assert caught.value.status_code == 404
            assert read(fetcher, METADATA_URL + "timestamp.json") == timestamp
            assert read(fetcher, METADATA_URL + "1.root.json") == root
        for url in (METADATA_URL + "99.snapshot.json", TARGETS_URL + "bundles/digits/1/0123.nothing"):
            with pytest.raises(DownloadHTTPError):
                read(fetcher, url)


def test_the_warm_check_is_one_round_trip_and_a_timestamp_is_used_once(world: World) -> None:
    with SUBJECTS["memory"]() as subject, serving(subject, world):
        cam = subject.connected("cam-1")
        barriers = Inbox()
        cam.subscribe(TOPICS.barrier("cam-1"), barriers).wait(DEADLINE_S)
        device = world.device("cam-1")
        device.look(MqttFetcher(cam, TOPICS, "cam-1"))
        cold = len(barriers.messages)
        fetcher = MqttFetcher(cam, TOPICS, "cam-1")
        device.look(fetcher)
        assert len(barriers.messages) - cold == 1
        read(fetcher, METADATA_URL + "timestamp.json")
        assert len(barriers.messages) - cold == 2


def test_another_reader_of_the_timestamp_is_not_disturbed(subject: Subject, world: World) -> None:
    """The agent listens to the timestamp too; were it told of each look, it would look for ever."""
    with serving(subject, world):
        cam, nudges = subject.connected("cam-1"), Inbox()
        cam.subscribe(TOPICS.metadata("timestamp.json"), nudges)
        nudges.wait()
        device = world.device("cam-1")
        for _ in range(3):
            device.look(MqttFetcher(cam, TOPICS, "cam-1"))
        assert len(nudges.messages) == 1
        world.publish(make_bundle(version="1.0.1", seed=3))
        nudges.wait(2)


def test_without_a_repository_a_missing_root_proves_nothing(subject: Subject) -> None:
    fetcher = MqttFetcher(subject.connected("cam-1"), TOPICS, "cam-1")
    with pytest.raises(DownloadError) as caught:
        read(fetcher, METADATA_URL + "2.root.json")
    assert not isinstance(caught.value, DownloadHTTPError)
    assert isinstance(caught.value.__cause__, LinkError)
    assert "no update repository is published" in str(caught.value)


# A time-out proves nothing --------------------------------------------------------------------------------------------


class Deaf(MemoryTransport):
    """A link on which nothing arrives any more, though it looks well."""

    def _deliver(self, message: Message) -> None:
        return


class BelievesSilence(MqttFetcher):
    """What must not be: it takes silence for absence."""

    def _root(self, name: str) -> bytes:
        try:
            return super()._root(name)
        except LinkError as exc:
            raise DownloadHTTPError(exc.message, 404) from exc


def timeout_is_no_proof(make: Callable[[Transport], MqttFetcher]) -> bool:
    """Whether a fetcher keeps a time-out apart from a proof."""
    broker = MemoryBroker()
    with Deaf(broker, "cam-1") as link:
        fetcher = make(link)
        try:
            fetcher.download_bytes(METADATA_URL + "2.root.json", 1000)
        except DownloadHTTPError:
            return False
        except DownloadError as exc:
            return isinstance(exc.__cause__, LinkError)
    return False


def test_a_time_out_is_a_link_error_and_no_404() -> None:
    assert timeout_is_no_proof(lambda link: MqttFetcher(link, TOPICS, "cam-1", timeout_s=0.1))


def test_a_fetcher_that_believes_silence_is_caught() -> None:
    assert not timeout_is_no_proof(lambda link: BelievesSilence(link, TOPICS, "cam-1", timeout_s=0.1))


def test_a_device_whose_link_is_silent_reports_the_link_and_keeps_its_root(world: World) -> None:
    device = world.device("cam-1")
    with Deaf(MemoryBroker(), "cam-1") as link, pytest.raises(LinkError, match=r"no answer within 0\.1 s"):
        device.look(MqttFetcher(link, TOPICS, "cam-1", timeout_s=0.1))
    assert device.store.root() == world.repository.root_bytes()


def test_no_connection_at_all_ends_after_the_time_that_was_given() -> None:
    fetcher = MqttFetcher(MemoryTransport(MemoryBroker(), "cam-1"), TOPICS, "cam-1", timeout_s=0.1)
    with pytest.raises(DownloadError, match=r"no answer within 0\.1 s"):
        read(fetcher, METADATA_URL + "2.root.json")


class Amnesiac(MemoryTransport):
    """Loses its link between the subscriptions and the barrier, the first ``losses`` times; the broker forgets too."""

    losses = 1

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        if topic == TOPICS.barrier("cam-1") and self.losses:
            self.losses -= 1
            links = self.connections
            self._broker.stop()
            self._broker.start(wipe=True)
            wait_for(lambda: self.connections > links, "the reconnect")
        super().publish(topic, payload, **options)


def test_absence_on_a_link_that_changed_under_it_is_looked_up_again() -> None:
    broker = MemoryBroker()
    with MemoryTransport(broker, "controller") as controller, Amnesiac(broker, "cam-1") as cam:
        republished = threading.Event()

        def publish(connected: bool) -> None:
            if connected:
                for name in ("2.root.json", "timestamp.json"):
                    controller.publish(TOPICS.metadata(name), name.encode(), retain=True)
                republished.set()

        publish(True)
        controller.on_connection(publish)
        fetcher = MqttFetcher(cam, TOPICS, "cam-1", timeout_s=5.0)
        looked = fetcher._try_look_up((TOPICS.metadata("timestamp.json"), TOPICS.metadata("2.root.json")), 1e12)
        assert looked is None, "the link changed: what was absent may have been forgotten"
        assert republished.wait(DEADLINE_S)
        assert read(fetcher, METADATA_URL + "2.root.json") == b"2.root.json"


# Stopped --------------------------------------------------------------------------------------------------------------


class Clockwork:
    """A stop that remembers when it was asked for."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.at_s = 0.0

    def __call__(self, _: object = None) -> None:
        if not self.event.is_set():
            self.at_s = time.monotonic()
            self.event.set()

    def ends(self, link: Transport, url: str) -> float:
        """Seconds from the stop to the end of a download that would wait a minute."""
        fetcher = MqttFetcher(link, TOPICS, "cam-1", timeout_s=60.0, retry_s=60.0, stop=self.event)
        with pytest.raises(DownloadError, match="stopped while reading") as caught:
            read(fetcher, url)
        assert isinstance(caught.value.__cause__, LinkError)
        return time.monotonic() - self.at_s


class StoppedAtTheBarrier(Deaf):
    """Deaf, and its stop is asked for while the barrier is on its way."""

    stop: Clockwork

    def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        super().publish(topic, payload, **options)
        self.stop()


class StoppedUnconnected(MemoryTransport):
    """Never connected, and its stop is asked for while the connection is waited for."""

    stop: Clockwork

    def wait_connected(self, timeout_s: float) -> bool:
        self.stop()
        return super().wait_connected(timeout_s)


STOP_S = 2.0  # the promise is two looks (0.2 s); the rest is for a busy machine
assert 2 * LOOK_S <= 0.2


def test_a_stop_ends_the_wait_for_a_controller_that_never_answers() -> None:
    with SUBJECTS["memory"]() as subject:
        controller, cam, stop = subject.connected("controller"), subject.connected("cam-1"), Clockwork()
        controller.subscribe(TOPICS.request("cam-1"), stop).wait(DEADLINE_S)
        assert stop.ends(cam, TARGETS_URL + "bundles/d/1/ab.model.tflite") < STOP_S
        assert cam._filters() == []


def test_a_stop_ends_the_wait_for_a_broker_and_for_a_connection() -> None:
    with StoppedAtTheBarrier(MemoryBroker(), "cam-1") as link:
        link.stop = Clockwork()
        assert link.stop.ends(link, METADATA_URL + "2.root.json") < STOP_S
    away = StoppedUnconnected(MemoryBroker(), "cam-1")
    away.stop = Clockwork()
    assert away.stop.ends(away, METADATA_URL + "2.root.json") < STOP_S


def test_a_stopped_session_reports_the_link(world: World) -> None:
    device, stop = world.device(), threading.Event()
    stop.set()
    with MemoryTransport(MemoryBroker(), "cam-1") as link, pytest.raises(LinkError, match="stopped while reading"):
        device.look(MqttFetcher(link, TOPICS, "cam-1", stop=stop))


# Long files -----------------------------------------------------------------------------------------------------------


def long_file(world: World) -> tuple[str, bytes]:
    """A published model, by its hash-prefixed path."""
    sizes = world.repository.target_sizes()
    path = next(p for p in sizes if p.endswith(".tflite"))
    return path, world.repository.target_bytes(path)


class SmallChunks(MqttFetcher):
    """Asks for pieces of 1,000 bytes, so that a model takes many."""

    def _chunks(self, place: Any, name: str, transfer: bytes, window: Any, answers: Any) -> Iterator[bytes]:
        window.chunk_bytes = 1000
        return super()._chunks(place, name, transfer, window, answers)


def test_a_whole_model_comes_in_chunks_and_is_never_retained(subject: Subject, world: World) -> None:
    path, data = long_file(world)
    with serving(subject, world):
        cam, requests = subject.connected("cam-1"), Inbox()
        cam.subscribe(TOPICS.request("cam-1"), requests).wait(DEADLINE_S)
        assert read(SmallChunks(cam, TOPICS, "cam-1"), TARGETS_URL + path) == data
        assert len(requests.wait()) == -(-len(data) // 1000)
        kept = Inbox()
        cam.subscribe(TOPICS.target(path), kept).wait(DEADLINE_S)
        assert read(MqttFetcher(cam, TOPICS, "cam-1"), TARGETS_URL + path) == data
        assert kept.messages == []


def test_a_file_longer_than_was_signed_is_not_begun(world: World) -> None:
    path, data = long_file(world)
    with SUBJECTS["memory"]() as subject, serving(subject, world):
        cam, requests = subject.connected("cam-1"), Inbox()
        cam.subscribe(TOPICS.request("cam-1"), requests).wait(DEADLINE_S)
        with pytest.raises(DownloadLengthMismatchError, match=f"{len(data)} bytes, at most {len(data) - 1}"):
            read(SmallChunks(cam, TOPICS, "cam-1"), TARGETS_URL + path, len(data) - 1)
        assert len(requests.messages) == 1


def test_a_broker_killed_in_mid_transfer_is_waited_for_and_the_rest_is_fetched(subject: Subject, world: World) -> None:
    path, data = long_file(world)
    with serving(subject, world):
        cam = subject.connected("cam-1")
        fetcher = SmallChunks(cam, TOPICS, "cam-1", retry_s=0.2, window=4)
        asked: list[int] = []
        cam.subscribe(
            TOPICS.request("cam-1"), lambda m: asked.append(ChunkRequest.from_bytes(m.payload).offset)
        ).wait(DEADLINE_S)  # fmt: skip
        stream = fetcher.fetch(TARGETS_URL + path)
        got = [next(stream) for _ in range(3)]
        subject.kill()
        wait_for(lambda: not cam.connected, "the loss")
        subject.start()
        got += stream
        assert b"".join(got) == data
        assert asked.count(0) == 1, "what had arrived was not asked for again"


def test_a_controller_that_stays_away_in_mid_transfer_ends_it_with_the_link(world: World) -> None:
    path, _ = long_file(world)
    with SUBJECTS["memory"]() as subject:
        cam = subject.connected("cam-1")
        fetcher = SmallChunks(cam, TOPICS, "cam-1", timeout_s=0.3, retry_s=0.1)
        with serving(subject, world):
            stream = fetcher.fetch(TARGETS_URL + path)
            next(stream)
        with pytest.raises(DownloadError, match=r"then no chunk for 0\.3 s") as caught:
            list(stream)
        assert isinstance(caught.value.__cause__, LinkError)


def test_a_controller_that_answers_nonsense_ends_the_transfer(world: World) -> None:
    answers = {"short": ChunkResponse("ok", 0, 5000, b"x").to_bytes(), "nonsense": b"hello"}
    for payload in answers.values():
        with SUBJECTS["memory"]() as subject:
            liar, cam = subject.connected("controller"), subject.connected("cam-1")

            def answer(message: Message, payload: bytes = payload, liar: Transport = liar) -> None:
                liar.publish(TOPICS.response("cam-1"), b"from nobody", correlation=b"not the request's")
                liar.publish(TOPICS.response("cam-1"), payload, correlation=message.correlation)

            liar.subscribe(TOPICS.request("cam-1"), answer).wait(DEADLINE_S)
            with pytest.raises(DownloadError):
                read(MqttFetcher(cam, TOPICS, "cam-1"), TARGETS_URL + "bundles/d/1/ab.model.tflite")


def test_a_busy_controller_is_asked_again(world: World) -> None:
    path, data = long_file(world)
    with SUBJECTS["memory"]() as subject, serving(subject, world) as controller:
        busy = [3]
        answer = controller._server.answer

        def sometimes(device: str, payload: bytes, *, where: str) -> ChunkResponse:
            if busy[0]:
                busy[0] -= 1
                return ChunkResponse("busy", ChunkRequest.from_bytes(payload).offset, 0)
            return answer(device, payload, where=where)

        controller._server.answer = sometimes  # type: ignore[method-assign]
        fetcher = SmallChunks(subject.connected("cam-1"), TOPICS, "cam-1", retry_s=0.05)
        assert read(fetcher, TARGETS_URL + path) == data
        assert busy == [0]


@pytest.mark.parametrize(
    "url", ["kasmina://x/other/a", "metadata/1.root.json", METADATA_URL, TARGETS_URL + "../x", TARGETS_URL + "a/#",
            TARGETS_URL + "a b"],
)  # fmt: skip
def test_a_url_that_is_no_topic_is_a_download_error(url: str) -> None:
    with pytest.raises(DownloadError, match="expected"):
        MqttFetcher(MemoryTransport(MemoryBroker(), "cam-1"), TOPICS, "cam-1").fetch(url)


def test_nothing_stays_subscribed_after_a_fetch(world: World) -> None:
    with SUBJECTS["memory"]() as subject, serving(subject, world):
        cam = subject.connected("cam-1")
        device = world.device("cam-1")
        began = time.monotonic()
        device.take(MqttFetcher(cam, TOPICS, "cam-1"))
        assert cam._filters() == []
        assert time.monotonic() - began < DEADLINE_S
