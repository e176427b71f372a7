"""From a verified bundle to a committed slot: install, put on trial, judge, commit or take back.

The agent and ``kasmina-edge deploy`` both go this way; neither reports success before `commit` has returned. The caller
has verified the signatures (updates/trust.py) and holds the agent's lock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import ChangePlan, HealthLimits, check_against_plan
from kasmina_edge.contracts.manifest import BundleManifest, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import KasminaError, PlanError, RolledBackError, StorageError
from kasmina_edge.slots import Slot, SlotStore
from kasmina_edge.storage import make_private_folder, remove_temporaries, write_durable
from kasmina_edge.updates.trust import TrustStore
from kasmina_edge.verdict import VERDICT_FILE, CommittedVerdict, write_verdict

if TYPE_CHECKING:
    from kasmina_edge import engines, health

Note = Callable[..., object]
TRIES = 2


@dataclass(frozen=True)
class Trial:
    """A bundle in the idle slot that passed everything which needs no live frames.

    Attributes:
        probes: Share of reference probes answered rightly by (active, trial); None where there are none.
    """

    slot: Slot
    manifest: BundleManifest
    model: ModelFile
    check: engines.EngineCheck
    self_test: engines.SelfTestResult
    probes: tuple[float | None, float] | None
    seconds: float


class Installer:
    """The way of one data folder; keeps the manifests of committed hosts so that grafts can be held against them.

    Args:
        data: The data folder.
        store: Its slots.
        trust: Its trust store.
        profile: The hardware this is.
        note: Called with an event name and plain fields, for the audit log.
        clock: Wall clock, seconds since 1970 UTC.
    """

    def __init__(
        self,
        data: Path,
        store: SlotStore,
        trust: TrustStore,
        profile: HardwareProfile,
        *,
        note: Note,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hosts = data / "hosts"
        self._clock = clock
        self._judged: Trial | None = None
        self._store = store
        self._trust = trust
        self._profile = profile
        self._note = note

    def allowed(self, manifest: BundleManifest, plan: ChangePlan | None, *, signed_by: str) -> None:
        """Everything that can be refused before a model is downloaded.

        Raises:
            PlanError: Quarantined here, or outside the change plan.
            TrustError: Below this device's release floor.
        """
        quarantined = self._store.quarantined(manifest.content_digest())
        if quarantined is not None:
            raise PlanError(
                f"{manifest.id}: quarantined on this device: {quarantined}",
                "Publish a repaired graft, or lift it with `kasmina-edge rollback --release-quarantine`.",
            )
        self._trust.check_release(manifest)
        check_against_plan(manifest, plan, self.host_of(manifest), signed_by=signed_by)

    def host_of(self, manifest: BundleManifest) -> BundleManifest | None:
        """The host below ``manifest`` as this device committed it once, or None."""
        if manifest.host is None:
            return None
        path = self._hosts / f"{manifest.host}.json"
        return BundleManifest.from_bytes(path.read_bytes(), where=str(path)) if path.is_file() else None

    def require_room(self, manifest: BundleManifest, model: ModelFile) -> None:
        """Refuse a bundle that would not fit before a byte of it is downloaded.

        Raises:
            StorageError: Too little space or too few inodes; the message carries both numbers.
        """
        self._store.require_room(manifest, engine=model.engine)

    def put_on_trial(self, bundle: Bundle, plan: ChangePlan | None, *, require_accelerator: bool = False) -> Trial:
        """Install into the idle slot and judge by self-test, latency and reference probes.

        Raises:
            RolledBackError: Installed and judged harmful; the active slot was never touched.
            EngineError: This machine cannot run it.
            StorageError: The disk refused; nothing changed.
        """
        from kasmina_edge import engines

        manifest = bundle.manifest
        _, model, _ = engines.choose_for(bundle, self._profile, require_accelerator=require_accelerator)
        slot = self._store.install(bundle, engine=model.engine)
        self._note(
            "installed",
            bundle=manifest.id,
            release=manifest.release,
            content_digest=manifest.content_digest(),
            slot=slot,
        )
        self._store.begin_trial(slot, tries=TRIES)
        return self.judge_slot(slot, plan)

    def retest(self, slot: Slot, plan: ChangePlan | None, *, require_accelerator: bool = False) -> Trial:
        """Self-test and probes of a slot that is active already; nothing on disk changes.

        Raises:
            RolledBackError: It fails them now (it is not taken back: nothing is on trial).
            BundleError: The slot is damaged.
            EngineError: This machine cannot run it.
        """
        from kasmina_edge import engines

        started = time.monotonic()
        bundle = self._store.bundle(slot)
        _, model, check = engines.choose_engine(
            bundle.manifest, self._profile, require_accelerator=require_accelerator, present=set(bundle.files)
        )
        self_test, probes = self._judge(slot, plan)
        return Trial(slot, bundle.manifest, model, check, self_test, probes, time.monotonic() - started)

    def judge_slot(self, slot: Slot, plan: ChangePlan | None) -> Trial:
        """Judge what lies in the trial slot: also after an interruption that left a try.

        Raises:
            RolledBackError: Judged harmful; the active slot was never touched.
        """
        from kasmina_edge import engines

        started = time.monotonic()
        bundle = self._store.bundle(slot)
        manifest = bundle.manifest
        _, model, check = engines.choose_engine(manifest, self._profile, present=set(bundle.files))
        try:
            self_test, probes = self._judge(slot, plan)
        except KasminaError as exc:
            self.take_back(manifest, exc.message)
            raise RolledBackError(f"{manifest.id}: {exc.message}") from exc
        self._judged = Trial(slot, manifest, model, check, self_test, probes, time.monotonic() - started)
        return self._judged

    def take_back(self, manifest: BundleManifest, reason: str) -> None:
        """End the trial: the previous slot is active, the content is quarantined, the reason is kept.

        Doing it again after the disk refused is safe, also when the refused write had taken effect after all.
        """
        if self._store.record().trial is not None:
            self._store.roll_back(reason)
        else:
            self._store.affirm()
            if not self._is_quarantined(manifest.content_digest()):
                self._store.quarantine(manifest.content_digest(), reason)
        self._note("rolled_back", bundle=manifest.id, content_digest=manifest.content_digest(), reason=reason)

    def go_live(self) -> None:
        """Let the apps of this device follow the trial slot."""
        self._store.go_live()

    def commit(self, manifest: BundleManifest) -> None:
        """Make the trial slot the active one, then raise the release floor; only now may success be reported.

        Doing it again after the disk refused is safe, also when the refused write had taken effect after all.

        Raises:
            InputError: Nothing is on trial, and another bundle is active.
            StorageError: The disk refused; the bundle may be active, and is not settled.
        """
        record = self._store.record()
        if record.trial is None and record.active is not None and self._holds(record.active, manifest):
            self._store.affirm()
        else:
            self._store.confirm()
        self.settle(manifest)
        self._note("committed", bundle=manifest.id, release=manifest.release, content_digest=manifest.content_digest())
        judged = self._judged if self._judged is not None and self._judged.manifest == manifest else None
        test = judged.self_test if judged else None
        verdict = CommittedVerdict(
            content_digest=manifest.content_digest(),
            at_s=self._clock(),
            self_test=test.passed / test.samples if test else None,
            probe_accuracy=judged.probes[1] if judged and judged.probes else None,
        )
        with contextlib.suppress(StorageError):  # a figure for telemetry, and no reason to fail
            write_verdict(self._hosts.parent, verdict)

    def settle(self, manifest: BundleManifest) -> None:
        """What follows from a committed slot; run again at every start, since power may fail between the two."""
        for name in ("floor", "plan.json", "root.json"):
            remove_temporaries(self._trust.folder / name)
        remove_temporaries(self._hosts.parent / VERDICT_FILE)
        self._trust.raise_floor(manifest.name, manifest.release)
        if manifest.host is None and not manifest.grafts:
            make_private_folder(self._hosts)
            path = self._hosts / f"{manifest.content_digest()}.json"
            remove_temporaries(path)
            if not path.exists():
                write_durable(path, manifest.model_copy(update={"release": 0}).to_bytes())

    def _is_quarantined(self, content_digest: str) -> bool:
        try:
            return self._store.quarantined(content_digest) is not None
        except StorageError:
            return True  # a damaged quarantine lets nothing in before an operator has looked

    def _holds(self, slot: Slot, manifest: BundleManifest) -> bool:
        there = self._store.manifest(slot)
        return there is not None and there.digest() == manifest.digest()

    def _judge(
        self, slot: Slot, plan: ChangePlan | None
    ) -> tuple[engines.SelfTestResult, tuple[float | None, float] | None]:
        from kasmina_edge import engines, health

        bundle = self._store.bundle(slot)
        engine = engines.open_engine(bundle, self._profile)
        try:
            result = engines.self_test(engine, bundle)
            if result.passed < result.samples:
                raise RolledBackError(
                    f"self-test {result.passed} of {result.samples} within tolerance, worst difference {result.worst:g}"
                )
            if plan is not None:
                verdict = health.judge_latency(result.p50_us, plan.maximum_latency_us)
                if not verdict.ok:
                    raise RolledBackError(verdict.reason)
            return result, self._judge_probes(engine, bundle, plan)
        finally:
            engine.close()

    def _judge_probes(
        self, engine: engines.Engine, bundle: Bundle, plan: ChangePlan | None
    ) -> tuple[float | None, float] | None:
        from kasmina_edge import health

        if bundle.manifest.probes is None:
            return None
        limits = plan.health if plan else HealthLimits(probes=bundle.manifest.probes.file.sha256, minimum_accuracy=0.0)
        if bundle.manifest.grafts or bundle.manifest.probes.file.sha256 == limits.probes:
            inputs, labels = health.load_probes(bundle, expected_sha256=limits.probes)
        else:  # a new host, vouched for by the targets keys, brings new probes; the plan for it comes beside it
            inputs, labels = health.load_probes(bundle, expected_sha256=bundle.manifest.probes.file.sha256)
        trial = health.probe(engine, bundle, inputs).labels == labels
        active = None
        record = self._store.record()
        manifest = self._store.manifest(record.active) if record.active else None
        if record.active and manifest and manifest.name == bundle.manifest.name:
            active = self._active_answers(record.active, inputs, labels)
        verdict = health.judge_probes(active, trial, limits)
        if not verdict.ok:
            raise RolledBackError(verdict.reason)
        return (None if active is None else float(active.mean()), float(trial.mean()))

    def _active_answers(self, slot: Slot, inputs: health.Frames, labels: health.Labels) -> health.Answers | None:
        """Which probes the active bundle answers rightly; None when it rotted: a repair is not judged by the damage."""
        from kasmina_edge import engines, health

        try:
            beside = self._store.bundle(slot)
            with engines.open_engine(beside, self._profile) as engine:
                answers: health.Answers = health.probe(engine, beside, inputs).labels == labels
                return answers
        except KasminaError as exc:
            self._note("active_bundle_damaged", slot=slot, reason=exc.message)
            return None
