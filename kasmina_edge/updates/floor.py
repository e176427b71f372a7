"""What may only rise on a device: releases, metadata versions, plan serials and time, in one durable file.

python-tuf's memory of versions is a cache: wiping it made old, unexpired metadata acceptable again. This file is the
truth, and it fails closed: a device that is pinned and has lost it refuses updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.manifest import BundleManifest, Digest, Name
from kasmina_edge.errors import KasminaError, StorageError, TrustError
from kasmina_edge.storage import as_storage_error, write_durable

Count = Annotated[int, Field(ge=0)]
ENROL_AGAIN = "Enrol the device again; the active bundle keeps running."


class PlanFloor(SignedContract):
    """The last accepted plan of one bundle."""

    serial: Count
    sha256: Digest


class AuditHead(SignedContract):
    """The newest entry that the audit log is known to have had."""

    seq: Annotated[int, Field(ge=1)]
    hash: Digest


class Floor(SignedContract):
    """Everything that only rises.

    Attributes:
        time_s: Newest signing time seen in a verified timestamp, seconds since 1970 UTC. It comes from the signer,
            never from this device's clock, so that a clock that once ran ahead cannot lock the device out.
        online_keys: Which timestamp and snapshot keys ``versions`` belong to: a root that replaces them starts their
            counts anew (TUF specification 5.3.11).
        versions: Newest verified metadata version by role.
        releases: Highest committed release by bundle name.
        plans: Last accepted change plan by bundle name.
        audit: Where the audit log stood: a log that was cut together with its head shows against it.
    """

    format: Literal[1] = 1
    time_s: Annotated[float, Field(ge=0)] = 0.0
    online_keys: str = ""
    versions: dict[str, Count] = Field(default_factory=dict)
    releases: dict[Name, Count] = Field(default_factory=dict)
    plans: dict[Name, PlanFloor] = Field(default_factory=dict)
    audit: AuditHead | None = None

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged floor is a fault of the disk."""
        return StorageError

    def check_release(self, manifest: BundleManifest) -> None:
        """Refuse a release below the floor.

        Raises:
            TrustError: The message carries both numbers.
        """
        floor = self.releases.get(manifest.name, 0)
        if manifest.release < floor:
            raise TrustError(
                f"{manifest.id}: release {manifest.release} is below this device's floor {floor}", breach="replay"
            )

    def check_versions(self, versions: Mapping[str, int], online_keys: str) -> None:
        """Refuse metadata older than any that was verified before.

        Raises:
            TrustError: A role went back; the message carries both versions.
        """
        for role in sorted(versions):
            kept = role == "root" or online_keys == self.online_keys
            floor = self.versions.get(role, 0) if kept else 0
            if versions[role] < floor:
                raise TrustError(
                    f"rollback: {role} metadata version {versions[role]}, this device has seen {floor}", breach="replay"
                )

    def with_refresh(self, versions: Mapping[str, int], online_keys: str, signed_at_s: float) -> Floor:
        """The floor after a verified refresh."""
        base = self.versions if online_keys == self.online_keys else {"root": self.versions.get("root", 0)}
        raised = {r: max(base.get(r, 0), versions.get(r, 0)) for r in sorted({*base, *versions})}
        return self.model_copy(
            update={"versions": raised, "online_keys": online_keys, "time_s": max(self.time_s, signed_at_s)}
        )

    def with_release(self, name: str, release: int) -> Floor:
        """The floor after ``release`` was committed; it never falls."""
        return self.model_copy(update={"releases": {**self.releases, name: max(release, self.releases.get(name, 0))}})

    def with_audit(self, audit: AuditHead) -> Floor:
        """The floor after the audit log was written; its sequence never falls."""
        known = self.audit
        return self if known is not None and audit.seq <= known.seq else self.model_copy(update={"audit": audit})

    def with_plan(self, name: str, plan: PlanFloor) -> Floor:
        """The floor after a plan was accepted."""
        return self.model_copy(update={"plans": {**self.plans, name: plan}})


class FloorFile:
    """The floor on disk, read anew each time and written only when it changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._in_doubt = False

    def read(self, *, must_exist: bool) -> Floor:
        """The floor; an empty one when there is none and ``must_exist`` is false.

        Raises:
            StorageError: Missing though a root is pinned, or damaged.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as exc:
            if must_exist:
                raise StorageError(f"{self.path}: missing, though a root is pinned", ENROL_AGAIN) from exc
            return Floor()
        except OSError as exc:
            raise as_storage_error(exc, self.path) from exc
        try:
            return Floor.from_bytes(data, where=str(self.path))
        except StorageError as exc:
            raise StorageError(exc.message, ENROL_AGAIN) from exc

    def write(self, floor: Floor) -> None:
        """Make ``floor`` durable, unless it is what the file already holds; what a refused write left is no proof."""
        data = floor.to_bytes()
        try:
            if self.path.read_bytes() == data and not self._in_doubt:
                return
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise as_storage_error(exc, self.path) from exc
        self._in_doubt = True
        write_durable(self.path, data)
        self._in_doubt = False
