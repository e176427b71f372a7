"""The verbs of one device: deploy, run, rollback; infer, status, top and doctor are in files of their own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.status import Status

from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.cli.bundle_map import coral_line, on_name
from kasmina_edge.cli.doctor import doctor
from kasmina_edge.cli.infer import infer
from kasmina_edge.cli.output import console, emit, plain, rows_table, size_text
from kasmina_edge.cli.status import status, top
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.manifest import (
    BundleManifest,
)
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.engines import EngineCheck
from kasmina_edge.errors import BundleError, InputError, KasminaError, PlanError
from kasmina_edge.installer import Installer, Trial
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.settings import FILE_NAME, Settings, write_settings
from kasmina_edge.slots import Slot, SlotStore
from kasmina_edge.storage import make_private_folder
from kasmina_edge.updates.trust import TrustStore, VerifiedBy, verify_bundle

if TYPE_CHECKING:
    pass

DataOption = Annotated[Path, typer.Option("--data", envvar="KASMINA_DATA", help="This device's data folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Hardware target, e.g. coral.")]
DEFAULT_DATA = Path("kasmina-data")


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    for verb in (deploy, run, status, top, infer, rollback, doctor):
        app.command()(verb)


def deploy(
    bundle: Annotated[
        Path | None, typer.Argument(help="NAME-VERSION.kasmina; left out: the newest below build/.")
    ] = None,
    profile: ProfileOption = None,
    data: DataOption = DEFAULT_DATA,
    require_accelerator: Annotated[
        bool, typer.Option("--require-accelerator", help="Fail instead of falling back to the CPU.")
    ] = False,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="Device id or @group: deploy through the controller instead.")
    ] = None,
    offline_keys: Annotated[
        Path | None, typer.Option("--offline-keys", help="With --to: where the targets keys are, for a host bundle.")
    ] = None,
    fleet: Annotated[Path | None, typer.Option("--fleet", help="With --to: the fleet folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Install a bundle into this device's slots, self-test it, and confirm it."""
    path = bundle or newest_bundle(Path("build"))
    if to:
        from kasmina_edge.cli.fleet import publish

        publish(path, to=to, offline_keys=offline_keys, fleet=fleet, as_json=as_json)
        return
    try:
        _deploy_here(path, profile, data, require_accelerator=require_accelerator, as_json=as_json)
    except KasminaError as exc:
        exc.message = f"Not deployed: {exc.message}"
        raise


def _deploy_here(path: Path, profile: str | None, data: Path, *, require_accelerator: bool, as_json: bool) -> None:
    """Verify, install, judge and commit on this machine."""
    settings = Settings.read(data, flags={"device.profile": profile})
    target = load_profile(settings["device.profile"]).chosen(
        engine=settings["device.engine"], accelerator_device=settings["device.accelerator"]
    )
    opened = read_file(path)
    make_private_folder(data)
    store = SlotStore(data, clock=time.time)
    with store.lock_agent(), _working(f"Deploying {opened.manifest.id}", quiet=as_json):
        store.recover()
        trust = TrustStore(data / "trust", clock=time.time)
        verified = verify_bundle(opened, pinned_root=trust.root() if trust.kind else None, clock=trust.now)
        if trust.kind is None:
            trust.pin(opened.metadata["1.root.json"])
        audit = AuditLog(data / "audit.log", clock=time.time)
        installer = Installer(data, store, trust, target, note=audit.append)
        active = _active_manifest(store)
        if active is not None:
            installer.settle(active)  # an earlier call may have been cut between the commit and the floor
        plan = trust.plan(opened.manifest.name)
        role = "desk" if verified.kind == "desk" else verified.role
        installer.allowed(opened.manifest, plan, signed_by=role)
        there = _whole_active_slot(store, opened.manifest)
        if there is not None:
            trial = installer.retest(there, plan, require_accelerator=require_accelerator)
        else:
            trial = installer.put_on_trial(opened, plan, require_accelerator=require_accelerator)
            installer.commit(opened.manifest)
        if profile is not None and not (data / FILE_NAME).exists():
            write_settings(data / FILE_NAME, {"device.profile": target.name})
    _show_deployed(opened, trial, verified, target, store, data, already=there is not None, as_json=as_json)


def _active_manifest(store: SlotStore) -> BundleManifest | None:
    """What is committed here; None when nothing is, or when it rotted."""
    slot = store.record().active
    with contextlib.suppress(BundleError):
        return store.manifest(slot) if slot else None
    return None


def _whole_active_slot(store: SlotStore, manifest: BundleManifest) -> Slot | None:
    """The active slot when it holds this very content, whole: installing it again would only lose the way back."""
    record = store.record()
    if record.active is None:
        return None
    try:
        active = store.bundle(record.active).manifest
    except BundleError:
        return None
    return record.active if active.content_digest() == manifest.content_digest() else None


def _show_deployed(
    bundle: Bundle,
    trial: Trial,
    verified: VerifiedBy,
    profile: HardwareProfile,
    store: SlotStore,
    data: Path,
    *,
    already: bool,
    as_json: bool,
) -> None:
    manifest, test = trial.manifest, trial.self_test
    record = store.record()
    previous = store.manifest(record.previous) if record.previous else None
    size = size_text(trial.model.file.size_bytes)
    kind = "int8" if trial.model.inputs[0].dtype in ("int8", "uint8") else trial.model.inputs[0].dtype
    key = f"desk key {verified.key_id[:12]} (no fleet root pinned)" if verified.kind == "desk" else "fleet root"
    rows = [
        ("bundle", f"{size} {kind}, {key}, verified offline"),
        ("engine", engine_line(trial.check)),
        (
            "self-test",
            f"{test.passed} of {test.samples} within tolerance, p50 {test.p50_us:.0f} us, p99 {test.p99_us:.0f} us",
        ),
    ]
    said, mapping = coral_line(bundle, profile)
    if said:
        rows.insert(2, (on_name(profile), said))
    if trial.probes is not None:
        beside = f", active bundle {100 * trial.probes[0]:.1f} %" if trial.probes[0] is not None else ""
        rows.append(("probes", f"{100 * trial.probes[1]:.1f} % of {manifest.probes.samples}{beside}"))  # type: ignore[union-attr]
    doubt = gate_line(manifest, back=previous is not None)
    if doubt:
        rows.insert(0, ("gate", doubt))
    back = "previous: none"
    if previous is not None and record.previous is not None:
        back = f"previous: {previous.id} in slot {record.previous.upper()}, `kasmina-edge rollback` returns to it"
    if already:
        rows.append(("active", f"slot {trial.slot.upper()} already, nothing was installed   {back}"))
    else:
        rows.append(("committed", f"slot {trial.slot.upper()}   {back}"))
    value = {
        "name": manifest.name,
        "version": manifest.version,
        "release": manifest.release,
        "digest": manifest.digest(),
        "slot": trial.slot,
        "already_active": already,
        "engine": trial.check.runs_on,
        "accelerator": trial.check.accelerator,
        "trust": verified.kind,
        "self_test": {"passed": test.passed, "samples": test.samples, "p50_us": test.p50_us, "p99_us": test.p99_us},
        "probes": None if trial.probes is None else {"active": trial.probes[0], "trial": trial.probes[1]},
        "previous": previous.id if previous else None,
        "profile": profile.name,
        "mapping": mapping,
        "acceptance": None if manifest.acceptance is None else manifest.acceptance.model_dump(mode="json"),
        "doubt": doubt,
    }
    if not as_json:
        console().print(plain(f"Deployed {manifest.id} to this device (data folder {data})"))
    emit(value, as_json=as_json, table=rows_table(rows))


def gate_line(manifest: BundleManifest, *, back: bool) -> str:
    """What stands against the grafts of a bundle, in one sentence with the next step; "" where nothing does.

    Args:
        manifest: Of the bundle that was deployed; the trainer wrote the verdict of its acceptance gate into it.
        back: Whether another bundle can be returned to.
    """
    found = manifest.acceptance
    if found.accepted if found is not None else not manifest.grafts:
        return ""
    named = ", ".join(f"{graft.blueprint} at {graft.site}" for graft in manifest.grafts[:2])
    more = f" and {len(manifest.grafts) - 2} more" if len(manifest.grafts) > 2 else ""
    said = "was never measured by the acceptance gate"
    if found is not None:
        said = f"was REFUSED by the acceptance gate ({'; '.join(found.reasons) or 'no reason given'})"
    undo = "`kasmina-edge rollback` takes it back" if back else "deploy the host's bundle instead"
    return f"what grew here ({named or 'a retune'}{more}) {said} and runs all the same: {undo}, or grow it again"


def engine_line(check: EngineCheck) -> str:
    """What runs where and why, for people."""
    if not check.accelerator:
        return check.runs_on
    if check.runs_on == "Edge TPU":
        return check.runs_on
    if check.accelerator.startswith("simulated"):  # nothing is missing here that the doctor could name
        return f"{check.runs_on:<20} Edge TPU: {check.accelerator}; latencies are predicted, not measured"
    return f"{check.runs_on:<20} Edge TPU: {check.accelerator} (kasmina-edge doctor explains)"


def run(
    data: DataOption = DEFAULT_DATA,
    profile: ProfileOption = None,
    address: Annotated[str | None, typer.Option("--address", help="Broker, e.g. mqtts://host:8883.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain mqtt:// off loopback.")] = False,
    wait_for_broker: Annotated[
        bool, typer.Option("--wait-for-broker", help="Keep trying when no broker answers at the start (for services).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON log lines on a terminal too.")] = False,
) -> None:
    """Run this device's agent until it is stopped: telemetry out, signed updates in."""
    from kasmina_edge.cli.agent_process import run_agent

    run_agent(
        data,
        profile=profile,
        address=address,
        insecure=insecure,
        wait_for_broker=wait_for_broker,
        as_json=as_json,
    )


def rollback(
    data: DataOption = DEFAULT_DATA,
    release_quarantine: Annotated[
        str | None, typer.Option("--release-quarantine", help="Lift the quarantine of this digest (12 characters do).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Return to the bundle in the other slot; a fleet's device does not take the one that it left again."""
    if not (data / "slots").is_dir():
        raise InputError(f"{data}: nothing is deployed here", "Deploy a bundle with `kasmina-edge deploy`.")
    store = SlotStore(data, clock=time.time)
    audit = AuditLog(data / "audit.log", clock=time.time)
    with store.lock_agent():
        if release_quarantine is not None:
            digest = store.release_quarantine(release_quarantine)
            audit.append("quarantine_released", content_digest=digest)
            emit({"released": digest}, as_json=as_json, table=f"Quarantine of {short_digest(digest)} lifted.")
            return
        left = _serving(store)
        _refuse_quarantined_return(store)
        record = store.roll_back("asked for by the operator")
        manifest = store.manifest(record.active) if record.active else None
        audit.append("rolled_back", bundle=manifest.id if manifest else "none", reason="asked for by the operator")
        quarantined = None
        if left is not None and TrustStore(data / "trust", clock=time.time).kind == "fleet":
            quarantined, reason = left.content_digest(), "rolled back by the operator"
            store.quarantine(quarantined, reason)
            audit.append("quarantined", bundle=left.id, content_digest=quarantined, reason=reason)
    name = manifest.id if manifest else "nothing"
    said = f"Active: {name} in slot {(record.active or '-').upper()}."
    if left is not None and quarantined is not None:
        said += (
            f"\nQuarantined on this device: {left.id}, so that the fleet's next check does not install it again; "
            f"lift it with `kasmina-edge rollback --release-quarantine {short_digest(quarantined)}`."
        )
    value = {"active": name, "slot": record.active, "quarantined": quarantined}
    emit(value, as_json=as_json, table=Group(*map(plain, said.splitlines())))


def _refuse_quarantined_return(store: SlotStore) -> None:
    """Returning must not bring back what this device took back before.

    Raises:
        PlanError: The other slot holds a quarantined content.
    """
    record = store.record()
    if record.trial is not None or record.previous is None:
        return
    manifest = store.manifest(record.previous)
    reason = store.quarantined(manifest.content_digest()) if manifest is not None else None
    if manifest is not None and reason is not None:
        raise PlanError(
            f"the other slot holds {manifest.id}, quarantined on this device: {reason}",
            f"Lift it first: `kasmina-edge rollback --release-quarantine {short_digest(manifest.content_digest())}`.",
        )


def _serving(store: SlotStore) -> BundleManifest | None:
    """The manifest that a roll-back leaves: the trial's, else the active one; None when it is too damaged to name."""
    record = store.record()
    slot = record.trial or record.active
    with contextlib.suppress(BundleError):
        return store.manifest(slot) if slot else None
    return None


def newest_bundle(build: Path) -> Path:
    """The newest ``.kasmina`` below ``build/`` whose acceptance did not fail.

    Raises:
        InputError: There is none; the next step says how to build one.
    """
    found = sorted(
        (*build.glob("*.kasmina"), *build.glob("*/*.kasmina")), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for path in found:
        try:
            acceptance = read_file(path).manifest.acceptance
        except BundleError:
            continue
        if acceptance is None or acceptance.accepted:
            return path
    raise InputError(
        f"no bundle was built here (looked in {build}/)",
        "Build one with `make demo`, or `kasmina-trainer train` and `kasmina-trainer export`; or name a .kasmina file.",
    )


@contextlib.contextmanager
def _working(text: str, *, quiet: bool) -> Any:
    """A spinner on stderr while the block runs, on terminals only."""
    err = console(stderr=True)
    with Status(plain(text), console=err) if err.is_terminal and not quiet else contextlib.nullcontext():
        yield
