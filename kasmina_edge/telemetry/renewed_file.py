"""A SQLite file that is replaced by a new one when it is damaged, for all processes that have it open.

The file of generation 0 is ``NAME``, then ``NAME.1``, ``NAME.2``; the number stands in ``NAME.generation``, and
``NAME.lock`` is held shared by whoever does something with the file, alone by whoever makes, changes or replaces it.
Nobody waits for it longer than `LOCK_WAIT_S`: a frozen process must not stop the others for ever. Where the number
cannot be read, the file with the highest one is gone on with.
"""

from __future__ import annotations

import glob
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kasmina_edge.errors import LockedError, StorageError
from kasmina_edge.storage import as_storage_error, make_private_folder, open_lock, write_durable
from kasmina_edge.telemetry.sqlite_file import SqliteFile, is_damage

log = logging.getLogger(__name__)

DAMAGED_KEPT = 2
ATTEMPTS = 3
LOCK_WAIT_S = 8.0
MAX_GENERATION = (1 << 23) - 1
"""The ids of later files would not fit 63 bits."""

T = TypeVar("T")


class RenewedFile:
    """The present generation of a file; safe for several threads and processes.

    Args:
        path: The file of generation 0.
        schema: Statements that make the tables of a generation.
        version: Schema version.
        upgrades: As of `SqliteFile`.
        settled: Whether an opened file may be used as it is; called while others may use it, what it raises is raised.
        opened: Called with each file that was not, while nobody else uses it; what it raises is raised.
        lock_wait_s: Longest wait for other processes, in seconds.

    Raises:
        StorageError: The disk refuses, or the file has another schema version.
        LockedError: Another process holds the lock for longer than that, e.g. because it is frozen.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: Callable[[int], str],
        version: int,
        upgrades: Mapping[int, Callable[[sqlite3.Connection], None]],
        settled: Callable[[SqliteFile], bool],
        opened: Callable[[SqliteFile], None],
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self.path = path
        self._schema, self._version, self._upgrades = schema, version, upgrades
        self._settled, self._opened, self._lock_wait_s = settled, opened, lock_wait_s
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = threading.RLock()
        self._generation_path = path.with_name(path.name + ".generation")
        self._file: SqliteFile | None = None
        self._generation = 0
        self._inode = 0
        make_private_folder(path.parent)
        self.run(lambda file: None)

    def run(self, action: Callable[[SqliteFile], T]) -> T:
        """Do one thing with the file of the present generation; a damaged one is replaced and the thing done again."""
        for attempt in range(ATTEMPTS):
            with self._lock:
                generation = -1
                try:
                    if self._file is None:
                        self._open()
                    with self._held(shared=True):
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

    def close(self) -> None:
        """Close the file; using it again opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def after_fork(self) -> None:
        """In a forked child: a SQLite connection may not be used or closed there; another one will be opened."""
        self._lock = threading.RLock()
        if self._file is not None:
            _left_to_the_parent.append(self._file)
            self._file = None

    def _current(self, file: SqliteFile) -> bool:
        """Whether ``file`` is still the one that everybody appends to, and still there."""
        if self._number() != self._generation:
            return False
        try:
            return os.stat(file.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        """Beside others if the file is whole and as it should be; alone if it has to be made or changed."""
        with self._held(shared=True):
            number = self._number_there()
            if number is not None:
                self._generation = number
                file = SqliteFile.open_made(self._path_of(number), version=self._version)
                if file is not None and self._use(file, self._settled):
                    return
        with self._held():
            number = self._number_there()
            self._generation = self._mend_number() if number is None else number
            file = SqliteFile(
                self._path_of(self._generation),
                schema=self._schema(self._generation),
                version=self._version,
                upgrades=self._upgrades,
            )
            self._use(file, lambda file: self._opened(file) or True)

    def _use(self, file: SqliteFile, suits: Callable[[SqliteFile], bool]) -> bool:
        """Go on with a file that was opened, or close it; whether it suits."""
        try:
            if suits(file):
                self._inode = os.stat(file.path).st_ino
                self._file = file
        finally:
            if self._file is not file:
                file.close()
        return self._file is file

    def _replace(self, generation: int) -> None:
        """Leave the file of ``generation`` behind for a new name, unless another process did so already.

        It is not renamed: a process that still has it open would, on closing, delete the new file's log by its name.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        with self._held():
            number = self._number()
            if number is None:
                self._mend_number()
            if number != generation:
                return
            if generation >= MAX_GENERATION:
                raise StorageError(
                    f"{self._generation_path}: {generation} files were replaced, at most {MAX_GENERATION} can be",
                    "Move the outbox's files away; a new one is made.",
                )
            write_durable(self._generation_path, str(generation + 1).encode())
            for old in range(max(0, generation + 1 - DAMAGED_KEPT)):
                for suffix in ("", "-wal", "-shm"):
                    self._path_of(old).with_name(self._path_of(old).name + suffix).unlink(missing_ok=True)

    def read_generation(self) -> int:
        """How many files were ever replaced."""
        return self.run(lambda file: self._generation)

    @contextmanager
    def _held(self, *, shared: bool = False) -> Iterator[None]:
        try:
            lock = open_lock(self._lock_path, shared=shared, wait_s=self._lock_wait_s)
        except LockedError as exc:
            raise LockedError(
                exc.message, "A process that uses it is frozen, or very slow: `fuser -v` on it says which; end it."
            ) from exc
        try:
            yield
        finally:
            lock.close()

    def _number(self) -> int | None:
        """What ``NAME.generation`` says; None where it makes no sense."""
        try:
            text = self._generation_path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise as_storage_error(exc, self._generation_path) from exc
        digits = text.strip()
        if not digits.isdigit() or len(digits) > len(str(MAX_GENERATION)) or int(digits) > MAX_GENERATION:
            return None
        return int(digits)

    def _number_there(self) -> int | None:
        """As `_number`; None also where it is missing and there are later files."""
        number = self._number()
        return None if number == 0 and self._highest() else number

    def _highest(self) -> int:
        """The highest number of a file that is there."""
        before = len(self.path.name) + 1
        suffixes = [found.name[before:] for found in self.path.parent.glob(f"{glob.escape(self.path.name)}.*")]
        numbers = [int(s) for s in suffixes if s.isascii() and s.isdigit() and len(s) <= len(str(MAX_GENERATION))]
        return max((n for n in numbers if n <= MAX_GENERATION), default=0)

    def _mend_number(self) -> int:
        """Write the number of the last file that is there, while nobody else uses one; should that file be damaged, it
        shows when it is opened."""
        highest = self._highest()
        log.warning("outbox: %s cannot be read; going on with file %d", self._generation_path, highest)
        write_durable(self._generation_path, str(highest).encode())
        return highest

    def _path_of(self, generation: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{generation}") if generation else self.path


_left_to_the_parent: list[SqliteFile] = []
