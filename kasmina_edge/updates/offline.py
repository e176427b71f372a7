"""Verify a bundle by the metadata that it carries, without a link."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuf.api.metadata import Root

from kasmina_edge.bundle import Bundle, check_files
from kasmina_edge.contracts.canonical import sha256_hex, short_digest
from kasmina_edge.contracts.manifest import MANIFEST_PATH
from kasmina_edge.errors import TrustError
from kasmina_edge.updates.client import Client, MemoryFetcher, is_desk, read_root, root_key_id
from kasmina_edge.updates.refusals import refusals

_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_UNSIGNED_NEXT_STEP = (
    "Sign it: `kasmina-trainer export` makes a desk key, `kasmina-edge fleet publish` signs for a fleet."
)


@dataclass(frozen=True)
class VerifiedBy:
    """Who vouches for a bundle.

    Attributes:
        kind: A fleet, or the desk key of whoever built it.
        role: The role that signed the manifest: ``targets``, ``grafts``, or ``desk`` for a desk key, as
            `check_against_plan` wants it.
        key_id: Twelve hex digits that stand for the root's keys.
    """

    kind: Literal["fleet", "desk"]
    role: Literal["targets", "grafts", "desk"]
    key_id: str


def verify_bundle(
    bundle: Bundle,
    *,
    pinned_root: bytes | None,
    clock: Callable[[], float],
    floor: int | None = None,
    dates: bool = True,
) -> VerifiedBy:
    """Check the signatures over a bundle's manifest, and every file against the manifest.

    Args:
        bundle: What to verify, with its ``metadata``.
        pinned_root: The device's root, or None where none is pinned: then only a desk key is accepted.
        clock: Seconds since 1970 UTC; give `TrustStore.now` where there is one.
        floor: Lowest accepted release; None: not judged.
        dates: False for what is installed already: a bundle does not stop working when its signatures age.

    Raises:
        TrustError: Not signed, signed by somebody else, expired, below the floor, or a desk bundle in a fleet.
        BundleError: A file is not the one that the manifest names.
    """
    where = bundle.id
    check_files(bundle, where=where, partial=True)
    if not bundle.metadata:
        raise TrustError(f"{where}: carries no signatures", _UNSIGNED_NEXT_STEP, breach="signature")
    embedded = _first_root(bundle)
    with refusals(where, offline=True):
        own = read_root(embedded) if embedded is not None else None
        pinned = read_root(pinned_root) if pinned_root is not None else None
    root = pinned or own
    if root is None:
        raise TrustError(f"{where}: carries no root, and none is pinned here", _UNSIGNED_NEXT_STEP)
    _refuse_strangers(where, own, pinned)
    root_bytes = pinned_root if pinned_root is not None else embedded
    assert root_bytes is not None
    manifest = bundle.manifest.to_bytes()
    with tempfile.TemporaryDirectory(prefix="kasmina-verify-") as folder, refusals(where, offline=True):
        client = Client(Path(folder), MemoryFetcher(bundle.metadata), root=root_bytes, now_s=clock() if dates else None)
        with refusals(where, trusted=client.trusted, offline=True):
            client.refresh()
            role = _signed_by(client, bundle, manifest)
    if role is None:
        told = f"nobody signed a manifest with sha256 {short_digest(sha256_hex(manifest))}"
        raise TrustError(f"{where}: {told}", breach="signature")
    if floor is not None and bundle.manifest.release < floor:
        told = f"release {bundle.manifest.release} is below this device's floor {floor}"
        raise TrustError(f"{where}: {told}", breach="replay")
    if is_desk(root):
        return VerifiedBy("desk", "desk", root_key_id(root))
    return VerifiedBy("fleet", role, root_key_id(root))


def _signed_by(client: Client, bundle: Bundle, manifest: bytes) -> Literal["targets", "grafts"] | None:
    place = f"{bundle.manifest.name}/{bundle.manifest.release}/{MANIFEST_PATH}"
    has_grafts = any(name.endswith(".grafts.json") for name in bundle.metadata)
    for path in (f"bundles/{place}", *((f"grafts/{place}",) if has_grafts else ())):
        target = client.find(path)
        if target is not None:
            target.verify_length_and_hashes(manifest)
            return "grafts" if client.role_of(path) == "grafts" else "targets"
    return None


def _first_root(bundle: Bundle) -> bytes | None:
    """The oldest root in the bundle: where a chain starts for a device that has pinned none."""
    versions = sorted((int(m[1]), name) for name in bundle.metadata if (m := _ROOT_NAME.fullmatch(name)))
    return bundle.metadata[versions[0][1]] if versions else None


def _refuse_strangers(where: str, own: Root | None, pinned: Root | None) -> None:
    """Say plainly who is who, before any signature is looked at; the pinned root decides afterwards in any case."""
    if pinned is None:
        if own is not None and not is_desk(own):
            raise TrustError(
                f"{where}: signed for fleet {root_key_id(own)}, and this device belongs to none",
                "Enrol the device in that fleet, or deploy a bundle built here.",
                breach="signature",
            )
        return
    if own is None or root_key_id(own) == root_key_id(pinned):
        return
    if is_desk(own) and not is_desk(pinned):
        raise TrustError(
            f"{where}: signed with desk key {root_key_id(own)}, and this device belongs to fleet {root_key_id(pinned)}",
            "Publish it through the fleet: `kasmina-edge deploy --to DEVICE`.",
            breach="signature",
        )
    if is_desk(pinned):
        kind = "another desk key" if is_desk(own) else "a fleet"
        raise TrustError(
            f"{where}: signed by {kind} ({root_key_id(own)}), this device trusts desk key {root_key_id(pinned)}",
            "Use another --data folder, or enrol this device in the fleet.",
            breach="signature",
        )
