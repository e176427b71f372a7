"""Signed metadata of a repository on disk: read the current state, change roles, sign, write; the timestamp last."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.fleet.keys import RoleKeys
from kasmina_edge.storage import as_storage_error, write_durable
from kasmina_edge.updates.client import DESK_MARK, SIGNED_AT

DAY_S = 86_400.0
VALID_DAYS: Mapping[str, float] = {
    "root": 5 * 365.0,
    "targets": 365.0,
    "grafts": 365.0,
    "director": 365.0,
    "snapshot": 365.0,
    "timestamp": 7.0,
}
"""Days that a role's metadata is valid. The timestamp's week bounds a freeze; a controller renews it at half."""
DESK_VALID_DAYS = 365.0
"""A desk has no controller that renews: every role but root is valid for a year."""
DELEGATED: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "grafts": (("grafts/*/*/*",), True),
    "director": (("desired/*/*",), True),
}
"""Delegated roles: the paths that they may vouch for, and whether the search ends there."""
_VERSIONED = re.compile(r"^([1-9]\d*)\.(root|snapshot|targets|grafts|director)\.json$")
_KEPT_VERSIONS = 5
TargetsRole = Literal["targets", "grafts", "director"]


@dataclass
class State:
    """Current metadata, as the timestamp names it."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    roles: dict[str, Targets]


class MetadataFolder:
    """``<repository>/metadata``: every root, and the last versions of everything else.

    Args:
        folder: The folder.
        desk: Whether the validity of a desk applies.
    """

    def __init__(self, folder: Path, *, desk: bool) -> None:
        self.folder = folder
        self._desk = desk

    def begin(self, signers: Mapping[str, Sequence[CryptoSigner]], keys: Mapping[str, RoleKeys], now_s: float) -> None:
        """Write the first version of every role."""
        delegations = Delegations({}, {})
        for role, (paths, terminating) in DELEGATED.items():
            delegated = DelegatedRole(role, [], keys[role].threshold, terminating, list(paths))
            assert delegations.roles is not None
            delegations.roles[role] = delegated
        targets = Targets(delegations=delegations)
        for role in DELEGATED:
            for signer in signers[role]:
                targets.add_key(signer.public_key, role)
        roles = {name: Role([], keys[name].threshold) for name in sorted(TOP_LEVEL_ROLE_NAMES)}
        root = Root(
            expires=self._expires("root", now_s),
            roles=roles,
            consistent_snapshot=True,
            unrecognized_fields={DESK_MARK: True} if self._desk else {},
        )
        for name in roles:
            for signer in signers[name]:
                root.add_key(signer.public_key, name)
        write_durable(self.folder / "1.root.json", _sign(root, signers["root"]), mode=0o644)
        names = {f"{role}.json": MetaFile(1) for role in ("targets", *DELEGATED)}
        state = State(root, Timestamp(version=1), Snapshot(version=1, meta=names), {"targets": targets})
        state.roles.update({role: Targets() for role in DELEGATED})
        self._write(state, signers, now_s, changed=("targets", *DELEGATED))

    def read(self) -> State:
        """The current state: the timestamp names the snapshot, the snapshot names the rest.

        Raises:
            StorageError: A file is missing or damaged.
        """
        timestamp = self._load("timestamp.json", Timestamp)
        snapshot = self._load(f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot)
        roles = {
            role: self._load(f"{snapshot.meta[f'{role}.json'].version}.{role}.json", Targets)
            for role in ("targets", *DELEGATED)
        }
        return State(self._load(f"{self._root_versions()[-1]}.root.json", Root), timestamp, snapshot, roles)

    def commit(
        self, state: State, signers: Mapping[str, Sequence[CryptoSigner]], now_s: float, *, changed: Sequence[str]
    ) -> None:
        """Sign the changed targets roles, snapshot and timestamp under new versions; the timestamp is written last.

        A crash before that leaves the old state whole: files that no timestamp names are written over later.
        """
        for role in changed:
            state.roles[role].version += 1
        if changed:
            state.snapshot.version += 1
        state.timestamp.version += 1
        self._write(state, signers, now_s, changed=changed)
        self._drop_old(state)

    def renew_snapshot(self, state: State, signers: Mapping[str, Sequence[CryptoSigner]], now_s: float) -> None:
        """Sign snapshot and timestamp again, with nothing else changed."""
        state.snapshot.version += 1
        state.timestamp.version += 1
        self._write(state, signers, now_s, changed=(), snapshot=True)

    def files(self) -> dict[str, bytes]:
        """Every file that a device may ask for now; one that fits together even while a publication runs."""
        timestamp = self._bytes("timestamp.json")
        current = _parse(timestamp, Timestamp, "timestamp.json")
        name = f"{current.snapshot_meta.version}.snapshot.json"
        found = {f"{v}.root.json": self._bytes(f"{v}.root.json") for v in self._root_versions()}
        found[name] = self._bytes(name)
        for leaf, meta in _parse(found[name], Snapshot, name).meta.items():
            found[f"{meta.version}.{leaf}"] = self._bytes(f"{meta.version}.{leaf}")
        return {**found, "timestamp.json": timestamp}

    def first_root(self) -> bytes:
        """The oldest root."""
        return self._bytes("1.root.json")

    def last_root(self) -> bytes:
        """The newest root: what a new device is given."""
        return self._bytes(f"{self._root_versions()[-1]}.root.json")

    def marker(self) -> str:
        """Changes whenever something was published; costs one ``stat``."""
        try:
            info = (self.folder / "timestamp.json").stat()
        except OSError as exc:
            raise as_storage_error(exc, self.folder / "timestamp.json") from exc
        return f"{info.st_ino}-{info.st_mtime_ns}-{info.st_size}"

    def _write(
        self,
        state: State,
        signers: Mapping[str, Sequence[CryptoSigner]],
        now_s: float,
        *,
        changed: Sequence[str],
        snapshot: bool = False,
    ) -> None:
        for role in changed:
            targets = state.roles[role]
            targets.expires = self._expires(role, now_s)
            data = _sign(targets, signers[role])
            state.snapshot.meta[f"{role}.json"] = _meta(targets.version, data)
            write_durable(self.folder / f"{targets.version}.{role}.json", data, mode=0o644)
        if changed or snapshot:
            state.snapshot.expires = self._expires("snapshot", now_s)
            data = _sign(state.snapshot, signers["snapshot"])
            state.timestamp.snapshot_meta = _meta(state.snapshot.version, data)
            write_durable(self.folder / f"{state.snapshot.version}.snapshot.json", data, mode=0o644)
        state.timestamp.expires = self._expires("timestamp", now_s)
        state.timestamp.unrecognized_fields[SIGNED_AT] = int(now_s)
        write_durable(self.folder / "timestamp.json", _sign(state.timestamp, signers["timestamp"]), mode=0o644)

    def _expires(self, role: str, now_s: float) -> datetime.datetime:
        days = DESK_VALID_DAYS if self._desk and role != "root" else VALID_DAYS[role]
        return datetime.datetime.fromtimestamp(now_s + days * DAY_S, datetime.UTC)

    def _drop_old(self, state: State) -> None:
        """Remove versions that no device in the middle of a refresh can still ask for; roots stay."""
        current = {"snapshot": state.snapshot.version, **{r: t.version for r, t in state.roles.items()}}
        for path in self.folder.iterdir():
            match = _VERSIONED.match(path.name)
            if match and match[2] in current and int(match[1]) <= current[match[2]] - _KEPT_VERSIONS:
                path.unlink(missing_ok=True)

    def _root_versions(self) -> list[int]:
        found = [_VERSIONED.match(p.name) for p in self.folder.glob("*.root.json")]
        versions = sorted(int(m[1]) for m in found if m)
        if not versions:
            raise StorageError(f"{self.folder}: no root.json there")
        return versions

    def _load(self, name: str, kind: type[Any]) -> Any:
        return _parse(self._bytes(name), kind, str(self.folder / name))

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as exc:
            raise as_storage_error(exc, self.folder / name) from exc


def target_of(path: str, data: bytes, custom: Mapping[str, Any] | None = None) -> TargetFile:
    """The signed description of ``data`` at ``path``."""
    target = TargetFile.from_data(path, data, ["sha256"])
    if custom is not None:
        target.unrecognized_fields["custom"] = dict(custom)
    return target


def prefixed(target: TargetFile) -> str:
    """Where a target lies in a consistent snapshot: ``<folder>/<sha256>.<name>``."""
    return target.get_prefixed_paths()[0]


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _sign(signed: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    if not signers:
        raise InputError(f"{signed.type}: no key to sign with")
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _parse(data: bytes, kind: type[Any], where: str) -> Any:
    try:
        signed = Metadata.from_bytes(data).signed
    except Exception as exc:  # the library names one error for every malformed file; this one is our own file
        raise StorageError(f"{where}: damaged metadata ({exc})", "Restore the repository from a backup.") from exc
    if not isinstance(signed, kind):
        raise StorageError(f"{where}: expected {kind.__name__.lower()}, got {signed.type}")
    return signed
