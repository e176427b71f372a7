"""A run folder: what was trained is kept, so that a run that was killed goes on where it stood, to the same bytes.

Every training of a run is a function of the plan alone, so a finished one is looked up and an unfinished one goes on
from its last checkpoint. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from kasmina_edge.contracts.arrays import MAX_ARRAYS_BYTES, pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.errors import BundleError, InputError, LockedError
from kasmina_edge.storage import as_storage_error, hold_lock, make_private_folder, remove_file, write_durable
from kasmina_trainer.training import TrainingRun, TrainingState

PLAN_FILE = "plan.json"
RUNNING_FILE = "running.kasmina-run"
LOCK_FILE = "run.lock"
_RESULT = "result-{key}.kasmina-run"
_MOST_BYTES = 16 * MAX_ARRAYS_BYTES

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Done:
    """What is written of a training that is done."""

    key: str
    run: TrainingRun


@dataclass(frozen=True)
class _Begun:
    """What is written of a training between two steps."""

    key: str
    step: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]


_Note = TypeVar("_Note", _Done, _Begun)
_ALWAYS = frozenset({"generator", "losses", "noise", "order.0", "peak_bytes", "rates"})
"""Arrays that every `TrainingState` holds, whatever learns."""
_DONE, _BEGUN = TypeAdapter(_Done), TypeAdapter(_Begun)


class Journal:
    """The folder of one run; use `open_journal`.

    Attributes:
        folder: Where it lies.
        spent_s: Seconds of training that earlier processes spent on this run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spent_s = 0.0
        for path in sorted(folder.glob(_RESULT.format(key="*"))):
            self.spent_s += self._read(path, _DONE)[0].run.seconds
        running = folder / RUNNING_FILE
        note = self._read(running, _BEGUN)[0] if running.exists() else None
        if note is not None and not (folder / _RESULT.format(key=note.key)).exists():
            self.spent_s += note.seconds

    def has(self, key: str) -> bool:
        """Whether a training was done."""
        return self.result_file(key).exists()

    def finished(self, key: str) -> tuple[TrainingRun, dict[str, npt.NDArray[Any]]] | None:
        """A training that was done, with what it made; None: it was not."""
        path = self.folder / _RESULT.format(key=key)
        if not path.exists():
            return None
        note, arrays = self._read(path, _DONE)
        return note.run, arrays

    def result_file(self, key: str) -> Path:
        """Where a training that is done lies."""
        return self.folder / _RESULT.format(key=key)

    def finish(self, key: str, run: TrainingRun, arrays: Arrays) -> None:
        """Keep a training that is done; its checkpoint is no longer needed."""
        self._write(self.folder / _RESULT.format(key=key), {"key": key, "run": asdict(run)}, arrays)
        remove_file(self.folder / RUNNING_FILE)

    def unfinished(self, key: str, *, before: int) -> TrainingState | None:
        """Where a training of so many steps stopped; None: it had not begun.

        Raises:
            InputError: What lies there is not the middle of such a training.
        """
        path = self.folder / RUNNING_FILE
        if not path.exists():
            return None
        note, arrays = self._read(path, _BEGUN)
        if note.key != key:
            return None
        if note.step >= before or not arrays.keys() >= _ALWAYS:
            lacking = ", ".join(sorted(_ALWAYS - arrays.keys())) or "nothing"
            raise InputError(
                f"{path}: step {note.step} of {before}, and {lacking} is missing: not the middle of this training",
                "Remove it; that part is trained again.",
            )
        return TrainingState(note.step, note.seconds, arrays)

    def checkpoint(self, key: str, state: TrainingState) -> None:
        """Keep the state of the training that runs."""
        note = {"key": key, "step": state.step, "seconds": state.seconds}
        self._write(self.folder / RUNNING_FILE, note, state.arrays)

    def _write(self, path: Path, note: Mapping[str, Any], arrays: Arrays) -> None:
        write_durable(path, pack_members({"note.json": json.dumps(note).encode(), "arrays": pack_arrays(arrays)}))

    def _read(self, path: Path, note: TypeAdapter[_Note]) -> tuple[_Note, dict[str, npt.NDArray[Any]]]:
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        try:
            members = unpack_members(data, where=str(path), max_bytes=_MOST_BYTES)
            return note.validate_json(members["note.json"]), unpack_arrays(
                members["arrays"], where=str(path), max_bytes=_MOST_BYTES
            )
        except (BundleError, KeyError, ValueError) as exc:
            raise InputError(
                f"{path}: damaged, or not written by this program ({' '.join(str(exc).split())[:300]})",
                "Remove it; that part is trained again.",
            ) from exc


@contextmanager
def open_journal(folder: Path, plan: Mapping[str, Any], *, resume: bool, replace: bool = False) -> Iterator[Journal]:
    """A run's folder, held against other processes meanwhile.

    Args:
        folder: Made when missing.
        plan: Everything that the run depends on, as plain data; ``host`` is the host's digest.
        resume: Go on with a run that lies there; a folder without one starts it.
        replace: Without ``resume``: a run that lies there is removed. Another process's is not: it holds the folder.

    Raises:
        InputError: A run lies there and both are off, or it is of another host or of another plan.
        StorageError: The disk refused, or another process holds the run.
    """
    make_private_folder(folder)
    with hold_lock(folder / LOCK_FILE):
        path = folder / PLAN_FILE
        if replace and not resume:
            _empty(folder)
        if path.exists():
            _check_plan(path, plan, resume)
        else:
            write_durable(path, canonical_bytes(dict(plan)))
        yield Journal(folder)


def discard_run(folder: Path) -> None:
    """Remove a run whose result is safe elsewhere; one that another process holds by now is its own.

    Raises:
        StorageError: The disk refused.
    """
    if not folder.is_dir():
        return
    try:
        with hold_lock(folder / LOCK_FILE):
            _empty(folder)
            remove_file(folder / LOCK_FILE)
    except LockedError:
        return
    with suppress(OSError):
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Without the files of a run; whatever else lies there stays."""
    for pattern in (PLAN_FILE, RUNNING_FILE, _RESULT.format(key="*")):
        for path in [*folder.glob(pattern), *folder.glob(f".{pattern}.*.tmp")]:
            remove_file(path)


def digest_rows(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> str:
    """Short digest of inputs and labels."""
    both = hashlib.sha256(f"{x.dtype.str}{x.shape}{y.shape}".encode())
    both.update(np.ascontiguousarray(x).tobytes())
    both.update(np.ascontiguousarray(y).tobytes())
    return both.hexdigest()[:16]


def _check_plan(path: Path, plan: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        raise InputError(f"{path.parent}: a run lies there", "Go on with it by --resume, or name another folder.")
    try:
        before = json.loads(path.read_bytes())
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not a run's plan ({exc})", "Name another folder.") from exc
    now = json.loads(canonical_bytes(dict(plan)))
    if not isinstance(before, dict) or before.get("host") != now["host"]:
        found = str(before.get("host"))[:12] if isinstance(before, dict) else "nothing"
        raise InputError(
            f"{path.parent}: the run is of host {found}, this is host {now['host'][:12]}",
            "Load the host that the run began with, or name another folder.",
        )
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        first = changed[0]
        raise InputError(
            f"{path.parent}: the run was begun otherwise: {first} was {before.get(first)}, now {now.get(first)}"
            + (f"; also {', '.join(changed[1:])}" if changed[1:] else ""),
            "Ask for what it was begun with, or name another folder.",
        )
