"""From the outbox to the controller: telemetry in batches, all else one message an entry, forgotten after PUBACK.

A broker acknowledges what nobody reads. Where the controller has said that it is away (its will, retained on
``repo/controller``), everything stays in the outbox until it is back; where it never said anything, everything is sent.

A batch is a JSON object ``{"format": 1, "dropped": N, "records": [...]}`` under zlib (RFC 1950); its content type is
``application/json+zlib``. Delivery is at least once: the reader tells repeated records by boot, source and sequence.
"""

from __future__ import annotations

import json
import logging
import random
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from kasmina_edge.contracts.presence import ControllerState
from kasmina_edge.contracts.record import MAX_COUNT, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.telemetry.outbox import Entry, Outbox
from kasmina_edge.transport.transport import Message, Transport

log = logging.getLogger(__name__)

STATS = "stats"
EVENT = "event"
ALERT = "alert"
BATCH_CONTENT_TYPE = "application/json+zlib"
EVENT_CONTENT_TYPE = "application/json"
OTHER_CONTENT_TYPE = "application/octet-stream"
BATCH_RECORDS = 60
MAX_BATCH_BYTES = 128 * 1024
MAX_DECODED_BYTES = 4 * 1024 * 1024
MAX_DECODED_RECORDS = 1000
MESSAGES_A_PUMP = 32
LOOK_BACK = 2000
"""Entries of earlier runs that a new publisher shows the device itself, at most."""
PAGES_A_PUMP = 4
PATIENCE = 3
"""A stream that failed so many times in a row gives the others a turn."""
RESUME_S = 5.0
"""A fleet that waited for its controller comes back spread over so many seconds."""
LISTEN_S = 2.0
"""After a new connection the controller's retained state has so many seconds to arrive."""


def encode_batch(payloads: Sequence[bytes], *, dropped: int = 0) -> bytes:
    """Canonical records as one message.

    Args:
        payloads: JSON of one `TelemetryRecord` each.
        dropped: Entries that this device's outbox ever dropped unsent.
    """
    return zlib.compress(b'{"format":1,"dropped":%d,"records":[%s]}' % (dropped, b",".join(payloads)), 6)


def decode_batch(payload: bytes) -> list[TelemetryRecord]:
    """The records of one message; ``dropped_records`` of each includes what the device's outbox had dropped.

    Raises:
        InputError: Longer than 4 MiB or 1000 records when decompressed, truncated, not JSON, not records, or a count of
            dropped entries that no record may have.
    """
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(payload, MAX_DECODED_BYTES)
    except zlib.error as exc:
        raise InputError(f"telemetry batch of {len(payload)} bytes: not zlib ({exc})") from exc
    if stream.unconsumed_tail:
        raise InputError(f"telemetry batch of {len(payload)} bytes: grows beyond {MAX_DECODED_BYTES} bytes")
    if not stream.eof or stream.unused_data:
        raise InputError(f"telemetry batch of {len(payload)} bytes: truncated, or followed by something else")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"telemetry batch: not valid JSON ({exc})") from exc
    records = value.get("records") if isinstance(value, dict) else None
    dropped = value.get("dropped", 0) if isinstance(value, dict) else None
    if not isinstance(records, list) or not isinstance(dropped, int) or isinstance(dropped, bool):
        raise InputError("telemetry batch: expected an object with a list `records` and a count `dropped`")
    if not 0 <= dropped <= MAX_COUNT:
        raise InputError(f"telemetry batch: expected an object with a count `dropped` of 0 to {MAX_COUNT}")
    if value.get("format") != 1:
        raise InputError(f"telemetry batch: format {value.get('format')!r}, this program reads format 1")
    if len(records) > MAX_DECODED_RECORDS:
        raise InputError(f"telemetry batch: {len(records)} records, at most {MAX_DECODED_RECORDS} are read")
    found = [TelemetryRecord.parse(r, where=f"telemetry batch: records[{i}]") for i, r in enumerate(records)]
    if not dropped:
        return found
    return [
        TelemetryRecord.parse(
            {**record.model_dump(), "dropped_records": record.dropped_records + dropped},
            where=f"telemetry batch: records[{i}]",
        )
        for i, record in enumerate(found)
    ]


@dataclass
class _Stuck:
    """A stream whose last message could not be sent; ``alone``: another one's could, since then."""

    failures: int = 0
    alone: bool = False
    paused_at: float = 0.0
    pause: float = 0.0
    told: bool = False


class Publisher:
    """Sends what the outbox holds; entries are forgotten only after the broker has acknowledged them.

    A stream that a broker refuses does not hold up the others: after `PATIENCE` failures in a row they have their turn,
    and once one of them gets through, the refused one is paused by itself. Inside a stream the order stays.

    Args:
        outbox: Where entries come from: stream ``stats`` holds telemetry records, ``event`` audit events; any other
            stream goes to its own topic ``t/<stream>`` as it is, ``alert`` as JSON.
        transport: A link that reconnects by itself.
        topics: The site's topics.
        device: This device.
        clock: Seconds; entries wait and failures are paused by it.
        rng: Spreads the pauses of many devices.
        batch_records: Most records a message.
        linger_s: A batch that is not full waits so long for company, in seconds.
        wait_s: Longest wait for a PUBACK, in seconds.
        pause_s: First and longest pause after a failure, in seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        topics: Topics,
        device: str,
        clock: Callable[[], float] = time.time,
        *,
        rng: random.Random | None = None,
        batch_records: int = BATCH_RECORDS,
        linger_s: float = 1.0,
        wait_s: float = 5.0,
        pause_s: tuple[float, float] = (0.5, 60.0),
    ) -> None:
        if batch_records < 1 or linger_s < 0 or not 0 < pause_s[0] <= pause_s[1]:
            raise InputError(f"publisher: batch_records {batch_records}, linger_s {linger_s}, pause_s {pause_s}")
        self._outbox, self._transport, self._topics, self._device = outbox, transport, topics, device
        self._clock, self._rng = clock, rng or random.Random()
        self._batch_records, self._linger_s, self._wait_s, self._pause_s = batch_records, linger_s, wait_s, pause_s
        self._failures = 0
        self._stuck: dict[str, _Stuck] = {}  # the one that failed longest ago comes first
        self._paused_at: float | None = None
        self._pause = 0.0
        self._observed: int | None = None
        self._away_on: int | None = None  # the connection on which the controller was last heard to be away
        self._link: tuple[int, float] = (-1, 0.0)
        self._waits_for = ""
        transport.subscribe(topics.controller(), self._on_controller)

    @property
    def waits_for(self) -> str:
        """What holds up the sending, as of the last pump: ``link``, ``controller``, ``pause``, or nothing."""
        return self._waits_for

    def pump(self, *, observe: Callable[[list[TelemetryRecord]], None] | None = None, force: bool = False) -> int:
        """Send what is due; to be called now and then, from one thread.

        Args:
            observe: Sees every telemetry record once after it was appended, sent or not: the device's own use of them.
            force: Do not wait for a batch to fill.

        Returns:
            Entries that were sent and acknowledged; 0 while the link is down, the controller is away, or a failure is
            being waited out.

        Raises:
            StorageError: The outbox cannot be read or written.
        """
        if observe is not None:
            self._show(observe)
        waits_for = self._obstacle()
        if waits_for == "controller" != self._waits_for:
            log.info("telemetry waits: the controller is away")
        self._waits_for = waits_for
        if waits_for:
            return 0
        sent = 0
        for _ in range(MESSAGES_A_PUMP):
            batch = self._next(force)
            if not batch:
                break
            stream = batch[0].stream
            try:
                arrived = self._send(batch)
            except LinkError as exc:
                self._fail(stream, exc)
                if self._paused_at is not None:
                    break
                continue
            sent += arrived
            self._failures = 0
            self._stuck.pop(stream, None)
            if arrived:
                for stuck in self._stuck.values():
                    stuck.alone = True
        return sent

    def _next(self, force: bool) -> list[Entry]:
        """The entries of the next message, of a stream whose turn it is; none where nothing is due."""
        now = self._clock()
        resting = [s for s, stuck in self._stuck.items() if stuck.alone and 0.0 <= now - stuck.paused_at < stuck.pause]
        patient = [s for s, stuck in self._stuck.items() if not stuck.alone and stuck.failures >= PATIENCE]
        batch = self._due([*resting, *patient], force)
        for stream in patient:
            batch = batch or self._due((), force, only=stream)
        return batch

    def _due(self, without: Collection[str], force: bool, only: str | None = None) -> list[Entry]:
        """A due batch, or one entry of another stream."""
        waiting = self._outbox.peek(self._batch_records, MAX_BATCH_BYTES, stream=only, without=without)
        if not waiting:
            return []
        if waiting[0].stream != STATS:
            return waiting[:1]
        batch = [entry for entry in waiting if entry.stream == STATS]
        waited = self._clock() - batch[0].at_s
        if force or len(waiting) >= self._batch_records or not 0.0 <= waited < self._linger_s:
            return batch
        return next(([entry] for entry in waiting if entry.stream != STATS), [])

    def _send(self, batch: list[Entry]) -> int:
        stream = batch[0].stream
        try:
            if stream == STATS:
                return self._send_records(batch)
            topic = self._topics.telemetry(self._device, stream)
            kind = EVENT_CONTENT_TYPE if stream == ALERT else OTHER_CONTENT_TYPE
            if stream == EVENT:
                topic, kind = self._topics.event(self._device), EVENT_CONTENT_TYPE
            self._transport.publish(topic, batch[0].payload, content_type=kind, wait_s=self._wait_s)
        except InputError as exc:
            log.warning("outbox entries of stream %s can never be sent and are dropped: %s", stream, exc.message)
            self._outbox.acknowledge((entry.id for entry in batch), dropped=True)
            return 0
        return self._outbox.acknowledge(entry.id for entry in batch)

    def _send_records(self, batch: list[Entry]) -> int:
        readable = [entry for entry in batch if _record(entry) is not None]
        spoiled = {entry.id for entry in batch} - {entry.id for entry in readable}
        if spoiled:
            self._outbox.acknowledge(spoiled, dropped=True)
        if not readable:
            return 0
        payload = encode_batch([entry.payload for entry in readable], dropped=self._outbox.dropped())
        topic = self._topics.telemetry(self._device, STATS)
        self._transport.publish(topic, payload, content_type=BATCH_CONTENT_TYPE, wait_s=self._wait_s)
        return self._outbox.acknowledge(entry.id for entry in readable)

    def _show(self, observe: Callable[[list[TelemetryRecord]], None]) -> None:
        if self._observed is None:
            self._observed = max(0, self._outbox.newest() - LOOK_BACK)
        for _ in range(PAGES_A_PUMP):
            entries = self._outbox.newer(self._observed, MAX_DECODED_RECORDS, stream=STATS)
            if not entries:
                return
            self._observed = entries[-1].id
            records = [record for record in map(_record, entries) if record is not None]
            if records:
                observe(records)

    def _obstacle(self) -> str:
        if not self._transport.connected:
            return "link"
        if self._controller_away():
            return "controller"
        return "pause" if self._pausing() else ""

    def _controller_away(self) -> bool:
        """What was heard on an earlier connection holds until its retained state has had the time to arrive again."""
        connections, now = self._transport.connections, self._clock()
        if connections != self._link[0]:
            self._link = (connections, now)
        away_on = self._away_on
        if away_on is None:
            return False
        if away_on == connections or 0.0 <= now - self._link[1] < LISTEN_S:
            return True
        self._away_on = None  # nothing is retained any more: not known
        return False

    def _on_controller(self, message: Message) -> None:
        """On the network thread."""
        try:
            online = not message.payload or ControllerState.from_bytes(message.payload, where=message.topic).online
        except InputError as exc:
            log.warning("%s", exc.message)
            return
        if not online:
            self._away_on = self._transport.connections
        elif self._away_on is not None:
            self._pause, self._paused_at = self._rng.uniform(0.0, RESUME_S), self._clock()
            self._away_on = None

    def _pausing(self) -> bool:
        if self._paused_at is None:
            return False
        if 0.0 <= self._clock() - self._paused_at < self._pause:
            return True
        self._paused_at = None  # the pause is over, or the clock was set back
        return False

    def _fail(self, stream: str, exc: LinkError) -> None:
        """Pause the stream if it is known that others get through, else everything."""
        stuck = self._stuck[stream] = self._stuck.pop(stream, _Stuck())
        first, longest = self._pause_s
        ceiling = min(longest, first * 2.0 ** min(stuck.failures if stuck.alone else self._failures, 30))
        stuck.failures += 1
        stuck.pause, stuck.paused_at = ceiling * self._rng.uniform(0.5, 1.0), self._clock()
        if stuck.alone:
            level = logging.INFO if stuck.told else logging.WARNING
            stuck.told = True
            log.log(level, "stream %s waits %.1f s, others are sent: %s", stream, stuck.pause, exc.message)
            return
        self._pause, self._paused_at = stuck.pause, stuck.paused_at
        self._failures += 1
        log.info("telemetry waits %.1f s: %s", self._pause, exc.message)


def _record(entry: Entry) -> TelemetryRecord | None:
    try:
        return TelemetryRecord.from_bytes(entry.payload, where=f"outbox entry {entry.id}")
    except InputError as exc:
        log.warning("%s", exc.message)
        return None
