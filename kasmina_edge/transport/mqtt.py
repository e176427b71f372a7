"""MQTT 5 over TCP or TLS with paho: one background thread that connects, reads, writes and reconnects.

The thread is our own around paho's public ``reconnect`` and ``loop``: closing never waits for a back-off, every client
spreads its retries, and it is known which thread runs handlers. ``TCP_NODELAY`` is set on every connection: without it
a warm update check waits for delayed acknowledgements, 40 ms each.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.transport.address import Address, parse_address
from kasmina_edge.transport.filters import check_topic
from kasmina_edge.transport.pairing import Pairing
from kasmina_edge.transport.transport import (
    MAX_PAYLOAD_BYTES,
    SETTLED_S,
    Acknowledgement,
    Message,
    Outgoing,
    Transport,
    Will,
)

__all__ = ["Address", "MqttTransport", "parse_address"]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
PACKET_HEADROOM_BYTES = 8 * 1024
MAX_INFLIGHT = 20  # mosquitto's own default; more would be a protocol error there
MAX_QUEUED = 10_000
_CLIENT_ID = re.compile(r"^[A-Za-z0-9_.-]{1,128}$")  # iotcore drops the link when it sees /, +, # or $


class MqttTransport(Transport):
    """A broker behind the `Transport` face.

    Args:
        address: See `parse_address`.
        client_id: The name of this client's session on the broker; two clients with one name end each other.
        username: With ``password``, how the broker knows this client.
        password: Never logged.
        will: Published by the broker when this client goes silent; a pair is topic and payload, retained.
        ca_file: Authority that signed the broker's certificate; None takes the system's list.
        insecure: Accept ``mqtt://`` to another machine.
        clean_start: Forget what an earlier session of this name had waiting. Use False where messages that came while
            the process was down must not be lost (a controller).
        session_expiry_s: How long the broker keeps the session after the link is lost; with ``clean_start`` it ends
            at `close`.
        keepalive_s: Longest silence before the broker calls the link lost.
        max_payload_bytes: Longest payload that is sent or taken.
        reconnect_s: First and longest wait between tries; it doubles in between, and each client is spread by up to
            twice the first wait.
        rng: Source of that spread.
    """

    def __init__(
        self,
        address: str,
        client_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        will: Will | tuple[str, bytes] | None = None,
        ca_file: Path | str | None = None,
        insecure: bool = False,
        clean_start: bool = True,
        session_expiry_s: int = 3600,
        keepalive_s: int = 30,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        reconnect_s: tuple[float, float] = (0.1, 30.0),
        rng: random.Random | None = None,
    ) -> None:
        self._where = parse_address(address, insecure=insecure)
        super().__init__(str(self._where), max_payload_bytes=max_payload_bytes)
        if not _CLIENT_ID.match(client_id):
            raise InputError(f"client id {client_id!r}: expected 1 to 128 of letters, digits, -, _ and .")
        self._clean_start = clean_start
        self._reconnect_s = reconnect_s
        self._rng = rng or random.Random()
        self._up = threading.Event()
        self._news = threading.Event()  # connected, or failed for a known reason
        self._failure = ""
        self._closed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wire = threading.RLock()  # keeps what one caller sends in order with the subscriptions of a new link
        self._awaited: dict[str, Acknowledgement] = {}
        self._publications = Pairing()
        self._subscriptions = Pairing()
        self._server_max_bytes: int | None = None
        self._refused = False  # on this link: nothing more is taken from it
        self._client = self._make_client(
            client_id, Will(*will) if isinstance(will, tuple) else will, session_expiry_s, keepalive_s
        )
        if username is not None:
            self._client.username_pw_set(username, password)
        if self._where.tls:
            self._client.tls_set_context(_tls_context(ca_file))

    def connect(self, timeout_s: float = 10.0, *, keep_trying: bool = False) -> None:
        """As `Transport.connect`; a refusal by host or broker raises at once, silence after ``timeout_s``."""
        if self._closed:
            raise LinkError(f"{self.address}: this transport was closed", "Make a new transport.")
        if self._up.is_set():
            return
        self._news.clear()
        self._failure = ""
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name=f"mqtt {self.address}", daemon=True
            )
            self._thread.start()
        self._news.wait(timeout_s)
        if self._up.is_set():
            return
        reason = self._failure or f"no answer within {timeout_s:g} s"
        if not keep_trying:
            self._end_thread()
        raise LinkError(f"{self.address}: cannot connect: {reason}")

    def close(self) -> None:
        """As `Transport.close`; what was published before is sent first."""
        self._closed = True
        self._end_thread()

    @property
    def connected(self) -> bool:
        """As `Transport.connected`."""
        return self._up.is_set()

    def drop_link(self) -> None:
        """Cut the connection without a goodbye, as a lost network does; the transport then reconnects by itself."""
        sock: Any = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    # Transport ------------------------------------------------------------------------------------------------------

    def _send(self, outgoing: Outgoing, acknowledgement: Acknowledgement) -> None:
        message = outgoing.message
        limit = self._server_max_bytes
        if limit is not None and len(message.payload) + 2 * len(message.topic) + 256 > limit:
            raise InputError(f"{message.topic}: payload of {len(message.payload)} bytes, {self.address} takes {limit}")
        properties = Properties(PacketTypes.PUBLISH)
        if outgoing.expiry_s is not None:
            properties.MessageExpiryInterval = max(1, math.ceil(outgoing.expiry_s))
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.response_topic is not None:
            properties.ResponseTopic = message.response_topic
        if message.content_type is not None:
            properties.ContentType = message.content_type
        with self._wire:
            info = self._client.publish(message.topic, message.payload, outgoing.qos, message.retain, properties)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise LinkError(f"{self.address}: {MAX_QUEUED} messages are waiting, one to {message.topic} was not sent")
        self._publications.expect(info.mid, acknowledgement)

    def _subscribe(self, topic_filter: str, acknowledgement: Acknowledgement) -> None:
        with self._wire:
            known = topic_filter in self._awaited
            self._awaited[topic_filter] = acknowledgement
            if self._up.is_set():
                if known:  # iotcore sends what is retained with a first subscription only
                    self._client.unsubscribe(topic_filter)
                self._ask(topic_filter)

    def _unsubscribe(self, topic_filter: str) -> None:
        with self._wire:
            self._awaited.pop(topic_filter, None)
            if self._up.is_set():
                self._client.unsubscribe(topic_filter)

    def _ask(self, topic_filter: str) -> None:
        rc, packet_id = self._client.subscribe(topic_filter, qos=1)
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS and packet_id is not None:
            what = self._awaited.get(topic_filter) or Acknowledgement(f"a subscription to {topic_filter}", self)
            self._subscriptions.expect(packet_id, what)

    def _on_network_thread(self) -> bool:
        return threading.current_thread() is self._thread

    # The network thread ---------------------------------------------------------------------------------------------

    def _run(self, stop: threading.Event) -> None:
        first_s, longest_s = self._reconnect_s
        first_s *= self._rng.uniform(1.0, 2.0)
        wait_s = first_s
        while not stop.is_set():
            links = self.connections
            try:
                rc = self._client.reconnect()
                self._refused = False
                settled_s = time.monotonic() + SETTLED_S
                while rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                    rc = self._client.loop(1.0)
                    if self._refused:
                        self._give_up_link()
                    elif not self._stores and self._up.is_set() and time.monotonic() > settled_s:
                        self._tell_storing(True)
            except (OSError, ValueError) as exc:
                self._fail(_reason(exc))
            self._link_down(quietly=stop.is_set())
            well = self.connections > links and self._stores
            wait_s = first_s if well else min(wait_s * 2, longest_s)
            stop.wait(wait_s)

    def _give_up_link(self) -> None:
        """Say what has to be said, and leave what was not acknowledged with the broker, which sends it again."""
        for _ in range(MAX_QUEUED):
            if not self._client.want_write() or self._client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
        self.drop_link()

    def _end_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            self._stop.set()
            return
        properties = Properties(PacketTypes.DISCONNECT)
        if self._clean_start:
            properties.SessionExpiryInterval = 0
        self._stop.set()
        self._client.disconnect(properties=properties)
        thread.join(timeout=2.0)
        if thread.is_alive():
            self.drop_link()
            thread.join(timeout=CONNECT_TIMEOUT_S)

    def _link_down(self, *, quietly: bool) -> None:
        if not self._up.is_set():
            return
        with self._wire:
            self._up.clear()
            self._subscriptions.forget()
        if not quietly:
            log.warning("lost the link to %s", self.address)
        self._notify(False)

    def _fail(self, reason: str) -> None:
        if not self._failure:
            log.info("cannot connect to %s: %s", self.address, reason)
        self._failure = reason
        self._news.set()

    # paho's callbacks -----------------------------------------------------------------------------------------------

    def _make_client(self, client_id: str, will: Will | None, session_expiry_s: int, keepalive_s: int) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.suppress_exceptions = True
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_QUEUED)
        client.on_socket_open = self._on_socket_open
        client.on_socket_register_write = _leave_writing_to_the_loop
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        if will is not None:
            check_topic(will.topic)
            properties = Properties(PacketTypes.WILLMESSAGE)
            properties.WillDelayInterval = math.ceil(will.delay_s)
            client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_expiry_s
        properties.MaximumPacketSize = self.max_payload_bytes + PACKET_HEADROOM_BYTES
        properties.ReceiveMaximum = 100
        client.connect_async(
            self._where.host,
            self._where.port,
            keepalive=keepalive_s,
            clean_start=paho.MQTT_CLEAN_START_FIRST_ONLY if self._clean_start else False,
            properties=properties,
        )
        return client

    def _on_socket_open(self, client: object, userdata: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, client: object, userdata: object, flags: object, reason_code: Any, properties: Any) -> None:
        if reason_code.is_failure:
            self._fail(f"the broker refused: {reason_code}")
            return
        self._server_max_bytes = getattr(properties, "MaximumPacketSize", None)
        self._failure = ""
        with self._wire:
            self._begin_connection()
            self._up.set()
            for topic_filter in self._filters():
                self._ask(topic_filter)
        self._news.set()
        self._notify(True)

    def _on_message(self, client: object, userdata: object, message: paho.MQTTMessage) -> None:
        if self._refused:
            return
        if len(message.payload) > self.max_payload_bytes:
            self._client.ack(message.mid, message.qos)
            log.warning(
                "%s: dropped %d bytes, at most %d are taken",
                message.topic,
                len(message.payload),
                self.max_payload_bytes,
            )
            return
        properties = message.properties
        stored = self._deliver(
            Message(
                message.topic,
                bytes(message.payload),
                bool(message.retain),
                getattr(properties, "CorrelationData", None),
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "ContentType", None),
            )
        )
        if stored or message.qos == 0:
            self._client.ack(message.mid, message.qos)
        if not stored:
            self._refused = True
            self._tell_storing(False)

    def _on_publish(
        self, client: object, userdata: object, packet_id: int, reason_code: Any, properties: object
    ) -> None:
        self._publications.answer(packet_id, str(reason_code) if reason_code.is_failure else None)

    def _on_subscribe(
        self, client: object, userdata: object, packet_id: int, reason_codes: list[Any], properties: object
    ) -> None:
        refused = [str(code) for code in reason_codes if code.is_failure]
        self._subscriptions.answer(packet_id, refused[0] if refused else None)


def _leave_writing_to_the_loop(client: object, userdata: object, sock: object) -> None:
    """Its presence keeps paho from writing on the caller's thread, which would race with ours."""


def _tls_context(ca_file: Path | str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as exc:
        raise InputError(f"{ca_file}: not a usable certificate authority file ({exc})") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate does not hold ({exc.verify_message})"
    if isinstance(exc, socket.gaierror):
        return "no such host"
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
