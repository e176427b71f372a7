"""Target files of a repository on disk, by release, and the deltas between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.manifest import MANIFEST_PATH, BundleManifest
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.storage import as_storage_error, make_private_folder, write_durable
from kasmina_edge.updates.delta import make_delta
from kasmina_edge.updates.session import delta_path

Role = Literal["targets", "grafts"]
PLACES: Mapping[Role, str] = {"targets": "bundles", "grafts": "grafts"}
_PREFIXED = re.compile(r"(?:[A-Za-z0-9@][A-Za-z0-9_.@-]*/){1,4}[0-9a-f]{64}\.[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Release:
    """One published release.

    Attributes:
        role: Who signed it.
        folder: Target folder, e.g. ``grafts/digits/7``.
    """

    manifest: BundleManifest
    role: Role
    folder: str

    @property
    def manifest_path(self) -> str:
        """Target path of the manifest."""
        return f"{self.folder}/{MANIFEST_PATH}"


class Shelf:
    """``<repository>/targets``: files under ``<target folder>/<sha256>.<name>``, never changed once written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, path: str, data: bytes) -> None:
        """Store a target durably."""
        place = self.folder / _prefixed(path, data)
        for parent in reversed(place.relative_to(self.folder).parents):
            make_private_folder(self.folder / parent)
        write_durable(place, data, mode=0o644)

    def read(self, prefixed_path: str) -> bytes:
        """A target by its hash-prefixed path.

        Raises:
            InputError: No such target; also for a path that leads anywhere else.
        """
        if not _PREFIXED.fullmatch(prefixed_path) or ".." in prefixed_path.split("/"):
            raise InputError(f"{prefixed_path[:200]!r}: not the path of a target")
        try:
            return (self.folder / prefixed_path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
            raise InputError(f"{prefixed_path}: no such target") from exc
        except OSError as exc:
            raise as_storage_error(exc, self.folder / prefixed_path) from exc

    def releases(self, name: str) -> list[Release]:
        """Every stored release of ``name``, lowest number first."""
        found = []
        for role, place in PLACES.items():
            for folder in (self.folder / place / name).glob("[0-9]*"):
                for path in folder.glob(f"*.{MANIFEST_PATH}"):
                    manifest = BundleManifest.from_bytes(path.read_bytes(), where=str(path))
                    found.append(Release(manifest, role, f"{place}/{name}/{folder.name}"))
        return sorted(found, key=lambda r: r.manifest.release)

    def last_number(self, name: str) -> int:
        """Highest release number that was ever begun; one that a crash interrupted is not used again."""
        folders = [f.name for place in PLACES.values() for f in (self.folder / place / name).glob("[0-9]*")]
        return max((int(f) for f in folders if f.isdigit()), default=0)

    def bundle(self, release: Release) -> Bundle:
        """A stored release with all its files."""
        files = {e.path: self.read(f"{release.folder}/{e.sha256}.{e.path}") for e in release.manifest.files()}
        return Bundle(release.manifest, files, {})

    def deltas(self, bundle: Bundle, folder: str, parents: Iterable[Release]) -> dict[str, bytes]:
        """Deltas by target path, for every file against the same-named file of each parent, where they are smaller."""
        names = {entry.path for entry in bundle.manifest.files()}
        made: dict[str, bytes] = {}
        for parent in parents:
            known = _kinds(parent.manifest)
            for kind, (path, digest) in _kinds(bundle.manifest).items():
                if kind not in known or known[kind][1] == digest:
                    continue
                parent_path, parent_digest = known[kind]
                target = delta_path(f"{folder}/{path}", parent_digest)
                if target in made or target.rpartition("/")[2] in names:
                    continue
                result = bundle.files[path]
                delta = make_delta(self.read(f"{parent.folder}/{parent_digest}.{parent_path}"), result)
                if len(delta) < len(result):
                    made[target] = delta
        return made


def require_whole(bundle: Bundle) -> None:
    """Refuse to publish a bundle that lacks a file.

    Raises:
        BundleError: The message names the file.
    """
    for entry in bundle.manifest.files():
        if entry.path not in bundle.files:
            raise BundleError(f"{bundle.id}: {entry.path} is missing, and a publication needs every file")
        entry.check(bundle.files[entry.path], where=f"{bundle.id}: {entry.path}")


def _kinds(manifest: BundleManifest) -> dict[tuple[str, ...], tuple[str, str]]:
    """(path, digest) by what a file is for: the same engine's model, its self-test, the probes, the guard."""
    kinds: dict[tuple[str, ...], tuple[str, str]] = {}
    for model in manifest.models:
        of = (model.engine, model.compiled_for or "plain")
        kinds[("model", *of)] = (model.file.path, model.file.sha256)
        kinds[("selftest", *of)] = (model.selftest.file.path, model.selftest.file.sha256)
    if manifest.probes is not None:
        kinds[("probes",)] = (manifest.probes.file.path, manifest.probes.file.sha256)
    if manifest.guard is not None:
        kinds[("guard",)] = (manifest.guard.file.path, manifest.guard.file.sha256)
    return kinds


def _prefixed(path: str, data: bytes) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{sha256_hex(data)}.{name}"
