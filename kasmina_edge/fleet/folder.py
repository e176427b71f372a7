"""A fleet's folder on the controller's machine: signing repository, sealing key, enrolled devices, store, audit log.

It lives outside any source repository (default ``~/.config/kasmina/fleet``), 0700. The offline keys (root, targets) are
made into a folder of their own, which belongs on a medium that is only plugged in to sign a host or a change plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.contracts.change_plan import (
    CaptureBudget,
    CaptureSampling,
    ChangePlan,
    Erasure,
    HealthLimits,
    check_against_plan,
)
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, KasminaError, PlanError
from kasmina_edge.fleet.erasures import CarriedOut, ErasureBook, carry_out, in_plan, plan_with
from kasmina_edge.fleet.keys import KeyRing
from kasmina_edge.fleet.repository import Published, Repository
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.logs import publication_trace, tracing
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.safety.encryption import (
    load_sealing_key,
    new_sealing_key,
    new_signing_key,
    public_hex,
)
from kasmina_edge.settings import write_settings
from kasmina_edge.storage import as_storage_error, make_private_folder, write_durable
from kasmina_edge.transport.address import parse_address
from kasmina_edge.transport.broker import free_port
from kasmina_edge.updates.trust import TrustStore

DEFAULT_GROWTH_BYTES = 32_768


class Device(Contract):
    """An enrolled device as the controller knows it; ``public_key`` verifies what the device signs."""

    id: str
    public_key: str
    groups: tuple[str, ...]
    profile: str

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged register is for the operator to mend."""
        return InputError


class FleetConfig(Contract):
    """Where the fleet meets; ``embedded`` starts a broker for trusted devices inside the controller."""

    name: str
    site: str
    address: str
    embedded: bool = False
    devices: tuple[Device, ...] = ()

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged register is for the operator to mend."""
        return InputError


@dataclass(frozen=True)
class Limits:
    """What a drafted change plan allows, beyond the host it is for; see `ChangePlan` for units."""

    blueprints: Mapping[str, tuple[int, ...]]
    sites: tuple[str, ...]
    maximum_parameters: int = 4096
    maximum_growth_bytes: int = DEFAULT_GROWTH_BYTES
    minimum_accuracy: float = 0.9
    maximum_loss: float = 0.02
    maximum_latency_us: float | None = None
    live_frames: int = 40
    live_timeout_s: float = 30.0
    capture_frames: int = 0
    capture_bytes: int = 0
    capture_days: float | None = None
    capture_sampling: CaptureSampling | None = None


def default_folder() -> Path:
    """``$KASMINA_FLEET`` or ``~/.config/kasmina/fleet``."""
    named = os.environ.get("KASMINA_FLEET")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "kasmina" / "fleet"


class FleetFolder:
    """The controller's side of everything that is signed, enrolled or remembered."""

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self.folder = folder
        self._clock = clock
        path = folder / "fleet.json"
        if not path.is_file():
            raise InputError(f"{folder}: not a fleet folder", "Make one with `kasmina-edge fleet init`.")
        self.config = FleetConfig.from_bytes(path.read_bytes(), where=str(path))
        self.audit = AuditLog(folder / "audit.log", clock=clock)
        self.repository = Repository.open(folder / "repository", clock=clock)
        self._keys = KeyRing(folder / "repository", desk=self.repository.is_desk)
        self._erasures = ErasureBook(folder / "erasures.json")

    @classmethod
    def init(
        cls,
        folder: Path,
        *,
        offline_keys: Path,
        address: str = "embedded",
        site: str = "main",
        name: str = "fleet",
        clock: Callable[[], float],
    ) -> FleetFolder:
        """Make keys, metadata and an empty register.

        Raises:
            InputError: The folder holds a fleet already, or the address is none.
        """
        if address != "embedded":
            address = str(parse_address(address, insecure=True))  # who connects decides about plain links
        if (folder / "fleet.json").exists():
            raise InputError(f"{folder}: a fleet is there already", "Choose another --fleet folder.")
        Topics(site=site)
        make_private_folder(folder)
        embedded = address == "embedded"
        config = FleetConfig(
            name=name, site=site, embedded=embedded, address=f"mqtt://127.0.0.1:{free_port()}" if embedded else address
        )
        Repository.init(folder / "repository", name=name, offline_keys=offline_keys, clock=clock)
        new_sealing_key(folder / "sealing.key")
        write_durable(folder / "fleet.json", config.to_bytes())
        fleet = cls(folder, clock=clock)
        fleet.audit.append("fleet_made", site=site, address=config.address)
        return fleet

    @property
    def topics(self) -> Topics:
        """Topics of this fleet's site."""
        return Topics(site=self.config.site)

    def store(self) -> FleetStore:
        """The controller's memory: reports, telemetry, captures."""
        return FleetStore(self.folder / "fleet.db", is_erased=self._erasures.covers, key_of=self.public_key)

    def public_key(self, device: str) -> str | None:
        """Ed25519 public key (hex) of a device, also of one that another process enrolled; None: it is not enrolled."""
        entry = next((d for d in self.config.devices if d.id == device), None)
        if entry is None:
            path = self.folder / "fleet.json"
            try:
                config = FleetConfig.from_bytes(path.read_bytes(), where=str(path))
            except OSError as exc:
                raise as_storage_error(exc, path) from exc
            entry = next((d for d in config.devices if d.id == device), None)
        return None if entry is None else entry.public_key

    def sealing_key(self) -> Any:
        """The private key that opens captures; it never leaves this folder."""
        return load_sealing_key(self.folder / "sealing.key")

    def enroll(self, device: str, data: Path, *, groups: Sequence[str] = ("all",), profile: str = "x86-cpu") -> Device:
        """Give a device its root, its own Ed25519 key, its address and its groups, in a fresh data folder.

        Raises:
            InputError: The id is taken, or the folder belongs to a device already.
        """
        Topics().device(device, "state")
        load_profile(profile)
        if any(d.id == device for d in self.config.devices):
            raise InputError(f"device {device} is enrolled already", "Choose another id.")
        if (data / "device.key").exists():
            raise InputError(f"{data}: belongs to a device already", "Enrol into an empty folder.")
        make_private_folder(data)
        key = new_signing_key(data / "device.key")
        trust = TrustStore(data / "trust", clock=self._clock)
        trust.pin(self.repository.root_bytes())
        write_settings(
            data / "kasmina.toml",
            {
                "device.id": device,
                "device.site": self.config.site,
                "device.groups": tuple(groups),
                "device.profile": profile,
                "device.experiment_id": secrets.token_hex(4),
                "broker.address": self.config.address,
            },
        )
        entry = Device(id=device, public_key=public_hex(key), groups=tuple(groups), profile=profile)
        self.config = self.config.model_copy(update={"devices": (*self.config.devices, entry)})
        write_durable(self.folder / "fleet.json", self.config.to_bytes())
        self.audit.append("device_enrolled", device=device, groups=list(groups))
        return entry

    def recipients(self, names: Sequence[str]) -> tuple[str, ...]:
        """Check device ids and ``@group`` names against the register.

        Raises:
            InputError: A name is neither an enrolled device nor a group of one.
        """
        groups = {g for d in self.config.devices for g in d.groups}
        for name in names:
            known = name[1:] in groups if name.startswith("@") else any(d.id == name for d in self.config.devices)
            if not known:
                raise InputError(
                    f"{name}: no such device or group",
                    f"Enrolled: {', '.join(d.id for d in self.config.devices) or 'none'}; "
                    f"groups: {', '.join('@' + g for g in sorted(groups)) or 'none'}.",
                )
        return tuple(names)

    def draft_plan(self, host: BundleManifest, limits: Limits) -> ChangePlan:
        """The change plan for grafts on ``host``; its serial is one above the last.

        It lists ``host`` and, newest first, the hosts of what is assigned now: grafts on those can still be taken back.

        Raises:
            InputError: The host has no reference probes, and a plan without them could not be enforced.
        """
        if host.probes is None:
            raise InputError(f"{host.id}: has no reference probes", "Export the host with probes first.")
        capture = None
        serial = self._next_serial(host.name)
        if limits.capture_frames:
            capture = CaptureBudget(
                renewal=serial,  # a plan that somebody signs brings a new budget; one that only carries an erasure none
                max_frames=limits.capture_frames,
                max_bytes=limits.capture_bytes,
                max_days=limits.capture_days,
                sampling=limits.capture_sampling,
            )
        return ChangePlan(
            bundle=host.name,
            serial=serial,
            hosts=self._hosts(host),
            blueprints=dict(limits.blueprints),
            sites=limits.sites,
            maximum_parameters=limits.maximum_parameters,
            maximum_growth_bytes=limits.maximum_growth_bytes,
            maximum_latency_us=limits.maximum_latency_us,
            health=HealthLimits(
                probes=host.probes.file.sha256,
                minimum_accuracy=limits.minimum_accuracy,
                maximum_loss=limits.maximum_loss,
                live_frames=limits.live_frames,
                live_timeout_s=limits.live_timeout_s,
            ),
            capture=capture,
            controller_key=public_hex(self.sealing_key()) if capture else None,
            erasures=in_plan(self._erasures.all()),
        )

    def erase(self, erasure: Erasure, offline_keys: Path) -> CarriedOut:
        """Erase captured inputs here and on devices; see `kasmina_edge.fleet.erasures`.

        Args:
            erasure: What is to be erased.
            offline_keys: The targets keys: every change plan is signed again.

        Raises:
            InputError: The device is not enrolled, another demand has this id, a plan has no place for one more, or a
                key is missing; nothing was changed.
        """
        if erasure.device is not None:
            self.recipients([erasure.device])
        names = {path.split("/")[1] for path in self.repository.target_sizes() if path.count("/") > 1}
        plans = [plan for name in sorted(names) if (plan := self.repository.current_plan(name)) is not None]

        if plans:
            for role in ("targets", "snapshot", "timestamp"):
                self._keys.signers(role, offline_keys)

        def sign(plan: ChangePlan, erasures: tuple[Erasure, ...]) -> int:
            following = plan_with(plan, erasures, self._next_serial(plan.bundle))
            self.repository.set_plan(following, offline_keys)
            return following.serial

        with contextlib.closing(self.store()) as store:
            done = carry_out(
                erasure,
                self._erasures,
                remove=store.erase_captures,
                plans=plans,
                sign=sign,
                manifests=[(r.manifest.release, r.manifest) for name in names for r in self.repository.releases(name)],
            )
        self.audit.append(
            "captures_erased", erasure=erasure.id, frames=len(done.removed), grafts=list(done.grafts),
            plans=dict(done.plans),
        )  # fmt: skip
        return done

    def _next_serial(self, name: str) -> int:
        """One above every serial that was drafted for ``name``, durably."""
        path = self.folder / "plan-serials.json"
        serials: dict[str, int] = json.loads(path.read_bytes()) if path.is_file() else {}
        serials[name] = serials.get(name, 0) + 1
        write_durable(path, json.dumps(serials, sort_keys=True).encode())
        return serials[name]

    def _hosts(self, host: BundleManifest) -> tuple[str, ...]:
        """Content digests of ``host`` and of the hosts of every assigned release of that name, without repetition."""
        assigned = {self.repository.assigned(who).get(host.name) for who in self.repository.recipients()}
        found = [r.manifest for r in reversed(self.repository.releases(host.name)) if r.manifest_path in assigned]
        return tuple(dict.fromkeys((host.content_digest(), *(m.host or m.content_digest() for m in found))))

    def publish(
        self,
        bundle: Bundle,
        *,
        to: Sequence[str],
        offline_keys: Path | None = None,
        plan: ChangePlan | None = None,
        accept_anyway: bool = False,
    ) -> Published:
        """Sign a bundle for ``to``; a running controller sees it and sends it out.

        Raises:
            InputError: Its acceptance failed, a key is missing, or a recipient is unknown.
        """
        if bundle.manifest.grafts:
            try:
                self._refuse_what_devices_would(bundle.manifest, plan)
            except PlanError as exc:
                if not accept_anyway:
                    raise
                self.audit.append("plan_ignored", bundle=bundle.manifest.id, reason=exc.message)
        published = self.repository.publish(
            bundle,
            to=self.recipients(to),
            offline_keys=offline_keys,
            plan=plan,
            accept_anyway=accept_anyway,
            audit=self.audit.append,
        )
        with tracing(publication_trace(published.manifest.digest(), published.release)):
            self.audit.append("published", bundle=bundle.manifest.id, release=published.release, to=list(to))
        self._expect(published.manifest)
        return published

    def _refuse_what_devices_would(self, manifest: BundleManifest, plan: ChangePlan | None) -> None:
        """Ask here what every device will ask: is there a plan, does it allow this, was the host ever published?

        Raises:
            PlanError: The first rule that is broken; ``--accept-anyway`` publishes all the same, and is audited.
        """
        releases = self.repository.releases(manifest.name)
        host = next((r.manifest for r in releases if r.manifest.content_digest() == manifest.host), None)
        try:
            check_against_plan(manifest, plan or self.repository.current_plan(manifest.name), host, signed_by="grafts")
        except PlanError as exc:
            raise PlanError(
                f"devices would refuse it: {exc.message}",
                "Publish its host and sign a plan that allows it (`kasmina-edge fleet publish`, `fleet plan`) first.",
            ) from exc

    def _expect(self, manifest: BundleManifest) -> None:
        """Tell the monitor which accuracy on check frames this bundle was published with."""
        parity = manifest.models[0].parity
        measured = parity.accuracy if parity is not None else None
        proven = manifest.acceptance.clean_after if manifest.acceptance else measured
        if proven is not None:
            store = self.store()
            try:
                store.set_expected_accuracy(manifest.digest(), proven)
            finally:
                store.close()

    def withdraw(self, name: str, *, to: Sequence[str]) -> Published:
        """Ship the host's bytes again under a new release number: the grafts are gone.

        Raises:
            PlanError: The change plan that is signed now does not list the host.
        """
        published = self.repository.withdraw(name, to=self.recipients(to))
        with tracing(publication_trace(published.manifest.digest(), published.release)):
            self.audit.append("withdrawn", bundle=name, release=published.release, to=list(to))
        self._expect(published.manifest)
        return published
