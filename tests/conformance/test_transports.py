"""Every transport and broker keeps the promises of the interface, by the same tests. Without mosquitto it fails."""

from __future__ import annotations

import inspect
import pkgutil
import threading
from collections.abc import Iterator
from importlib import import_module

import pytest
from worlds.brokers import DEADLINE_S, SUBJECTS, Inbox, Subject, wait_for

import kasmina_edge.transport
from kasmina_edge.errors import InputError, LinkError, StorageError
from kasmina_edge.transport.memory import MemoryTransport
from kasmina_edge.transport.mqtt import MqttTransport
from kasmina_edge.transport.transport import MAX_PAYLOAD_BYTES, Message, Transport, Will

IGNORED: dict[str, str] = {}
"""Transports that are left out, each with the reason."""


def test_every_transport_and_three_brokers_are_subjects() -> None:
    for module in pkgutil.iter_modules(kasmina_edge.transport.__path__, "kasmina_edge.transport."):
        import_module(module.name)
    found = {t for t in Transport.__subclasses__() if not inspect.isabstract(t) and t.__module__.startswith("kasmina")}
    assert {t for t in found if t.__name__ not in IGNORED} == {MemoryTransport, MqttTransport}
    assert sorted(SUBJECTS) == ["iotcore", "memory", "mosquitto"]


@pytest.fixture(scope="module", params=sorted(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with SUBJECTS[request.param]() as running:
        yield running


@pytest.fixture(params=sorted(SUBJECTS))
def mortal(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A broker of this test's own, to be killed."""
    with SUBJECTS[request.param]() as running:
        yield running


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Iterator[str]:
    """A topic and client prefix of this test's own."""
    yield request.node.originalname.removeprefix("test_")[:60]


def test_what_is_published_arrives_once_and_is_acknowledged(subject: Subject, names: str) -> None:
    a, b, inbox = subject.connected(f"{names}-a"), subject.connected(f"{names}-b"), Inbox()
    b.subscribe(f"{names}/+/x", inbox).wait(DEADLINE_S)
    a.publish(f"{names}/1/x", b"one", qos=1, wait_s=DEADLINE_S)
    a.publish(f"{names}/1/y", b"not for b", wait_s=DEADLINE_S)
    a.publish(f"{names}/2/x", b"two", qos=0, wait_s=DEADLINE_S)
    assert [(m.topic, m.payload, m.retain) for m in inbox.wait(2)] == [
        (f"{names}/1/x", b"one", False),
        (f"{names}/2/x", b"two", False),
    ]


def test_messages_of_one_sender_keep_their_order(subject: Subject, names: str) -> None:
    a, b, inbox = subject.connected(f"{names}-a"), subject.connected(f"{names}-b"), Inbox()
    b.subscribe(names, inbox).wait(DEADLINE_S)
    sent = [b"%d" % i for i in range(300)]
    for payload in sent:
        a.publish(names, payload)
    inbox.wait(len(sent))
    assert inbox.payloads == sent


def test_retained_messages_reach_later_readers_until_deleted(subject: Subject, names: str) -> None:
    a, early, late = subject.connected(f"{names}-a"), Inbox(), Inbox()
    a.subscribe(f"{names}/#", early).wait(DEADLINE_S)
    a.publish(f"{names}/k", b"old", retain=True, wait_s=DEADLINE_S)
    a.publish(f"{names}/k", b"new", retain=True, wait_s=DEADLINE_S)
    b = subject.connected(f"{names}-b")
    b.subscribe(f"{names}/k", late)
    assert [(m.payload, m.retain) for m in late.wait()] == [(b"new", True)]
    assert [(m.payload, m.retain) for m in early.wait(2)] == [(b"old", False), (b"new", False)]
    a.publish(f"{names}/k", b"", retain=True, wait_s=DEADLINE_S)
    assert _look(subject.connected(f"{names}-c"), names, [f"{names}/k"]) == {}


def test_a_request_is_told_from_others_by_its_correlation(subject: Subject, names: str) -> None:
    asker, teller, answers = subject.connected(f"{names}-a"), subject.connected(f"{names}-b"), Inbox()

    def tell(message: Message) -> None:
        assert message.response_topic is not None
        teller.publish(message.response_topic, message.payload[::-1], correlation=message.correlation)

    teller.subscribe(f"{names}/req", tell).wait(DEADLINE_S)
    asker.subscribe(f"{names}/rsp", answers).wait(DEADLINE_S)
    for i in range(5):
        asker.publish(
            f"{names}/req", b"ab%d" % i, correlation=bytes([0, i, 255]), response_topic=f"{names}/rsp",
            content_type="text/plain",
        )  # fmt: skip
    found = {m.correlation: m.payload for m in answers.wait(5)}
    assert found == {bytes([0, i, 255]): b"%dba" % i for i in range(5)}


def test_a_content_type_arrives_and_what_was_not_given_is_none(subject: Subject, names: str) -> None:
    a, inbox = subject.connected(f"{names}-a"), Inbox()
    a.subscribe(names, inbox).wait(DEADLINE_S)
    a.publish(names, b"x", content_type="application/json+zlib")
    a.publish(names, b"y")
    first, second = inbox.wait(2)
    assert first.content_type == "application/json+zlib"
    assert (second.content_type, second.correlation, second.response_topic) == (None, None, None)


def test_a_chunk_and_the_longest_payload_pass_and_one_byte_more_is_refused(subject: Subject, names: str) -> None:
    a, inbox = subject.connected(f"{names}-a"), Inbox()
    a.subscribe(names, inbox).wait(DEADLINE_S)
    for size in (0, 128 * 1024, MAX_PAYLOAD_BYTES):
        a.publish(names, bytes(size), wait_s=DEADLINE_S)
    assert [len(m.payload) for m in inbox.wait(3)] == [0, 128 * 1024, MAX_PAYLOAD_BYTES]
    with pytest.raises(InputError, match=r"payload of 262145 bytes, at most 262144"):
        a.publish(names, bytes(MAX_PAYLOAD_BYTES + 1))
    assert a.connected


@pytest.mark.parametrize("topic", ["", "a/#", "a/+/b", "a\0b", "x" * 1025])
def test_a_malformed_topic_is_refused(subject: Subject, topic: str) -> None:
    a = subject.client("malformed")
    with pytest.raises(InputError):
        a.publish(topic, b"x")
    with pytest.raises(InputError):
        a.publish("fine", b"x", response_topic=topic)


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a#", "a/b+", "a\0"])
def test_a_malformed_filter_is_refused(subject: Subject, topic_filter: str) -> None:
    with pytest.raises(InputError):
        subject.client("malformed").subscribe(topic_filter, lambda _: None)


def test_a_handler_that_raises_does_not_end_the_loop(
    subject: Subject, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, inbox = subject.connected(f"{names}-a"), Inbox()

    def bad(message: Message) -> None:
        raise RuntimeError("a broken handler")

    a.subscribe(f"{names}/#", bad)
    a.subscribe(f"{names}/x", inbox).wait(DEADLINE_S)
    a.publish(f"{names}/x", b"1")
    a.publish(f"{names}/x", b"2")
    wait_for(lambda: set(inbox.payloads) == {b"1", b"2"}, "both messages")
    assert "a broken handler" in caplog.text


class Disk:
    """A handler that stores, unless its disk is full."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.refused: list[bytes] = []
        self.kept = Inbox()

    def __call__(self, message: Message) -> None:
        if self.full:
            self.refused.append(message.payload)
            raise StorageError("fleet.db: no space left on the disk")
        self.kept(message)


def test_what_could_not_be_stored_is_not_acknowledged_and_comes_again_in_order(
    subject: Subject, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    sender, reader, disk = subject.connected(f"{names}-s"), subject.client(f"{names}-r", clean_start=False), Disk()
    told: list[bool] = []
    reader.on_storing(told.append)
    reader.subscribe(names, disk)
    reader.connect(DEADLINE_S)
    reader.subscribe(names, disk).wait(DEADLINE_S)
    sender.publish(names, b"0", wait_s=DEADLINE_S)
    disk.kept.wait()
    disk.full = True
    sent = [b"%d" % i for i in range(1, 30)]
    for payload in sent:
        sender.publish(names, payload, wait_s=DEADLINE_S)
    wait_for(lambda: len(disk.refused) >= 3, "tries on several links")
    assert set(disk.refused) == {b"1"} and told == [False], "nothing behind it is taken out of turn"
    assert sum("not stored" in r.getMessage() for r in caplog.records) == 1, "logged once"
    disk.full = False
    disk.kept.wait(30)
    assert disk.kept.payloads == [b"0", *sent]
    wait_for(lambda: told == [False, True], "the good news")


def test_what_could_not_be_stored_waits_for_the_next_process(subject: Subject, names: str) -> None:
    sender, disk, later = subject.connected(f"{names}-s"), Disk(full=True), Disk()
    reader = subject.client(f"{names}-r", clean_start=False)
    reader.subscribe(names, disk)
    reader.connect(DEADLINE_S)
    reader.subscribe(names, disk).wait(DEADLINE_S)
    sender.publish(names, b"x", wait_s=DEADLINE_S)
    wait_for(lambda: disk.refused, "the refusal")
    reader.close()
    again = subject.client(f"{names}-r", clean_start=False)
    again.subscribe(names, later)
    again.connect(DEADLINE_S)
    assert later.kept.wait()[0].payload == b"x"


def test_a_handler_may_publish_and_may_not_wait(subject: Subject, names: str) -> None:
    a, inbox = subject.connected(f"{names}-a"), Inbox()
    refused: list[str] = []

    def answer(message: Message) -> None:
        try:
            a.publish(f"{names}/out", b"waiting", wait_s=1.0)
        except InputError as exc:
            refused.append(exc.message)
        a.publish(f"{names}/out", b"not waiting")

    a.subscribe(f"{names}/out", inbox)
    a.subscribe(f"{names}/in", answer).wait(DEADLINE_S)
    a.publish(f"{names}/in", b"go")
    inbox.wait()
    assert inbox.payloads == [b"not waiting"]
    assert "may not wait" in refused[0]


def test_two_handlers_of_one_topic_and_each_sees_the_retained_message_once(subject: Subject, names: str) -> None:
    a, first, second = subject.connected(f"{names}-a"), Inbox(), Inbox()
    a.publish(names, b"kept", retain=True, wait_s=DEADLINE_S)
    a.subscribe(names, first)
    first.wait()
    for i in range(3):
        a.subscribe(names, second)
        second.wait(i + 1)
        a.unsubscribe(names, second)
    a.subscribe(names, second).wait(DEADLINE_S)
    a.publish(names, b"live", wait_s=DEADLINE_S)
    second.wait_until(lambda found: found[-1].payload == b"live", "the live message")
    assert first.payloads == [b"kept", b"live"]
    assert second.payloads == [b"kept"] * 4 + [b"live"]


def test_after_unsubscribing_nothing_arrives(subject: Subject, names: str) -> None:
    a, gone, stays = subject.connected(f"{names}-a"), Inbox(), Inbox()
    a.subscribe(f"{names}/1", gone).wait(DEADLINE_S)
    a.subscribe(f"{names}/2", stays).wait(DEADLINE_S)
    a.unsubscribe(f"{names}/1")
    a.unsubscribe("never/subscribed")
    a.publish(f"{names}/1", b"x")
    a.publish(f"{names}/2", b"y")
    stays.wait()
    assert gone.messages == []


def test_a_message_expires_at_the_broker(subject: Subject, names: str) -> None:
    a = subject.connected(f"{names}-a")
    a.publish(f"{names}/short", b"x", retain=True, expiry_s=1.0, wait_s=DEADLINE_S)
    a.publish(f"{names}/long", b"x", retain=True, expiry_s=60.0, wait_s=DEADLINE_S)
    topics = [f"{names}/short", f"{names}/long"]
    reader = subject.connected(f"{names}-b")
    assert set(_look(reader, names, topics)) == set(topics)
    wait_for(lambda: set(_look(reader, names, topics)) == {f"{names}/long"}, "the short one to expire")


def test_the_will_is_published_when_the_link_is_lost_and_not_at_a_goodbye(subject: Subject, names: str) -> None:
    watcher, inbox = subject.connected(f"{names}-w"), Inbox()
    watcher.subscribe(f"{names}/+", inbox).wait(DEADLINE_S)
    polite = subject.connected(f"{names}-polite", will=Will(f"{names}/polite", b"gone", delay_s=0.0))
    polite.close()
    lost = subject.connected(f"{names}-lost", will=Will(f"{names}/lost", b"gone", delay_s=0.0))
    lost.drop_link()
    assert [m.topic for m in inbox.wait()] == [f"{names}/lost"]
    assert _look(watcher, names, [f"{names}/lost", f"{names}/polite"]) == {f"{names}/lost": b"gone"}


@pytest.mark.parametrize("clean_start", [False, True])
def test_a_session_keeps_messages_for_an_absent_reader(subject: Subject, names: str, clean_start: bool) -> None:
    topic = f"{names}-{clean_start}"
    sender, first = subject.connected(f"{topic}-s"), Inbox()
    reader = subject.connected(f"{topic}-r", clean_start=clean_start)
    reader.subscribe(topic, first).wait(DEADLINE_S)
    reader.close()
    sender.publish(topic, b"missed", wait_s=DEADLINE_S)
    again, second = subject.client(f"{topic}-r", clean_start=clean_start), Inbox()
    again.subscribe(topic, second)
    again.connect(DEADLINE_S)
    again.subscribe(topic, second).wait(DEADLINE_S)
    sender.publish(topic, b"later", wait_s=DEADLINE_S)
    second.wait_until(lambda found: found[-1:] != [] and found[-1].payload == b"later", "the later message")
    assert second.payloads == ([b"later"] if clean_start else [b"missed", b"later"])


def test_a_lost_link_comes_back_with_its_subscriptions(subject: Subject, names: str) -> None:
    a, b, inbox = subject.connected(f"{names}-a"), subject.client(f"{names}-b"), Inbox()
    changes: list[bool] = []
    b.on_connection(changes.append)
    a.publish(f"{names}/kept", b"kept", retain=True, wait_s=DEADLINE_S)
    b.subscribe(f"{names}/kept", inbox)
    assert not b.connected and b.connections == 0
    b.connect(DEADLINE_S)
    inbox.wait(1)
    b.drop_link()
    inbox.wait(2)
    assert b.wait_connected(DEADLINE_S) and b.connections == 2
    a.publish(f"{names}/kept", b"live", wait_s=DEADLINE_S)
    inbox.wait(3)
    assert inbox.payloads == [b"kept", b"kept", b"live"]
    assert changes == [True, False, True]


def test_a_killed_broker_is_missed_and_found_again_at_the_same_address(mortal: Subject) -> None:
    a, inbox = mortal.connected("a"), Inbox()
    a.subscribe("live", inbox)
    a.publish("kept", b"x", retain=True, wait_s=DEADLINE_S)
    mortal.kill()
    wait_for(lambda: not a.connected, "the loss")
    with pytest.raises(LinkError, match="not connected, a message to live was not sent"):
        a.publish("live", b"too early")
    assert not a.wait_connected(0.01)
    with pytest.raises(LinkError, match="cannot connect"):
        mortal.client("b").connect(DEADLINE_S)
    patient = mortal.client("c")
    with pytest.raises(LinkError, match="cannot connect"):
        patient.connect(DEADLINE_S, keep_trying=True)
    mortal.start()
    assert a.wait_connected(DEADLINE_S) and patient.wait_connected(DEADLINE_S)
    a.subscribe("sync", Inbox()).wait(DEADLINE_S)
    patient.publish("live", b"back", wait_s=DEADLINE_S)
    assert [m.payload for m in inbox.wait()] == [b"back"]
    assert _look(a, "mortal", ["kept"]) == {}, "a killed broker has forgotten: the controller must publish again"


def test_what_was_retained_arrives_before_the_barrier(subject: Subject, names: str) -> None:
    a, b = subject.connected(f"{names}-a"), subject.connected(f"{names}-b")
    sizes = [1, 5_000, 130_000]
    for i, size in enumerate(sizes):
        a.publish(f"{names}/{i}", bytes(size), retain=True, wait_s=DEADLINE_S)
    for attempt in range(150):
        here = f"{names}/{attempt % len(sizes)}"
        found = _look(b, names, [here, f"{names}/absent/{attempt}"])
        assert set(found) == {here}, f"attempt {attempt}"


def test_close_is_final_and_may_be_repeated(subject: Subject, names: str) -> None:
    a = subject.connected(f"{names}-a")
    a.close()
    a.close()
    assert not a.connected
    with pytest.raises(LinkError, match="not connected"):
        a.publish(names, b"x")
    with pytest.raises(LinkError, match="was closed"):
        a.connect(1.0)
    assert not [t for t in threading.enumerate() if t.name.endswith(f"{names}-a")]


def _look(transport: Transport, names: str, topics: list[str]) -> dict[str, bytes]:
    """What is retained under exact topics: subscribe, then a message to oneself."""
    found: dict[str, bytes] = {}
    barrier, inbox = f"{names}/barrier", Inbox()

    def keep(message: Message) -> None:
        found.setdefault(message.topic, message.payload)

    for topic in topics:
        transport.subscribe(topic, keep)
    transport.subscribe(barrier, inbox)
    transport.publish(barrier, b"|")
    inbox.wait()
    result = dict(found)
    transport.unsubscribe(barrier)
    for topic in topics:
        transport.unsubscribe(topic, keep)
    return result
