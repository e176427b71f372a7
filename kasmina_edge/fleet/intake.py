"""What devices say: checked against size and contract, against whose topic it came on, then stored.

A device can only speak for itself: the device id inside a payload must be the one of its topic, which the broker's
access rules tie to the user name. What does not hold is dropped, counted by reason, and logged; it never ends the
controller. What holds and cannot be stored (a full disk) goes back to the transport, which does not acknowledge it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from kasmina_edge.contracts.record import DeviceAlert, DeviceState, Reported, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, KasminaError, StorageError
from kasmina_edge.telemetry.publisher import decode_batch
from kasmina_edge.transport.transport import Message, Transport

log = logging.getLogger(__name__)

MAX_STATUS_BYTES = 64 * 1024
MAX_EVENT_BYTES = 64 * 1024
_NOT_THE_DISK = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
)  # fmt: skip


class Store(Protocol):
    """What the intake needs of a `FleetStore`."""

    def record_telemetry(self, records: list[TelemetryRecord]) -> object:
        """Keep records; repeated ones change nothing."""

    def set_reported(self, reported: Reported) -> object:
        """Keep what a device says it runs."""

    def set_state(self, state: DeviceState) -> object:
        """Keep whether a device is online."""

    def add_alert(self, alert: DeviceAlert) -> object:
        """Keep what a device raised or cleared."""

    def add_event(self, device: str, payload: bytes) -> object:
        """Keep one audit event."""

    def add_capture(self, device: str, payload: bytes) -> object:
        """Keep one sealed capture."""


class Intake:
    """Subscribes to every device of a site and stores what holds.

    Args:
        transport: Where messages come from; its network thread does the storing, so that a message is acknowledged
            to the broker only after it was stored.
        topics: The site.
        store: Where it goes.
    """

    def __init__(self, transport: Transport, topics: Topics, store: Store) -> None:
        self._transport = transport
        self._topics = topics
        self._store = store
        self._lock = threading.Lock()
        self._dropped: Counter[str] = Counter()
        self._devices: set[str] = set()

    @property
    def dropped(self) -> dict[str, int]:
        """How many messages were dropped, by reason."""
        with self._lock:
            return dict(self._dropped)

    @property
    def devices(self) -> frozenset[str]:
        """Every device that was heard since the start."""
        with self._lock:
            return frozenset(self._devices)

    def subscribe(self) -> None:
        """Begin; before the transport connects, so that nothing that waited in the session is missed."""
        for leaf, take in {
            "state": self._state,
            "reported": self._reported,
            "ev": self._event,
            "t/stats": self._telemetry,
            "t/alert": self._alert,
            "t/capture": self._capture,
        }.items():
            self._transport.subscribe(self._topics.device("+", leaf), self.guarded(take, stores=True))

    def guarded(self, take: Callable[[str, Message], object], *, stores: bool = False) -> Callable[[Message], None]:
        """A handler that calls ``take(device, message)``, and drops and counts what it refuses.

        With ``stores`` the handler raises StorageError where the message holds and the disk refused it.
        """

        def handle(message: Message) -> None:
            device = self._topics.device_of(message.topic)
            if not message.payload:
                return  # a retained message was deleted
            try:
                if device is None:
                    raise InputError(f"{message.topic}: not a device id of 1 to 32 of a-z, 0-9 and -")
                take(device, message)
            except StorageError as exc:
                if stores and not isinstance(exc.__cause__, _NOT_THE_DISK):
                    raise
                self._drop(exc, message)  # the same message would be refused for ever
            except KasminaError as exc:
                self._drop(exc, message)
            else:
                with self._lock:
                    self._devices.add(device)

        return handle

    def _drop(self, exc: KasminaError, message: Message) -> None:
        with self._lock:
            self._dropped[exc.kind] += 1
            count = self._dropped[exc.kind]
        log.warning(
            "dropped a message: %s", exc.message, extra={"topic": message.topic, "reason": exc.kind, "dropped": count}
        )

    def _state(self, device: str, message: Message) -> None:
        state = DeviceState.from_bytes(_short(message, MAX_STATUS_BYTES), where=message.topic)
        _require_own(device, state.device, message)
        self._store.set_state(state)

    def _reported(self, device: str, message: Message) -> None:
        reported = Reported.from_bytes(_short(message, MAX_STATUS_BYTES), where=message.topic)
        _require_own(device, reported.device, message)
        self._store.set_reported(reported)

    def _alert(self, device: str, message: Message) -> None:
        alert = DeviceAlert.from_bytes(_short(message, MAX_STATUS_BYTES), where=message.topic)
        _require_own(device, alert.device, message)
        self._store.add_alert(alert)

    def _telemetry(self, device: str, message: Message) -> None:
        records = decode_batch(message.payload)
        for record in records:
            _require_own(device, record.device, message)
        self._store.record_telemetry(records)

    def _event(self, device: str, message: Message) -> None:
        try:
            value = json.loads(_short(message, MAX_EVENT_BYTES))
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{message.topic}: not valid JSON ({exc})") from exc
        if not isinstance(value, dict) or not isinstance(value.get("event"), str):
            raise InputError(f"{message.topic}: expected an object with a text `event`")
        _require_own(device, value.get("device"), message)
        self._store.add_event(device, message.payload)

    def _capture(self, device: str, message: Message) -> None:
        self._store.add_capture(device, message.payload)


def _short(message: Message, limit_bytes: int) -> bytes:
    if len(message.payload) > limit_bytes:
        raise InputError(f"{message.topic}: {len(message.payload)} bytes, at most {limit_bytes} are read")
    return message.payload


def _require_own(device: str, claimed: object, message: Message) -> None:
    if claimed != device:
        raise InputError(f"{message.topic}: speaks for {claimed!r}, a device speaks for itself alone")
