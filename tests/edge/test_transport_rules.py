"""Topics, filters, addresses and client names: pure rules."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.transport.broker import free_port
from kasmina_edge.transport.filters import check_filter, check_topic, matches
from kasmina_edge.transport.memory import MemoryBroker, MemoryTransport
from kasmina_edge.transport.mqtt import Address, MqttTransport, parse_address

LEVEL = st.sampled_from(["a", "b", "", "$SYS", "long-name", "é"])


@given(
    st.lists(LEVEL | st.just("+"), min_size=1, max_size=4),
    st.booleans(),
    st.lists(LEVEL, min_size=1, max_size=4),
)
@example(["a"], True, ["a"])
@example(["+"], True, ["$SYS", "a"])
def test_a_filter_takes_what_paho_says_it_takes(wanted: list[str], rest: bool, parts: list[str]) -> None:
    topic_filter, topic = "/".join([*wanted, *(["#"] if rest else [])]), "/".join(parts)
    try:
        expected = topic_matches_sub(topic_filter, topic)
    except ValueError:
        return  # paho refuses an empty filter or topic
    assert matches(topic_filter, topic) == expected


@given(st.text(max_size=40))
def test_every_text_is_a_topic_or_refused_with_an_input_error(text: str) -> None:
    for check in (check_topic, check_filter):
        try:
            check(text)
        except InputError as exc:
            assert "topic" in exc.message
        else:
            assert text and "\0" not in text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtts://broker.example:8884", Address("broker.example", 8884, True)),
        ("mqtts://broker.example", Address("broker.example", 8883, True)),
        ("mqtt://127.0.0.1", Address("127.0.0.1", 1883, False)),
        ("mqtt://localhost:1/", Address("localhost", 1, False)),
        ("mqtt://[::1]:1884", Address("::1", 1884, False)),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mqtt://broker.example", "unencrypted, and broker.example is another machine"),
        ("mqtt://10.0.0.1:1883", "another machine"),
        ("http://127.0.0.1", "expected mqtts://"),
        ("127.0.0.1:1883", "expected mqtts://"),
        ("mqtt://127.0.0.1:0", "1 to 65535"),
        ("mqtt://127.0.0.1:70000", "70000"),
        ("mqtt://127.0.0.1/path", "nothing but scheme"),
        ("mqtts://", "expected mqtts://"),
        ("", "expected mqtts://"),
    ],
)
def test_a_wrong_address_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(text)
    assert says in f"{caught.value.message} {caught.value.next_step}".lower() or says in caught.value.message


def test_another_machine_without_encryption_takes_an_explicit_word() -> None:
    assert parse_address("mqtt://10.0.0.1", insecure=True) == Address("10.0.0.1", 1883, False)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        parse_address("mqtts://cam-1:hunter2@broker.example")
    assert "hunter2" not in f"{caught.value}{caught.value.next_step}"


@pytest.mark.parametrize("name", ["", "a/b", "a#", "x" * 129])
def test_a_client_name_that_a_broker_would_choke_on_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="client id"):
        MqttTransport("mqtt://127.0.0.1", name)


def test_a_missing_authority_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ca\.pem: not a usable certificate authority file"):
        MqttTransport("mqtts://localhost", "a", ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize("fault", [ConnectionRefusedError, socket.gaierror, ssl.SSLError])
def test_nobody_there_is_a_link_error_with_the_address(fault: type[OSError]) -> None:
    port = free_port()
    address = {
        ConnectionRefusedError: f"mqtt://127.0.0.1:{port}",
        socket.gaierror: "mqtts://no-such-host.invalid",
        ssl.SSLError: f"mqtts://127.0.0.1:{port}",
    }[fault]
    with pytest.raises(LinkError, match="cannot connect") as caught:
        MqttTransport(address, "a").connect(5.0)
    assert address in caught.value.message


def test_silence_ends_after_the_time_that_was_given() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        transport = MqttTransport(f"mqtt://127.0.0.1:{deaf.getsockname()[1]}", "a")
        with pytest.raises(LinkError, match=r"no answer within 0\.2 s"):
            transport.connect(0.2)
        transport.close()


def test_will_as_a_pair_is_retained() -> None:
    sent: dict[str, Any] = {}
    transport = MqttTransport("mqtt://127.0.0.1", "a", will=("t/state", b"gone"))
    client = transport._client
    sent.update(topic=client._will_topic, payload=client._will_payload, retain=client._will_retain)
    assert sent == {"topic": b"t/state", "payload": b"gone", "retain": True}


def test_what_lies_around_a_payload_is_counted_too() -> None:
    """A packet that is too long costs the link: the broker says nothing and drops it."""
    with MemoryTransport(MemoryBroker(), "a", max_payload_bytes=1000) as link:
        link.publish("t" * 100, bytes(1000), correlation=bytes(800), response_topic="r" * 100, content_type="c" * 24)
        for part in ({"correlation": bytes(802)}, {"content_type": "é" * 401}, {"response_topic": "r" * 802}):
            with pytest.raises(InputError, match="message of 2025 bytes, 1000 of them payload, at most 2024 are sent"):
                link.publish("t" * 223, bytes(1000), **part)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="payload of 1001 bytes, at most 1000"):
            link.publish("t", bytes(1001))
        assert link.connected
