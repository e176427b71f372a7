"""The outbox: what a device has to say, on disk until the other side has acknowledged it.

A SQLite file in WAL mode with ``synchronous=FULL``: an append that returned survives a kill and a power cut. Several
processes may append and read at once. It is bounded in bytes and in age; what does not fit any more is dropped oldest
first within the lowest priority, and counted durably. A damaged file is left aside, counted, and replaced by a new one
(``NAME.1``, then ``NAME.2``; the number stands in ``NAME.generation``): telemetry must not stop a device.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.storage import as_storage_error, hold_lock, make_private_folder, write_durable
from kasmina_edge.telemetry.sqlite_file import SqliteFile, is_damage

log = logging.getLogger(__name__)

VERSION = 1
MAX_BYTES = 16 * 1024 * 1024
MAX_AGE_S = 14 * 86_400.0
ENTRY_BYTES = 64
"""Bytes that an entry counts for beside its payload."""
CLOCK_WAS_SET_S = 1_700_000_000.0
"""Entries stamped earlier were appended before the device had the time; they are never dropped for their age."""
DAMAGED_KEPT = 2
ATTEMPTS = 3

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, priority INTEGER NOT NULL, at_s REAL NOT NULL,
    bytes INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX entry_order ON entry (priority DESC, id);
CREATE INDEX entry_age ON entry (at_s);
CREATE TABLE tally (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO tally VALUES ('bytes', 0), ('entries', 0), ('dropped', 0);
INSERT INTO sqlite_sequence VALUES ('entry', {first_id})
"""
_IDS_A_FILE = 1 << 40


@dataclass(frozen=True)
class Entry:
    """One thing to send.

    Attributes:
        id: Counts up, and is never used twice, also not by the file that replaces a damaged one.
        at_s: Wall clock when it was appended, seconds since 1970 UTC.
    """

    id: int
    stream: str
    payload: bytes
    at_s: float
    priority: int = 0


@dataclass(frozen=True)
class OutboxSize:
    """What the outbox holds: entries, and the bytes that count against its bound."""

    entries: int
    bytes: int


class Outbox:
    """A durable, bounded queue with peek and acknowledge; safe for several threads and processes.

    Args:
        path: The SQLite file; ``NAME-wal``, ``NAME-shm``, ``NAME.lock`` and ``NAME.generation`` lie beside it.
        max_bytes: Bound on payloads plus `ENTRY_BYTES` each.
        max_age_s: Entries older than this are dropped at the next append.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        StorageError: The disk refuses, or the file has another schema version.
        InputError: A bound is not positive.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1 or not max_age_s > 0:
            raise InputError(f"outbox {path}: max_bytes {max_bytes} and max_age_s {max_age_s} must be positive")
        self.path = path
        self._max_bytes, self._max_age_s, self._clock = max_bytes, max_age_s, clock
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = threading.RLock()
        self._generation_path = path.with_name(path.name + ".generation")
        self._file: SqliteFile | None = None
        self._generation = 0
        self._inode = 0
        make_private_folder(path.parent)
        self._run(lambda file: None)

    def append(self, stream: str, payload: bytes, *, priority: int = 0) -> int:
        """Keep one payload; when this returns it is on disk.

        Args:
            stream: What kind of thing it is, e.g. ``stats``, ``event``, ``capture``.
            payload: At most ``max_bytes`` less `ENTRY_BYTES`.
            priority: Higher ones are sent first and dropped last.

        Returns:
            The entry's id.

        Raises:
            InputError: The payload alone is larger than the outbox.
            StorageError: The disk refuses; nothing was appended.
        """
        size = len(payload) + ENTRY_BYTES
        if size > self._max_bytes:
            raise InputError(f"{self.path}: an entry of {size} bytes, the outbox holds {self._max_bytes}")
        return self._run(lambda file: self._insert(file, stream, payload, priority, size))

    def peek(self, limit: int = 60, max_bytes: int = 1 << 20, *, stream: str | None = None) -> list[Entry]:
        """The next entries to send, highest priority first, then oldest first; they stay until acknowledged.

        Args:
            limit: Most entries.
            max_bytes: Most payload bytes together; a first entry larger than that comes alone.
            stream: Only this stream.
        """
        where, values = ("stream = ?", (stream,)) if stream is not None else ("1", ())
        return self._select(where, values, "priority DESC, id", limit, max_bytes)

    def newer(self, entry_id: int, limit: int = 60, *, stream: str) -> list[Entry]:
        """Entries of a stream appended after ``entry_id``, oldest first, whether or not others were acknowledged."""
        return self._select("id > ? AND stream = ?", (entry_id, stream), "id", limit, 1 << 30)

    def acknowledge(self, ids: Iterable[int], *, dropped: bool = False) -> int:
        """Forget entries that have arrived; unknown ids are ignored, so that doing it twice is harmless.

        Args:
            ids: From `Entry.id`.
            dropped: They did not arrive and never will: count them as dropped.

        Returns:
            How many entries were there.
        """
        wanted = list(ids)
        return self._run(lambda file: self._delete(file, wanted, dropped))

    def dropped(self) -> int:
        """How many entries were ever dropped unsent, for want of room or for age, over restarts."""
        return self._tally("dropped")

    def damaged(self) -> int:
        """How many damaged or removed files were ever replaced; what they held is not counted in `dropped`."""
        return self._read_generation()

    def size(self) -> OutboxSize:
        """Entries and bytes held now."""
        return OutboxSize(self._tally("entries"), self._tally("bytes"))

    def close(self) -> None:
        """Close the file; calling it twice is harmless, and using the outbox again opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _insert(self, file: SqliteFile, stream: str, payload: bytes, priority: int, size: int) -> int:
        now = self._clock()
        with file.write() as db:
            cursor = db.execute(
                "INSERT INTO entry (stream, priority, at_s, bytes, payload) VALUES (?, ?, ?, ?, ?)",
                (stream, priority, now, size, payload),
            )
            _count(db, 1, size)
            doomed = db.execute(
                "SELECT id, bytes FROM entry WHERE at_s < ? AND at_s > ?", (now - self._max_age_s, CLOCK_WAS_SET_S)
            ).fetchall()
            _drop(db, doomed)
            (held,) = db.execute("SELECT value FROM tally WHERE name = 'bytes'").fetchone()
            while held > self._max_bytes:
                doomed = list(_until(held - self._max_bytes, db.execute(
                    "SELECT id, bytes FROM entry WHERE priority = (SELECT min(priority) FROM entry) ORDER BY id"
                )))  # fmt: skip
                _drop(db, doomed)
                held -= sum(freed for _, freed in doomed)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _delete(self, file: SqliteFile, ids: list[int], dropped: bool) -> int:
        with file.write() as db:
            found = [
                row for i in ids for row in db.execute("SELECT id, bytes FROM entry WHERE id = ?", (i,)).fetchall()
            ]
            found = list(dict(found).items())
            _drop(db, found, dropped=dropped)
        return len(found)

    def _select(self, where: str, values: tuple[object, ...], order: str, limit: int, max_bytes: int) -> list[Entry]:
        query = f"SELECT id, stream, payload, at_s, priority FROM entry WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608

        def run(file: SqliteFile) -> list[Entry]:
            entries: list[Entry] = []
            total = 0
            with file.read() as db:
                for row in db.execute(query, (*values, limit)):
                    total += len(row[2])
                    if entries and total > max_bytes:
                        break
                    entries.append(Entry(*row))
            return entries

        return self._run(run)

    def _tally(self, name: str) -> int:
        def run(file: SqliteFile) -> int:
            with file.read() as db:
                return int(db.execute("SELECT value FROM tally WHERE name = ?", (name,)).fetchone()[0])

        return self._run(run)

    def _run(self, action: Callable[[SqliteFile], T]) -> T:
        """Do one thing with the file of the present generation; a damaged one is replaced and the thing done again."""
        for attempt in range(ATTEMPTS):
            with self._lock:
                generation = -1
                try:
                    if self._file is None:
                        self._open()
                    with hold_lock(self._lock_path, shared=True, wait=True):
                        generation = self._generation
                        if self._file is not None and self._current(self._file):
                            return action(self._file)
                    self._replace(generation)
                except StorageError as exc:
                    if not is_damage(exc) or attempt == ATTEMPTS - 1:
                        raise
                    log.warning("outbox: %s; a new file is made", exc.message)
                    self._replace(self._generation)
        raise StorageError(f"{self.path}: was damaged or removed {ATTEMPTS} times in a row")

    def _current(self, file: SqliteFile) -> bool:
        """Whether ``file`` is still the one that everybody appends to, and still there."""
        if self._read_generation() != self._generation:
            return False
        try:
            return os.stat(file.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        with hold_lock(self._lock_path, wait=True):
            self._generation = self._read_generation()
            path = self._path_of(self._generation)
            self._file = SqliteFile(
                path, schema=_SCHEMA.format(first_id=self._generation * _IDS_A_FILE), version=VERSION
            )
            self._inode = os.stat(path).st_ino

    def _replace(self, generation: int) -> None:
        """Leave the file of ``generation`` behind for a new name, unless another process did so already.

        It is not renamed: a process that still has it open would, on closing, delete the new file's log by its name.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        with hold_lock(self._lock_path, wait=True):
            if self._read_generation() != generation:
                return
            write_durable(self._generation_path, str(generation + 1).encode())
            for old in range(max(0, generation + 1 - DAMAGED_KEPT)):
                for suffix in ("", "-wal", "-shm"):
                    self._path_of(old).with_name(self._path_of(old).name + suffix).unlink(missing_ok=True)

    def _read_generation(self) -> int:
        try:
            return int(self._generation_path.read_bytes())
        except FileNotFoundError:
            return 0
        except ValueError as exc:
            raise StorageError(f"{self._generation_path}: expected a number", "Remove the file.") from exc
        except OSError as exc:
            raise as_storage_error(exc, self._generation_path) from exc

    def _path_of(self, generation: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{generation}") if generation else self.path


def _drop(db: sqlite3.Connection, rows: Iterable[tuple[int, int]], *, dropped: bool = True) -> None:
    """Delete entries given as (id, bytes), and keep the tallies."""
    doomed = list(rows)
    if doomed:
        db.executemany("DELETE FROM entry WHERE id = ?", [(entry_id,) for entry_id, _ in doomed])
        _count(db, -len(doomed), -sum(size for _, size in doomed))
        if dropped:
            db.execute("UPDATE tally SET value = value + ? WHERE name = 'dropped'", (len(doomed),))


def _count(db: sqlite3.Connection, entries: int, size: int) -> None:
    db.execute("UPDATE tally SET value = value + ? WHERE name = 'entries'", (entries,))
    db.execute("UPDATE tally SET value = value + ? WHERE name = 'bytes'", (size,))


def _until(excess: int, rows: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The first rows that together hold ``excess`` bytes."""
    for entry_id, size in rows:
        if excess <= 0:
            return
        yield entry_id, size
        excess -= size
