"""A SQLite file that is replaced by a new one when it is damaged, for all processes that have it open.

The file of generation 0 is ``NAME``, then ``NAME.1``, ``NAME.2``; the number stands in ``NAME.generation``, and
``NAME.lock`` is held shared by whoever does something with the file, alone by whoever opens or replaces it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from kasmina_edge.errors import StorageError
from kasmina_edge.storage import as_storage_error, hold_lock, make_private_folder, write_durable
from kasmina_edge.telemetry.sqlite_file import SqliteFile, is_damage

log = logging.getLogger(__name__)

DAMAGED_KEPT = 2
ATTEMPTS = 3

T = TypeVar("T")


class RenewedFile:
    """The present generation of a file; safe for several threads and processes.

    Args:
        path: The file of generation 0.
        schema: Statements that make the tables of a generation.
        version: Schema version.
        upgrades: As of `SqliteFile`.
        opened: Called with each file that was opened, while nobody else uses it; what it raises is raised.

    Raises:
        StorageError: The disk refuses, or the file has another schema version.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: Callable[[int], str],
        version: int,
        upgrades: Mapping[int, Callable[[sqlite3.Connection], None]],
        opened: Callable[[SqliteFile], None],
    ) -> None:
        self.path = path
        self._schema, self._version, self._upgrades, self._opened = schema, version, upgrades, opened
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
        if self.read_generation() != self._generation:
            return False
        try:
            return os.stat(file.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        with hold_lock(self._lock_path, wait=True):
            self._generation = self.read_generation()
            path = self._path_of(self._generation)
            file = SqliteFile(
                path, schema=self._schema(self._generation), version=self._version, upgrades=self._upgrades
            )
            try:
                self._opened(file)
                self._inode = os.stat(path).st_ino
            except BaseException:
                file.close()
                raise
            self._file = file

    def _replace(self, generation: int) -> None:
        """Leave the file of ``generation`` behind for a new name, unless another process did so already.

        It is not renamed: a process that still has it open would, on closing, delete the new file's log by its name.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        with hold_lock(self._lock_path, wait=True):
            if self.read_generation() != generation:
                return
            write_durable(self._generation_path, str(generation + 1).encode())
            for old in range(max(0, generation + 1 - DAMAGED_KEPT)):
                for suffix in ("", "-wal", "-shm"):
                    self._path_of(old).with_name(self._path_of(old).name + suffix).unlink(missing_ok=True)

    def read_generation(self) -> int:
        """How many files were ever replaced."""
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


_left_to_the_parent: list[SqliteFile] = []
