"""What the agent says about itself: birth and death, the report, the audit log's entries."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.record import DeviceState, Reported, Status
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import BundleError, KasminaError, LinkError, StorageError
from kasmina_edge.safety.audit import AuditLog, Head
from kasmina_edge.slots import Slot, SlotStore
from kasmina_edge.storage import write_durable
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.transport.transport import Transport

log = logging.getLogger(__name__)


@dataclass
class Report:
    """How the last update went; what was sent of it."""

    status: Status = "idle"
    reason: str = ""
    offered: str | None = None
    update_bytes: dict[str, int] | None = None
    update_seconds: float | None = None
    trace_id: str | None = None
    engine: str | None = None
    sequence: int = 0
    sent: bytes = b""


class Reporter:
    """Speaks for one device.

    Args:
        device: Its id.
        topics: Its site.
        store: Its slots.
        audit: Its audit log.
        outbox: Gives where audit entries wait to be sent.
        life: A random name of this data folder's life.
        clock: Wall clock, seconds since 1970 UTC.
        clock_ok: Whether that clock can be believed.
        guard: Runs a step and lets nothing out.
        anchor: Remembers the audit log's newest entry where a copied log cannot reach it.
    """

    def __init__(
        self,
        device: str,
        topics: Topics,
        store: SlotStore,
        audit: AuditLog,
        outbox: Callable[[], Outbox],
        life: str,
        *,
        clock: Callable[[], float],
        clock_ok: Callable[[], bool],
        guard: Callable[[str, Callable[[], object]], None],
        anchor: Callable[[Head], None] = lambda head: None,
    ) -> None:
        self.device = device
        self.report = Report()
        self.transport: Transport | None = None
        self.life = life
        self._topics, self._store, self._audit, self._outbox = topics, store, audit, outbox
        self._clock, self._clock_ok, self._guard, self._anchor = clock, clock_ok, guard, anchor
        self._rotten: dict[Slot | None, str] = {}
        self.spoiled: Callable[[KasminaError], None] = lambda error: None

    def will(self) -> bytes:
        """What the broker says when this device goes silent."""
        return DeviceState(device=self.device, online=False, boot=self._store.record().boot, life=self.life).to_bytes()

    def say_state(self, *, online: bool) -> None:
        """Publish birth or death, retained."""
        assert self.transport is not None
        boot = self._store.record().boot
        state = DeviceState(device=self.device, online=online, boot=boot, at_s=self._clock(), life=self.life)
        try:
            self.transport.publish(self._topics.state(self.device), state.to_bytes(), retain=True)
        except LinkError as exc:
            log.info("state not sent: %s", exc.message)

    def send(self) -> None:
        """Publish the report where it changed since it was last sent."""
        assert self.transport is not None
        if not self.transport.connected:
            return
        report = self._reported()
        content = report.model_copy(update={"at_s": 0.0, "sequence": 0}).to_bytes()
        if content == self.report.sent:
            return
        self.transport.publish(self._topics.reported(self.device), report.to_bytes(), retain=True)
        self.report.sent = content
        self.report.sequence += 1

    def set_status(self, status: Status, reason: str) -> None:
        """How the update stands; sent at once when the link is up."""
        if (status, reason) != (self.report.status, self.report.reason):
            log.info("update %s: %s", status, reason, extra={"device": self.device})
        self.report.status, self.report.reason = status, reason
        if self.transport is not None:
            self._guard("report", self.send)

    def note(self, event: str, **fields: Any) -> None:
        """Write the audit log, and send the entry to the controller; a disk that refuses both stops nothing."""
        body = self._body(event, fields)
        self._guard("audit", lambda: self._write(body, event, fields))
        self._guard("audit", lambda: self._send_event(body))

    def prove(self, event: str, **fields: Any) -> None:
        """As `note`, for what must stand in the audit log before anything goes on.

        Raises:
            StorageError: The disk refused; nothing was written.
        """
        body = self._body(event, fields)
        self._write(body, event, fields)
        self._guard("audit", lambda: self._send_event(body))

    def active(self) -> BundleManifest | None:
        """What is committed here; None when nothing is, or when its manifest rotted: anything whole is then news."""
        return self.held(self._store.record().active)

    def held(self, slot: Slot | None) -> BundleManifest | None:
        """What a slot holds; None when that is nothing, or a manifest that rotted, which is told."""
        try:
            return self._store.manifest(slot) if slot else None
        except BundleError as exc:
            if self._rotten.get(slot) != exc.message:
                log.warning("slot %s: %s", slot, exc.message)
            self._rotten[slot] = exc.message
            self.spoiled(exc)
            return None

    def _reported(self) -> Reported:
        record = self._store.record()
        active = self.active()
        previous = self.held(record.previous)
        audit = None
        with contextlib.suppress(StorageError):  # a damaged head is told by the log's own next entry
            audit = self._audit.head()
        return Reported(
            device=self.device,
            boot=record.boot,
            sequence=self.report.sequence,
            at_s=self._clock(),
            name=active.name if active else None,
            version=active.version if active else None,
            release=active.release if active else None,
            digest=active.digest() if active else None,
            previous=previous.id if previous else None,
            status=self.report.status,
            reason=self.report.reason,
            offered=self.report.offered,
            grafts=tuple(f"{g.blueprint}@{g.site}" for g in active.grafts) if active else (),
            update_bytes=self.report.update_bytes,
            update_seconds=self.report.update_seconds,
            clock_ok=self._clock_ok(),
            engine=self.report.engine,
            life=self.life,
            audit_seq=audit.seq if audit else None,
            audit_hash=audit.hash if audit else None,
            trace_id=self.report.trace_id,
        )

    def _body(self, event: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"device": self.device, "life": self.life, "at_s": self._clock(), "event": event, "fields": fields}

    def _write(self, body: dict[str, Any], event: str, fields: dict[str, Any]) -> None:
        """Append to the audit log, and put the entry's place in the chain into the message."""
        entry = self._audit.append(event, **fields)
        body["fields"] = dict(entry.fields)
        body["audit"] = {"seq": entry.seq, "hash": entry.hash, "prev": entry.prev}
        self._anchor(entry.head)

    def _send_event(self, body: dict[str, Any]) -> None:
        self._outbox().append("event", json.dumps(body, sort_keys=True).encode(), priority=1)


def life_of(path: Path) -> str:
    """A random name of this data folder's life, made once: a restored device counts its boots from 1 again."""
    with contextlib.suppress(OSError):
        known = path.read_text(encoding="ascii", errors="replace")
        if re.fullmatch(r"[0-9a-f]{16}", known):
            return known
    life = secrets.token_hex(8)
    try:
        write_durable(path, life.encode())
    except KasminaError as exc:
        log.warning("life: %s", exc.message)
    return life
