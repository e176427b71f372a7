"""TUF over MQTT: a fetcher for python-tuf that reads retained messages, and asks the controller for longer files.

MQTT has no 404. A file counts as absent only when that is proven: its topic was subscribed to, a message to oneself
(the barrier) was sent behind the subscription and came back on the same connection, and nothing was retained. A
time-out proves nothing and fails the download. (The proof is as good as the broker's word: one that lies can hold a
device back until its metadata runs out, as any server can.)

Every refresh asks for the next root, which is usually absent. ``timestamp.json`` is looked up just before it, in the
same round trip: the controller publishes the timestamp last, so where it is present every root it needs is, and the
answer serves the request for the timestamp that follows. A warm check is one round trip.
"""

from __future__ import annotations

import contextlib
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface

from kasmina_edge.contracts.topics import Topics
from kasmina_edge.contracts.transfer import ChunkRequest, ChunkResponse
from kasmina_edge.errors import BundleError, InputError, KasminaError, LinkError
from kasmina_edge.transport.transport import Acknowledgement, Message, Transport
from kasmina_edge.updates.chunks import ChunkWindow

MAX_FILE_BYTES = 1024 * 1024 * 1024
TIMESTAMP = "timestamp.json"
PREFETCH_LIFE_S = 5.0
LOOK_S = 0.1
"""Longest single wait: so late is a stop, or a link that was lost, noticed."""

_URL = re.compile(r"^[a-z-]+://[^/]*/(metadata|targets)/([A-Za-z0-9._@-][A-Za-z0-9._@/%-]*)$")
_ROOT = re.compile(r"^\d+\.root\.json$")


@dataclass(frozen=True)
class _Lookup:
    """What was retained, by topic; a topic that is not in it was absent while all of this was true."""

    found: dict[str, bytes]
    at_s: float


class MqttFetcher(FetcherInterface):
    """Serves ``SCHEME://.../metadata/NAME`` and ``SCHEME://.../targets/HASH-PREFIXED-PATH``.

    Args:
        transport: Connected, or about to be.
        topics: The site.
        device: Whose request, response and barrier topics are used.
        timeout_s: Longest wait for the broker, and for the next chunk of a long file.
        retry_s: A chunk that took longer is asked for again.
        window: Chunks in flight.
        clock: Monotonic seconds.
        stop: Once it is set, every download ends within 0.2 s with a LinkError as its cause.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        device: str,
        *,
        timeout_s: float = 10.0,
        retry_s: float = 2.0,
        window: int = 8,
        clock: Callable[[], float] = time.monotonic,
        stop: threading.Event | None = None,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._device = device
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._window = window
        self._clock = clock
        self._stop = stop
        self._limit_bytes = MAX_FILE_BYTES
        self._timestamp: _Lookup | None = None

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class; a file that announces more than ``max_length`` bytes is not even begun."""
        self._limit_bytes = max_length
        with super().download_file(url, max_length) as stream:
            yield stream

    def _fetch(self, url: str) -> Iterator[bytes]:
        match = _URL.match(url)
        if match is None or ".." in match[2].split("/"):
            raise exceptions.DownloadError(f"{url}: expected .../metadata/NAME or .../targets/PATH")
        place = cast('Literal["metadata", "targets"]', match[1])
        name = match[2]
        limit_bytes, self._limit_bytes = self._limit_bytes, MAX_FILE_BYTES
        try:
            if place == "metadata" and _ROOT.match(name):
                return iter((self._root(name),))
            data = self._retained(place, name)
        except KasminaError as exc:
            raise exceptions.DownloadError(exc.message) from exc
        return iter((data,)) if data is not None else self._long_file(place, name, limit_bytes)

    def _root(self, name: str) -> bytes:
        """A root, or the proof that there is none.

        Raises:
            DownloadHTTPError: 404, proven.
            LinkError: Nothing is published here, so that absence would mean nothing.
        """
        root, timestamp = self._topics.metadata(name), self._topics.metadata(TIMESTAMP)
        looked = self._look_up((timestamp, root))
        if root in looked.found:
            return looked.found[root]
        if timestamp not in looked.found:
            raise LinkError(
                f"{self._transport.address}: no update repository is published at {timestamp}",
                "Start the controller of this site, then try again.",
            )
        self._timestamp = looked
        raise exceptions.DownloadHTTPError(f"{name}: absent, proven by the barrier", 404)

    def _retained(self, place: str, name: str) -> bytes | None:
        """What the broker has kept under this name; None when it is proven to have nothing."""
        topic = self._topics.metadata(name) if place == "metadata" else self._topics.target(name)
        known, self._timestamp = self._timestamp, None
        if known is not None and topic in known.found and self._clock() - known.at_s <= PREFETCH_LIFE_S:
            return known.found[topic]
        return self._look_up((topic,)).found.get(topic)

    # Retained messages ----------------------------------------------------------------------------------------------

    def _look_up(self, topics: Sequence[str]) -> _Lookup:
        """Everything retained under exact topics, read in this order in one round trip.

        Raises:
            LinkError: The broker did not answer in time, or refused; or the fetcher was stopped.
        """
        deadline = self._clock() + self._timeout_s
        while True:
            self._check_stop(topics[-1])
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise LinkError(
                    f"{self._transport.address}: no answer within {self._timeout_s:g} s while reading {topics[-1]}"
                )
            if not self._transport.wait_connected(min(left_s, LOOK_S)):
                continue
            found = self._try_look_up(topics, deadline)
            if found is not None:
                return found

    @property
    def _stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _check_stop(self, where: str) -> None:
        """Raise LinkError when nobody waits for an answer any more."""
        if self._stopped:
            raise LinkError(f"{self._transport.address}: stopped while reading {where}", "Start it again.")

    def _try_look_up(self, topics: Sequence[str], deadline: float) -> _Lookup | None:
        """One try; None when the link changed under it, the time is over, or the fetcher was stopped."""
        links = self._transport.connections
        found: dict[str, bytes] = {}
        acknowledgements: list[Acknowledgement] = []
        nonce = secrets.token_bytes(16)
        returned = threading.Event()
        complete = False

        def keep(message: Message) -> None:
            if message.payload and not returned.is_set():
                found[message.topic] = message.payload

        def end(message: Message) -> None:
            nonlocal complete
            if message.correlation == nonce and not returned.is_set():
                complete = all(a.done for a in acknowledgements)
                returned.set()

        barrier = self._topics.barrier(self._device)
        try:
            acknowledgements.extend([self._transport.subscribe(topic, keep) for topic in topics])
            acknowledgements.append(self._transport.subscribe(barrier, end))  # last: iotcore answers in this order
            self._transport.publish(barrier, b"barrier", correlation=nonce, expiry_s=self._timeout_s)
            if not self._wait(returned, links, deadline):
                return None
        except LinkError:
            if self._transport.connected and self._transport.connections == links:
                raise
            return None
        finally:
            self._transport.unsubscribe(barrier, end)
            for topic in topics:
                self._transport.unsubscribe(topic, keep)
        for acknowledgement in acknowledgements:
            if acknowledgement.done:
                acknowledgement.wait(0)
        if not complete or self._transport.connections != links:
            return None
        return _Lookup(dict(found), self._clock())

    def _wait(self, event: threading.Event, links: int, deadline: float) -> bool:
        """Wait for the barrier, and give up early when the link it was sent on is gone or a stop is wanted."""
        while not event.is_set():
            left_s = deadline - self._clock()
            if left_s <= 0 or self._stopped or self._transport.connections != links:
                return False
            event.wait(min(left_s, LOOK_S))
        return True

    # Long files -----------------------------------------------------------------------------------------------------

    def _long_file(self, place: Literal["metadata", "targets"], name: str, limit_bytes: int) -> Iterator[bytes]:
        """Chunks from the controller, in order; goes on at the same offset after a lost link.

        Raises:
            DownloadError: No chunk came for ``timeout_s`` seconds, the controller contradicts itself, or a stop is
                wanted.
            DownloadHTTPError: 404, the controller's word.
        """
        answers: queue.SimpleQueue[ChunkResponse | InputError] = queue.SimpleQueue()
        transfer = secrets.token_bytes(16)
        topic = self._topics.response(self._device)

        def take(message: Message) -> None:
            if message.correlation == transfer:
                try:
                    answers.put(ChunkResponse.from_bytes(message.payload, where=message.topic))
                except InputError as exc:
                    answers.put(exc)

        window = ChunkWindow(limit_bytes=limit_bytes, window=self._window, retry_s=self._retry_s)
        self._transport.subscribe(topic, take)
        try:
            yield from self._chunks(place, name, transfer, window, answers)
        except BundleError as exc:
            raise exceptions.DownloadLengthMismatchError(exc.message) from exc
        except KasminaError as exc:
            raise exceptions.DownloadError(exc.message) from exc
        finally:
            self._transport.unsubscribe(topic, take)

    def _chunks(
        self,
        place: Literal["metadata", "targets"],
        name: str,
        transfer: bytes,
        window: ChunkWindow,
        answers: queue.SimpleQueue[ChunkResponse | InputError],
    ) -> Iterator[bytes]:
        progress_s = self._clock()
        links = self._transport.connections
        while not window.done:
            self._check_stop(name)
            if self._transport.connections != links:
                links = self._transport.connections
                window.forget_asked()
            if self._transport.connected:
                for offset in window.due(self._clock()):
                    self._ask(ChunkRequest(place=place, path=name, offset=offset, length=window.chunk_bytes), transfer)
            answer = _next(answers, min(self._retry_s, LOOK_S))
            if isinstance(answer, InputError):
                raise answer
            if answer is not None and answer.status == "absent":
                raise exceptions.DownloadHTTPError(f"{name}: the controller does not have it", 404)
            if answer is not None and window.take(answer, where=name):
                progress_s = self._clock()
                yield from window.ready()
            elif self._clock() - progress_s > self._timeout_s:
                read = "nothing" if window.total_bytes is None else f"a part of {window.total_bytes} bytes"
                raise LinkError(
                    f"{self._transport.address}: {name}: {read} arrived, then no chunk for {self._timeout_s:g} s",
                    "Check that the controller of this site runs, then try again.",
                )

    def _ask(self, request: ChunkRequest, transfer: bytes) -> None:
        with contextlib.suppress(LinkError):  # lost in this moment: asked again after the reconnect
            self._transport.publish(
                self._topics.request(self._device),
                request.to_bytes(),
                correlation=transfer,
                response_topic=self._topics.response(self._device),
                expiry_s=self._timeout_s,
            )


def _next(answers: queue.SimpleQueue[Any], timeout_s: float) -> ChunkResponse | InputError | None:
    try:
        return cast("ChunkResponse | InputError", answers.get(timeout=timeout_s))
    except queue.Empty:
        return None
