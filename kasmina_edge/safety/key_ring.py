"""``keys.json`` of the vault as a value with canonical bytes: data keys, each wrapped, and a MAC over all of them.

`RingFile` is where it lies, with the mark beside it that says there was one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.errors import InputError, KasminaError, StorageError, TrustError
from kasmina_edge.safety.keystore import KEY_BYTES, read_regular
from kasmina_edge.safety.sealing import Random, authenticator, key_id, open_with, seal_with
from kasmina_edge.storage import as_storage_error, remove_temporaries, write_durable

RING_NAME = "keys.json"
MARK_SUFFIX = ".made"
MAX_RING_BYTES = 64 << 20
_KEK_NUMBER = 0

FileState = tuple[int, int, int]
"""Inode, time of change and size of a file: another file has another one."""

Purpose = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]


class WrappedKey(SignedContract):
    """One data key: ``wrapped`` is it, sealed under the key-encryption key, in hexadecimal."""

    number: Annotated[int, Field(ge=1, lt=2**32)]
    purpose: Purpose
    made_s: float
    replaced_s: float | None = None
    wrapped: Annotated[str, Field(pattern=r"^[0-9a-f]{176}$")]

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A ring that is not one was changed by somebody."""
        return TrustError

    def unwrapped(self, kek: bytes) -> bytes:
        """The data key; raises TrustError under another key-encryption key."""
        return open_with(kek, _wrapping(self.purpose), bytes.fromhex(self.wrapped), b"%d" % self.number)


class KeyRing(SignedContract):
    """``keys.json``: every data key that may still be needed.

    Attributes:
        kek: Names the key-encryption key: 8 bytes derived from it, in hexadecimal.
        following: Number of the next key that is made; numbers are never used twice.
        mac: HMAC-SHA256 of the canonical bytes with ``mac`` empty, under a key derived from the key-encryption key.
    """

    format: Literal[1] = 1
    kek: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    following: Annotated[int, Field(ge=1, lt=2**32)] = 1
    keys: tuple[WrappedKey, ...] = ()
    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A ring that is not one was changed by somebody."""
        return TrustError

    def authenticator(self, kek: bytes) -> str:
        """What ``mac`` has to be under this key-encryption key."""
        return authenticator(kek, self.model_copy(update={"mac": ""}).to_bytes())

    def with_new(self, kek: bytes, purpose: str, now_s: float, random_bytes: Random) -> KeyRing:
        """The ring with one more key, which takes the place of the purpose's newest; ``mac`` is to be set.

        Raises:
            InputError: Not a word for a purpose.
        """
        number = self.following
        wrapped = _wrap(kek, number, purpose, random_bytes(KEY_BYTES), random_bytes)
        try:
            key = WrappedKey.parse(
                {"number": number, "purpose": purpose, "made_s": now_s, "wrapped": wrapped}, where="vault"
            )
        except TrustError as exc:
            raise InputError(exc.message) from exc
        older = tuple(
            k.model_copy(update={"replaced_s": now_s}) if k.purpose == purpose and k.replaced_s is None else k
            for k in self.keys
        )
        return self.model_copy(update={"keys": (*older, key), "following": number + 1})

    def rewrapped(self, kek: bytes, plain: Mapping[int, bytes], random_bytes: Random) -> KeyRing:
        """The ring under another key-encryption key, ``mac`` to be set; ``plain`` has each data key by its number."""
        keys = tuple(
            k.model_copy(update={"wrapped": _wrap(kek, k.number, k.purpose, plain[k.number], random_bytes)})
            for k in self.keys
        )
        return self.model_copy(update={"kek": key_id(kek), "keys": keys})


def _wrapping(purpose: str) -> str:
    return f"wrap/{purpose}"  # no purpose of data has a slash


def _wrap(kek: bytes, number: int, purpose: str, key: bytes, random_bytes: Random) -> str:
    return seal_with(kek, _KEK_NUMBER, _wrapping(purpose), key, b"%d" % number, random_bytes).hex()


@dataclass(frozen=True)
class KeyInfo:
    """What may be told about a data key: never the key.

    Attributes:
        replaced_s: When a newer one took its place, seconds since 1970 UTC; None: it is in use for new data.
    """

    number: int
    purpose: str
    made_s: float
    replaced_s: float | None


class RingFile:
    """``keys.json`` of a vault's folder, and ``FOLDER.made`` beside the folder: a ring was made here once.

    Without that mark a lost ring would look like a new vault, and key numbers would begin at 1 again beside data that
    was sealed under keys of the same numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RING_NAME
        self.mark_path = folder.with_name(folder.name + MARK_SUFFIX)

    def state(self) -> FileState | None:
        """Which file lies there now (one ``stat``); None: none.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise as_storage_error(exc, self.path) from exc
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[KeyRing, FileState] | None:
        """The ring, whose MAC the caller has yet to check, and which file it came from; None: there is none.

        Raises:
            TrustError: Not a ring.
            StorageError: No ordinary file, or the disk refuses.
        """
        try:
            found = read_regular(self.path, MAX_RING_BYTES)
        except InputError as exc:
            raise StorageError(exc.message, "Restore the file; what was sealed under its keys stays sealed.") from exc
        if found is None:
            return None
        data, info = found
        ring = KeyRing.from_bytes(data, where=str(self.path))
        return ring, (info.st_ino, info.st_mtime_ns, info.st_size)

    def write(self, ring: KeyRing) -> None:
        """Replace it; raises StorageError as `write_durable` does."""
        write_durable(self.path, ring.to_bytes())

    def was_made(self) -> bool:
        """Whether the mark is there."""
        return self.mark_path.exists()

    def mark(self) -> None:
        """Remember durably that there is a ring; the caller holds the vault's lock. Doing it twice is harmless."""
        if not self.was_made():
            remove_temporaries(self.mark_path)
            write_durable(self.mark_path, f"The vault's keys are in {self.path.parent.name}/{RING_NAME}.\n".encode())
