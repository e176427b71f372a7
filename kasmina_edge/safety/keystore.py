"""Where the vault's key-encryption key lies: a systemd credential, a TPM 2, a key file - or, for want of those, a file
in the data folder itself, which says loudly that a stolen disk is readable.

A key is 32 random bytes; credentials and files hold them raw or as 64 hexadecimal digits. No key is ever written where
another one is: a new key gets a name of its own beside the old one until the vault has moved over.
"""

from __future__ import annotations

import glob
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from kasmina_edge.errors import InputError, StorageError, TrustError
from kasmina_edge.storage import (
    as_storage_error,
    make_private_folder,
    remove_file,
    rename_durable,
    sync_folder,
    write_durable,
)

log = logging.getLogger(__name__)

KEY_BYTES = 32
CREDENTIAL = "kasmina-kek"
FOLDER_KEY_NAME = "kek"
MAX_KEY_FILE_BYTES = 256

KeystoreKind = Literal["systemd", "tpm2", "file", "folder"]


@dataclass(frozen=True)
class KeystoreState:
    """What `describe` found.

    Attributes:
        stolen_disk_readable: Whether somebody with the disk alone reads what was sealed; None: cannot be told.
        sentence: The same for a person.
    """

    kind: KeystoreKind
    where: str
    has_key: bool
    stolen_disk_readable: bool | None
    sentence: str


class Keystore(ABC):
    """A place for one key-encryption key, and for its successor while the vault moves over."""

    kind: ClassVar[KeystoreKind]
    where: str

    @abstractmethod
    def candidates(self) -> list[bytes]:
        """Keys that are there: the key in use, and one that a rotation was cut off with; empty when there is none.

        Raises:
            TrustError: Others could read it.
            InputError: What lies there is no key.
            StorageError: It cannot be read.
        """

    @abstractmethod
    def create(self) -> bytes:
        """Make the first key, durably.

        Raises:
            InputError: This keystore's keys are made by the operator; the next step says how.
            StorageError: The disk or the TPM refuses.
        """

    @abstractmethod
    def prepare(self) -> bytes:
        """Make a successor beside the key in use, durably; raises as `create` does."""

    @abstractmethod
    def settle(self, kek: bytes) -> None:
        """The vault is under ``kek`` now: forget the other one. Doing it twice is harmless."""

    @abstractmethod
    def describe(self, data_folder: Path) -> KeystoreState:
        """What a thief of the disk that holds ``data_folder`` could do; reads no key and never raises."""


class SystemdCredential(Keystore):
    """A credential named ``kasmina-kek`` that systemd put into ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5)).

    A successor is a second credential, ``kasmina-kek-next``.
    """

    kind = "systemd"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder / CREDENTIAL)

    def candidates(self) -> list[bytes]:
        """As `Keystore.candidates`."""
        paths = (self._folder / CREDENTIAL, self._folder / f"{CREDENTIAL}-next")
        return [key for path in paths if (key := read_key(path)) is not None]

    def create(self) -> bytes:
        """As `Keystore.create`."""
        raise InputError(
            f"{self.where}: there is no such credential",
            "Make it: `head -c 32 /dev/urandom | systemd-creds encrypt --with-key=tpm2 --name=kasmina-kek - "
            "/etc/credstore.encrypted/kasmina-kek`, and load it in the unit: LoadCredentialEncrypted=kasmina-kek",
        )

    def prepare(self) -> bytes:
        """As `Keystore.prepare`."""
        successor = read_key(self._folder / f"{CREDENTIAL}-next")
        if successor is None:
            raise InputError(
                f"{self.where}-next: there is no such credential",
                "Make a second credential kasmina-kek-next, load both, rotate, then let it take the first one's name.",
            )
        return successor

    def settle(self, kek: bytes) -> None:
        """As `Keystore.settle`."""
        if kek == read_key(self._folder / f"{CREDENTIAL}-next"):
            log.warning("vault: credential kasmina-kek-next is in use; let it take the name kasmina-kek in the unit")

    def describe(self, data_folder: Path) -> KeystoreState:
        """As `Keystore.describe`."""
        has_key = (self._folder / CREDENTIAL).is_file()
        sentence = (
            f"key from the systemd credential {CREDENTIAL}: a stolen disk is not readable if it was encrypted with "
            "--with-key=tpm2 or host+tpm2; with --with-key=host the host's key lies on the disk beside it"
        )
        return KeystoreState(self.kind, self.where, has_key, None, sentence)


class KeyFile(Keystore):
    """A key file outside the data folder, of mode 0600 and this user's or root's; best on another medium.

    Args:
        path: The file; its successor is ``NAME.next``.
        data_folder: May not hold it.

    Raises:
        InputError: The path is not absolute, or below the data folder.
    """

    kind: ClassVar[KeystoreKind] = "file"

    def __init__(self, path: Path, data_folder: Path) -> None:
        if not path.is_absolute() or path.resolve().is_relative_to(data_folder.resolve()):
            raise InputError(
                f"{path}: a key file needs an absolute path outside the data folder {data_folder}",
                "Put it on another medium, or at least outside what is copied with the data folder.",
            )
        self._path, self._data_folder = path, data_folder
        self.where = str(path)

    def candidates(self) -> list[bytes]:
        """As `Keystore.candidates`."""
        return [key for path in (self._path, self._next) if (key := read_key(path)) is not None]

    def create(self) -> bytes:
        """As `Keystore.create`; a missing folder is refused, because its medium may not be mounted."""
        if not self._path.parent.is_dir():
            raise InputError(
                f"{self._path}: there is no folder {self._path.parent} to make a key in",
                f"Mount the medium that the key is to lie on, or `mkdir -p -m 700 {self._path.parent}`.",
            )
        state = self.describe(self._data_folder)
        if state.stolen_disk_readable:
            log.warning("vault: made a %s; if a medium belongs there, it is not mounted", state.sentence)
        return _make_key(self._path)

    def prepare(self) -> bytes:
        """As `Keystore.prepare`."""
        remove_file(self._next)
        return _make_key(self._next)

    def settle(self, kek: bytes) -> None:
        """As `Keystore.settle`; also removes copies of a key that a power cut left while it was made."""
        successor = read_key(self._next)
        if successor == kek:
            rename_durable(self._next, self._path)
        elif successor is not None:
            remove_file(self._next)
        for draft in self._drafts():
            try:
                remove_file(draft)
            except StorageError as exc:  # a key medium may be read-only
                log.warning("vault: %s; it is a copy of a key, remove it", exc.message)

    def describe(self, data_folder: Path) -> KeystoreState:
        """As `Keystore.describe`."""
        has_key = self._path.is_file()
        same = on_one_disk(self._path.parent, data_folder)
        if same is None:
            sentence = f"key in {self._path}; whether it lies on the disk that the data lies on cannot be told"
        elif same:
            sentence = f"key in {self._path}, on the same disk as the data: a stolen disk is readable"
        else:
            sentence = f"key in {self._path}, on another disk than the data: a stolen disk is not readable without it"
        return KeystoreState(self.kind, self.where, has_key, same, sentence)

    @property
    def _next(self) -> Path:
        return self._path.with_name(self._path.name + ".next")

    def _drafts(self) -> list[Path]:
        """What interrupted `_make_key` calls left."""
        name = glob.escape(self._path.name)
        patterns = (f".{name}.[0-9]*.new", f".{name}.next.[0-9]*.new", f"..{name}.*.new.*.tmp")
        return [path for pattern in patterns for path in self._path.parent.glob(pattern)]


class FolderKey(KeyFile):
    """The fallback: a key file inside the data folder. It keeps copies of single files secret, and nothing else."""

    kind = "folder"

    def __init__(self, data_folder: Path) -> None:
        self._path = data_folder / "vault" / FOLDER_KEY_NAME
        self.where = str(self._path)

    def create(self) -> bytes:
        """As `Keystore.create`."""
        log.warning("vault: %s", self._sentence())
        make_private_folder(self._path.parent)
        return _make_key(self._path)

    def describe(self, data_folder: Path) -> KeystoreState:
        """As `Keystore.describe`."""
        return KeystoreState(self.kind, self.where, self._path.is_file(), True, self._sentence())

    def remove(self) -> None:
        """Delete the key, its successor and what is left of making them, once the vault is under another key."""
        for path in (self._next, self._path, *self._drafts()):
            remove_file(path)

    def _sentence(self) -> str:
        return (
            f"the key lies in the data folder itself ({self._path}): a stolen disk is readable; give a systemd "
            "credential kasmina-kek, or set safety.keystore to tpm2, or safety.key_file to a path on another medium"
        )


def read_key(path: Path) -> bytes | None:
    """The key in a file; None when there is no file.

    Raises:
        TrustError: Others than the owner may read or write it, or it belongs to another user.
        InputError: Not a file, not 32 bytes, nor 64 hexadecimal digits.
        StorageError: It cannot be read.
    """
    found = read_regular(path, MAX_KEY_FILE_BYTES + 1)
    if found is None:
        return None
    data, info = found
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077:
        raise TrustError(
            f"{path}: mode {mode:04o} lets others at this key, expected 0600",
            f"Make a new key if others had access; otherwise `chmod 600 {path}`.",
        )
    if info.st_uid not in (0, os.geteuid()):
        raise TrustError(f"{path}: belongs to user {info.st_uid}, expected {os.geteuid()} or root")
    return key_from(data, str(path))


def read_regular(path: Path, most_bytes: int) -> tuple[bytes, os.stat_result] | None:
    """The first bytes of an ordinary file and what it is; None when there is none. Never waits, as a FIFO would let it.

    Raises:
        InputError: A folder, FIFO, socket or device.
        StorageError: It cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{path}: not an ordinary file (mode {info.st_mode:o})", "Put the right file there.")
        return os.read(fd, most_bytes), info
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    finally:
        os.close(fd)


def key_from(data: bytes, where: str) -> bytes:
    """32 bytes out of 32 raw bytes or 64 hexadecimal digits.

    Raises:
        InputError: Neither.
    """
    if len(data) == KEY_BYTES:
        return data
    try:
        key = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(
            f"{where}: {len(data)} bytes, expected {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits",
            "Put the right key back; a key that was lost cannot be made again.",
        )
    return key


def on_one_disk(one: Path, other: Path) -> bool | None:
    """Whether two paths lie on the same physical disk, as far as ``/sys`` tells; None when it does not."""
    try:
        devices = [os.stat(_nearest(path)).st_dev for path in (one, other)]
    except OSError:
        return None
    if devices[0] == devices[1]:
        return True
    disks = [_disk_of(device) for device in devices]
    if None in disks:
        return None
    return disks[0] == disks[1]


def choose_keystore(
    data_folder: Path, *, kind: str = "auto", key_file: str = "", environ: Mapping[str, str] = os.environ
) -> Keystore:
    """The keystore that settings and surroundings ask for; nothing is read or made.

    Args:
        data_folder: The device's data folder.
        kind: ``safety.keystore``: ``systemd``, ``tpm2``, ``file``, ``folder``; ``auto`` takes the key file if one is
            named, then the systemd credential if systemd gave one, else the fallback in the data folder.
        key_file: ``safety.key_file``.
        environ: For ``CREDENTIALS_DIRECTORY``.

    Raises:
        InputError: An unknown kind, no path for ``file``, or one inside the data folder.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY", "")
    if kind == "auto":
        given = credentials and (Path(credentials) / CREDENTIAL).is_file()
        kind = "file" if key_file else "systemd" if given else "folder"
    if kind == "file":
        if not key_file:
            raise InputError("safety.keystore is file, and safety.key_file names none", "Set safety.key_file.")
        return KeyFile(Path(key_file), data_folder)
    if kind == "systemd":
        return SystemdCredential(Path(credentials or "/run/credentials"))
    if kind == "tpm2":
        from kasmina_edge.safety.tpm import TpmKey

        return TpmKey(data_folder / "vault" / "kek.tpm")
    if kind == "folder":
        return FolderKey(data_folder)
    raise InputError(f"safety.keystore: expected auto, systemd, tpm2, file or folder, got {kind!r}")


def describe_keystore(
    data_folder: Path, *, kind: str = "auto", key_file: str = "", environ: Mapping[str, str] = os.environ
) -> KeystoreState:
    """What `doctor` says of the key: where it lies, whether a stolen disk is readable; arguments as `choose_keystore`.

    Raises:
        InputError: A setting is wrong.
    """
    return choose_keystore(data_folder, kind=kind, key_file=key_file, environ=environ).describe(data_folder)


def _make_key(path: Path) -> bytes:
    """A new key file (0600, durable); one that another process made meanwhile is taken instead."""
    key = os.urandom(KEY_BYTES)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_durable(draft, key.hex().encode() + b"\n", mode=0o600)
    try:
        os.link(draft, path)  # unlike a rename, refuses to replace a key
    except FileExistsError as exc:
        found = read_key(path)
        if found is None:
            raise as_storage_error(exc, path) from exc
        return found
    except FileNotFoundError:  # another process took the draft for a leftover
        return _make_key(path)
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    finally:
        remove_file(draft)
    sync_folder(path.parent)
    return key


def _nearest(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _disk_of(device: int) -> str | None:
    if os.major(device) == 0:
        return None
    try:
        node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
    except OSError:
        return None
    disk = node.parent.name if (node / "partition").exists() else node.name
    return None if disk.startswith(("dm-", "md", "loop")) else disk  # these lie on other disks
