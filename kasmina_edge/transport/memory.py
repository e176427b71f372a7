"""A broker in memory and the transport to it: the simulated neighbour behind the real interface.

Same promises as MQTT 5 over a network: per-client sessions, retained messages, wills, expiry, correlation data, order
per sender. Each transport delivers on a thread of its own, as a network client does.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.transport.filters import matches
from kasmina_edge.transport.transport import (
    MAX_PAYLOAD_BYTES,
    SETTLED_S,
    Acknowledgement,
    Message,
    Outgoing,
    Transport,
    Will,
)

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0


@dataclass(frozen=True)
class _Kept:
    message: Message
    expires_at: float | None
    qos: int = 1


@dataclass
class _Session:
    filters: list[str] = field(default_factory=list)
    waiting: deque[_Kept] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    transport: MemoryTransport | None = None


class MemoryBroker:
    """Holds sessions and retained messages; `stop` and `start` play an outage.

    Args:
        clock: Seconds; expiry is judged by it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = "memory:"
        self.running = True
        self._clock = clock
        self._lock = threading.RLock()
        self._retained: dict[str, _Kept] = {}
        self._sessions: dict[str, _Session] = {}
        self._known: dict[str, MemoryTransport] = {}  # clients that come back by themselves

    def stop(self) -> None:
        """Break every link; nothing gets through until `start`."""
        with self._lock:
            self.running = False
            for session in self._sessions.values():
                if session.transport is not None:
                    session.transport.enqueue_link(False)
                    session.transport = None

    def start(self, *, wipe: bool = True) -> None:
        """Accept clients again; they come back by themselves.

        Args:
            wipe: Retained messages and sessions are gone, as after a crash of a broker without a disk.
        """
        with self._lock:
            self.running = True
            if wipe:
                self._retained.clear()
                self._sessions.clear()
            for transport in list(self._known.values()):
                self.attach(transport, clean=False)

    def attach(self, transport: MemoryTransport, *, clean: bool) -> None:
        """Connect a client: another one with the same name is ended, what waited for it is delivered.

        Raises:
            LinkError: The broker is not running.
        """
        with self._lock:
            if not self.running:
                raise LinkError(f"{self.address}: cannot connect: connection refused")
            session = self._sessions.get(transport.client_id)
            if session is None or clean:
                session = self._sessions[transport.client_id] = _Session()
            if session.transport is not None and session.transport is not transport:
                session.transport.enqueue_link(False)
            session.transport = transport
            self._known[transport.client_id] = transport
            transport.enqueue_link(True)
            while session.waiting:
                self._hand_over(session, session.waiting.popleft(), retain=False)

    def remember(self, transport: MemoryTransport) -> None:
        """Let a client in as soon as the broker runs."""
        with self._lock:
            self._known[transport.client_id] = transport

    def detach(self, transport: MemoryTransport, *, polite: bool, will: Will | None) -> None:
        """End a link; a client that did not say goodbye has its will published and stays known to come back."""
        with self._lock:
            if polite and self._known.get(transport.client_id) is transport:
                del self._known[transport.client_id]
            session = self._sessions.get(transport.client_id)
            if session is None or session.transport is not transport:
                return
            session.transport = None
            if polite:
                if transport.clean_start:
                    del self._sessions[transport.client_id]
            elif will is not None:
                self.route(Outgoing(Message(will.topic, will.payload, will.retain), will.qos, None))

    def route(self, outgoing: Outgoing) -> None:
        """Keep a message if it is retained, and hand it to every session that reads its topic."""
        with self._lock:
            if not self.running:
                raise LinkError(f"{self.address}: not connected, a message to {outgoing.message.topic} was not sent")
            message = outgoing.message
            expires_at = None if outgoing.expiry_s is None else self._clock() + outgoing.expiry_s
            kept = _Kept(message, expires_at, outgoing.qos)
            if message.retain and message.payload:
                self._retained[message.topic] = kept
            elif message.retain:
                self._retained.pop(message.topic, None)
            for session in self._sessions.values():
                if any(matches(f, message.topic) for f in session.filters):
                    if session.transport is not None:
                        self._hand_over(session, kept, retain=False)
                    elif outgoing.qos:
                        session.waiting.append(kept)

    def subscribe(self, transport: MemoryTransport, topic_filter: str) -> None:
        """Remember a filter of this client's session and hand it what is retained."""
        with self._lock:
            session = self._sessions.get(transport.client_id)
            if session is None or session.transport is not transport:
                return
            if topic_filter not in session.filters:
                session.filters.append(topic_filter)
            for topic, kept in self._retained.items():
                if matches(topic_filter, topic):
                    self._hand_over(session, kept, retain=True)

    def unsubscribe(self, transport: MemoryTransport, topic_filter: str) -> None:
        """Forget a filter."""
        with self._lock:
            session = self._sessions.get(transport.client_id)
            if session is not None and topic_filter in session.filters:
                session.filters.remove(topic_filter)

    def take_back(self, transport: MemoryTransport, refused: _Kept) -> None:
        """End a link whose client could not store a message: it and those behind it wait in the session."""
        with self._lock:
            back = [refused, *transport.unread()]
            session = self._sessions.get(transport.client_id)
            if session is not None and session.transport in (transport, None):
                session.transport = None
                session.waiting.extendleft(reversed([kept for kept in back if kept.qos]))

    def _hand_over(self, session: _Session, kept: _Kept, *, retain: bool) -> None:
        if session.transport is not None and (kept.expires_at is None or self._clock() < kept.expires_at):
            session.transport.enqueue(replace(kept, message=replace(kept.message, retain=retain)))


class MemoryTransport(Transport):
    """A client of a `MemoryBroker`.

    Args:
        broker: The other side.
        client_id: Name of the session.
        will: Published at once when `drop_link` plays a crash.
        clean_start: As for `MqttTransport`.
        max_payload_bytes: Longest payload that is sent.

    >>> with MemoryTransport(MemoryBroker(), "a") as a:
    ...     a.publish("greeting", b"hello", wait_s=1)
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Will | None = None,
        clean_start: bool = True,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        super().__init__(broker.address, max_payload_bytes=max_payload_bytes)
        if not client_id:
            raise InputError("client id: expected 1 to 128 characters")
        self.client_id = client_id
        self.clean_start = clean_start
        self._broker = broker
        self._will = will
        self._up = threading.Event()
        self._wire = threading.Lock()
        self._awaited: list[Acknowledgement] = []
        self._events: queue.SimpleQueue[_Kept | bool | Acknowledgement | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def connect(self, timeout_s: float = 10.0, *, keep_trying: bool = False) -> None:
        """As `Transport.connect`; a broker that does not run refuses at once."""
        if self._closed:
            raise LinkError(f"{self.address}: this transport was closed", "Make a new transport.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"memory {self.client_id}", daemon=True)
            self._thread.start()
        try:
            self._broker.attach(self, clean=self.clean_start)
        except LinkError:
            if keep_trying:
                self._broker.remember(self)
            raise
        if not self.wait_connected(timeout_s):
            raise LinkError(f"{self.address}: cannot connect: no answer within {timeout_s:g} s")

    def close(self) -> None:
        """As `Transport.close`."""
        if self._closed:
            return
        self._closed = True
        self._broker.detach(self, polite=True, will=None)
        self._events.put(None)
        if self._thread is not None and not self._on_network_thread():
            self._thread.join(timeout=5.0)

    @property
    def connected(self) -> bool:
        """As `Transport.connected`."""
        return self._up.is_set()

    def drop_link(self) -> None:
        """Play a lost network: the will is published, and the link comes back at once."""
        self._broker.detach(self, polite=False, will=self._will)
        self.enqueue_link(False)
        if self._broker.running:
            self._broker.attach(self, clean=False)

    def enqueue(self, kept: _Kept) -> None:
        """The broker's side: a message for this client."""
        self._events.put(kept)

    def unread(self) -> list[_Kept]:
        """The broker's side: the messages that this client has not seen yet, taken out of its queue."""
        events: list[_Kept | bool | Acknowledgement | None] = []
        while not self._events.empty():
            events.append(self._events.get())
        for event in events:
            if not isinstance(event, _Kept):
                self._events.put(event)
        return [event for event in events if isinstance(event, _Kept)]

    def enqueue_link(self, up: bool) -> None:
        """The broker's side: the link is there, or lost."""
        if not up:
            self._up.clear()
        self._events.put(up)

    def _send(self, outgoing: Outgoing, acknowledgement: Acknowledgement) -> None:
        self._broker.route(outgoing)
        acknowledgement.settle()

    def _subscribe(self, topic_filter: str, acknowledgement: Acknowledgement) -> None:
        with self._wire:
            self._awaited.append(acknowledgement)
            if self._up.is_set():
                self._broker.subscribe(self, topic_filter)
                self._answer()

    def _unsubscribe(self, topic_filter: str) -> None:
        self._broker.unsubscribe(self, topic_filter)

    def _on_network_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _answer(self) -> None:
        """Settle subscriptions in order with the messages that they brought."""
        for acknowledgement in self._awaited:
            self._events.put(acknowledgement)
        self._awaited.clear()

    def _refuse(self, kept: _Kept) -> None:
        self._tell_storing(False)
        self._up.clear()
        self._broker.take_back(self, kept)
        self._notify(False)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                event = self._events.get(timeout=None if self._stores else SETTLED_S if self._up.is_set() else pause_s)
            except queue.Empty:
                if self._up.is_set():
                    self._tell_storing(True)
                    pause_s = FIRST_PAUSE_S
                else:
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                    with contextlib.suppress(LinkError):
                        self._broker.attach(self, clean=False)
                continue
            if event is None:
                self._up.clear()
                return
            if isinstance(event, _Kept):
                if not self._deliver(event.message):
                    self._refuse(event)
            elif isinstance(event, Acknowledgement):
                event.settle()
            elif event:
                with self._wire:
                    self._begin_connection()
                    self._up.set()
                    for topic_filter in self._filters():
                        self._broker.subscribe(self, topic_filter)
                    self._answer()
                self._notify(True)
            else:
                self._up.clear()
                self._notify(False)
