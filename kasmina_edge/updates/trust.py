"""What this device trusts: a pinned root, floors that only rise, and the last change plan that was verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tuf.api.metadata import Root
from tuf.ngclient import FetcherInterface

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.errors import KasminaError, PlanError, TrustError
from kasmina_edge.safety.audit import Head
from kasmina_edge.storage import as_storage_error, make_private_folder, remove_file, sync_folder, write_durable
from kasmina_edge.updates.client import Client, MemoryFetcher, is_desk, online_key_id, read_root, root_key_id
from kasmina_edge.updates.floor import AuditHead, Floor, FloorFile, PlanFloor
from kasmina_edge.updates.offline import VerifiedBy, verify_bundle
from kasmina_edge.updates.refusals import refusals
from kasmina_edge.updates.session import CACHE_FOLDER, MANIFESTS_FOLDER, Offer, UpdateSession

__all__ = ["MemoryFetcher", "Offer", "TrustStore", "UpdateSession", "VerifiedBy", "verify_bundle"]

CLOCK_TOLERANCE_S = 300.0


class TrustStore:
    """The trust folder of one device: ``root.json``, ``floor``, ``plan.json``; ``tuf/`` and ``manifests/`` are caches.

    The agent's lock keeps a second writer away; readers need none.

    Args:
        folder: ``<data>/trust``; made (0700) on first write.
        clock: Seconds since 1970 UTC.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self.folder = folder
        self._clock = clock
        self._floor = FloorFile(folder / "floor")

    # ------------------------------------------------------------------------------------------ the root

    def root(self) -> bytes | None:
        """The newest root that was verified from the pinned one, or None."""
        return self._read("root.json")

    @property
    def kind(self) -> Literal["fleet", "desk"] | None:
        """Whom this device listens to: a fleet, one desk key, or nobody yet."""
        root = self._root()
        return None if root is None else "desk" if is_desk(root) else "fleet"

    def key_id(self) -> str:
        """Twelve hex digits that stand for the pinned root's own keys; empty when none is pinned."""
        root = self._root()
        return "" if root is None else root_key_id(root)

    def pin(self, root: bytes, *, force: bool = False) -> None:
        """Trust this root from now on.

        The same root again changes nothing. A fleet may replace a desk key; every other replacement needs ``force``.
        Replacing a root starts the floors anew, because they count another repository's releases.

        Raises:
            TrustError: Not signed by its own keys, or another root is pinned.
        """
        with refusals("the root to be pinned"):
            new = read_root(root)
        old = self._root()
        if old is not None and root_key_id(old) == root_key_id(new) and old.version >= new.version:
            return
        if old is not None and not force and not (is_desk(old) and not is_desk(new)):
            raise TrustError(
                f"{self.folder}: root {root_key_id(old)} is pinned, refusing root {root_key_id(new)}",
                "Enrol the device again with --force if it really changes hands.",
                breach="signature",
            )
        make_private_folder(self.folder)
        before = self._floor.read(must_exist=False)
        self.clear_cache()
        (self.folder / "plan.json").unlink(missing_ok=True)
        self._floor.write(Floor(time_s=0.0 if force else before.time_s, audit=before.audit))
        write_durable(self.folder / "root.json", root)

    def clear_cache(self) -> None:
        """Forget cached metadata and manifests; the floors stay."""
        for name in (CACHE_FOLDER, MANIFESTS_FOLDER):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ floors

    def floor(self, name: str) -> int:
        """Highest committed release of ``name``; 0 when there is none."""
        return self._read_floor().releases.get(name, 0)

    def raise_floor(self, name: str, release: int) -> None:
        """Remember a committed release, durably; a lower one changes nothing."""
        make_private_folder(self.folder)
        self._floor.write(self._read_floor().with_release(name, release))

    def check_release(self, manifest: BundleManifest) -> None:
        """Refuse a release below the floor.

        Raises:
            TrustError: "release 3 is below this device's floor 5".
        """
        self._read_floor().check_release(manifest)

    def audit_anchor(self) -> Head | None:
        """The newest entry that the audit log is known to have had; None before the first."""
        audit = self._read_floor().audit
        return None if audit is None else Head(audit.seq, audit.hash)

    def anchor_audit(self, head: Head) -> None:
        """Remember the audit log's newest entry, durably; an older one changes nothing."""
        make_private_folder(self.folder)
        self._floor.write(self._read_floor().with_audit(AuditHead(seq=head.seq, hash=head.hash)))

    def now(self) -> float:
        """The device's clock, or the newest signed time when the clock is behind it."""
        return max(self._clock(), self._read_floor().time_s)

    @property
    def clock_ok(self) -> bool:
        """False when the clock is more than five minutes behind a time that was signed."""
        return self._clock() >= self._read_floor().time_s - CLOCK_TOLERANCE_S

    def note_refresh(self, client: Client) -> None:
        """Check a verified refresh against the floors, then raise them; a newer root becomes the pinned one.

        Raises:
            TrustError: A role went back behind what this device has seen.
        """
        floor = self._read_floor()
        root = client.trusted.root
        keys = online_key_id(root)
        floor.check_versions(client.versions(), keys)
        pinned = self._root()
        if pinned is None or pinned.version < root.version:
            write_durable(self.folder / "root.json", client.embedded(())[f"{root.version}.root.json"])
        self._floor.write(floor.with_refresh(client.versions(), keys, client.signed_at_s()))

    # ------------------------------------------------------------------------------------------ the plan

    def plan(self, name: str | None = None) -> ChangePlan | None:
        """The last verified change plan.

        Args:
            name: Only a plan for this bundle.

        Returns:
            The plan; None when there is none, it is for another bundle than ``name``, or the file is not the one that
            was verified.

        Raises:
            StorageError: The plan or the floor cannot be read.
        """
        data = self._read("plan.json")
        if data is None:
            return None
        try:
            plan = ChangePlan.from_bytes(data, where=str(self.folder / "plan.json"))
        except KasminaError:
            return None
        if name is not None and plan.bundle != name:
            return None
        known = self._read_floor().plans.get(plan.bundle)
        return plan if known is not None and known.sha256 == sha256_hex(data) else None

    def accept_plan(self, plan: ChangePlan) -> None:
        """Keep a plan whose signature was verified.

        Raises:
            PlanError: Its serial is below, or equal with other content, to the last accepted one.
        """
        floor = self._read_floor()
        last = floor.plans.get(plan.bundle)
        new = PlanFloor(serial=plan.serial, sha256=plan.digest())
        if last is not None and (new.serial < last.serial or (new.serial == last.serial and new != last)):
            raise PlanError(
                f"change plan for {plan.bundle}: serial {plan.serial}, this device has seen {last.serial}",
                breach="replay",
            )
        write_durable(self.folder / "plan.json", plan.to_bytes())
        self._floor.write(floor.with_plan(plan.bundle, new))

    def drop_plan(self, name: str) -> None:
        """The targets role lists no plan for ``name`` any more: no grafts and no capture from now on, durably."""
        if self.plan(name) is not None:
            remove_file(self.folder / "plan.json")
            sync_folder(self.folder)

    # ------------------------------------------------------------------------------------------ updates

    def session(self, fetcher: FetcherInterface) -> UpdateSession:
        """One look at the repository; see `UpdateSession`."""
        return UpdateSession(self, fetcher)

    def _root(self) -> Root | None:
        data = self.root()
        if data is None:
            return None
        with refusals(str(self.folder / "root.json")):
            return read_root(data)

    def _read_floor(self) -> Floor:
        return self._floor.read(must_exist=(self.folder / "root.json").exists())

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise as_storage_error(exc, self.folder / name) from exc
