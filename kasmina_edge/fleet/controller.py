"""The controller's loop: publish what the repository signed, nudge devices, serve long files, store what devices say.

The broker is a cache that may vanish: after every connection everything retained is published again. The timestamp goes
last, when the broker has acknowledged all that it vouches for, so that a device never reads of what is not there yet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.record import Desired
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.contracts.transfer import ChunkResponse
from kasmina_edge.errors import InputError, KasminaError, LinkError
from kasmina_edge.fleet.chunk_server import ChunkServer
from kasmina_edge.fleet.intake import Intake, Store
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.transport.transport import Message, Transport

log = logging.getLogger(__name__)

RETAINED_BYTES = 64 * 1024
WHOLE_MODELS = (".tflite", ".onnx")
RENEWAL_S = 600.0
LONGEST_PAUSE_S = 5.0
TIMESTAMP = "timestamp.json"


def is_retained(path: str, size_bytes: int, limit_bytes: int = RETAINED_BYTES) -> bool:
    """Whether a target is small and needed often enough to be kept by the broker; whole models never are.

    >>> is_retained("grafts/d/2/ab.d.tflite.0123.delta", 5000), is_retained("bundles/d/1/ab.d.tflite", 5000)
    (True, False)
    """
    return 0 < size_bytes <= limit_bytes and not path.endswith(WHOLE_MODELS)


def order_of_publication(
    wanted: Mapping[str, bytes], published: Mapping[str, str], *, last: str
) -> list[tuple[str, bytes]]:
    """What has to be published, ``last`` at the end.

    Args:
        wanted: Payloads by topic.
        published: SHA-256 by topic of what the broker is known to have.
        last: The topic that vouches for all others; it follows whenever another one changed.
    """
    news = [
        (topic, data) for topic, data in wanted.items() if topic != last and published.get(topic) != sha256_hex(data)
    ]
    if last in wanted and (news or published.get(last) != sha256_hex(wanted[last])):
        news.append((last, wanted[last]))
    return news


class Controller:
    """One site's controller.

    Args:
        repository_folder: Made by ``fleet init``.
        transport: Best not connected yet: `run` connects it after the subscriptions are in place.
        topics: The site.
        store: Where telemetry, reports, states, events and captures go.
        clock: Seconds since 1970 UTC.
        poll_s: How often the repository's marker is looked at; one ``stat`` each time.
        retained_bytes: Longest target that the broker is asked to keep.
        wait_s: Longest wait for the broker's acknowledgement of one message.
        serve: Answers chunk requests; made from the repository when None.
    """

    def __init__(
        self,
        repository_folder: Path,
        transport: Transport,
        topics: Topics,
        store: Store,
        clock: Callable[[], float],
        *,
        poll_s: float = 0.2,
        retained_bytes: int = RETAINED_BYTES,
        wait_s: float = 10.0,
        serve: ChunkServer | None = None,
    ) -> None:
        self._repository = Repository.open(repository_folder, clock=clock)
        self._transport = transport
        self._topics = topics
        self._clock = clock
        self._poll_s = poll_s
        self._retained_bytes = retained_bytes
        self._wait_s = wait_s
        self._server = serve or ChunkServer(self._repository.target_bytes, clock=time.monotonic)
        self.intake = Intake(transport, topics, store)
        self._wake = threading.Event()
        self._published: dict[str, str] = {}
        self._outgoing: frozenset[str] = frozenset()
        self._marker = ""
        self._links = -1
        self._renewed_s = float("-inf")
        self.publications = 0
        self.intake.subscribe()
        transport.subscribe(topics.device("+", "req"), self.intake.guarded(self._answer))
        transport.on_connection(lambda connected: self._wake.set() if connected else None)

    def run(self, stop: threading.Event, *, ready: threading.Event | None = None) -> None:
        """Work until ``stop`` is set; a lost broker or an unreadable repository never ends the loop.

        Args:
            stop: Ends it within a poll.
            ready: Set after the first complete publication.
        """
        if not self._transport.connected:
            self._try("connect", lambda: self._transport.connect(self._wait_s, keep_trying=True))
        pause_s = self._poll_s
        while not stop.is_set():
            well = self._try("renewal", self._renew)
            if self._transport.connected and well:
                well = self._try("publication", self._publish_news)
                if well and ready is not None:
                    ready.set()
            pause_s = self._poll_s if well else min(pause_s * 2, LONGEST_PAUSE_S)
            if well:
                self._wake.wait(pause_s)
            else:
                stop.wait(pause_s)
            self._wake.clear()

    def _try(self, what: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except KasminaError as exc:
            log.warning("%s: %s", what, exc.message, extra={"step": what, "next_step": exc.next_step})
            return False
        except Exception:
            log.exception("%s: a fault in Kasmina", what, extra={"step": what})
            return False
        return True

    def _renew(self) -> None:
        """Sign again what would run out, now and then."""
        now_s = self._clock()
        if abs(now_s - self._renewed_s) < RENEWAL_S:
            return
        self._renewed_s = now_s
        roles = self._repository.refresh_expiry()
        if roles:
            log.info("signed again: %s", ", ".join(roles), extra={"roles": list(roles)})

    # Publishing -----------------------------------------------------------------------------------------------------

    def _publish_news(self) -> None:
        marker, links = self._repository.marker(), self._transport.connections
        if marker == self._marker and links == self._links:
            return
        if links != self._links:
            self._published.clear()
        self._marker = ""
        metadata = self._repository.metadata_files()
        sizes = self._repository.target_sizes()
        self._server.offer(metadata, frozenset(sizes))
        wanted = self._wanted(metadata, sizes)
        sent = self._publish(wanted)
        self._nudge()
        self._forget(frozenset(wanted))
        if self._transport.connections == links:
            self._marker, self._links = marker, links
            self.publications += 1
            log.info("published", extra={"messages": sent, "kept": len(wanted), "metadata": len(metadata)})

    def _wanted(self, metadata: Mapping[str, bytes], sizes: Mapping[str, int]) -> dict[str, bytes]:
        wanted: dict[str, bytes] = {}
        for path, size_bytes in sizes.items():
            if is_retained(path, size_bytes, self._retained_bytes):
                wanted[self._topics.target(path)] = self._repository.target_bytes(path)
        for name, data in metadata.items():
            if 0 < len(data) <= self._transport.max_payload_bytes:
                wanted[self._topics.metadata(name)] = data
            elif name == TIMESTAMP or name.endswith("root.json"):
                raise InputError(f"{name}: {len(data)} bytes, at most {self._transport.max_payload_bytes} are retained")
        return wanted

    def _publish(self, wanted: Mapping[str, bytes]) -> int:
        news = order_of_publication(wanted, self._published, last=self._topics.metadata(TIMESTAMP))
        for topic, data in news:
            self._transport.publish(topic, data, retain=True, wait_s=self._wait_s)
            self._published[topic] = sha256_hex(data)
        return len(news)

    def _forget(self, wanted: frozenset[str]) -> None:
        """Delete what was no longer wanted at the publication before this one: a device may be reading the last."""
        repository = (self._topics.metadata(""), self._topics.target(""))
        known = {t for t in self._published if t.startswith(repository)}
        for topic in known & self._outgoing - wanted:
            self._transport.publish(topic, b"", retain=True, wait_s=self._wait_s)
            del self._published[topic]
        self._outgoing = frozenset(known - wanted)

    def _nudge(self) -> None:
        """Tell each device that something is there for it; what it is, the device reads from signed metadata."""
        releases = self._repository.recipients()
        anybody = max((r for who, r in releases.items() if who.startswith("@")), default=0)
        devices = {who for who in releases if not who.startswith("@")}
        for device in sorted(devices | (self.intake.devices if anybody else frozenset())):
            release = max(releases.get(device, 0), anybody)
            topic, seen = self._topics.desired(device), f"{release}"
            if self._published.get(topic) != seen:
                payload = Desired(release=release, at_s=self._clock()).to_bytes()
                self._transport.publish(topic, payload, retain=True, wait_s=self._wait_s)
                self._published[topic] = seen

    # Serving --------------------------------------------------------------------------------------------------------

    def _answer(self, device: str, message: Message) -> None:
        topic = self._topics.response(device)
        if message.correlation is None or message.response_topic not in (None, topic):
            raise InputError(f"{message.topic}: a request needs correlation data and {topic} as its response topic")
        response: ChunkResponse = self._server.answer(device, message.payload, where=message.topic)
        try:
            self._transport.publish(topic, response.to_bytes(), correlation=message.correlation, expiry_s=30.0)
        except LinkError as exc:
            log.info("an answer was lost: %s", exc.message, extra={"device": device})
