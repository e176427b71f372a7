"""One look at the repository: what is wanted here, who vouches for it, and the fewest bytes that bring it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.canonical import MAX_CONTRACT_BYTES, sha256_hex, short_digest
from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.manifest import MANIFEST_PATH, BundleManifest, FileEntry, ModelFile
from kasmina_edge.errors import BundleError, InputError, LinkError, TrustError
from kasmina_edge.storage import make_private_folder, write_durable
from kasmina_edge.updates.client import METADATA_URL, Client, CountingFetcher
from kasmina_edge.updates.delta import apply_delta
from kasmina_edge.updates.refusals import refusals

if TYPE_CHECKING:
    from kasmina_edge.updates.trust import TrustStore

CACHE_FOLDER, MANIFESTS_FOLDER = "tuf", "manifests"
PARTS = ("metadata", "plan", "manifest", "selftest", "probes", "model delta", "model full", "total")
_KEPT_MANIFESTS = 4
_MANIFEST_PATH = re.compile(
    r"(?:bundles|grafts)/(?P<name>[a-z0-9][a-z0-9-]{0,63})/(?P<release>0|[1-9][0-9]{0,15})/manifest\.json"
)


@dataclass(frozen=True)
class Offer:
    """A bundle that the director wants on this device, and that an image role vouches for.

    Attributes:
        manifest: The verified manifest.
        manifest_path: Its target path; the files lie beside it.
        role: Who vouches for it: ``targets`` (offline keys) or ``grafts`` (online key).
        digest: Content digest of the manifest: its identity whatever the release number.
    """

    manifest: BundleManifest
    manifest_path: str
    role: Literal["targets", "grafts"]
    digest: str


@dataclass(frozen=True)
class _Wish:
    rank: int
    release: int
    name: str
    path: str
    target: TargetFile


class UpdateSession:
    """Made by `TrustStore.session`; `refresh` comes first, and once.

    Attributes:
        received: Bytes that came over the link, by part (`PARTS`).
    """

    def __init__(self, store: TrustStore, fetcher: FetcherInterface) -> None:
        self._store = store
        self._fetcher = CountingFetcher(fetcher, self._count)
        self._client: Client | None = None
        self._part = "metadata"
        self._roles: tuple[str, ...] = ()
        self.received: dict[str, int] = dict.fromkeys(PARTS, 0)

    def refresh(self) -> None:
        """Fetch and verify the newest metadata, then check and raise this device's floors.

        Raises:
            TrustError: No root is pinned, or a signature, version or date does not hold.
            LinkError: The repository cannot be reached.
        """
        root = self._store.root()
        if root is None:
            raise TrustError(f"{self._store.folder}: no root is pinned", "Enrol this device in a fleet first.")
        folder = make_private_folder(make_private_folder(self._store.folder) / CACHE_FOLDER)
        with refusals("the update repository"):
            client = Client(folder, self._fetcher, root=root, now_s=self._store.now())
        with refusals("the update repository", trusted=client.trusted):
            client.refresh()
            self._store.note_refresh(client)
        self._client = client

    def desired(self, device: str, groups: Sequence[str], bundle_name: str | None = None) -> Offer | None:
        """What the director wants on this device.

        Wishes for the device itself and for its groups count alike and the highest release wins. With no
        ``bundle_name``, the first of device, group, group, ... that has a wish decides which bundle is meant.

        Args:
            device: Device id.
            groups: Group names, with or without the leading ``@``, in order of preference.
            bundle_name: Only wishes for this bundle.

        Raises:
            TrustError: Director and image role name different manifests, or no image role vouches for it.
            LinkError: The repository cannot be reached.
        """
        who = [device, *(f"@{group.removeprefix('@')}" for group in groups)]
        with self._guard():
            targets = self._ready().targets_of("director", probe=f"desired/{device}/{bundle_name or 'any'}.json")
        wishes = [w for w in _wishes(targets, who) if bundle_name in (None, w.name)]
        if not wishes:
            return None
        name = min(wishes, key=lambda w: (w.rank, w.name)).name
        return self._offer(max((w for w in wishes if w.name == name), key=lambda w: (w.release, -w.rank)))

    def refresh_plan(self, name: str) -> ChangePlan | None:
        """Fetch the change plan of bundle ``name`` if it is new, and keep it.

        Returns:
            The plan in force, or None when the targets role lists none: then the kept one is dropped.

        Raises:
            PlanError: An older serial than this device has seen, or not a plan for ``name``.
        """
        path = f"plans/{name}.json"
        with self._guard():
            target = self._ready().find(path)
        if target is None:
            self._store.drop_plan(name)
            return None
        kept = self._store.plan()
        if kept is not None and kept.bundle == name and _matches(target, kept.to_bytes()):
            return kept
        plan = ChangePlan.from_bytes(self._download(target, "plan", MAX_CONTRACT_BYTES), where=path)
        if plan.bundle != name:
            raise TrustError(f"{path}: is a plan for {plan.bundle}")
        self._store.accept_plan(plan)
        return plan

    def fetch(
        self,
        offer: Offer,
        model: ModelFile,
        have: Callable[[str], bytes | None],
        parents: Mapping[str, bytes],
    ) -> Bundle:
        """Bring the files that one engine needs.

        Args:
            offer: From `desired`.
            model: Which of the offer's model files this device runs.
            have: Gives a file that is here already by its SHA-256, or None.
            parents: Files that deltas may be applied to, by any name; an unknown parent costs the full file. One that
                is the wanted file already is taken as it is.

        Raises:
            TrustError: Bytes other than the signed ones came.
            LinkError: The repository cannot be reached.
        """
        if model not in offer.manifest.models:
            raise InputError(f"{offer.manifest.id}: has no such model file as {model.file.path}")
        by_digest = {sha256_hex(data): data for data in parents.values()}
        parts = {model.file.path: "model", model.selftest.file.path: "selftest"}
        files = {
            entry.path: self._file(offer, entry, parts.get(entry.path, "probes"), have, by_digest)
            for entry in offer.manifest.files_for(model)
        }
        return Bundle(offer.manifest, files, self.metadata_files())

    def metadata_files(self) -> dict[str, bytes]:
        """The verified metadata by file name, to lie beside the bundle: with it the bundle is verifiable alone."""
        with self._guard():
            return self._ready().embedded(self._roles)

    # ---------------------------------------------------------------------------------------------- one offer

    def _offer(self, wish: _Wish) -> Offer:
        client = self._ready()
        with self._guard():
            image = client.find(wish.path)
        if image is None:
            raise TrustError(f"the director wants {wish.path}, and no role vouches for it", breach="signature")
        if (image.length, image.hashes) != (wish.target.length, wish.target.hashes):
            raise TrustError(
                f"{wish.path}: the director wants sha256 {_short(wish.target)}, the image role signed {_short(image)}",
                breach="tamper",
            )
        role = cast("Literal['targets', 'grafts']", client.role_of(wish.path))
        self._roles = tuple(dict.fromkeys((*self._roles, role)))
        manifest = BundleManifest.from_bytes(self._manifest(image), where=wish.path)
        if (manifest.name, manifest.release) != (wish.name, wish.release):
            raise TrustError(f"{wish.path}: holds release {manifest.release} of {manifest.name}", breach="tamper")
        return Offer(manifest, wish.path, role, manifest.content_digest())

    def _manifest(self, image: TargetFile) -> bytes:
        """A manifest, from the cache when it is there and whole."""
        folder = make_private_folder(self._store.folder / MANIFESTS_FOLDER)
        path = folder / f"{image.hashes.get('sha256', 'unknown')[:64]}.json"
        if path.is_file():
            data = path.read_bytes()
            if _matches(image, data):
                return data
        data = self._download(image, "manifest", MAX_CONTRACT_BYTES)
        write_durable(path, data)
        with refusals(str(path)):
            kept = sorted(folder.glob("*.json"), key=lambda p: (p != path, -p.stat().st_mtime))
            for old in kept[_KEPT_MANIFESTS:]:
                old.unlink(missing_ok=True)
        return data

    # ---------------------------------------------------------------------------------------------- one file

    def _file(
        self,
        offer: Offer,
        entry: FileEntry,
        part: str,
        have: Callable[[str], bytes | None],
        parents: Mapping[str, bytes],
    ) -> bytes:
        here = parents.get(entry.sha256) or have(entry.sha256)
        if here is not None and sha256_hex(here) == entry.sha256:
            return here
        path = f"{offer.manifest_path.removesuffix(MANIFEST_PATH)}{entry.path}"
        with self._guard():
            full = self._ready().find(path)
        if full is None:
            raise TrustError(f"{path}: the manifest names it, and no role vouches for it", breach="signature")
        if (full.length, full.hashes.get("sha256")) != (entry.size_bytes, entry.sha256):
            raise TrustError(
                f"{path}: the manifest names {entry.size_bytes} bytes with sha256 {short_digest(entry.sha256)}, "
                f"signed are {full.length} with {_short(full)}",
                breach="tamper",
            )
        data = self._by_delta(path, entry, part, full, parents)
        if data is None:
            data = self._download(full, "model full" if part == "model" else part, entry.size_bytes)
            entry.check(data, where=path)
        return data

    def _by_delta(
        self, path: str, entry: FileEntry, part: str, full: TargetFile, parents: Mapping[str, bytes]
    ) -> bytes | None:
        """The file by way of the shortest delta that fits; None when there is none or it does not hold."""
        found: list[tuple[int, str, TargetFile]] = []
        with self._guard():
            for digest in parents:
                delta = self._ready().find(delta_path(path, digest))
                if delta is not None and delta.length < full.length:
                    found.append((delta.length, digest, delta))
        for _, digest, delta in sorted(found, key=lambda item: item[:2]):
            try:
                data = self._download(delta, "model delta" if part == "model" else part, delta.length)
                result = apply_delta(parents[digest], data, result_bytes=entry.size_bytes)
                entry.check(result, where=path)
                return result
            except (BundleError, TrustError):
                continue
            except LinkError as exc:
                if not isinstance(exc.__cause__, DownloadHTTPError):
                    raise
        return None

    # ---------------------------------------------------------------------------------------------- the link

    def _download(self, target: TargetFile, part: str, limit_bytes: int) -> bytes:
        if target.length > limit_bytes:
            raise TrustError(f"{target.path}: {target.length} bytes are signed, at most {limit_bytes} are read")
        self._part = part
        staging = self._store.folder / CACHE_FOLDER / "incoming"
        try:
            with self._guard(target.path):
                return self._ready().download(target, staging)
        finally:
            self._part = "metadata"

    def _ready(self) -> Client:
        if self._client is None:
            raise InputError("the session was not refreshed", "Call refresh() first.")
        return self._client

    def _guard(self, where: str = "the update repository") -> AbstractContextManager[None]:
        return refusals(where, trusted=self._ready().trusted)

    def _count(self, url: str, size_bytes: int) -> None:
        self.received["metadata" if url.startswith(METADATA_URL) else self._part] += size_bytes
        self.received["total"] += size_bytes


def delta_path(path: str, parent_sha256: str) -> str:
    """Target path of the delta that makes ``path`` from the parent with this digest."""
    return f"{path}.{parent_sha256[:12]}.delta"


def _wishes(targets: Mapping[str, TargetFile], who: Sequence[str]) -> list[_Wish]:
    """The director's entries for any of ``who``; an entry that does not name a manifest is refused."""
    wishes = []
    for path, target in targets.items():
        parts = path.split("/")
        if len(parts) != 3 or parts[0] != "desired" or parts[1] not in who:
            continue
        named = target.custom.get("path") if isinstance(target.custom, dict) else None
        match = _MANIFEST_PATH.fullmatch(named) if isinstance(named, str) else None
        if match is None or parts[2] != f"{match['name']}.json":
            raise TrustError(f"{path}: the director's entry names {named!r}, expected a manifest of {parts[2][:-5]}")
        wishes.append(_Wish(who.index(parts[1]), int(match["release"]), match["name"], match[0], target))
    return wishes


def _matches(target: TargetFile, data: bytes) -> bool:
    return len(data) == target.length and target.hashes.get("sha256") == sha256_hex(data)


def _short(target: TargetFile) -> str:
    return short_digest(target.hashes.get("sha256", "none"))
