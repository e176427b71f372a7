"""The outbox: what a device has to say, on disk until the other side has acknowledged it.

A SQLite file in WAL mode with ``synchronous=FULL``: what was committed survives a kill and a power cut. Entries lie in
compressed blocks (`blocks`), sealed where a vault is given. An append is on the disk when it returns; statistics may
instead wait in memory, half a second at most, so that many of them share one flush. Several processes may append and
read at once. The file is bounded in bytes and in age; what does not fit any more is dropped oldest first within the
lowest priority, and counted durably. A damaged file is left aside, counted, and replaced by a new one (``NAME.1``, then
``NAME.2``; the number stands in ``NAME.generation``): telemetry must not stop a device.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.safety.vault import Sealer, open_vault
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry import outbox_table as table
from kasmina_edge.telemetry.blocks import Place, open_block, pack, runs, waiting
from kasmina_edge.telemetry.outbox_table import ROW_BYTES, Bounds
from kasmina_edge.telemetry.renewed_file import LOCK_WAIT_S, RenewedFile
from kasmina_edge.telemetry.sqlite_file import SqliteFile
from kasmina_edge.telemetry.write_buffer import Pending, WriteBuffer

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
KEY_AGE_S = 30 * 86_400.0
PURPOSE = "outbox"
"""What the vault seals for."""
MAX_AGE_S = 14 * 86_400.0
FLUSH_S = 0.5
"""Buffered entries are on the disk so many seconds after they were appended, or sooner."""
DECODED_BLOCKS = 2
FAR_S = 1e12
"""No clock shows a time that is further from 1970, in seconds."""


@dataclass(frozen=True)
class Entry:
    """One thing to send.

    Attributes:
        id: Counts up, and is never used twice, also not by the file that replaces a damaged one.
        at_s: Wall clock when it was appended, seconds since 1970 UTC, to the millisecond.
    """

    id: int
    stream: str
    payload: bytes
    at_s: float
    priority: int = 0


@dataclass(frozen=True)
class OutboxSize:
    """What the outbox holds: entries, and the stored bytes that count against its bound."""

    entries: int
    bytes: int


class Outbox:
    """A durable, bounded queue with peek and acknowledge; safe for several threads and processes, and over ``fork``.

    Args:
        path: The SQLite file; ``NAME-wal``, ``NAME-shm``, ``NAME.lock`` and ``NAME.generation`` lie beside it.
        max_bytes: Bound on stored bytes; entries leave a block at a time, a sixteenth of the bound or 512 at most.
        max_age_s: Entries older than this are dropped at the next append, some up to a 64th of it earlier; where the
            clock was set, age begins anew.
        clock: Wall clock, seconds since 1970 UTC; what is no number counts as not set yet.
        sealer: Seals what is stored. A file that was ever opened with one is refused without, and what lay in it plain
            is sealed when it is first opened with one.
        flush_s: Longest stay in memory of what was appended with ``durable=False``, in seconds.
        lock_wait_s: Longest wait for another process that has the file to itself, in seconds.

    Raises:
        StorageError: The disk refuses, or the file has another schema version.
        LockedError: Another process holds the file, frozen perhaps. Every other call may raise it too.
        InputError: A bound is not positive, or the file is sealed and no sealer is given.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.time,
        sealer: Sealer | None = None,
        flush_s: float = FLUSH_S,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        if max_bytes < 1 or not max_age_s > 0 or not flush_s > 0:
            raise InputError(
                f"outbox {path}: max_bytes {max_bytes}, max_age_s {max_age_s} and flush_s {flush_s} must be positive"
            )
        self.path = path
        self._bounds, self._clock, self._sealer = Bounds(max_bytes, max_age_s), clock, sealer
        self._decoded: OrderedDict[tuple[int, int], list[tuple[float, bytes]]] = OrderedDict()
        self._buffer = WriteBuffer(self._write, flush_s=flush_s, after_fork=self._after_fork)
        self._file = RenewedFile(
            path,
            schema=lambda generation: table.SCHEMA.format(first_id=table.first_id(generation)),
            version=table.VERSION,
            upgrades={1: self._upgrade},
            settled=self._is_settled,
            opened=self._settle_sealing,
            lock_wait_s=lock_wait_s,
        )
        self._away: set[int] = set()

    def append(self, stream: str, payload: bytes, *, priority: int = 0, durable: bool = True) -> int:
        """Keep one payload.

        Args:
            stream: What kind of thing it is, e.g. ``stats``, ``event``, ``capture``.
            payload: At most ``max_bytes`` less `ROW_BYTES`.
            priority: Higher ones are sent first and dropped last.
            durable: Return when it is on the disk. False: it is there within ``flush_s`` seconds, and a kill before
                then loses it; entries of a priority above 0 are durable all the same.

        Returns:
            The entry's id; 0 while it is not on the disk.

        Raises:
            InputError: Not a name, a priority or bytes, or the payload alone is larger than the outbox.
            StorageError: The disk refuses; nothing was appended.
            TrustError: The vault refuses; nothing was appended.
        """
        entry = waiting(stream, priority, self._now(), payload)
        size = len(entry.payload) + ROW_BYTES
        if size > self._bounds.max_bytes:
            raise InputError(f"{self.path}: an entry of {size} bytes, the outbox holds {self._bounds.max_bytes}")
        if durable or priority > 0:
            return self._buffer.add_and_flush(entry)
        self._buffer.add(entry)
        return 0

    def check_writable(self) -> None:
        """Raise as `append` does where nothing could be appended now, e.g. because a frozen process is in the way."""

        def run(file: SqliteFile) -> None:
            with file.write() as db:
                self._require_sealer(db)

        self._file.run(run)

    def flush(self) -> None:
        """Put on the disk what this process has appended; raises as `append` does, and keeps what was not written."""
        self._buffer.flush()

    def peek(
        self,
        limit: int = 60,
        max_bytes: int = 1 << 20,
        *,
        stream: str | None = None,
        without: Collection[str] = (),
    ) -> list[Entry]:
        """The next entries to send, highest priority first, then oldest first; they stay until acknowledged.

        Entries whose key is not at hand are left out, and stay.

        Args:
            limit: Most entries.
            max_bytes: Most payload bytes together; a first entry larger than that comes alone.
            stream: Only this stream.
            without: Not these streams.
        """
        where = " AND ".join(["1"] + ["stream = ?"] * (stream is not None) + ["stream <> ?"] * len(without))
        values = (*((stream,) if stream is not None else ()), *without)
        return self._select(where, values, "priority DESC, first_id", 0, limit, max_bytes)

    def newer(self, entry_id: int, limit: int = 60, *, stream: str) -> list[Entry]:
        """Entries of a stream appended after ``entry_id``, oldest first, whether or not others were acknowledged."""
        entry_id = max(0, min(entry_id, table.MAX_ID))
        where = (
            "stream = ? AND first_id >= "
            "coalesce((SELECT max(first_id) FROM block WHERE stream = ? AND first_id <= ?), 0)"
        )
        return self._select(where, (stream, stream, entry_id), "first_id", entry_id, limit, 1 << 30)

    def newest(self) -> int:
        """Id of the entry that was appended last, whether or not it is still there."""
        return self._tally("next_id") - 1

    def acknowledge(self, ids: Iterable[int], *, dropped: bool = False) -> int:
        """Forget entries that have arrived; unknown ids are ignored, so that doing it twice is harmless.

        Args:
            ids: From `Entry.id`.
            dropped: They did not arrive and never will: count them as dropped.

        Returns:
            How many entries were there.
        """
        wanted = table.known(ids)

        def run(file: SqliteFile) -> int:
            with file.write() as db:
                taken = table.take_out(db, wanted)
                table.add_to_tally(db, "dropped", taken if dropped else 0)
            return taken

        return self._file.run(run) if wanted else 0

    def erase(self, ids: Iterable[int]) -> int:
        """Forget entries and overwrite what is stored of them, in the file and in its log, before this returns.

        What the disk keeps below the file system (copies on flash) stays sealed, if there is a vault.

        Returns:
            How many entries were there.
        """
        wanted = table.known(ids)

        def run(file: SqliteFile) -> int:
            with file.rewrite() as db:
                return table.erase(db, wanted, self._sealer)

        self._decoded.clear()
        return self._file.run(run) if wanted else 0

    def dropped(self) -> int:
        """How many entries were ever dropped unsent, for want of room or for age, over restarts."""
        return self._tally("dropped")

    def damaged(self) -> int:
        """How many damaged or removed files were ever replaced; what they held is not counted in `dropped`."""
        return self._file.read_generation()

    def size(self) -> OutboxSize:
        """Entries and bytes held now."""
        return OutboxSize(self._tally("entries"), self._tally("bytes"))

    def keys_in_use(self) -> set[int]:
        """Numbers of the vault's keys that stored entries need, for `Vault.retire`."""

        def run(file: SqliteFile) -> set[int]:
            with file.read() as db:
                return {int(key) for (key,) in db.execute("SELECT DISTINCT key FROM block")}

        return self._file.run(run)

    def tend_keys(self, max_age_s: float = KEY_AGE_S) -> list[int]:
        """Seal with a new key from time to time, and destroy old ones that no stored entry needs; now and then.

        Returns:
            Numbers of the destroyed keys.
        """
        return self._sealer.tend(self.keys_in_use(), max_age_s) if self._sealer is not None else []

    def close(self) -> None:
        """Flush and close the file; calling it twice is harmless, and using the outbox again opens it again."""
        try:
            self._buffer.close()
        finally:
            self._file.close()

    def _write(self, entries: list[Pending]) -> None:
        """Store entries in one transaction, and tell each its id; for the buffer."""
        cut = runs(
            [pending.entry for pending in entries], block_bytes=self._bounds.block_bytes, span_s=self._bounds.span_s
        )
        batch = [(run, pack([(entry.at_s, entry.payload) for entry in run])) for run in cut]

        def run(file: SqliteFile) -> int:
            with file.write() as db:
                self._require_sealer(db)
                return table.put(db, batch, self._now(), self._bounds, self._sealer)

        first = self._file.run(run)
        for offset, pending in enumerate(entries):
            pending.id = first + offset

    def _select(
        self, where: str, values: tuple[object, ...], order: str, after: int, limit: int, max_bytes: int
    ) -> list[Entry]:
        self._buffer.flush_if_possible()
        query = f"SELECT first_id, count, stream, priority, key, gone, data FROM block WHERE {where} ORDER BY {order}"  # noqa: S608
        while True:
            spoiled: list[int] = []
            away: set[int] = set()

            def run(file: SqliteFile, spoiled: list[int] = spoiled, away: set[int] = away) -> list[Entry]:
                entries: list[Entry] = []
                with file.read() as db:
                    for first, count, stream, priority, key, gone, data in db.execute(query, values):
                        if key in away:
                            continue
                        try:
                            found = self._decode(Place(first, count, stream, priority), key, data)
                        except TrustError as exc:
                            if exc.breach is None:
                                self._note_away(key, exc)
                                away.add(key)
                            else:
                                log.warning("outbox: %s; its %d entries are dropped", exc.message, count)
                                spoiled.append(first)
                            continue
                        self._away.discard(key)
                        if _take(entries, first, stream, priority, gone, found, after, limit, max_bytes):
                            break
                return entries

            entries = self._file.run(run)
            if not spoiled:
                return entries
            self._file.run(lambda file, spoiled=spoiled: _drop_blocks(file, spoiled))  # type: ignore[misc]

    def _decode(self, place: Place, key: int, data: bytes) -> list[tuple[float, bytes]]:
        """The entries of a block; the last few blocks are remembered, because a batch is a part of a block."""
        name = place.first_id, place.count
        found = self._decoded.get(name)
        if found is None:
            found = open_block(data, key, place, self._sealer)
            self._decoded[name] = found
            while len(self._decoded) > DECODED_BLOCKS:
                self._decoded.popitem(last=False)
        return found

    def _note_away(self, key: int, exc: TrustError) -> None:
        if key not in self._away:  # once, not with every look
            self._away.add(key)
            log.error("outbox: %s; what key %d sealed waits for it", exc.message, key)

    def _now(self) -> float:
        now = self._clock()
        return now if math.isfinite(now) and abs(now) < FAR_S else 0.0

    def _tally(self, name: str) -> int:
        def run(file: SqliteFile) -> int:
            with file.read() as db:
                return table.tally(db, name)

        self._buffer.flush_if_possible()
        return self._file.run(run)

    def _require_sealer(self, db: sqlite3.Connection) -> None:
        if self._sealer is None and table.tally(db, "sealed"):
            raise InputError(
                f"{self.path}: what is in it is sealed, and no vault was given",
                "Open the data folder's vault, and give its sealer to the outbox.",
            )

    def _upgrade(self, db: sqlite3.Connection) -> None:
        table.upgrade_from_1(db, self._bounds, self._sealer)

    def _is_settled(self, file: SqliteFile) -> bool:
        with file.read() as db:
            self._require_sealer(db)
            return self._sealer is None or bool(table.tally(db, "sealed"))

    def _settle_sealing(self, file: SqliteFile) -> None:
        with file.read() as db:
            self._require_sealer(db)
            sealed = table.tally(db, "sealed")
        if self._sealer is not None and not sealed:
            with file.rewrite() as db:
                table.seal_all(db, self._sealer)

    def _after_fork(self) -> None:
        self._decoded = OrderedDict()
        self._file.after_fork()


def _take(
    entries: list[Entry],
    first: int,
    stream: str,
    priority: int,
    gone: bytes | None,
    found: list[tuple[float, bytes]],
    after: int,
    limit: int,
    max_bytes: int,
) -> bool:
    """Add a block's entries that are still there; whether the limits were reached."""
    bits = int.from_bytes(gone or b"", "little")
    total = sum(len(entry.payload) for entry in entries)
    for offset, (at_s, payload) in enumerate(found):
        if first + offset <= after or bits >> offset & 1:
            continue
        total += len(payload)
        if len(entries) >= limit or (entries and total > max_bytes):
            return True
        entries.append(Entry(first + offset, stream, payload, at_s, priority))
    return len(entries) >= limit


def _drop_blocks(file: SqliteFile, first_ids: Iterable[int]) -> None:
    with file.write() as db:
        for first in first_ids:
            table.drop(
                db, db.execute("SELECT first_id, live, bytes FROM block WHERE first_id = ?", (first,)).fetchall()
            )


def open_outbox(
    data_folder: Path, settings: Settings | None = None, *, clock: Callable[[], float] = time.time
) -> Outbox:
    """The sealed outbox of a device's data folder, as its settings say: for the agent and for every app process.

    Args:
        data_folder: Where ``outbox.db`` and ``vault/`` lie.
        settings: None reads those of the data folder.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        TrustError: The vault's key is another one, or it lies in the data folder and that is not allowed.
        InputError: A setting is wrong.
        StorageError: The disk refuses.
    """
    settings = settings or Settings.read(data_folder)
    vault = open_vault(
        data_folder,
        kind=settings["safety.keystore"],
        key_file=settings["safety.key_file"],
        require_external=settings["safety.require_external_key"],
        clock=clock,
    )
    bound = int(settings["telemetry.outbox_mb"] * 2**20)
    return Outbox(data_folder / "outbox.db", max_bytes=bound, clock=clock, sealer=vault.sealer(PURPOSE))
