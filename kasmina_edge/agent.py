"""The device loop: stay connected, send what the outbox holds, try updates, confirm them or take them back.

`decide_offer` and `health.judge_trial` decide without I/O; `Agent` holds the table of what to do next and does it.
The agent alone writes slots and talks MQTT; apps on the same device only read slots and append to the outbox.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.contracts.record import DeviceState, Reported, Status, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.engines import choose_engine
from kasmina_edge.errors import BundleError, KasminaError, LinkError, PlanError, RolledBackError, TrustError
from kasmina_edge.health import judge_trial
from kasmina_edge.installer import Installer, Trial
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SLOTS, Slot, SlotStore
from kasmina_edge.storage import write_durable
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.live_scores import LiveScores
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.publisher import Publisher
from kasmina_edge.transport.transport import Message, Transport
from kasmina_edge.updates.mqtt_fetcher import MqttFetcher
from kasmina_edge.updates.trust import Offer, TrustStore

log = logging.getLogger(__name__)

STEP_S = 0.1
LEAST_BETWEEN_CHECKS_S = 1.0
LIVE_WITHIN_S = 10.0
MOST_BUNDLES_SEEN = 8


@dataclass(frozen=True)
class Decision:
    """What to do with an offer, and why."""

    action: Literal["nothing", "refuse", "install"]
    reason: str = ""


def decide_offer(
    offered: BundleManifest | None, active: BundleManifest | None, *, refused: str | None = None
) -> Decision:
    """Whether an offer is news.

    Args:
        offered: What the director wants here; None when it wants nothing.
        active: What runs here.
        refused: Why the plan, the floor or the quarantine forbids it; None when they do not.
    """
    if offered is None:
        return Decision("nothing", "no bundle is assigned to this device")
    if active is not None and offered.digest() == active.digest():
        return Decision("nothing", "up to date")
    if refused is not None:
        return Decision("refuse", refused)
    return Decision("install")


@dataclass
class _Running:
    """A trial that live frames are being compared for."""

    trial: Trial
    limits: HealthLimits | None
    began: float
    update_began: float
    active_was_live: bool
    next_look: float = 0.0


@dataclass
class _Report:
    status: Status = "idle"
    reason: str = ""
    offered: str | None = None
    update_bytes: dict[str, int] | None = None
    update_seconds: float | None = None
    sequence: int = 0
    sent: bytes = b""


class Agent:
    """One device's agent over its data folder.

    Args:
        data: The data folder made by ``fleet enroll``.
        settings: Where the broker is, who this device is.
        connect: Makes the connected transport, given the will message; passed in so that tests bring their own broker.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        LockedError: Another agent holds the folder.
        InputError: The folder was not enrolled.
    """

    def __init__(
        self,
        data: Path,
        settings: Settings,
        connect: Callable[[str, bytes], Transport],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._data = data
        self._settings = settings
        self._clock = clock
        self._connect = connect
        self.device: str = settings["device.id"]
        self._topics = Topics(settings["device.root"], settings["device.site"])
        self._store = SlotStore(data, clock=clock)
        self._lock = self._store.lock_agent()
        self._audit = AuditLog(data / "audit.log", clock=clock)
        self._trust = TrustStore(data / "trust", clock=clock)
        self._profile = load_profile(settings["device.profile"])
        self._installer = Installer(data, self._store, self._trust, self._profile, note=self._note)
        self._signing_key = load_signing_key(data / "device.key")
        self._outbox = Outbox(data / "outbox.db", clock=clock)
        self._live = LiveScores()
        self._seen_live: dict[str, float] = {}
        self._life = _life(data / "life")
        self._stop = threading.Event()
        self._last_check = -math.inf
        self._recovered = False
        self._report = _Report()
        self._running: _Running | None = None
        self._nudged = threading.Event()
        self._transport: Transport | None = None
        self._publisher: Publisher | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; a lost broker, a bad update or a full disk never ends the loop."""
        self._stop = stop
        self._guard("recovery", self._recover)
        boot = self._store.record().boot
        self._note("agent_started", boot=boot)
        will = DeviceState(device=self.device, online=False, boot=boot, life=self._life).to_bytes()
        self._transport = self._connect(self._topics.state(self.device), will)
        self._publisher = Publisher(self._outbox, self._transport, self._topics, self.device, clock=self._clock)
        self._transport.on_connection(self._connection_changed)
        self._transport.subscribe(self._topics.desired(self.device), self._on_nudge)
        self._transport.subscribe(self._topics.metadata("timestamp.json"), self._on_nudge)
        self._connection_changed(True)
        try:
            while not stop.is_set():
                self._guard("telemetry", self._send_telemetry)
                if self._running is not None:
                    self._guard("trial", self._watch_trial)
                elif self._is_check_due():
                    self._nudged.clear()
                    self._last_check = time.monotonic()
                    self._guard("recovery", self._recover)
                    self._guard("trial", self._resume_trial)
                    self._guard("update", self._check_for_update)
                self._guard("report", self._send_report)
                stop.wait(STEP_S)
        finally:
            self._note("agent_stopped", boot=boot)
            for close in (lambda: self._say_state(online=False), self._transport.close, self._outbox.close):
                self._guard("closing", close)
            self._lock.close()

    def _is_check_due(self) -> bool:
        """Nudged, but not more often than once in `LEAST_BETWEEN_CHECKS_S`; or the interval has passed."""
        since = time.monotonic() - self._last_check
        if self._nudged.is_set():
            return since >= LEAST_BETWEEN_CHECKS_S
        return since >= float(self._settings["agent.check_interval_s"])

    def _recover(self) -> None:
        """Settle what an interruption left; once, and again with every check while the disk refuses."""
        if self._recovered:
            return
        self._store.recover()
        self._recovered = True
        manifest = self._active()
        if manifest is not None:
            self._installer.settle(manifest)

    def _check_for_update(self) -> None:
        assert self._transport is not None
        if self._store.record().trial is not None:
            return  # what is on trial is settled first; the next check comes
        began = time.monotonic()
        try:
            fetcher = MqttFetcher(self._transport, self._topics, self.device, stop=self._stop)
            session = self._trust.session(fetcher)
            session.refresh()
            offer = session.desired(self.device, self._settings["device.groups"], None)
            active = self._active()
            decision = self._consider(offer, active, session)
            if decision.action == "nothing":
                if self._report.status in ("unreachable", "failed", "refused", "idle"):
                    self._set_status("idle", decision.reason)
                return
            assert offer is not None
            self._report.offered = offer.manifest.digest()
            if decision.action == "refuse":
                self._refuse(decision.reason, offer.manifest)
                return
            self._set_status("downloading", offer.manifest.id)
            _, model, _ = choose_engine(offer.manifest, self._profile)
            bundle = session.fetch(offer, model, self._have, self._parents())
            bundle = Bundle(bundle.manifest, bundle.files, session.metadata_files())
            self._report.update_bytes = dict(session.received)
            self._set_status("installing", offer.manifest.id)
            trial = self._installer.put_on_trial(bundle, self._trust.plan(bundle.manifest.name))
            self._let_live(trial, began)
        except LinkError as exc:
            self._set_status("unreachable", exc.message)
        except RolledBackError as exc:
            self._report.update_seconds = time.monotonic() - began
            self._set_status("rolled_back", exc.message)
        except (TrustError, PlanError, BundleError) as exc:
            self._refuse(exc.message, None)
        except KasminaError as exc:
            self._set_status("failed", exc.message)
            self._note("update_failed", reason=exc.message, kind=exc.kind)

    def _let_live(self, trial: Trial, began: float) -> None:
        """Let the apps follow the trial slot, and begin to compare live frames where there is something to compare."""
        plan, active = self._trust.plan(trial.manifest.name), self._active()
        self._live.forget(trial.manifest.digest())
        self._installer.go_live()
        now = time.monotonic()
        was_live = active is not None and now - self._seen_live.get(active.digest(), -math.inf) <= LIVE_WITHIN_S
        limits = plan.health if plan is not None and active is not None else None
        self._running = _Running(trial, limits, now, began, was_live)
        self._set_status("trial", f"{trial.manifest.id} in slot {trial.slot.upper()}")

    def _resume_trial(self) -> None:
        """Judge again a trial that an interruption left a try."""
        record = self._store.record()
        if record.trial is None:
            return
        began = time.monotonic()
        try:
            manifest = self._store.manifest(record.trial)
            plan = self._trust.plan(manifest.name) if manifest is not None else None
            self._let_live(self._installer.judge_slot(record.trial, plan), began)
        except RolledBackError as exc:
            self._set_status("rolled_back", exc.message)

    def _consider(self, offer: Offer | None, active: BundleManifest | None, session: Any) -> Decision:
        if offer is None or decide_offer(offer.manifest, active).action == "nothing":
            if active is not None:
                session.refresh_plan(active.name)
            return decide_offer(offer.manifest if offer else None, active)
        plan = session.refresh_plan(offer.manifest.name)
        try:
            self._installer.allowed(offer.manifest, plan, signed_by=offer.role)
        except TrustError as exc:
            return decide_offer(offer.manifest, active, refused=exc.message)
        return decide_offer(offer.manifest, active)

    def _watch_trial(self) -> None:
        running = self._running
        assert running is not None
        manifest = running.trial.manifest
        active = self._active()
        before = self._live.summary(active.digest()) if active else None
        now = time.monotonic()
        verdict = judge_trial(
            before,
            self._live.summary(manifest.digest()),
            running.limits,
            now - running.began,
            active_was_live=running.active_was_live,
        )
        if verdict == "wait" or now < running.next_look:
            return
        running.next_look = now + LEAST_BETWEEN_CHECKS_S  # the disk may refuse what follows: then it is tried again
        if verdict == "commit":
            self._installer.commit(manifest)
        else:
            self._installer.take_back(manifest, verdict)
        self._running = None
        self._report.update_seconds = now - running.update_began
        if verdict == "commit":
            seen = self._live.summary(manifest.digest())
            live = f"{seen.count} live frames compared" if seen and running.limits else "live frames not measured"
            self._set_status("committed", live)
        else:
            self._set_status("rolled_back", f"{manifest.id}: {verdict}")

    def _refuse(self, reason: str, manifest: BundleManifest | None) -> None:
        if (self._report.status, self._report.reason) != ("refused", reason):
            self._note("update_refused", reason=reason, bundle=manifest.id if manifest else "")
        self._set_status("refused", reason)

    def _have(self, sha256: str) -> bytes | None:
        """A file's bytes when one of the slots holds it already."""
        return next((data for slot in SLOTS for digest, _, data in self._whole_files(slot) if digest == sha256), None)

    def _parents(self) -> dict[str, bytes]:
        """Files of the active slot by path, for deltas."""
        active = self._store.record().active
        return {path: data for _, path, data in self._whole_files(active)} if active else {}

    def _whole_files(self, slot: Slot) -> Iterator[tuple[str, str, bytes]]:
        """Digest, path and bytes of every file of a slot that is what its manifest says; what rotted is left out."""
        try:
            manifest = self._store.manifest(slot)
        except KasminaError as exc:
            log.warning("slot %s: %s", slot, exc.message)
            return
        for entry in manifest.files() if manifest else ():
            path = self._store.folder(slot) / entry.path
            try:
                data = path.read_bytes()
                entry.check(data, where=str(path))
            except FileNotFoundError:
                continue  # another engine's
            except (OSError, BundleError) as exc:
                log.warning("not reused: %s", exc)
                continue
            yield entry.sha256, entry.path, data

    def _send_telemetry(self) -> None:
        assert self._publisher is not None and self._transport is not None
        if self._transport.connected:
            self._guard("capture", self._queue_captures)
        self._publisher.pump(observe=self._observe)

    def _queue_captures(self) -> None:
        """Sign what apps captured and hand it to the outbox; what cannot be read is set aside, once."""
        store = CaptureStore(self._data / "capture", self._trust.plan(), self.device, clock=self._clock)
        for item in store.pending():
            try:
                sealed = store.upload(item, self._signing_key)
            except KasminaError as exc:
                log.warning("capture %d set aside: %s", item, exc.message)
                store.set_aside(item)
                continue
            self._outbox.append("capture", sealed)
            store.forget(item)

    def _observe(self, records: list[TelemetryRecord]) -> None:
        now = time.monotonic()
        for record in records:
            self._live.add(record)
            if record.frames:
                self._seen_live[record.bundle] = now
        while len(self._seen_live) > MOST_BUNDLES_SEEN:
            del self._seen_live[next(iter(self._seen_live))]

    def _on_nudge(self, message: Message) -> None:
        self._nudged.set()

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._report.sent = b""
            self._nudged.set()
            self._say_state(online=True)

    def _say_state(self, *, online: bool) -> None:
        assert self._transport is not None
        boot = self._store.record().boot
        state = DeviceState(device=self.device, online=online, boot=boot, at_s=self._clock(), life=self._life)
        try:
            self._transport.publish(self._topics.state(self.device), state.to_bytes(), retain=True)
        except LinkError as exc:
            log.info("state not sent: %s", exc.message)

    def _send_report(self) -> None:
        assert self._transport is not None
        if not self._transport.connected:
            return
        report = self._reported()
        content = report.model_copy(update={"at_s": 0.0, "sequence": 0}).to_bytes()
        if content == self._report.sent:
            return
        self._transport.publish(self._topics.reported(self.device), report.to_bytes(), retain=True)
        self._report.sent = content
        self._report.sequence += 1

    def _reported(self) -> Reported:
        record = self._store.record()
        active = self._active()
        previous = self._store.manifest(record.previous) if record.previous else None
        return Reported(
            device=self.device,
            boot=record.boot,
            sequence=self._report.sequence,
            at_s=self._clock(),
            name=active.name if active else None,
            version=active.version if active else None,
            release=active.release if active else None,
            digest=active.digest() if active else None,
            previous=previous.id if previous else None,
            status=self._report.status,
            reason=self._report.reason,
            offered=self._report.offered,
            grafts=tuple(f"{g.blueprint}@{g.site}" for g in active.grafts) if active else (),
            update_bytes=self._report.update_bytes,
            update_seconds=self._report.update_seconds,
            clock_ok=self._trust.clock_ok,
            life=self._life,
        )

    def _active(self) -> BundleManifest | None:
        """What is committed here; None when nothing is, or when its manifest rotted: anything whole is then news."""
        active = self._store.record().active
        try:
            return self._store.manifest(active) if active else None
        except BundleError as exc:
            log.warning("slot %s: %s", active, exc.message)
            return None

    def _set_status(self, status: Status, reason: str) -> None:
        if (status, reason) != (self._report.status, self._report.reason):
            log.info("update %s: %s", status, reason, extra={"device": self.device})
        self._report.status, self._report.reason = status, reason
        self._guard("report", self._send_report)

    def _note(self, event: str, **fields: Any) -> None:
        """Write the audit log, and send the entry to the controller; a disk that refuses both stops nothing."""
        body = {"device": self.device, "at_s": self._clock(), "event": event, "fields": fields}
        self._guard("audit", lambda: self._audit.append(event, **fields))
        self._guard("audit", lambda: self._send_event(body))

    def _send_event(self, body: dict[str, Any]) -> None:
        self._outbox.append("event", json.dumps(body, sort_keys=True).encode(), priority=1)

    def _guard(self, what: str, step: Callable[[], None]) -> None:
        """Run one step; what goes wrong is logged and the loop goes on, whatever it is: nobody can restart a device."""
        try:
            step()
        except KasminaError as exc:
            log.warning("%s: %s", what, exc.message, extra={"device": self.device})
        except Exception:
            log.exception("%s: a fault in Kasmina", what, extra={"device": self.device})


def _life(path: Path) -> str:
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
