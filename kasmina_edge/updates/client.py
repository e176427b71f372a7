"""python-tuf's updater with our limits: bounded sizes, a time that we choose, and counted bytes."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from kasmina_edge.errors import KasminaError
from kasmina_edge.storage import make_private_folder

METADATA_URL = "kasmina://repository/metadata/"
TARGETS_URL = "kasmina://repository/targets/"
MAX_METADATA_BYTES = 4 * 1024 * 1024
SIGNED_AT = "x-kasmina-signed-at"
DESK_MARK = "x-kasmina-desk"
ROOT_HISTORY = "root_history"


class MemoryFetcher(FetcherInterface):
    """Serves files from a mapping: metadata by name, targets by hash-prefixed path.

    >>> b"".join(MemoryFetcher({"timestamp.json": b"{}"}).fetch(METADATA_URL + "timestamp.json"))
    b'{}'
    """

    def __init__(self, files: Mapping[str, bytes], targets: Mapping[str, bytes] | None = None) -> None:
        self.files = files
        self.targets = targets or {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        place, prefix = (self.targets, TARGETS_URL) if url.startswith(TARGETS_URL) else (self.files, METADATA_URL)
        name = url.removeprefix(prefix)
        if name not in place:
            raise exceptions.DownloadHTTPError(f"{name} is not there", 404)
        yield place[name]


class CountingFetcher(FetcherInterface):
    """Passes on to another fetcher, tells ``count`` the size of every file, and caps the size of metadata."""

    def __init__(self, inner: FetcherInterface, count: Callable[[str, int], None]) -> None:
        self._inner = inner
        self._count = count

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.download_file(url, MAX_METADATA_BYTES) as stream:
            yield stream.read()

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class, and metadata is never longer than `MAX_METADATA_BYTES`, whatever was signed."""
        if url.startswith(METADATA_URL):
            max_length = min(max_length, MAX_METADATA_BYTES)
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(self._inner.download_file(url, max_length))
            except (exceptions.DownloadError, KasminaError):
                raise
            except Exception as exc:  # whatever a network library throws, it is a failed download
                raise exceptions.DownloadError(f"{url}: {type(exc).__name__}: {exc}") from exc
            self._count(url, stream.seek(0, os.SEEK_END))
            stream.seek(0)
            yield stream


def client_config() -> UpdaterConfig:
    """Caps below the library's: a root of 64 KiB, a timestamp of 8 KiB, 4 MiB for the rest, 32 root rotations."""
    return UpdaterConfig(
        max_root_rotations=32,
        max_delegations=4,
        root_max_length=64 * 1024,
        timestamp_max_length=8 * 1024,
        snapshot_max_length=MAX_METADATA_BYTES,
        targets_max_length=MAX_METADATA_BYTES,
    )


class Client:
    """One TUF refresh and the lookups after it.

    Args:
        folder: Metadata cache; made if missing.
        fetcher: Where metadata and targets come from.
        root: The pinned root, trusted as it is.
        now_s: The time that expiry is judged by, seconds since 1970 UTC; None: dates are not judged.
    """

    def __init__(self, folder: Path, fetcher: FetcherInterface, *, root: bytes, now_s: float | None) -> None:
        self._folder = folder
        make_private_folder(folder / ROOT_HISTORY).chmod(0o700)  # the library would make it readable for everybody
        self._updater = Updater(
            str(folder), METADATA_URL, str(folder), TARGETS_URL, fetcher, client_config(), bootstrap=root
        )
        # The library takes the system clock and offers no other way in; a test fails if the attribute disappears.
        self.trusted.reference_time = (
            datetime.datetime.min.replace(tzinfo=datetime.UTC)
            if now_s is None
            else datetime.datetime.fromtimestamp(now_s, datetime.UTC)
        )

    @property
    def trusted(self) -> Any:
        """The verified metadata, by role name; python-tuf keeps it private and gives no other access to it."""
        return self._updater._trusted_set

    def refresh(self) -> None:
        """Root chain, timestamp, snapshot and targets, each verified."""
        self._updater.refresh()

    def find(self, path: str) -> TargetFile | None:
        """The signed length and hashes of a target; loads delegated metadata when the path asks for it."""
        return self._updater.get_targetinfo(path)

    def role_of(self, path: str) -> str | None:
        """Which loaded role vouches for ``path``, in the order of trust."""
        for role in (Targets.type, "grafts", "director"):
            if role in self.trusted and path in self.trusted[role].targets:
                return role
        return None

    def targets_of(self, role: str, *, probe: str) -> Mapping[str, TargetFile]:
        """Everything that a role vouches for; ``probe`` is any path of it, so that it gets loaded."""
        self._updater.get_targetinfo(probe)
        return cast("Targets", self.trusted[role]).targets if role in self.trusted else {}

    def download(self, target: TargetFile, path: Path) -> bytes:
        """Fetch and verify one target by way of a file that is removed again."""
        try:
            self._updater.download_target(target, str(path))
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def versions(self) -> dict[str, int]:
        """The verified version of every role that snapshot names, and of root, timestamp and snapshot."""
        trusted = self.trusted
        named = {name.removesuffix(".json"): meta.version for name, meta in trusted.snapshot.meta.items()}
        return {
            Root.type: trusted.root.version,
            Timestamp.type: trusted.timestamp.version,
            Snapshot.type: trusted.snapshot.version,
            **named,
        }

    def signed_at_s(self) -> float:
        """When the timestamp was signed, by the signer's clock; 0 when it does not say."""
        value = self.trusted.timestamp.unrecognized_fields.get(SIGNED_AT, 0)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0.0

    def embedded(self, roles: tuple[str, ...]) -> dict[str, bytes]:
        """The verified metadata under the names of a consistent snapshot: it proves ``roles`` without a link."""
        trusted = self.trusted
        found = {"timestamp.json": (self._folder / "timestamp.json").read_bytes()}
        for role in (Snapshot.type, Targets.type, *roles):
            if role in trusted:
                found[f"{trusted[role].version}.{role}.json"] = (self._folder / f"{role}.json").read_bytes()
        for version in range(1, trusted.root.version + 1):
            path = self._folder / ROOT_HISTORY / f"{version}.root.json"
            if path.is_file():
                found[f"{version}.root.json"] = path.read_bytes()
        return found


def read_root(data: bytes) -> Root:
    """Parse a root and check that its own keys signed it; raises what python-tuf raises."""
    metadata = Metadata[Root].from_bytes(data)
    if not isinstance(metadata.signed, Root):
        raise exceptions.RepositoryError(f"expected a root, got {metadata.signed.type}")
    metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    return metadata.signed


def is_desk(root: Root) -> bool:
    """Whether this root belongs to a desk key: one person, one key, no fleet."""
    return root.unrecognized_fields.get(DESK_MARK) is True


def root_key_id(root: Root) -> str:
    """Twelve hex digits over the identifiers of the root's own keys."""
    return _key_id(root, Root.type)


def online_key_id(root: Root) -> str:
    """Twelve hex digits over the identifiers of the timestamp and snapshot keys."""
    return _key_id(root, Timestamp.type, Snapshot.type)


def _key_id(root: Root, *roles: str) -> str:
    names = [f"{role}:{keyid}" for role in roles for keyid in sorted(root.roles[role].keyids)]
    return hashlib.sha256("/".join(names).encode()).hexdigest()[:12]
