"""The publisher over the in-memory broker: batches, acknowledgement after PUBACK, pauses, and the batch format."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.telemetry import NOW, Clock, make_record

from kasmina_edge.contracts.presence import ControllerState
from kasmina_edge.contracts.record import MAX_COUNT, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.fleet.presence import Presence, controller_will
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.publisher import (
    BATCH_CONTENT_TYPE,
    LISTEN_S,
    LOOK_BACK,
    MAX_DECODED_BYTES,
    RESUME_S,
    Publisher,
    decode_batch,
    encode_batch,
)
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.transport import Message, Outgoing, Transport

TOPICS = Topics()


class Link(MemoryTransport):
    """A client whose PUBACKs can be lost: the message is delivered, the sender never learns it."""

    silent = False

    def _send(self, outgoing: Outgoing, acknowledgement: Any) -> None:
        super()._send(outgoing, acknowledgement)
        if self.silent:
            raise LinkError(f"{self.address}: no answer within 5 s")


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.link = Link(self.broker, "cam-1")
        self.link.connect()
        self.reader = MemoryTransport(self.broker, "controller")
        self.heard: list[Message] = []
        self.reader.subscribe("kasmina/main/d/#", self.heard.append)
        self.reader.connect()
        self.outbox = Outbox(folder / "o.db", clock=self.clock)
        self.publisher = self.make(self.link)

    def make(self, transport: Transport, **changes: Any) -> Publisher:
        return Publisher(self.outbox, transport, TOPICS, "cam-1", self.clock, rng=random.Random(0), **changes)

    def messages(self) -> list[Message]:
        """What arrived, once everything sent so far has been delivered."""
        self.reader.subscribe("barrier", lambda m: None).wait(5.0)
        return self.heard

    def records(self) -> list[TelemetryRecord]:
        return [r for m in self.messages() if m.content_type == BATCH_CONTENT_TYPE for r in decode_batch(m.payload)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.link.close()
    made.reader.close()
    made.outbox.close()


def test_full_batches_go_at_once_and_the_rest_lingers(world: World) -> None:
    records = [make_record(i) for i in range(130)]
    for record in records:
        world.outbox.append("stats", record.to_bytes())
    assert world.publisher.pump() == 120 and world.outbox.size().entries == 10
    assert world.publisher.pump() == 0
    world.clock.now += 1.0
    assert world.publisher.pump() == 10
    assert world.records() == records
    assert [len(decode_batch(m.payload)) for m in world.messages()] == [60, 60, 10]
    assert {m.topic for m in world.messages()} == {"kasmina/main/d/cam-1/t/stats"}


def test_force_does_not_wait(world: World) -> None:
    world.outbox.append("stats", make_record().to_bytes())
    assert world.publisher.pump() == 0
    assert world.publisher.pump(force=True) == 1


def test_other_streams_go_as_they_are_and_do_not_wait_for_a_batch(world: World) -> None:
    world.outbox.append("stats", make_record().to_bytes())
    world.outbox.append("capture", b"\x00sealed")
    world.outbox.append("event", b'{"event":"x"}', priority=1)
    assert world.publisher.pump() == 2
    found = [(m.topic, m.payload, m.content_type) for m in world.messages()]
    assert found == [
        ("kasmina/main/d/cam-1/ev", b'{"event":"x"}', "application/json"),
        ("kasmina/main/d/cam-1/t/capture", b"\x00sealed", "application/octet-stream"),
    ]
    assert world.outbox.peek()[0].stream == "stats"


def test_nothing_is_forgotten_without_a_puback(world: World) -> None:
    world.outbox.append("stats", make_record().to_bytes())
    world.link.silent = True
    assert world.publisher.pump(force=True) == 0 and world.outbox.size().entries == 1
    world.link.silent = False
    world.clock.now += 60.0
    assert world.publisher.pump() == 1
    assert len(world.records()) == 2  # at least once: the reader sees it twice


def test_it_pauses_longer_after_each_failure_and_starts_over_after_a_success(world: World) -> None:
    publisher = world.make(world.link, pause_s=(1.0, 8.0))
    world.outbox.append("event", b"{}")
    world.link.silent = True
    pauses = []
    for _ in range(6):
        sent = len(world.messages())
        publisher.pump()
        assert len(world.messages()) == sent + 1
        waited = 0.0
        while len(world.messages()) == sent + 1 and waited < 20:
            world.clock.now += 0.125
            waited += 0.125
            if not publisher._pausing():
                break
        pauses.append(waited)
    ceilings = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert all(c / 2 <= p <= c + 0.125 for p, c in zip(pauses, ceilings, strict=True)), pauses
    assert len(set(pauses[3:])) > 1  # jitter
    world.link.silent = False
    assert publisher.pump() == 1
    world.outbox.append("event", b"{}")
    world.link.silent = True
    publisher.pump()
    assert publisher._pause <= 1.0


class Refusing(Link):
    """A broker that refuses some topics."""

    refused: tuple[str, ...] = ()

    def _send(self, outgoing: Outgoing, acknowledgement: Any) -> None:
        if outgoing.message.topic.endswith(self.refused):
            raise LinkError("refused: not authorized")
        super()._send(outgoing, acknowledgement)


def test_a_stream_that_is_refused_does_not_hold_up_the_others(world: World) -> None:
    link = Refusing(world.broker, "cam-1")
    link.connect()
    link.refused = ("t/mine",)
    publisher = world.make(link)
    world.outbox.append("mine", b"1", priority=3)
    world.outbox.append("mine", b"2", priority=3)
    world.outbox.append("alert", b"{}", priority=2)
    world.outbox.append("event", b"{}", priority=1)
    tries = 0
    while world.outbox.size().entries > 2:
        publisher.pump()
        world.clock.now += 60.0
        tries += 1
        assert tries <= 5
    for _ in range(10):  # from now on only the refused one pauses
        world.outbox.append("alert", b"{}", priority=2)
        assert publisher.pump() == 1
        world.clock.now += 1.0
    assert {e.stream for e in world.outbox.peek()} == {"mine"}
    link.refused = ("none",)
    world.clock.now += 60.0
    assert publisher.pump() == 2
    assert [m.payload for m in world.messages() if m.topic.endswith("t/mine")] == [b"1", b"2"]  # in order
    link.close()


def test_after_an_outage_every_stream_has_its_turn_though_the_first_is_refused(world: World) -> None:
    link = Refusing(world.broker, "cam-1")
    link.connect()
    link.refused = ("",)  # all
    publisher = world.make(link)
    for number, stream in enumerate(("a", "b", "c")):
        world.outbox.append(stream, b"x", priority=3 - number)
    for _ in range(40):
        assert publisher.pump() == 0
        world.clock.now += 60.0
    link.refused = ("t/a",)
    for _ in range(4):
        publisher.pump()
        world.clock.now += 60.0
    assert [e.stream for e in world.outbox.peek()] == ["a"]
    link.close()


def test_a_clock_that_is_set_back_does_not_stretch_a_pause(world: World) -> None:
    world.outbox.append("event", b"{}")
    world.link.silent = True
    world.publisher.pump()
    world.link.silent = False
    world.clock.now -= 10_000.0
    assert world.publisher.pump() == 1


def test_it_keeps_quiet_while_the_link_is_down(world: World) -> None:
    world.outbox.append("event", b"{}")
    world.broker.stop()
    assert world.publisher.pump() == 0 and world.outbox.size().entries == 1
    world.broker.start(wipe=False)
    assert world.link.wait_connected(5.0)
    assert world.publisher.pump() == 1


def test_the_device_itself_sees_every_record_once_sent_or_not(world: World) -> None:
    seen: list[int] = []
    observe = lambda records: seen.extend(r.sequence for r in records)  # noqa: E731
    world.broker.stop()
    for i in range(3):
        world.outbox.append("stats", make_record(i).to_bytes())
    world.publisher.pump(observe=observe)
    world.outbox.append("stats", make_record(3).to_bytes())
    world.publisher.pump(observe=observe)
    world.publisher.pump(observe=observe)
    assert seen == [0, 1, 2, 3]


def test_spoiled_entries_do_not_block_the_rest(world: World) -> None:
    for payload in (b"not json", b'{"device":"cam-1"}', make_record(7).to_bytes()):
        world.outbox.append("stats", payload)
    assert world.publisher.pump(force=True) == 1
    (record,) = world.records()
    assert record.sequence == 7 and record.dropped_records == 2  # the two are counted, and the reader is told
    assert world.outbox.size().entries == 0
    world.outbox.append("stats", b"nothing else")
    assert world.publisher.pump(force=True) == 0 and world.outbox.dropped() == 3


def test_a_message_that_is_too_long_is_dropped_and_counted(world: World) -> None:
    world.outbox.append("capture", bytes(world.link.max_payload_bytes + 1))
    world.outbox.append("event", b"{}")
    assert world.publisher.pump() == 1 and world.outbox.dropped() == 1


def say(world: World, payload: bytes) -> None:
    """The controller's retained state, heard by the device when this returns."""
    world.reader.publish(TOPICS.controller(), payload, retain=True, wait_s=5.0)
    world.link.subscribe("barrier", lambda m: None).wait(5.0)


HERE, AWAY = ControllerState(online=True).to_bytes(), ControllerState(online=False).to_bytes()


def test_nothing_is_pumped_into_a_broker_that_nobody_reads(world: World) -> None:
    world.outbox.append("event", b"{}", priority=1)
    say(world, AWAY)
    assert world.publisher.pump() == 0 and world.publisher.waits_for == "controller"
    assert world.outbox.size().entries == 1
    say(world, HERE)
    assert world.publisher.pump() == 0 and world.publisher.waits_for == "pause"  # a fleet does not come back at once
    world.clock.now += RESUME_S
    assert world.publisher.pump() == 1 and world.publisher.waits_for == ""


def test_a_controller_that_never_said_anything_is_sent_to(world: World) -> None:
    for payload in (b"", b"not json", b'{"online":"perhaps"}'):
        world.outbox.append("event", b"{}")
        if payload:
            say(world, payload)
        assert world.publisher.pump() == 1


def test_a_state_that_is_no_longer_retained_is_forgotten_with_the_next_connection(world: World) -> None:
    say(world, AWAY)
    world.outbox.append("event", b"{}")
    assert world.publisher.pump() == 0
    world.broker.stop()
    assert world.publisher.pump() == 0 and world.publisher.waits_for == "link"
    world.broker.start(wipe=True)
    assert world.link.wait_connected(5.0)
    assert world.publisher.pump() == 0 and world.publisher.waits_for == "controller"  # it may still arrive
    world.clock.now += LISTEN_S
    assert world.publisher.pump() == 1


def test_the_will_of_a_lost_controller_stops_the_device_and_its_return_starts_it(world: World) -> None:
    made = MemoryTransport(world.broker, "office", will=replace(controller_will(TOPICS), delay_s=0.0))
    presence = Presence(made, TOPICS, world.clock)
    made.connect()

    def settled() -> None:
        for link in (made, world.link, made, world.link):
            link.subscribe("barrier", lambda m: None).wait(5.0)

    settled()
    world.outbox.append("event", b"1")
    assert world.publisher.pump() == 1
    made.drop_link()  # it comes back by itself, and says so
    assert made.wait_connected(5.0)
    settled()
    world.clock.now += RESUME_S
    world.outbox.append("event", b"2")
    assert world.publisher.pump() == 1
    world.reader.publish(TOPICS.controller(), AWAY, retain=True, wait_s=5.0)  # another one's late will
    settled()
    world.clock.now += RESUME_S
    world.outbox.append("event", b"3")
    assert world.publisher.pump() == 1
    presence.leave()
    settled()
    world.outbox.append("event", b"4")
    assert world.publisher.pump() == 0 and world.publisher.waits_for == "controller"
    made.close()


def test_an_alert_overtakes_everything_and_is_json(world: World) -> None:
    world.outbox.append("event", b'{"event":"x"}', priority=1)
    world.outbox.append("alert", b'{"kind":"disk"}', priority=2)
    assert world.publisher.pump() == 2
    first = world.messages()[0]
    assert (first.topic, first.content_type) == ("kasmina/main/d/cam-1/t/alert", "application/json")


def test_a_backlog_of_earlier_runs_is_not_shown_whole(world: World) -> None:
    for i in range(LOOK_BACK + 50):
        world.outbox.append("stats", make_record(i).to_bytes(), durable=False)
    world.broker.stop()
    seen: list[int] = []
    for _ in range(3):
        world.publisher.pump(observe=lambda records: seen.extend(r.sequence for r in records))
    assert seen == list(range(50, LOOK_BACK + 50))


def test_batches_are_small(world: World) -> None:
    """EVIDENCE 5: 60 like records in one batch cost a fraction of 60 messages."""
    payloads = [make_record(i).to_bytes() for i in range(60)]
    assert len(encode_batch(payloads)) * 5 < sum(map(len, payloads))


@given(st.lists(st.integers(0, 10**6), max_size=30), st.integers(0, 5))
def test_batches_round_trip(sequences: list[int], dropped: int) -> None:
    records = [make_record(i, dropped_records=1) for i in sequences]
    found = decode_batch(encode_batch([r.to_bytes() for r in records], dropped=dropped))
    assert found == [r.model_copy(update={"dropped_records": 1 + dropped}) for r in records]


@given(st.binary(max_size=200))
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(InputError, match="telemetry batch"):
        decode_batch(payload)
    with pytest.raises(InputError, match="telemetry batch"):
        decode_batch(zlib.compress(payload))


def test_hostile_batches_are_refused_early() -> None:
    good = encode_batch([make_record().to_bytes()])
    bomb = zlib.compress(b" " * (MAX_DECODED_BYTES + 1), 9)
    assert len(bomb) < 10_000
    many = zlib.compress(json.dumps({"format": 1, "records": [0] * 1001}).encode())
    cases = {
        "grows beyond": bomb, "truncated": good[:-3], "followed by something": good + b"x", "not zlib": b"x" + good,
        "1001 records": many, "format 2": zlib.compress(b'{"format":2,"records":[]}'),
        "expected an object": zlib.compress(b'{"format":1,"records":[],"dropped":-1}'),
        "not valid JSON": zlib.compress(b"[" * 200_000),
        r"records\[0\]": zlib.compress(b'{"format":1,"records":[{}]}'),
    }  # fmt: skip
    for text, payload in cases.items():
        with pytest.raises(InputError, match=text):
            decode_batch(payload)


def test_settings_without_sense_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="publisher"):
        world.make(world.link, batch_records=0)
    assert world.clock.now == NOW


def test_what_was_dropped_is_bounded_like_every_count() -> None:
    """A record that `decode_batch` returns can always be stored and read again."""
    payload = make_record(dropped_records=1).to_bytes()
    (top,) = decode_batch(encode_batch([payload], dropped=MAX_COUNT - 1))
    assert top.dropped_records == MAX_COUNT
    assert TelemetryRecord.from_bytes(top.to_bytes()) == top
    for dropped in (MAX_COUNT, MAX_COUNT + 1, 10**400):
        with pytest.raises(InputError, match="dropped"):
            decode_batch(encode_batch([payload], dropped=dropped))
