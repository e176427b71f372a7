"""The interface that agent, fetcher and controller talk through, and the promise that every transport keeps.

The promise: a payload that is too long or a malformed topic is refused before it reaches the network; a handler that
raises is logged and never ends the loop; only `LinkError` (with the address) and `InputError` come out. Delivery is at
least once: a handler may see a message twice, above all after a lost link.

A message is acknowledged to the broker after its handlers returned. A handler that raises `StorageError` could not keep
it: the message and those behind it stay unacknowledged, the link is given up, and after a pause that grows the broker
sends them again. `Transport.on_storing` tells of it.

Handlers and connection callbacks run on the network thread. They must be quick, and they must not wait for the network:
`publish` with ``wait_s`` and `Acknowledgement.wait` are refused there, because the answer could never arrive.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from kasmina_edge.errors import InputError, LinkError, StorageError
from kasmina_edge.transport.filters import check_filter, check_topic, matches

log = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 256 * 1024
AROUND_PAYLOAD_BYTES = 1024
"""What topic, correlation, response topic and content type of a message with the longest payload may take together."""


@dataclass(frozen=True)
class Message:
    """One message as a handler sees it.

    Attributes:
        retain: The broker had kept it: it was published before the subscription.
        correlation: Bytes that tie an answer to its request.
        response_topic: Where the sender wants the answer.
        content_type: What the payload is, as the sender says.
    """

    topic: str
    payload: bytes
    retain: bool = False
    correlation: bytes | None = None
    response_topic: str | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class Outgoing:
    """A checked message on its way out; ``expiry_s`` is how long the broker may keep it for an absent reader."""

    message: Message
    qos: int
    expiry_s: float | None


@dataclass(frozen=True)
class Will:
    """What the broker publishes when this client goes silent without a goodbye.

    Attributes:
        delay_s: Grace before it is published; a client that is back in time keeps it from being sent.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True
    delay_s: float = 10.0


Handler = Callable[[Message], None]


@dataclass
class _Reader:
    """One handler of one filter; ``owed`` until it has seen what was retained."""

    handler: Handler
    owed: bool = True


ConnectionCallback = Callable[[bool], None]
SETTLED_S = 1.0
"""After a refusal, a link that lasts so long without another one counts as storing again."""


class Acknowledgement:
    """The broker's answer to one request, which may still be on its way."""

    def __init__(self, what: str, transport: Transport) -> None:
        self.what = what
        self._transport = transport
        self._event = threading.Event()
        self._refusal: str | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is here, good or bad."""
        return self._event.is_set()

    def settle(self, refusal: str | None = None) -> None:
        """Record the answer; ``refusal`` is the broker's reason, None when it agreed."""
        self._refusal = refusal
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        """Block until the broker has agreed.

        Raises:
            LinkError: It refused, or did not answer within ``timeout_s`` seconds.
            InputError: Called from a handler.
        """
        if not self.done:
            self._transport.refuse_waiting_handler(self.what)
        address = self._transport.address
        if not self._event.wait(timeout_s):
            raise LinkError(f"{address}: no answer to {self.what} within {timeout_s:g} s")
        if self._refusal is not None:
            raise LinkError(
                f"{address}: {self.what} was refused: {self._refusal}",
                "Check this client's user name, password and access rules on the broker.",
            )


class Transport(ABC):
    """Publish and subscribe, behind one face.

    A subscription made while disconnected takes effect with the next connection: subscribe before `connect`, and no
    message that waited in the session is missed. Subscriptions are made anew after every reconnect, so retained
    messages arrive again.

    Args:
        address: How people and messages name the other side.
        max_payload_bytes: Longest payload that is sent.
    """

    def __init__(self, address: str, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.address = address
        self.max_payload_bytes = max_payload_bytes
        self._readers: dict[str, list[_Reader]] = {}
        self._callbacks: list[ConnectionCallback] = []
        self._storing_callbacks: list[ConnectionCallback] = []
        self._stores = True
        self._lock = threading.Lock()
        self._link = threading.Condition()
        self._connections = 0

    # What a transport adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def connect(self, timeout_s: float = 10.0, *, keep_trying: bool = False) -> None:
        """Reach the other side; from then on the link is kept up in the background.

        Args:
            timeout_s: How long to wait for the first connection.
            keep_trying: Go on in the background even though this call raises.

        Raises:
            LinkError: Not reached, or refused, within ``timeout_s``.
        """

    @abstractmethod
    def close(self) -> None:
        """Say goodbye (the will is not sent) and stop; calling it twice is harmless."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the link is up now."""

    @abstractmethod
    def _send(self, outgoing: Outgoing, acknowledgement: Acknowledgement) -> None:
        """Hand one checked message over; settle the acknowledgement when the other side has taken it."""

    @abstractmethod
    def _subscribe(self, topic_filter: str, acknowledgement: Acknowledgement) -> None:
        """Ask for messages; called while connected or not."""

    @abstractmethod
    def _unsubscribe(self, topic_filter: str) -> None:
        """Ask for no more messages; does not wait."""

    @abstractmethod
    def _on_network_thread(self) -> bool:
        """Whether the caller is the thread that runs handlers."""

    # What every transport promises ----------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: float | None = None,
        correlation: bytes | None = None,
        response_topic: str | None = None,
        content_type: str | None = None,
        wait_s: float | None = None,
    ) -> None:
        """Send one message.

        Args:
            topic: Without wildcards.
            payload: At most ``max_payload_bytes``, and with topic, correlation, response topic and content type at most
                `AROUND_PAYLOAD_BYTES` more: a broker drops the link at a packet that is too long. An empty retained
                payload deletes what the broker keeps.
            qos: 0 (may be lost) or 1 (at least once).
            retain: The broker keeps it for later subscribers.
            expiry_s: The broker drops it after so many seconds.
            correlation: Ties an answer to a request.
            response_topic: Where the answer should go.
            content_type: What the payload is.
            wait_s: Block until the broker has taken it (PUBACK), at most so long; None returns at once.

        Raises:
            InputError: Topic, payload or qos is not acceptable, or a handler asked to wait.
            LinkError: Not connected, refused by the broker, or not acknowledged within ``wait_s``; the message may
                have arrived all the same.
        """
        check_topic(topic)
        if response_topic is not None:
            check_topic(response_topic)
        if qos not in (0, 1):
            raise InputError(f"{topic}: qos {qos}: expected 0 or 1")
        if len(payload) > self.max_payload_bytes:
            raise InputError(f"{topic}: payload of {len(payload)} bytes, at most {self.max_payload_bytes} are sent")
        around = (topic.encode(), correlation, (response_topic or "").encode(), (content_type or "").encode())
        total, limit = len(payload) + sum(len(p or b"") for p in around), self.max_payload_bytes + AROUND_PAYLOAD_BYTES
        if total > limit:
            raise InputError(
                f"{topic}: message of {total} bytes, {len(payload)} of them payload, at most {limit} are sent"
            )
        acknowledgement = Acknowledgement(f"a message to {topic}", self)
        if wait_s is not None:
            self.refuse_waiting_handler(acknowledgement.what)
        message = Message(topic, bytes(payload), retain, correlation, response_topic, content_type)
        if not self.connected:
            raise LinkError(f"{self.address}: not connected, a message to {topic} was not sent")
        self._send(Outgoing(message, qos, expiry_s), acknowledgement)
        if wait_s is not None:
            acknowledgement.wait(wait_s)

    def subscribe(self, topic_filter: str, handler: Handler) -> Acknowledgement:
        """Have ``handler`` called with every message whose topic matches; a filter may have several handlers.

        What the broker has retained arrives after each call. A handler of one exact topic sees it once per connection,
        however often others subscribe to the same topic.

        Returns:
            The broker's answer; wait for it where a refusal matters.

        Raises:
            InputError: The filter is malformed.
        """
        check_filter(topic_filter)
        acknowledgement = Acknowledgement(f"a subscription to {topic_filter}", self)
        with self._lock:
            readers = self._readers.setdefault(topic_filter, [])
            readers[:] = [r for r in readers if r.handler != handler]
            readers.append(_Reader(handler))
        self._subscribe(topic_filter, acknowledgement)
        return acknowledgement

    def unsubscribe(self, topic_filter: str, handler: Handler | None = None) -> None:
        """Forget one handler of ``topic_filter``, or all of them; what is unknown is ignored."""
        with self._lock:
            readers = self._readers.get(topic_filter, [])
            readers[:] = [r for r in readers if handler is not None and r.handler != handler]
            unread = not readers and self._readers.pop(topic_filter, None) is not None
        if unread:
            self._unsubscribe(topic_filter)

    def on_connection(self, callback: ConnectionCallback) -> None:
        """Have ``callback(True)`` called after each connection (subscriptions are under way by then), and
        ``callback(False)`` when the link is lost. It runs on the network thread, and not for a link that is already up.
        """
        with self._lock:
            self._callbacks.append(callback)

    def on_storing(self, callback: ConnectionCallback) -> None:
        """Have ``callback(False)`` called when a handler could not store a message, before the link is given up, and
        ``callback(True)`` when a later link lasted `SETTLED_S` without such a refusal. It runs on the network thread.
        """
        with self._lock:
            self._storing_callbacks.append(callback)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the link is up; False when it is not within ``timeout_s`` seconds."""
        with self._link:
            return self._link.wait_for(lambda: self.connected, timeout_s)

    @property
    def connections(self) -> int:
        """How many times the link was established; what was learned on one number may not hold on the next."""
        return self._connections

    def __enter__(self) -> Transport:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # For subclasses -------------------------------------------------------------------------------------------------

    def refuse_waiting_handler(self, what: str) -> None:
        """Raise InputError when the network thread is about to wait for itself."""
        if self._on_network_thread():
            raise InputError(f"a handler may not wait for the answer to {what}: it would never come")

    def _filters(self) -> list[str]:
        with self._lock:
            return list(self._readers)

    def _deliver(self, message: Message) -> bool:
        """Call the handlers; False when one of them could not store the message."""
        stored = True
        with self._lock:
            handlers = [
                r.handler
                for topic_filter, readers in self._readers.items()
                if matches(topic_filter, message.topic)
                for r in readers
                if r.owed or not (message.retain and topic_filter == message.topic)
            ]
            if message.retain:
                for reader in self._readers.get(message.topic, ()):
                    reader.owed = False
        for handler in handlers:
            try:
                handler(message)
            except StorageError as exc:
                stored = False
                if self._stores:
                    log.error("%s: not stored and not acknowledged: %s", message.topic, exc.message)
            except Exception:
                log.exception("handler of %s failed, the message is dropped", message.topic)
        return stored

    def _tell_storing(self, stores: bool) -> None:
        """Remember whether handlers can store, and tell whoever wants to know when that changed."""
        if stores == self._stores:
            return
        self._stores = stores
        with self._lock:
            callbacks = list(self._storing_callbacks)
        for callback in callbacks:
            try:
                callback(stores)
            except Exception:
                log.exception("storing callback failed at %s", self.address)

    def _begin_connection(self) -> None:
        self._connections += 1
        with self._lock:
            for readers in self._readers.values():
                for reader in readers:
                    reader.owed = True

    def _notify(self, connected: bool) -> None:
        with self._link:
            self._link.notify_all()
        with self._lock:
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback(connected)
            except Exception:
                log.exception("connection callback failed at %s", self.address)
