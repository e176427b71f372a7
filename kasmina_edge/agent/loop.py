"""The loop: a table of steps that are done in turn, each behind a guard, and a sign of life after every round.

The agent alone writes slots and talks MQTT; apps on the same device only read slots and append to the outbox.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from kasmina_edge.agent.heart import Heart
from kasmina_edge.agent.reporting import Reporter, life_of
from kasmina_edge.agent.spool import Spool
from kasmina_edge.agent.updating import JUDGE_WITHIN_S, Updater
from kasmina_edge.agent.uploads import CaptureUploads
from kasmina_edge.agent.vitals import Vitals
from kasmina_edge.agent.watch import DeviceWatch
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import KasminaError
from kasmina_edge.installer import Installer
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.service.bounds import give_memory_back, read_usage
from kasmina_edge.service.health_socket import SOCKET_NAME, HealthSocket
from kasmina_edge.service.notify import Notifier
from kasmina_edge.service.starts import STEADY_S, StartCounter, machine_boot
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import Disk
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.outbox import Outbox, open_outbox
from kasmina_edge.telemetry.publisher import Publisher
from kasmina_edge.transport.transport import Message, Transport
from kasmina_edge.updates.trust import TrustStore

log = logging.getLogger(__name__)

STEP_S = 0.1
LEAST_BETWEEN_CHECKS_S = 1.0
LOOK_AROUND_S = 1.0
FLUSH_WITHIN_S = 3.0
BRAKE_BEAT_S = 0.25
MEASURE_S = 10.0
TEND_KEYS_S = 3600.0
MOST_ALERTS_TOLD = 16
RETRY_OUTBOX_S = 60.0


class Agent:
    """One device's agent over its data folder.

    Args:
        data: The data folder made by ``fleet enroll``.
        settings: Where the broker is, who this device is.
        connect: Makes the connected transport, given the will message; passed in so that tests bring their own broker.
        clock: Wall clock, seconds since 1970 UTC.
        notifier: Speaks to the service manager; None: nobody listens.
        outbox: Opens the outbox; None takes the sealed one of the data folder.
        serve_health: Whether the health socket is opened.

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
        notifier: Notifier | None = None,
        outbox: Callable[[], Outbox] | None = None,
        serve_health: bool = True,
    ) -> None:
        self._data = data
        self._settings = settings
        self._clock = clock
        self._connect = connect
        self.device: str = settings["device.id"]
        self._topics = Topics(settings["device.root"], settings["device.site"])
        self._store = SlotStore(data, clock=clock)
        self._lock = self._store.lock_agent()
        self._trust = TrustStore(data / "trust", clock=clock)
        profile = load_profile(settings["device.profile"]).chosen(
            engine=settings["device.engine"], accelerator_device=settings["device.accelerator"]
        )
        signing_key = load_signing_key(data / "device.key")
        self._spool = Spool(outbox or partial(open_outbox, data, settings, clock=clock), clock)
        self._reporter = Reporter(
            self.device,
            self._topics,
            self._store,
            AuditLog(data / "audit.log", clock=clock),
            lambda: self._spool.outbox,
            life_of(data / "life"),
            clock=clock,
            clock_ok=lambda: self._trust.clock_ok,
            guard=self._guard,
            anchor=self._trust.anchor_audit,
        )
        self._watch = DeviceWatch(
            data / "watch.json",
            self.device,
            self._reporter.life,
            settings,
            send=lambda stream, payload, priority: self._outbox.append(stream, payload, priority=priority),
            note=self._reporter.note,
            clock=clock,
        )
        self._reporter.spoiled = self._watch.spoiled
        self._notifier = notifier or Notifier()
        self._heart = Heart(self._notifier)
        self._vitals = Vitals(self.device, self._heart)
        self._vitals.tell(engine={"names": list(profile.engines), "profile": profile.name})
        self._uploads = CaptureUploads(
            self._captures,
            signing_key,
            self._reporter.prove,
            self._heart.beat,
            int(settings["telemetry.outbox_mb"] * 2**20),
        )
        self._updater = Updater(
            self.device,
            settings["device.groups"],
            self._topics,
            self._store,
            self._trust,
            profile,
            Installer(data, self._store, self._trust, profile, note=self._reporter.note, clock=clock),
            self._reporter,
            self._heart,
            refused=self._watch.refused,
            spoiled=self._watch.spoiled,
        )
        self._health = (
            HealthSocket(data / SOCKET_NAME, self._vitals.answer, mode=_mode(settings)) if serve_health else None
        )
        self._starts = StartCounter(data / "starts", machine_boot())
        self._hardware = HardwareReader()
        self._dropped: int | None = None
        self._last_check = -math.inf
        self._looked_at = self._measured_at = self._keys_tended_at = -math.inf
        self._spool_tried_at = time.monotonic()
        self._nudged = threading.Event()
        self._transport: Transport | None = None
        self._publisher: Publisher | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; a lost broker, a bad update or a full disk never ends the loop."""
        began = time.monotonic()
        settled = False
        boot = 0
        if self._health is not None:
            self._guard("health socket", self._health.start)
        try:
            self._wait_out_the_brake(stop)
            if stop.is_set():
                self._starts.settle()
                return
            self._guard("recovery", self._updater.recover)
            boot = self._watch.boot = self._store.record().boot
            with self._heart.doing("audit"), self._heart.allow(JUDGE_WITHIN_S):  # a long log takes seconds
                self._guard(
                    "audit", lambda: self._watch.check_audit(self._data / "audit.log", self._trust.audit_anchor())
                )
            if self._spool.fault is not None:
                self._watch.spoiled(self._spool.fault)
            self._reporter.note("agent_started", boot=boot)
            self._open_link()
            log.info("agent started, start %d of this folder", boot, extra={"device": self.device})
            self._vitals.phase = "ok"
            self._notifier.ready(f"{self.device}: running")
            while not stop.is_set():
                self._turn(stop)
                if not settled and time.monotonic() - began >= STEADY_S:
                    settled = True
                    self._starts.settle()
                stop.wait(STEP_S)
            self._starts.settle()
        finally:
            self._close(boot)

    def _turn(self, stop: threading.Event) -> None:
        """One round of all steps; the sign of life comes last, and after each step that may take long."""
        self._step("telemetry", self._send_telemetry)
        if self._updater.on_trial:
            self._step("trial", self._updater.watch_trial)
        elif self._is_check_due():
            self._nudged.clear()
            self._last_check = time.monotonic()
            self._step("recovery", self._updater.recover)
            self._step("trial", self._updater.resume_trial)
            self._step("update", lambda: self._updater.check(self._link, stop))
            self._vitals.checked()
            self._step("memory", give_memory_back)
        self._step("report", self._reporter.send)
        if time.monotonic() - self._looked_at >= LOOK_AROUND_S:
            self._looked_at = time.monotonic()
            self._step("vitals", self._tell_vitals)
        if self._spool.fault is not None and time.monotonic() - self._spool_tried_at >= RETRY_OUTBOX_S:
            self._spool_tried_at = time.monotonic()
            self._step("outbox", self._retry_outbox)
        if time.monotonic() - self._keys_tended_at >= TEND_KEYS_S:
            self._keys_tended_at = time.monotonic()
            self._step("keys", self._outbox.tend_keys)
        if time.monotonic() - self._measured_at >= MEASURE_S:
            self._measured_at = time.monotonic()
            self._step("watch", self._measure)

    def _step(self, what: str, step: Callable[[], object]) -> None:
        with self._heart.doing(what):
            self._guard(what, step)
        self._heart.beat()

    @property
    def _outbox(self) -> Outbox:
        return self._spool.outbox

    @property
    def _link(self) -> Transport:
        assert self._transport is not None
        return self._transport

    def _wait_out_the_brake(self, stop: threading.Event) -> None:
        """After several starts that ended early the next one waits, alive and petting."""
        wait_s = self._starts.begin()
        if wait_s <= 0:
            return
        ends = self._starts.early_ends
        log.warning("the last %d starts ended early: waiting %g s", ends, wait_s, extra={"device": self.device})
        self._vitals.phase = "braked"
        self._notifier.ready(f"the last {ends} starts ended early: waiting {wait_s:g} s")
        until = time.monotonic() + wait_s
        while (left_s := until - time.monotonic()) > 0 and not stop.wait(min(BRAKE_BEAT_S, left_s)):
            self._heart.beat()

    def _open_link(self) -> None:
        self._transport = self._reporter.transport = self._connect(
            self._topics.state(self.device), self._reporter.will()
        )
        self._publisher = self._new_publisher()
        self._transport.on_connection(self._connection_changed)
        self._transport.subscribe(self._topics.desired(self.device), self._on_nudge)
        self._transport.subscribe(self._topics.metadata("timestamp.json"), self._on_nudge)
        self._connection_changed(True)

    def _new_publisher(self) -> Publisher:
        return Publisher(self._outbox, self._link, self._topics, self.device, clock=self._clock)

    def _retry_outbox(self) -> None:
        if self._spool.retry():
            self._publisher = self._new_publisher()

    def _close(self, boot: int) -> None:
        """Say goodbye, flush what waits as far as `FLUSH_WITHIN_S` goes, and let go of everything."""
        self._vitals.phase = "stopping"
        self._notifier.stopping()
        if self._transport is not None:
            self._reporter.note("agent_stopped", boot=boot)
            self._guard("report", self._reporter.send)  # with the audit log's last entry
            self._guard("closing", self._watch.save)
            self._guard("flush", self._flush)
            self._guard("closing", lambda: self._reporter.say_state(online=False))
            self._guard("closing", self._transport.close)
        self._guard("closing", self._spool.close)
        if self._health is not None:
            self._guard("closing", self._health.close)
        self._notifier.close()
        self._lock.close()

    def _flush(self) -> None:
        assert self._publisher is not None
        until = time.monotonic() + FLUSH_WITHIN_S
        while time.monotonic() < until and self._publisher.pump(force=True):
            self._heart.beat()

    def _is_check_due(self) -> bool:
        """Nudged, but not more often than once in `LEAST_BETWEEN_CHECKS_S`; or the interval has passed."""
        since = time.monotonic() - self._last_check
        if self._nudged.is_set():
            return since >= LEAST_BETWEEN_CHECKS_S
        return since >= float(self._settings["agent.check_interval_s"])

    def _send_telemetry(self) -> None:
        assert self._publisher is not None
        self._guard("erasure", lambda: self._uploads.erase(self._outbox))
        self._heart.beat()
        if self._may_upload():
            self._guard("capture", lambda: self._uploads.queue(self._outbox))
        self._publisher.pump(observe=self._observe)

    def _may_upload(self) -> bool:
        """A newer plan was asked for, which may forbid or erase captures, and what is queued leaves soon, or stays."""
        assert self._publisher is not None
        if self._spool.fault is not None or not self._link.connected:  # a capture in memory ends with the agent
            return False
        return math.isfinite(self._last_check) and not self._publisher.waits_for

    def _observe(self, records: list[TelemetryRecord]) -> None:
        """Every record of this device's apps passes here once, sent or not."""
        self._updater.observe(records)
        active = self._reporter.active()
        self._watch.observe(records, active)
        for record in records:
            if active is not None and record.bundle == active.digest():
                self._watch.measured({"drift": record.drift})

    def _captures(self) -> CaptureStore:
        return CaptureStore(self._data / "capture", self._trust.plan(), self.device, clock=self._clock)

    def _measure(self) -> None:
        """What the rules of alert ask for; None where this machine does not tell."""
        usage, hardware, dropped = read_usage(), self._hardware.read(), self._outbox.dropped()
        bound = float(self._settings["agent.max_memory_mb"]) * 1024 * 1024
        self._watch.measured(
            {
                "temperature": hardware.temperature_c,
                "throttled": None if hardware.throttled is None else float(hardware.throttled),
                "disk": Disk().free_bytes(self._data) / 1e6,
                "memory": None if usage.rss_bytes is None else usage.rss_bytes / bound,
                "open_files": None
                if usage.open_files is None
                else usage.open_files / float(self._settings["agent.max_open_files"]),
                "outbox": None if self._dropped is None else float(max(0, dropped - self._dropped)),
            }
        )
        self._dropped = dropped
        self._watch.look()

    def _tell_vitals(self) -> None:
        record, active, report = self._store.record(), self._reporter.active(), self._reporter.report
        trial = self._reporter.held(record.trial)
        size = self._outbox.size()
        self._vitals.tell(
            active=None
            if active is None
            else {
                "id": active.id,
                "release": active.release,
                "digest": active.digest(),
                "slot": record.active,
                "grafts": [f"{g.blueprint}@{g.site}" for g in active.grafts],
            },
            alerts=self._watch.standing[:MOST_ALERTS_TOLD],
            boot=record.boot,
            broker={"address": self._settings["broker.address"], "connected": self._link.connected},
            process=asdict(read_usage()),
            outbox={"entries": size.entries, "bytes": size.bytes, "dropped": self._outbox.dropped()},
            trial=None if trial is None else {"id": trial.id, "release": trial.release, "slot": record.trial},
            update={"status": report.status, "reason": report.reason},
        )
        link = "connected" if self._link.connected else "not connected"
        self._notifier.status(f"{active.id if active else 'no bundle'}, {report.status}, broker {link}")

    def _on_nudge(self, message: Message) -> None:
        self._nudged.set()

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._reporter.report.sent = b""
            self._nudged.set()
            self._reporter.say_state(online=True)

    def _guard(self, what: str, step: Callable[[], object]) -> None:
        """Run one step; what goes wrong is logged and the loop goes on, whatever it is: nobody can restart a device."""
        try:
            step()
        except KasminaError as exc:
            log.warning("%s: %s", what, exc.message, extra={"device": self.device})
        except Exception:
            log.exception("%s: a fault in Kasmina", what, extra={"device": self.device})


def _mode(settings: Settings) -> int:
    """The health socket's mode: the folder's group may ask where that is set."""
    return 0o660 if settings["agent.health_group"] else 0o600
