"""From an offer to a verdict: look for an update, fetch it, put it on trial, commit it or take it back."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kasmina_edge.agent.heart import BeatingStop, Heart
from kasmina_edge.agent.offers import Decision, decide_offer
from kasmina_edge.agent.reporting import Reporter
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import HealthLimits
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import BundleError, KasminaError, LinkError, PlanError, RolledBackError, TrustError
from kasmina_edge.installer import Installer, Trial
from kasmina_edge.logs import publication_trace, tracing
from kasmina_edge.slots import SLOTS, Slot, SlotStore
from kasmina_edge.telemetry.live_scores import LiveScores
from kasmina_edge.transport.transport import Transport
from kasmina_edge.updates.mqtt_fetcher import MqttFetcher
from kasmina_edge.updates.trust import Offer, TrustStore

log = logging.getLogger(__name__)

LIVE_WITHIN_S = 10.0
LEAST_BETWEEN_LOOKS_S = 1.0
MOST_BUNDLES_SEEN = 8
MOST_NOTED = 64
JUDGE_WITHIN_S = 900.0
"""Verifying, installing, self-test and probes of one bundle; a step that is silent for longer is stuck."""


@dataclass
class _Running:
    """A trial that live frames are being compared for."""

    trial: Trial
    limits: HealthLimits | None
    began: float
    update_began: float
    active_was_live: bool
    next_look: float = 0.0
    failed: str = ""


class Updater:
    """The updates of one device.

    Args:
        device: Its id.
        groups: The groups it belongs to.
        topics: Its site.
        store: Its slots.
        trust: What it trusts.
        profile: The hardware this is.
        installer: From verified bundle to committed slot.
        reporter: Hears how it goes.
        heart: Is told what may take long.
        refused: Hears why an update was refused: it may be an attack.
        spoiled: Hears of an installed file that is not what it was.
    """

    def __init__(
        self,
        device: str,
        groups: tuple[str, ...],
        topics: Topics,
        store: SlotStore,
        trust: TrustStore,
        profile: HardwareProfile,
        installer: Installer,
        reporter: Reporter,
        heart: Heart,
        refused: Callable[[KasminaError], None] = lambda error: None,
        spoiled: Callable[[KasminaError], None] = lambda error: None,
    ) -> None:
        self._device, self._groups, self._topics = device, groups, topics
        self._store, self._trust, self._profile = store, trust, profile
        self._installer, self._reporter, self._heart = installer, reporter, heart
        self._refused, self._spoiled = refused, spoiled
        self._live = LiveScores()
        self._seen_live: dict[str, float] = {}
        self._recovered = False
        self._noted: set[tuple[str, str | None, str]] = set()
        self._running: _Running | None = None

    @property
    def on_trial(self) -> bool:
        """Whether live frames are being compared."""
        return self._running is not None

    def observe(self, records: list[TelemetryRecord]) -> None:
        """See telemetry of this device's apps, sent or not."""
        now = time.monotonic()
        for record in records:
            self._live.add(record)
            if record.frames:
                self._seen_live[record.bundle] = now
        while len(self._seen_live) > MOST_BUNDLES_SEEN:
            del self._seen_live[next(iter(self._seen_live))]

    def recover(self) -> None:
        """Settle what an interruption left; once, and again with every check while the disk refuses."""
        if self._recovered:
            return
        self._store.recover()
        self._recovered = True
        manifest = self._reporter.active()
        if manifest is not None:
            self._installer.settle(manifest)

    def check(self, transport: Transport, stop: threading.Event) -> None:
        """Ask what is wanted here, and do it as far as it goes without live frames."""
        if self._store.record().trial is None:  # what is on trial is settled first; the next check comes
            with contextlib.ExitStack() as traced:
                self._check(transport, stop, traced)

    def _check(self, transport: Transport, stop: threading.Event, traced: contextlib.ExitStack) -> None:
        report, set_status = self._reporter.report, self._reporter.set_status
        began = time.monotonic()
        try:
            stop = BeatingStop(stop, self._heart)
            session = self._trust.session(MqttFetcher(transport, self._topics, self._device, stop=stop))
            session.refresh()
            offer = session.desired(self._device, self._groups, None)
            active = self._reporter.active()
            decision = self._consider(offer, active, session)
            if decision.action == "nothing":
                self._noted.clear()
                if report.status in ("unreachable", "failed", "refused", "idle"):
                    set_status("idle", decision.reason)
                return
            assert offer is not None
            report.offered = offer.manifest.digest()
            report.trace_id = publication_trace(report.offered, offer.manifest.release)
            traced.enter_context(tracing(report.trace_id))
            if decision.action == "refuse":
                self._refuse(decision.reason, offer.manifest)
                return
            self._fetch_and_try(session, offer, began)
        except LinkError as exc:
            set_status("unreachable", exc.message)
        except RolledBackError as exc:
            report.update_seconds = time.monotonic() - began
            set_status("rolled_back", exc.message)
        except (TrustError, PlanError, BundleError) as exc:
            self._refused(exc)
            self._refuse(exc.message, None)
        except KasminaError as exc:
            set_status("failed", exc.message)
            self._note_once("update_failed", exc.message, kind=exc.kind)

    def resume_trial(self) -> None:
        """Judge again a trial that an interruption left a try."""
        record = self._store.record()
        if record.trial is None or not self._recovered:
            return
        began = time.monotonic()
        try:
            manifest = self._store.manifest(record.trial)
            plan = self._trust.plan(manifest.name) if manifest is not None else None
            with self._heart.allow(JUDGE_WITHIN_S):
                trial = self._installer.judge_slot(record.trial, plan)
            self._let_live(trial, began)
        except RolledBackError as exc:
            self._reporter.set_status("rolled_back", exc.message)

    def watch_trial(self) -> None:
        """Commit the trial or take it back once live frames have said enough."""
        running = self._running
        assert running is not None
        manifest = running.trial.manifest
        with tracing(publication_trace(manifest.digest(), manifest.release)):
            self._judge(running, manifest)

    def _judge(self, running: _Running, manifest: BundleManifest) -> None:
        from kasmina_edge.health import judge_trial

        active = self._reporter.active()
        before = self._live.summary(active.digest()) if active else None
        now = time.monotonic()
        verdict = running.failed or judge_trial(
            before,
            self._live.summary(manifest.digest()),
            running.limits,
            now - running.began,
            active_was_live=running.active_was_live,
        )
        if verdict == "wait" or now < running.next_look:
            return
        running.next_look = now + LEAST_BETWEEN_LOOKS_S  # the disk may refuse what follows: then it is tried again
        if verdict == "commit":
            self._installer.commit(manifest)
        else:
            running.failed = verdict  # once the apps have left it, a later look would find nothing against it
            self._installer.take_back(manifest, verdict)
        self._running = None
        self._reporter.report.update_seconds = now - running.update_began
        if verdict == "commit":
            seen = self._live.summary(manifest.digest())
            live = f"{seen.count} live frames compared" if seen and running.limits else "live frames not measured"
            self._reporter.set_status("committed", live)
        else:
            self._reporter.set_status("rolled_back", f"{manifest.id}: {verdict}")

    def _consider(self, offer: Offer | None, active: BundleManifest | None, session: Any) -> Decision:
        if offer is None or decide_offer(offer.manifest, active).action == "nothing":
            if active is not None:
                session.refresh_plan(active.name)
            return decide_offer(offer.manifest if offer else None, active)
        plan = session.refresh_plan(offer.manifest.name)
        try:
            self._installer.allowed(offer.manifest, plan, signed_by=offer.role)
        except TrustError as exc:
            self._refused(exc)
            return decide_offer(offer.manifest, active, refused=exc.message)
        return decide_offer(offer.manifest, active)

    def _fetch_and_try(self, session: Any, offer: Offer, began: float) -> None:
        from kasmina_edge.engines import choose_engine

        self._reporter.set_status("downloading", offer.manifest.id)
        _, model, _ = choose_engine(offer.manifest, self._profile)
        self._installer.require_room(offer.manifest, model)
        with self._heart.allow(JUDGE_WITHIN_S):  # applying a delta is silent
            bundle = session.fetch(offer, model, self._have, self._parents())
        bundle = Bundle(bundle.manifest, bundle.files, session.metadata_files())
        self._reporter.report.update_bytes = dict(session.received)
        self._reporter.set_status("installing", offer.manifest.id)
        with self._heart.allow(JUDGE_WITHIN_S):
            trial = self._installer.put_on_trial(bundle, self._trust.plan(bundle.manifest.name))
        self._noted.clear()
        self._let_live(trial, began)

    def _let_live(self, trial: Trial, began: float) -> None:
        """Let the apps follow the trial slot, and begin to compare live frames where there is something to compare."""
        self._reporter.report.engine = trial.check.runs_on
        plan, active = self._trust.plan(trial.manifest.name), self._reporter.active()
        self._live.forget(trial.manifest.digest())
        self._installer.go_live()
        now = time.monotonic()
        was_live = active is not None and now - self._seen_live.get(active.digest(), -math.inf) <= LIVE_WITHIN_S
        limits = plan.health if plan is not None and active is not None else None
        self._running = _Running(trial, limits, now, began, was_live)
        self._reporter.set_status("trial", f"{trial.manifest.id} in slot {trial.slot.upper()}")

    def _refuse(self, reason: str, manifest: BundleManifest | None) -> None:
        self._note_once("update_refused", reason, bundle=manifest.id if manifest else "")
        self._reporter.set_status("refused", reason)

    def _note_once(self, event: str, reason: str, **fields: str) -> None:
        """Write the audit log, unless the same stands there since the last update that went well.

        Numbers do not count: a disk that lacks some other bytes with every check would fill the log.
        """
        key = (event, self._reporter.report.offered, re.sub(r"\d+", "0", reason))
        if key in self._noted:
            return
        if len(self._noted) >= MOST_NOTED:
            self._noted.clear()
        self._noted.add(key)
        self._reporter.note(event, reason=reason, **fields)

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
            except BundleError as exc:
                log.warning("not reused: %s", exc.message)
                self._spoiled(exc)
                continue
            except OSError as exc:
                log.warning("not reused: %s", exc)
                continue
            yield entry.sha256, entry.path, data
