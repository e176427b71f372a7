"""The vault: data at rest under AES-256-GCM, its keys under one key that lies elsewhere (envelope encryption).

Every message is sealed on its own by `kasmina_edge.safety.sealing`. Data keys are random, one series a purpose, kept in
``keys.json`` wrapped by the same construction under the key-encryption key of a `Keystore`; the whole file carries a
MAC under that key. docs/spec/vault.md has the bytes.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kasmina_edge.errors import StorageError, TrustError
from kasmina_edge.safety.key_ring import FileState, KeyInfo, KeyRing, RingFile, WrappedKey
from kasmina_edge.safety.keystore import FolderKey, Keystore, choose_keystore
from kasmina_edge.safety.sealing import Random, key_id, open_with, seal_with, sealed_with
from kasmina_edge.storage import hold_lock, make_private_folder, remove_temporaries

LOCK_NAME = "keys.lock"
LOCK_WAIT_S = 10.0
"""How long another process may hold the vault before this one gives up, in seconds."""
RETIRE_AFTER_S = 60.0
"""A replaced key may still be in the hands of a process that is sealing with it; it is kept so long, in seconds."""


class Sealer:
    """Seals and opens for one purpose; safe for several threads, and in a forked child. Made by `Vault.sealer`."""

    def __init__(self, vault: Vault, purpose: str) -> None:
        self._vault, self.purpose = vault, purpose

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypt under the purpose's newest key.

        Args:
            plaintext: At most 1 GiB.
            aad: Says what and where this is; it is not stored, and opening needs the very same bytes.

        Returns:
            Magic, key number, salt, ciphertext, tag: `OVERHEAD_BYTES` longer, different at every call.

        Raises:
            InputError: The plaintext is too long.
            TrustError: The key ring was changed by somebody without the key.
            StorageError: The key ring cannot be read.
        """
        number, key = self._vault.newest(self.purpose)
        return seal_with(key, number, self.purpose, plaintext, aad, self._vault.random_bytes)

    def key(self, number: int) -> bytes:
        """The purpose's key of that number, to tell one that is not at hand from bytes that were changed.

        Raises:
            TrustError: The vault has no such key.
            StorageError: The key ring cannot be read.
        """
        return self._vault.key(number, self.purpose)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """Decrypt what any sealer of this purpose and vault made, in whatever process.

        Raises:
            TrustError: Changed, cut short, sealed for another purpose or place, or under a key that was retired.
            StorageError: The key ring cannot be read, or not trusted: nothing can be opened now, and this is not to
                be discarded.
        """
        number = sealed_with(sealed)
        return open_with(self._vault.key(number, self.purpose), self.purpose, sealed, aad)

    def tend(self, in_use: Collection[int], max_age_s: float) -> list[int]:
        """Make a new key when the newest is older than ``max_age_s`` seconds; then do what `Vault.retire` does.

        A key from the future (the clock was set back) counts as old.
        """
        newest = next(k for k in reversed(self._vault.inventory()) if k.purpose == self.purpose)
        if not 0.0 <= self._vault.clock() - newest.made_s <= max_age_s:
            self._vault.rotate(self.purpose)
        return self._vault.retire(self.purpose, in_use)

    def __repr__(self) -> str:
        return f"Sealer({self.purpose!r})"


class Vault:
    """The data keys of one data folder; several processes may have it open at once.

    A key that another process makes is seen at once: the file is looked at (one ``stat``) with every use.
    """

    def __init__(
        self,
        folder: Path,
        keystore: Keystore,
        *,
        random_bytes: Random = os.urandom,
        clock: Callable[[], float],
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self.folder = folder
        self.random_bytes = random_bytes
        self.clock, self._keystore = clock, keystore
        self._file, self._lock_path = RingFile(folder), folder / LOCK_NAME
        self._lock, self._lock_wait_s, self._alone_now = threading.RLock(), lock_wait_s, False
        self._seen: FileState | None = None
        self._ring: KeyRing
        self._kek: bytes
        self._open_keys: dict[str, bytes] = {}  # by what is wrapped: a number alone says nothing of the key
        _vaults.add(self)
        make_private_folder(folder)
        with self._alone():
            remove_temporaries(self._file.path)
            found = self._file.read()
            if found is not None:
                ring, state = found
                self._take(ring, state, self._matching(ring, keystore))
            elif self._file.was_made():
                raise TrustError(
                    f"{self._file.path}: missing, and {self._file.mark_path} says that there was one",
                    f"Restore it from a copy. To begin anew, remove {self._file.mark_path} and everything that the "
                    "vault sealed (outbox.db): it stays sealed.",
                )
            else:
                keys = keystore.candidates()
                kek = keys[0] if keys else keystore.create()
                self._write(KeyRing(kek=key_id(kek)), kek)
            self._file.mark()
            keystore.settle(self._kek)

    @classmethod
    def open(
        cls,
        folder: Path,
        keystore: Keystore,
        *,
        random_bytes: Random = os.urandom,
        clock: Callable[[], float] = time.time,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> Vault:
        """Open the vault of ``folder``; an empty folder gets a new one.

        Args:
            folder: Where ``keys.json`` lies or will lie; made (0700) when missing.
            keystore: Where the key-encryption key is; it is made there only for a new vault.
            random_bytes: The system's generator; anything else is for tests.
            clock: Wall clock, seconds since 1970 UTC.
            lock_wait_s: How long to wait for a process that holds the vault, in seconds; also later.

        Raises:
            TrustError: ``keys.json`` was changed, is gone, or belongs to another key-encryption key.
            InputError: The keystore has no key and cannot make one.
            StorageError: The disk refuses.
            LockedError: Another process holds the vault; also from everything that changes it.
        """
        return cls(folder, keystore, random_bytes=random_bytes, clock=clock, lock_wait_s=lock_wait_s)

    def sealer(self, purpose: str) -> Sealer:
        """What seals and opens for ``purpose`` (``[a-z0-9-]``, at most 32); the first call makes its first key.

        Raises:
            InputError: Not such a word.
            StorageError: The disk refuses.
        """
        with self._lock:
            if not any(k.purpose == purpose for k in self._fresh().keys):
                with self._alone():
                    if not any(k.purpose == purpose for k in self._fresh().keys):
                        self._add(purpose)
        return Sealer(self, purpose)

    def rotate(self, purpose: str) -> int:
        """Make a new key for what is sealed from now on; what older keys sealed still opens. Returns its number."""
        with self._alone():
            return self._add(purpose)

    def retire(self, purpose: str, in_use: Collection[int]) -> list[int]:
        """Destroy replaced keys that nothing needs any more: what they sealed cannot be opened again, by anybody.

        Args:
            purpose: Whose keys.
            in_use: Numbers (`sealed_with`) that stored data still needs; they are kept.

        Returns:
            Numbers of the destroyed keys. One replaced within `RETIRE_AFTER_S` seconds waits for the next call.
        """
        with self._alone():
            ring, now = self._fresh(), self.clock()
            gone = [
                k.number
                for k in ring.keys
                if k.purpose == purpose
                and k.number not in in_use
                and k.replaced_s is not None
                and now - k.replaced_s >= RETIRE_AFTER_S
            ]
            if gone:
                self._write(ring.model_copy(update={"keys": tuple(k for k in ring.keys if k.number not in gone)}))
            return gone

    def erase(self, purpose: str) -> list[int]:
        """Destroy every key of a purpose: all that it ever sealed is gone, also from copies of the disk without the
        key-encryption key. Returns the destroyed numbers."""
        with self._alone():
            ring = self._fresh()
            gone = [k.number for k in ring.keys if k.purpose == purpose]
            self._write(ring.model_copy(update={"keys": tuple(k for k in ring.keys if k.purpose != purpose)}))
            return gone

    def rotate_kek(self) -> None:
        """Move to a new key-encryption key of the same keystore; data keys stay, nothing is sealed anew.

        After a power cut at any point one of both keys opens the vault, and it is still there.

        Raises:
            InputError: The keystore's keys are made by the operator; the next step says how.
            StorageError: The disk or the TPM refuses; the vault is as before.
        """
        with self._alone():
            self._rewrap(self._keystore.prepare, self._keystore, new_keys=False)

    def move_to(self, keystore: Keystore) -> None:
        """Move to another keystore's key, which is made where it can be; raises as `rotate_kek` does.

        What is sealed from now on gets new data keys: the old ones could be opened with the key that is left behind.
        """
        with self._alone():
            self._rewrap(lambda: next(iter(keystore.candidates()), None) or keystore.create(), keystore, new_keys=True)

    def inventory(self) -> list[KeyInfo]:
        """Every key that is kept, oldest first."""
        with self._lock:
            return [KeyInfo(k.number, k.purpose, k.made_s, k.replaced_s) for k in self._fresh().keys]

    def newest(self, purpose: str) -> tuple[int, bytes]:
        """Number and key for new data; for `Sealer`."""
        with self._lock:
            key = next((k for k in reversed(self._fresh().keys) if k.purpose == purpose), None)
            if key is None:
                raise TrustError(f"{self._file.path}: no key for {purpose}", "It was erased; make a sealer anew.")
            return key.number, self._unwrap(key)

    def key(self, number: int, purpose: str) -> bytes:
        """One data key; for `Sealer`."""
        with self._lock:
            try:
                ring = self._fresh()
            except TrustError as exc:  # the sealed bytes are not to blame, and are not to be discarded
                raise StorageError(exc.message, exc.next_step) from exc
            key = next((k for k in ring.keys if k.number == number and k.purpose == purpose), None)
            if key is None:
                raise TrustError(
                    f"{self._file.path}: there is no key {number} for {purpose}",
                    "It was retired, or this was sealed for something else; the data cannot be opened.",
                )
            return self._unwrap(key)

    def __repr__(self) -> str:
        return f"Vault({str(self.folder)!r})"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread or process changes the vault meanwhile, nor its key."""
        with self._lock, hold_lock(self._lock_path, wait_s=self._lock_wait_s):
            self._alone_now = True
            try:
                yield
            finally:
                self._alone_now = False

    def _rewrap(self, find: Callable[[], bytes], keystore: Keystore, *, new_keys: bool) -> None:
        ring = self._fresh()
        plain = {k.number: self._unwrap(k) for k in ring.keys}
        kek = find()
        ring = ring.rewrapped(kek, plain, self.random_bytes)
        for purpose in sorted({k.purpose for k in ring.keys}) if new_keys else ():
            ring = ring.with_new(kek, purpose, self.clock(), self.random_bytes)
        self._write(ring, kek)
        self._keystore = keystore
        keystore.settle(kek)

    def _add(self, purpose: str) -> int:
        ring = self._fresh()
        self._write(ring.with_new(self._kek, purpose, self.clock(), self.random_bytes))
        return ring.following

    def _fresh(self) -> KeyRing:
        """The ring as it is on the disk now."""
        if self._file.state() == self._seen:
            return self._ring
        found = self._file.read()
        if found is None:
            raise StorageError(f"{self._file.path}: the key ring is gone", "Put it back, or data stays sealed.")
        (ring, state), kek = found, self._kek
        if ring.kek != key_id(kek):
            if not self._alone_now:  # another process may be between two keys: look again when it is done
                with self._alone():
                    return self._fresh()
            kek = self._matching(ring, self._keystore)
        self._take(ring, state, kek)
        return ring

    def _take(self, ring: KeyRing, state: FileState | None, kek: bytes) -> None:
        """Use a ring from now on, if its MAC holds; otherwise nothing changes, and the next use looks again."""
        if not hmac.compare_digest(ring.mac, ring.authenticator(kek)):
            raise TrustError(
                f"{self._file.path}: changed by somebody who does not have its key",
                "Restore the file; what was sealed under its keys stays sealed.",
            )
        self._ring, self._seen, self._kek = ring, state, kek
        kept = {w.wrapped for w in ring.keys}
        self._open_keys = {wrapped: key for wrapped, key in self._open_keys.items() if wrapped in kept}

    def _unwrap(self, key: WrappedKey) -> bytes:
        plain = self._open_keys.get(key.wrapped)
        if plain is None:
            plain = self._open_keys[key.wrapped] = key.unwrapped(self._kek)
        return plain

    def _matching(self, ring: KeyRing, keystore: Keystore) -> bytes:
        candidates = keystore.candidates()
        for kek in candidates:
            if key_id(kek) == ring.kek:
                return kek
        found = ", ".join(map(key_id, candidates)) or "none"
        raise TrustError(
            f"{self._file.path}: wrapped under key {ring.kek}, the {keystore.kind} keystore has {found}",
            "Give this process the key that the data folder was made with (mount its medium); `kasmina-edge doctor` "
            "says where. If safety.keystore or safety.key_file was changed, restart every process that runs since.",
        )

    def _write(self, ring: KeyRing, kek: bytes | None = None) -> None:
        kek = kek or self._kek
        ring = ring.model_copy(update={"mac": ring.authenticator(kek)})
        self._file.write(ring)
        self._take(ring, self._file.state(), kek)


def open_vault(
    data_folder: Path,
    *,
    kind: str = "auto",
    key_file: str = "",
    require_external: bool = False,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Vault:
    """The vault of a device's data folder, below ``vault/``, under the keystore that the settings ask for.

    A vault that began with the fallback key in the data folder moves over to the keystore that is asked for now, and
    the fallback key is deleted; never the other way.

    Args:
        data_folder: The device's data folder.
        kind: ``safety.keystore``, see `choose_keystore`.
        key_file: ``safety.key_file``.
        require_external: ``safety.require_external_key``: refuse the fallback.
        environ: For ``CREDENTIALS_DIRECTORY``.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        TrustError: The fallback is all there is and it is not allowed; or as `Vault.open`.
        InputError: A setting is wrong, or the keystore has no key and cannot make one.
        StorageError: The disk refuses.
    """
    keystore = choose_keystore(data_folder, kind=kind, key_file=key_file, environ=environ)
    folder = data_folder / "vault"
    if isinstance(keystore, FolderKey):
        if require_external:
            raise TrustError(
                f"{data_folder}: safety.require_external_key is set, and the only key lies in the data folder",
                "Give a systemd credential kasmina-kek, set safety.keystore to tpm2, or name safety.key_file.",
            )
        return Vault.open(folder, keystore, clock=clock)
    fallback = FolderKey(data_folder)
    held = set(map(key_id, fallback.candidates()))
    if _kek_of(folder) in held:
        try:
            Vault.open(folder, fallback, clock=clock).move_to(keystore)
        except TrustError:
            if _kek_of(folder) in held:
                raise
            # another process moved it meanwhile
    vault = Vault.open(folder, keystore, clock=clock)
    fallback.remove()
    return vault


def _kek_of(folder: Path) -> str | None:
    found = RingFile(folder).read()
    return found and found[0].kek


_vaults: weakref.WeakSet[Vault] = weakref.WeakSet()


def _after_fork() -> None:
    """Another thread of the parent may have held a lock at the fork; the child has no such thread."""
    for vault in _vaults:
        vault._lock, vault._alone_now = threading.RLock(), False


os.register_at_fork(after_in_child=_after_fork)
