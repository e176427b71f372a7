"""A SQLite file that keeps its word: write-ahead log, synchronous=FULL, private mode, our errors only.

In WAL mode with ``synchronous=FULL`` the log is flushed at every commit, so what was committed survives a power cut
(sqlite.org/pragma.html#pragma_synchronous; NORMAL would keep the file whole and lose the last commits). The folder is
flushed after the file was made. A connection must not cross ``fork``: open the file in the child.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kasmina_edge.errors import StorageError
from kasmina_edge.storage import as_storage_error, make_private_folder, sync_folder

BUSY_TIMEOUT_S = 10.0

_REASONS = {
    sqlite3.SQLITE_FULL: "no space left on the disk",
    sqlite3.SQLITE_READONLY: "the disk or the file is read-only",
    sqlite3.SQLITE_BUSY: f"another process kept it busy for {BUSY_TIMEOUT_S:g} s",
    sqlite3.SQLITE_IOERR: "the disk failed",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "it is not a database",
}


class SqliteFile:
    """One connection to one file, shared by the threads of a process.

    Where several processes may open it at once, open it under a lock: switching a new file to WAL does not wait.

    Args:
        path: The file; its folder is made (0700) when missing, the file 0600.
        schema: Statements that make the tables, run once in a new file.
        version: Schema version, kept in ``user_version``; a file of another version is refused.
        upgrades: By an older version, what turns its tables into those of ``version``; it happens in one transaction,
            and what the old tables held is overwritten in the file.
        check: Read the whole file once for damage (some ms a MB); without it damage shows when it is met.
        as_is: For `open_made`.

    Raises:
        StorageError: The disk refuses, the file is damaged (see `is_damage`), or of another version.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: str,
        version: int,
        check: bool = True,
        upgrades: Mapping[int, Callable[[sqlite3.Connection], None]] | None = None,
        as_is: bool = False,
    ) -> None:
        self.path = path
        self._upgrades = upgrades or {}
        self._lock = threading.RLock()
        make_private_folder(path.parent)
        try:
            # O_EXCL: opening and closing an existing file here would drop the locks that other connections hold on it
            if not as_is:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                sync_folder(path.parent)
        except FileExistsError:
            pass
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
        except sqlite3.Error as exc:
            raise as_sqlite_error(exc, path) from exc
        try:
            self._prepare(schema, version, check, as_is)
        except sqlite3.Error as exc:
            self._connection.close()
            raise as_sqlite_error(exc, path) from exc
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def open_made(cls, path: Path, *, version: int) -> SqliteFile | None:
        """A file that is there and needs nothing made, switched or upgraded, checked for damage; else None.

        This one needs no lock against other processes that have the file open.

        Raises:
            StorageError: The disk refuses, or the file is damaged.
        """
        if not path.exists():
            return None
        try:
            return cls(path, schema="", version=version, as_is=True)
        except _NotAsIsError:
            return None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block is committed and flushed, or none of it."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as exc:
                raise as_sqlite_error(exc, self.path) from exc

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Reads within the block; each statement sees one committed state."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as exc:
                raise as_sqlite_error(exc, self.path) from exc

    @contextmanager
    def rewrite(self) -> Iterator[sqlite3.Connection]:
        """As `write`; what is deleted or replaced is overwritten in the file and in the log before this returns."""
        with self._lock:
            with self.read() as db:
                db.execute("PRAGMA secure_delete=ON")
            try:
                with self.write() as db:
                    yield db
            finally:
                with self.read() as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    db.execute("PRAGMA secure_delete=OFF")

    def close(self) -> None:
        """Close the connection; calling it twice is harmless."""
        with self._lock:
            self._connection.close()

    def _prepare(self, schema: str, version: int, check: bool, as_is: bool) -> None:
        run = self._connection.execute
        if as_is:
            (mode,), (found,) = run("PRAGMA journal_mode").fetchone(), run("PRAGMA user_version").fetchone()
            if mode != "wal" or found != version:
                raise _NotAsIsError
        else:
            run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA journal_size_limit=1048576")
        run("PRAGMA trusted_schema=OFF")
        (found,) = run("PRAGMA user_version").fetchone()
        if found == 0:
            found = self._create(schema, version)
        verdict = "ok"
        if check:
            (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damage(verdict)
        if found in self._upgrades:
            found = self._upgrade(version)
        if found != version:
            raise StorageError(
                f"{self.path}: schema version {found}, this program reads version {version}",
                "Use the program that wrote it, or move the file aside; a new one is made.",
            )

    def _upgrade(self, version: int) -> int:
        """Bring older tables up, unless another process was faster; gives the version that the file has then."""
        with self.rewrite() as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found in self._upgrades:
                self._upgrades[found](db)
                db.execute(f"PRAGMA user_version={version:d}")
                found = version
        return int(found)

    def _create(self, schema: str, version: int) -> int:
        """Make the tables, unless another process was faster; gives the version that the file has then."""
        with self.write() as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if found or tables:
                return int(found)
            for statement in filter(str.strip, schema.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={version:d}")
        return version


class _NotAsIsError(Exception):
    """The file has to be made or changed before it can be used."""


def as_sqlite_error(exc: sqlite3.Error, path: Path) -> StorageError:
    """The typed form of what SQLite refused; the cause is kept for `is_damage`."""
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    error = StorageError(f"{path}: {_REASONS.get(code, 'SQLite refused')} ({exc})")
    error.__cause__ = exc
    return error


def is_damage(error: StorageError) -> bool:
    """Whether the file itself is broken, rather than the disk full, read-only or busy."""
    code = getattr(error.__cause__, "sqlite_errorcode", None) or 0
    return (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _damage(verdict: str) -> sqlite3.DatabaseError:
    exc = sqlite3.DatabaseError(f"quick_check: {verdict}")
    exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return exc
