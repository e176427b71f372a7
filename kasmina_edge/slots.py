"""A/B slots on disk: install to the idle one, trial, confirm, roll back; what a power cut leaves is always bootable.

Three rules carry that. Nothing is written into a slot: a whole folder is flushed beside it and renamed into place. No
valid copy of the boot record names a slot while it is being replaced. A decision is one record, written durably before
the call returns. The decisions themselves are pure and live in `kasmina_edge.boot_record`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kasmina_edge import boot_record as decide
from kasmina_edge.boot_record import EMPTY, SLOTS, BootRecord, Failure, Slot, choose_record, encode_record
from kasmina_edge.bundle import Bundle, files_of, read_folder, write_folder
from kasmina_edge.contracts.manifest import MANIFEST_PATH, BundleManifest
from kasmina_edge.errors import KasminaError, LockedError, PlanError, StorageError
from kasmina_edge.storage import (
    SpaceReserve,
    as_storage_error,
    hold_lock,
    make_private_folder,
    open_lock,
    remove_temporaries,
    remove_tree,
    rename_durable,
    require_free_space,
    sync_folder,
)

__all__ = ["SLOTS", "BootRecord", "Failure", "Slot", "SlotStore", "choose_record"]

RECORD_FILES = ("boot-0", "boot-1")
QUARANTINE_FILE = "quarantine.json"
RESERVE_FILE = "reserve"
_BLOCK_BYTES = 4096
_SPARE_BYTES = 64 * 1024  # the records, the quarantine and their temporaries must still fit after an installation
_SPARE_FILES = 16
_RESERVE_BYTES = 32 * 1024  # a record and a quarantine, with their temporaries
_INCOMING, _OLD = ".incoming-", ".old-"
_Write = Callable[[BootRecord], BootRecord]


class SlotStore:
    """The two slots of one data folder, safe to open from several processes.

    Args:
        data_folder: Holds ``slots/a``, ``slots/b``, ``boot-0``, ``boot-1``, ``quarantine.json``, and ``reserve``, which
            keeps room for a decision on a full disk; made with mode 0700.
        clock: Wall clock, seconds since 1970 UTC; stamps failures and quarantines.
        lock_wait_s: Most seconds to wait for an app that still holds the slot to be replaced.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(self, data_folder: Path, *, clock: Callable[[], float] = time.time, lock_wait_s: float = 10.0) -> None:
        self._data = make_private_folder(data_folder)
        self._slots = make_private_folder(data_folder / "slots")
        self._reserve = SpaceReserve(data_folder / RESERVE_FILE, _RESERVE_BYTES)
        self._clock = clock
        self._lock_wait_s = lock_wait_s

    def folder(self, slot: Slot) -> Path:
        """Where the slot's bundle lies; it may be missing."""
        return self._slots / slot

    def record(self) -> BootRecord:
        """The boot record that counts now; `EMPTY` on a new device.

        Raises:
            StorageError: Neither copy is valid, and yet a slot or a copy is there.
        """
        return self._read_record()[0]

    def manifest(self, slot: Slot) -> BundleManifest | None:
        """The slot's manifest, or None when the slot is empty.

        Raises:
            BundleError: It is damaged.
            StorageError: It cannot be read.
        """
        path = self.folder(slot) / MANIFEST_PATH
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        return BundleManifest.from_bytes(data, where=str(path))

    def bundle(self, slot: Slot) -> Bundle:
        """The slot's bundle, every digest checked.

        Raises:
            BundleError: The slot is empty or damaged.
        """
        return read_folder(self.folder(slot))

    def active_bundle(self) -> Bundle | None:
        """The committed bundle, or None before the first commit."""
        active = self.record().active
        return self.bundle(active) if active is not None else None

    def lock_agent(self) -> open_lock:
        """Become this folder's one agent, until the returned lock is closed.

        Raises:
            LockedError: Another agent holds the folder.
        """
        try:
            return open_lock(self._data / "agent.lock")
        except LockedError as exc:
            raise LockedError(
                f"{self._data}: another agent holds this data folder",
                "Stop it first (`systemctl stop kasmina-edge` where it is a service), or name another --data folder.",
            ) from exc

    def lock_slot(self, slot: Slot, *, wait_s: float = 0.0) -> open_lock:
        """Keep a slot from being replaced while an app uses it (shared); look at the record again after taking it.

        Raises:
            LockedError: The slot is being replaced right now.
        """
        return open_lock(self._slot_lock(slot), shared=True, wait_s=wait_s)

    def require_room(self, manifest: BundleManifest, *, engine: str) -> None:
        """Refuse what would not fit, before it is downloaded; `install` asks again.

        Raises:
            BundleError: The engine has no model in it.
            StorageError: Too little space, or too few inodes; the message carries both numbers.
        """
        require_free_space(self._slots, *_needed_room(manifest, {}, engine))

    def install(self, bundle: Bundle, *, engine: str) -> Slot:
        """Put a bundle into the idle slot; the active one is not touched, and the new one not used before a trial.

        Args:
            bundle: Verified by the caller; its files are checked against its manifest again here.
            engine: Only this engine's files are kept.

        Returns:
            The slot it lies in now, durably.

        Raises:
            PlanError: The content is quarantined.
            BundleError: Files and manifest disagree, or the engine has no model.
            InputError: A trial is going on.
            LockedError: An app still uses the idle slot, or another installation is going on.
            StorageError: Too little space or inodes (both numbers are given), or the disk refused; leftovers are
                removed.
        """
        self._refuse_quarantined(bundle.manifest)
        with hold_lock(self._slots / "install.lock", wait_s=self._lock_wait_s):
            slot = decide.idle_slot(self.record())
            require_free_space(self._slots, *_needed_room(bundle.manifest, bundle.metadata, engine))
            incoming = self._slots / f"{_INCOMING}{os.getpid()}"
            try:
                remove_tree(incoming)
                write_folder(bundle, incoming, engine=engine)
                sync_folder(incoming)
                read_folder(incoming, engine=engine)
                self._put_into(slot, incoming)
            except KasminaError:
                with suppress(StorageError):
                    remove_tree(incoming)
                raise
        return slot

    def begin_trial(self, slot: Slot, tries: int = 1) -> BootRecord:
        """Put a slot on trial: it is judged, and confirmed or rolled back.

        Args:
            slot: The one that `install` returned.
            tries: How many agent starts the trial may take; with 1, the first interruption ends it.

        Raises:
            BundleError: The slot is empty or damaged.
            PlanError: Its content is quarantined.
            InputError: The slot is active, or a trial is going on.
        """
        with self._change() as (record, write):
            following = decide.start_trial(record, slot, tries)
            self._refuse_quarantined(self.bundle(slot).manifest)
            return write(following)

    def go_live(self) -> BootRecord:
        """Let the apps follow the trial slot (`BootRecord.serving`), after it passed what needs no live frames.

        Raises:
            InputError: Nothing is on trial.
        """
        with self._change() as (record, write):
            return write(decide.let_live(record))

    def confirm(self) -> BootRecord:
        """Make the trial slot the active one, in both copies of the record; success may be reported once this returned.

        Raises:
            InputError: Nothing is on trial.
        """
        with self._change() as (record, write):
            return write(decide.repeat(write(decide.commit_trial(record))))

    def affirm(self) -> BootRecord:
        """Write what counts now once more, in both copies: it may be a decision whose write was refused half-way.

        A write that failed while its folder was flushed can be read here and still be lost by a power cut.

        Raises:
            StorageError: The disk refused again.
        """
        with self._change() as (record, write):
            return write(decide.repeat(write(decide.repeat(record))))

    def roll_back(self, reason: str) -> BootRecord:
        """End a failed trial and quarantine its content; without a trial, return to the previous slot.

        Raises:
            InputError: Nothing is on trial and no previous bundle is kept.
            BundleError: The previous slot is damaged; the active one stays.
            StorageError: The disk refused. When only the quarantine could not be written, the apps are off the trial,
                and it ends when this is done again or at the next start; when the quarantine is damaged, it is over.
        """
        with self._change() as (record, write):
            if record.trial is None:
                following = decide.return_to_previous(record)
                assert following.active is not None
                self.bundle(following.active)
                return write(decide.repeat(write(following)))
            following = self._end_trial(record, reason, write)
            self._read_quarantine()  # a damaged one is told once the trial is over
            return following

    def recover(self) -> BootRecord:
        """Settle what an interruption left; the agent calls it once at every start, holding `lock_agent`.

        Counts the start, removes leftovers, takes a try from an interrupted trial and rolls it back when none is left,
        finishes a roll-back that was cut short, and leaves a damaged active slot for a whole previous one. A trial that
        survives is no longer live and has to be judged again.

        Raises:
            StorageError: Neither record is valid, or the disk refused.
        """
        self._remove_leftovers()
        with self._change() as (record, write):
            for name in (*RECORD_FILES, QUARANTINE_FILE, RESERVE_FILE):
                remove_temporaries(self._data / name)
            self._reserve.keep()
            following = decide.count_start(record)
            if following.trial is not None:
                reason = self._why_to_end(following, withdrawn=record.tries_left == 0)
                if reason is not None:
                    return self._end_trial(following, reason, write)
                following = decide.let_dark(following)
            elif following.active is not None and following.previous is not None:
                fault = self._fault_of(following.active)
                if fault is not None and self._fault_of(following.previous) is None:
                    failure = decide.make_failure("", f"slot {following.active}", fault, self._clock())
                    following = decide.return_to_previous(following, failure)
            return write(following)

    def quarantined(self, content_digest: str) -> str | None:
        """Why this content may not be tried here, or None.

        Raises:
            StorageError: The quarantine file is damaged: nothing is installed before an operator has looked.
        """
        entry = self._read_quarantine().get(content_digest)
        return None if entry is None else entry.reason

    def quarantine_entries(self) -> dict[str, decide.Quarantined]:
        """Everything quarantined here, by content digest.

        Raises:
            StorageError: The quarantine file is damaged.
        """
        return self._read_quarantine()

    def quarantine(self, content_digest: str, reason: str) -> None:
        """Never try this content again on this device, until an operator releases it.

        Raises:
            StorageError: The disk refused, or the quarantine file is damaged.
        """
        with self._change():
            self._add_to_quarantine(content_digest, reason)

    def release_quarantine(self, content_digest: str) -> str:
        """Allow a quarantined content to be tried again.

        Args:
            content_digest: The whole digest, or its first 12 or more characters.

        Returns:
            The whole digest.

        Raises:
            InputError: It names none, or more than one; the next step lists what is quarantined.
            StorageError: The disk refused, or the quarantine file is damaged.
        """
        with self._change():
            entries = self._read_quarantine()
            digest = decide.find_quarantined(entries, content_digest)
            del entries[digest]
            self._write_quarantine(entries)
            return digest

    def _end_trial(self, record: BootRecord, reason: str, write: _Write) -> BootRecord:
        """Quarantine first, record second: a cut between the two leaves a trial that `recover` ends."""
        assert record.trial is not None
        digest, name = "", f"slot {record.trial}"
        with suppress(KasminaError):
            manifest = self.manifest(record.trial)
            if manifest is not None:
                digest, name = manifest.content_digest(), manifest.id
        failure = decide.make_failure(digest, name, reason, self._clock())
        if digest:
            try:
                known = digest in self._read_quarantine()
            except StorageError:
                known = True  # damaged: it lets nothing in before an operator has looked
            if not known:
                try:
                    self._add_to_quarantine(digest, reason)
                except StorageError:
                    write(decide.withdraw_trial(record, failure))
                    raise
        return write(decide.end_trial(record, failure))

    def _why_to_end(self, record: BootRecord, *, withdrawn: bool) -> str | None:
        """The reason to end an interrupted trial at a start, or None when it may go on."""
        assert record.trial is not None
        fault = self._fault_of(record.trial)
        if fault is not None:
            return fault
        manifest = self.manifest(record.trial)
        assert manifest is not None
        try:
            quarantined = self.quarantined(manifest.content_digest())
        except StorageError as exc:
            return exc.message
        if quarantined is not None:
            return quarantined
        if withdrawn and record.last_failure is not None:
            return record.last_failure.reason
        return None if record.tries_left > 0 else "the trial was interrupted, and no try is left"

    def _fault_of(self, slot: Slot) -> str | None:
        try:
            self.bundle(slot)
        except KasminaError as exc:
            return exc.message
        return None

    def _put_into(self, slot: Slot, incoming: Path) -> None:
        """Rename a whole, flushed folder into the slot; the old one is renamed away first and removed after."""
        with ExitStack() as held:
            held.enter_context(hold_lock(self._slot_lock(slot), wait_s=self._lock_wait_s))
            record, write = held.enter_context(self._change())
            if decide.idle_slot(record) != slot:
                raise StorageError(f"{self.folder(slot)}: became the active slot meanwhile", "Try again.")
            sync_folder(self._data)  # what is read next may be a write whose flush was refused
            while not self._is_released(slot):
                record = write(decide.release_slot(record, slot))
            old = self._slots / f"{_OLD}{slot}-{os.getpid()}"
            remove_tree(old)
            if self.folder(slot).exists():
                rename_durable(self.folder(slot), old)
            try:
                rename_durable(incoming, self.folder(slot))
            except StorageError:
                if old.exists() and not self.folder(slot).exists():
                    rename_durable(old, self.folder(slot))
                raise
        with suppress(StorageError):
            remove_tree(old)

    def _is_released(self, slot: Slot) -> bool:
        """Whether both copies of the record are valid and neither needs what the slot holds."""
        copies = [decide.decode_record(data) for data in self._read_copies() if data is not None]
        return len(copies) == len(RECORD_FILES) and all(c is not None and not c.names(slot) for c in copies)

    def _remove_leftovers(self) -> None:
        try:
            with hold_lock(self._slots / "install.lock"):
                found = [p for prefix in (_INCOMING, _OLD) for p in self._slots.glob(f"{prefix}*")]
                for leftover in found:
                    remove_tree(leftover)
                if found:
                    sync_folder(self._slots)
        except LockedError:
            return  # somebody installs right now: nothing there is a leftover

    def _slot_lock(self, slot: Slot) -> Path:
        return self._slots / f"{slot}.lock"

    @contextmanager
    def _change(self) -> Iterator[tuple[BootRecord, _Write]]:
        """Read, decide and write the record with nobody between; `write` goes to the copy that does not count now."""
        with hold_lock(self._data / "boot.lock", wait_s=self._lock_wait_s):
            record, at = self._read_record()

            def write(following: BootRecord) -> BootRecord:
                nonlocal at
                at = 1 - at
                self._reserve.write(self._data / RECORD_FILES[at], encode_record(following))
                return following

            yield record, write

    def _read_record(self) -> tuple[BootRecord, int]:
        """The record that counts, and which copy it is."""
        for _ in range(2):  # a second look: the very first record may have been written during the first one
            copies = self._read_copies()
            record = choose_record(*copies)
            if record is not None:
                first = decide.decode_record(copies[0]) if copies[0] is not None else None
                return record, 0 if first == record else 1
        there = [name for name, data in zip(RECORD_FILES, copies, strict=True) if data is not None]
        there += [f"slots/{slot}" for slot in SLOTS if self.folder(slot).exists()]
        if there:
            raise StorageError(
                f"{self._data}: neither boot-0 nor boot-1 is a valid record, and {', '.join(there)} is there",
                "Restore boot-0 or boot-1 from a backup, or move the data folder away and deploy again.",
            )
        return EMPTY, 1

    def _read_copies(self) -> tuple[bytes | None, bytes | None]:
        first, second = (_read_if_there(self._data / name, decide.MAX_RECORD_BYTES) for name in RECORD_FILES)
        return first, second

    def _refuse_quarantined(self, manifest: BundleManifest) -> None:
        reason = self.quarantined(manifest.content_digest())
        if reason is not None:
            raise PlanError(
                f"{manifest.id}: quarantined on this device: {reason}",
                "Publish a repaired bundle, or have an operator release this one from quarantine.",
            )

    def _read_quarantine(self) -> dict[str, decide.Quarantined]:
        path = self._data / QUARANTINE_FILE
        data = _read_if_there(path, decide.MAX_QUARANTINE_BYTES)
        if data is None:
            return {}
        try:
            return decide.decode_quarantine(data)
        except ValueError as exc:
            raise StorageError(
                f"{path}: damaged ({exc})", "Look at the file; removing it releases every quarantined bundle."
            ) from exc

    def _add_to_quarantine(self, content_digest: str, reason: str) -> None:
        entries = self._read_quarantine()
        entries[content_digest] = decide.Quarantined(decide.short_reason(reason), float(self._clock()))
        self._write_quarantine(entries)

    def _write_quarantine(self, entries: dict[str, decide.Quarantined]) -> None:
        self._reserve.write(self._data / QUARANTINE_FILE, decide.encode_quarantine(entries))


def _needed_room(manifest: BundleManifest, metadata: Mapping[str, bytes], engine: str) -> tuple[int, int]:
    """Bytes (every file rounded up to whole blocks) and files that a bundle takes, with what must stay free beside."""
    sizes = [entry.size_bytes for entry in files_of(manifest, engine)]
    sizes += [len(data) for data in metadata.values()]
    sizes.append(len(manifest.to_bytes()))
    return sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes) + _SPARE_BYTES, len(sizes) + _SPARE_FILES


def _read_if_there(path: Path, limit_bytes: int) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
