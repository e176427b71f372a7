"""The bundle: one signed deployable as a `.kasmina` file, as a folder on a device, and in memory.

A `.kasmina` file is a canonical stored zip (`contracts.arrays.pack_members`) of ``manifest.json``, every file that the
manifest names, and TUF metadata below ``tuf/``. Structure and digests are checked here; signatures are the work of
`kasmina_edge.updates.trust`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kasmina_edge.contracts.arrays import Array, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import MAX_CONTRACT_BYTES
from kasmina_edge.contracts.manifest import MANIFEST_PATH, BundleManifest, FileEntry, ModelFile
from kasmina_edge.errors import BundleError, InputError, StorageError
from kasmina_edge.storage import (
    as_storage_error,
    make_private_folder,
    require_free_space,
    sync_folder,
    write_durable,
)

SUFFIX = ".kasmina"
METADATA_FOLDER = "tuf"
MAX_BUNDLE_BYTES = 1024**3
_METADATA_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")


@dataclass(frozen=True)
class Bundle:
    """A manifest with its files.

    Attributes:
        manifest: What the bundle holds and was proven to do.
        files: Present files by path; a device folder holds only those of its engine.
        metadata: TUF metadata by file name (``1.root.json``, ``timestamp.json``, ``3.snapshot.json``, ...); empty for
            a bundle that is not signed yet.
    """

    manifest: BundleManifest
    files: Mapping[str, bytes]
    metadata: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = sum(map(len, self.files.values()))
        return (
            f"<Bundle {self.id}, {len(self.files)} files, {size:,} bytes, {'signed' if self.metadata else 'unsigned'}>"
        )

    @property
    def id(self) -> str:
        """``NAME VERSION`` as people say it."""
        return self.manifest.id

    @property
    def file_name(self) -> str:
        """``NAME-VERSION.kasmina``."""
        return f"{self.manifest.name}-{self.manifest.version}{SUFFIX}"

    def model_for(self, engine: str, *, compiled_for: str | None = None) -> ModelFile:
        """The model file that ``engine`` runs: the plain one, or the one compiled for an accelerator.

        Raises:
            BundleError: The bundle has none; the message names the engines it has.
        """
        for model in self.manifest.models:
            if model.engine == engine and model.compiled_for == compiled_for:
                return model
        have = ", ".join(sorted({m.engine for m in self.manifest.models}))
        kind = f" compiled for {compiled_for}" if compiled_for else ""
        raise BundleError(f"{self.id}: no model for {engine}{kind}; the bundle has {have}")

    def read(self, entry: FileEntry) -> bytes:
        """The bytes of one named file.

        Raises:
            BundleError: This copy of the bundle does not hold it (a device keeps one engine's files).
        """
        data = self.files.get(entry.path)
        if data is None:
            have = ", ".join(sorted(self.files)) or "nothing"
            raise BundleError(f"{self.id}: {entry.path} is not in this copy of the bundle, which holds {have}")
        return data

    def arrays(self, entry: FileEntry) -> dict[str, Array]:
        """The named arrays of one file (self-test vectors, reference probes)."""
        return unpack_arrays(self.read(entry), where=f"{self.id}: {entry.path}")

    def engines(self) -> tuple[str, ...]:
        """Engines whose model and self-test are present, in the manifest's order."""
        whole = [m.engine for m in self.manifest.models if {m.file.path, m.selftest.file.path} <= self.files.keys()]
        return tuple(dict.fromkeys(whole))


def check_files(bundle: Bundle, *, where: str, engine: str | None = None, partial: bool = False) -> None:
    """Compare the files with the manifest; nothing is read from disk.

    Args:
        bundle: What to check.
        where: Path, for messages.
        engine: Only this engine's files must be there; others may be, and are checked as well.
        partial: One engine's files are enough, whichever it is.

    Raises:
        BundleError: A file that the manifest does not name, one that is missing, or one with other bytes.
    """
    named = {entry.path: entry for entry in bundle.manifest.files()}
    for path in sorted(bundle.files):
        if path not in named:
            raise BundleError(f"{where}: holds {path}, which the manifest does not name")
    wanted = _wanted(bundle, engine=engine, partial=partial, where=where)
    for path, entry in named.items():
        if path in bundle.files:
            entry.check(bundle.files[path], where=f"{where}: {path}")
        elif path in wanted:
            raise BundleError(f"{where}: {path} is missing, the manifest names it")
    for name in sorted(bundle.metadata):
        if not _METADATA_NAME.match(name):
            raise BundleError(f"{where}: {METADATA_FOLDER}/{name} is not a name for metadata")


def _wanted(bundle: Bundle, *, engine: str | None, partial: bool, where: str) -> set[str]:
    if engine is None and not partial:
        return {entry.path for entry in bundle.manifest.files()}
    if engine is not None:
        return {entry.path for entry in files_of(bundle.manifest, engine)}
    if not bundle.engines():
        have = ", ".join(sorted(bundle.files)) or "no file"
        raise BundleError(f"{where}: no model with its self-test is whole; found {have}")
    return {entry.path for entry in bundle.manifest.shared_files()}


def files_of(manifest: BundleManifest, engine: str) -> tuple[FileEntry, ...]:
    """Every file that a device with ``engine`` keeps: plain and compiled models, their self-tests, what all share.

    Raises:
        BundleError: The bundle has no model for that engine.
    """
    entries = {e.path: e for m in manifest.models if m.engine == engine for e in manifest.files_for(m)}
    if not entries:
        have = ", ".join(sorted({m.engine for m in manifest.models}))
        raise BundleError(f"{manifest.id}: no model for {engine}; the bundle has {have}")
    return tuple(entries.values())


def pack(bundle: Bundle) -> bytes:
    """The bytes of a `.kasmina` file: same bundle, same bytes.

    Raises:
        BundleError: Files and manifest disagree.
    """
    check_files(bundle, where=bundle.id, partial=True)
    members = {MANIFEST_PATH: bundle.manifest.to_bytes(), **bundle.files}
    members.update({f"{METADATA_FOLDER}/{name}": data for name, data in bundle.metadata.items()})
    return pack_members(members)


def read(data: bytes, *, where: str, engine: str | None = None) -> Bundle:
    """Parse a `.kasmina` container and check its structure and every digest; signatures are not looked at.

    Args:
        data: The container.
        where: Path or topic, for messages.
        engine: Accept a container that holds only this engine's files.

    Raises:
        BundleError: Truncated, tampered, an unknown manifest field, a file that is missing or not named.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"{where}: {len(data)} bytes, at most {MAX_BUNDLE_BYTES} are read")
    members = unpack_members(data, where=where, max_bytes=MAX_BUNDLE_BYTES)
    manifest_bytes = members.pop(MANIFEST_PATH, None)
    if manifest_bytes is None:
        raise BundleError(f"{where}: no {MANIFEST_PATH}; this is not a bundle")
    manifest = BundleManifest.from_bytes(manifest_bytes, where=f"{where}: manifest")
    files: dict[str, bytes] = {}
    metadata: dict[str, bytes] = {}
    for name, body in members.items():
        folder, slash, leaf = name.rpartition("/")
        if not slash:
            files[name] = body
        elif folder == METADATA_FOLDER:
            metadata[leaf] = body
        else:
            raise BundleError(f"{where}: {name} lies outside {METADATA_FOLDER}/")
    bundle = Bundle(manifest, files, metadata)
    check_files(bundle, where=where, engine=engine)
    return bundle


def read_file(path: Path) -> Bundle:
    """Read a `.kasmina` file of at most 1 GiB; checks as `read` does.

    Raises:
        InputError: No such file.
        BundleError: Too long, or what `read` refuses; the message starts with the path.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file", "Name a NAME-VERSION.kasmina file.")
    return read(_read_bounded(path, MAX_BUNDLE_BYTES), where=str(path))


def read_folder(folder: Path, *, engine: str | None = None) -> Bundle:
    """Read what `write_folder` wrote, and check every digest.

    Args:
        folder: A slot's folder: ``manifest.json``, files, ``tuf/``.
        engine: Demand this engine's files; without it one whole engine is enough.

    Raises:
        BundleError: No bundle there, or the files are not those that the manifest names.
        StorageError: The folder cannot be read.
    """
    if not (folder / MANIFEST_PATH).is_file():
        raise BundleError(f"{folder}: no {MANIFEST_PATH}; no bundle is installed there")
    manifest = BundleManifest.from_bytes(
        _read_bounded(folder / MANIFEST_PATH, MAX_CONTRACT_BYTES), where=str(folder / MANIFEST_PATH)
    )
    sizes = {entry.path: entry.size_bytes for entry in manifest.files()}
    files: dict[str, bytes] = {}
    for name in _names(folder):
        if name in (MANIFEST_PATH, METADATA_FOLDER):
            continue
        if name not in sizes:
            raise BundleError(f"{folder}: holds {name}, which the manifest does not name")
        files[name] = _read_bounded(folder / name, sizes[name])
    tuf = folder / METADATA_FOLDER
    metadata = {name: _read_bounded(tuf / name, MAX_CONTRACT_BYTES) for name in _names(tuf)} if tuf.is_dir() else {}
    bundle = Bundle(manifest, files, metadata)
    check_files(bundle, where=str(folder), engine=engine, partial=engine is None)
    return bundle


def write_folder(bundle: Bundle, folder: Path, *, engine: str | None = None) -> None:
    """Write a bundle into a new folder, durably: every file and folder is flushed, the manifest comes last.

    Args:
        bundle: What to write; checked against its manifest first.
        folder: Missing or empty; made with mode 0700.
        engine: Keep only this engine's files; without it, all that are present.

    Raises:
        BundleError: Files and manifest disagree, or ``engine`` is not in the bundle.
        InputError: The folder already holds something.
        StorageError: Disk full, read-only or failing; the folder is then incomplete and holds no manifest.
    """
    check_files(bundle, where=bundle.id, engine=engine, partial=engine is None)
    kept = {e.path for e in files_of(bundle.manifest, engine)} if engine is not None else set(bundle.files)
    files = {path: data for path, data in bundle.files.items() if path in kept}
    make_private_folder(folder)
    if _names(folder):
        raise InputError(f"{folder}: holds {len(_names(folder))} entries; a bundle is written into an empty folder")
    manifest_bytes = bundle.manifest.to_bytes()
    require_free_space(folder, sum(map(len, (*files.values(), *bundle.metadata.values(), manifest_bytes))))
    for path in sorted(files):
        write_durable(folder / path, files[path])
    if bundle.metadata:
        make_private_folder(folder / METADATA_FOLDER)
        for name in sorted(bundle.metadata):
            write_durable(folder / METADATA_FOLDER / name, bundle.metadata[name])
    write_durable(folder / MANIFEST_PATH, manifest_bytes)
    sync_folder(folder.parent)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file of at most ``limit_bytes``; a folder, a device or a longer file is refused."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BundleError(f"{path}: not a file")
        if info.st_size > limit_bytes:
            raise BundleError(f"{path}: {info.st_size} bytes, at most {limit_bytes} are expected")
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except FileNotFoundError as exc:
        raise BundleError(f"{path}: no such file") from exc
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    if len(data) > limit_bytes:
        raise StorageError(f"{path}: grew while it was read")
    return data
