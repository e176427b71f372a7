"""The vault's key sealed in a TPM 2, through the ``tpm2-tools`` programs.

The key is sealed below a primary key of the owner hierarchy, without a PCR policy: a firmware update does not lock it
out, and a thief of the disk has nothing without this machine's TPM; a thief of the whole device has both. What lies in
the data folder is the sealed object (TPM 2.0 part 1), useless elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.safety.keystore import KEY_BYTES, Keystore, KeystoreKind, KeystoreState, key_from
from kasmina_edge.storage import as_storage_error, make_private_folder, remove_file, rename_durable, write_durable

TOOLS = ("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal")
TIMEOUT_S = 30.0
MAX_OBJECT_BYTES = 16 * 1024

Run = Callable[[Sequence[str], bytes], bytes]
"""Runs a program with bytes on its standard input and gives its standard output; raises StorageError when it fails."""


def run_program(arguments: Sequence[str], given: bytes) -> bytes:
    """The real `Run`.

    Raises:
        StorageError: The program is missing, failed, or took longer than `TIMEOUT_S`; what it was given is not told.
    """
    try:
        done = subprocess.run(arguments, input=given, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StorageError(f"{arguments[0]}: {type(exc).__name__}", "Install tpm2-tools; see `doctor`.") from exc
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise StorageError(
            f"{arguments[0]} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}",
            "Check that this user may use the TPM (group tss, /dev/tpmrm0) and that it is enabled in the firmware.",
        )
    return done.stdout


class TpmKey(Keystore):
    """A key that only this machine's TPM can give back.

    Args:
        path: The sealed object's file; its successor is ``NAME.next``.
        run: Runs the tools.
        which: Finds a program, as `shutil.which`.
    """

    kind: ClassVar[KeystoreKind] = "tpm2"

    def __init__(
        self, path: Path, *, run: Run = run_program, which: Callable[[str], str | None] = shutil.which
    ) -> None:
        self._path, self._run, self._which = path, run, which
        self.where = str(path)

    def candidates(self) -> list[bytes]:
        """As `Keystore.candidates`."""
        paths = [path for path in (self._path, self._next) if path.is_file()]
        return [self._unseal(path) for path in paths]

    def create(self) -> bytes:
        """As `Keystore.create`."""
        make_private_folder(self._path.parent)
        return self._seal(self._path)

    def prepare(self) -> bytes:
        """As `Keystore.prepare`."""
        remove_file(self._next)
        return self._seal(self._next)

    def settle(self, kek: bytes) -> None:
        """As `Keystore.settle`."""
        if not self._next.is_file():
            return
        if self._unseal(self._next) == kek:
            rename_durable(self._next, self._path)
        else:
            remove_file(self._next)

    def describe(self, data_folder: Path) -> KeystoreState:
        """As `Keystore.describe`."""
        missing = [tool for tool in TOOLS if self._which(tool) is None]
        sentence = "key sealed in this machine's TPM 2: a stolen disk is not readable without the machine"
        if missing:
            sentence = f"the TPM 2 cannot be used: {', '.join(missing)} not found; install tpm2-tools"
        return KeystoreState(self.kind, self.where, self._path.is_file(), False, sentence)

    @property
    def _next(self) -> Path:
        return self._path.with_name(self._path.name + ".next")

    def _seal(self, path: Path) -> bytes:
        key = os.urandom(KEY_BYTES)
        with _workshop() as folder:
            primary, public, private = (str(folder / name) for name in ("primary.ctx", "public", "private"))
            self._primary(primary)
            seal = ["tpm2_create", "-Q", "-C", primary, "-i", "-", "-u", public, "-r", private]
            self._run([*seal, "-a", "fixedtpm|fixedparent|userwithauth|noda"], key)
            sealed = {name: (folder / name).read_bytes().hex() for name in ("public", "private")}
            if self._load(folder, sealed) != key:
                raise StorageError(f"{path}: the TPM gave back another key than it was given")
        write_durable(path, json.dumps({"format": 1, **sealed}, sort_keys=True).encode())
        return key

    def _unseal(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()[: MAX_OBJECT_BYTES + 1]
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        try:
            value = json.loads(data)
            sealed = {name: str(value[name]) for name in ("public", "private")}
            for text in sealed.values():
                bytes.fromhex(text)
            if value.get("format") != 1 or len(data) > MAX_OBJECT_BYTES:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise InputError(f"{path}: not a sealed TPM object of format 1", "Put the file back.") from exc
        with _workshop() as folder:
            self._primary(str(folder / "primary.ctx"))
            return self._load(folder, sealed)

    def _primary(self, context: str) -> None:
        self._run(["tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", context], b"")

    def _load(self, folder: Path, sealed: dict[str, str]) -> bytes:
        for name, text in sealed.items():
            (folder / name).write_bytes(bytes.fromhex(text))
        primary, context = str(folder / "primary.ctx"), str(folder / "key.ctx")
        public, private = str(folder / "public"), str(folder / "private")
        self._run(["tpm2_load", "-Q", "-C", primary, "-u", public, "-r", private, "-c", context], b"")
        return key_from(self._run(["tpm2_unseal", "-Q", "-c", context], b""), self.where)


@contextmanager
def _workshop() -> Iterator[Path]:
    """A private folder for what the tools exchange; the key itself goes through pipes only."""
    with tempfile.TemporaryDirectory(prefix="kasmina-tpm-") as folder:
        yield Path(folder)
