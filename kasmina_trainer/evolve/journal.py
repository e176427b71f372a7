"""A run folder: what was trained is kept, so that a run that was killed goes on where it stood, to the same bytes.

Every training of a run is a function of the plan alone, so a finished one is looked up and an unfinished one goes on
from its last checkpoint. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.arrays import MAX_ARRAYS_BYTES, pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.storage import hold_lock, make_private_folder, remove_file, write_durable
from kasmina_trainer.training import TrainingRun, TrainingState

PLAN_FILE = "plan.json"
RUNNING_FILE = "running.kasmina-run"
_RESULT = "result-{key}.kasmina-run"
_MOST_BYTES = 16 * MAX_ARRAYS_BYTES

Arrays = Mapping[str, npt.NDArray[Any]]


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
            self.spent_s += self._read(path)[0]["run"]["seconds"]
        running = folder / RUNNING_FILE
        note = self._read(running)[0] if running.exists() else None
        if note is not None and not (folder / _RESULT.format(key=note["key"])).exists():
            self.spent_s += note["seconds"]

    def finished(self, key: str) -> tuple[TrainingRun, dict[str, npt.NDArray[Any]]] | None:
        """A training that was done, with what it made; None: it was not."""
        path = self.folder / _RESULT.format(key=key)
        if not path.exists():
            return None
        note, arrays = self._read(path)
        return TrainingRun(**note["run"]), arrays

    def finish(self, key: str, run: TrainingRun, arrays: Arrays) -> None:
        """Keep a training that is done; its checkpoint is no longer needed."""
        self._write(self.folder / _RESULT.format(key=key), {"key": key, "run": asdict(run)}, arrays)
        remove_file(self.folder / RUNNING_FILE)

    def unfinished(self, key: str) -> TrainingState | None:
        """Where a training stopped; None: it had not begun."""
        path = self.folder / RUNNING_FILE
        if not path.exists():
            return None
        note, arrays = self._read(path)
        return TrainingState(note["step"], note["seconds"], arrays) if note["key"] == key else None

    def checkpoint(self, key: str, state: TrainingState) -> None:
        """Keep the state of the training that runs."""
        note = {"key": key, "step": state.step, "seconds": state.seconds}
        self._write(self.folder / RUNNING_FILE, note, state.arrays)

    def _write(self, path: Path, note: Mapping[str, Any], arrays: Arrays) -> None:
        write_durable(path, pack_members({"note.json": json.dumps(note).encode(), "arrays": pack_arrays(arrays)}))

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        try:
            members = unpack_members(path.read_bytes(), where=str(path), max_bytes=_MOST_BYTES)
            note: dict[str, Any] = json.loads(members["note.json"])
            return note, unpack_arrays(members["arrays"], where=str(path), max_bytes=_MOST_BYTES)
        except (BundleError, KeyError, ValueError) as exc:
            raise InputError(
                f"{path}: damaged, or not written by this program ({exc})", "Remove it; that part is trained again."
            ) from exc


@contextmanager
def open_journal(folder: Path, plan: Mapping[str, Any], *, resume: bool) -> Iterator[Journal]:
    """A run's folder, held against other processes meanwhile.

    Args:
        folder: Made when missing.
        plan: Everything that the run depends on, as plain data; ``host`` is the host's digest.
        resume: Go on with a run that lies there; a folder without one starts it.

    Raises:
        InputError: A run lies there and ``resume`` is off, or it is of another host or of another plan.
        StorageError: The disk refused, or another process holds the run.
    """
    make_private_folder(folder)
    with hold_lock(folder / "run.lock"):
        path = folder / PLAN_FILE
        if path.exists():
            _check_plan(path, plan, resume)
        else:
            write_durable(path, canonical_bytes(dict(plan)))
        yield Journal(folder)


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
    except ValueError as exc:
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
