"""What takes long to make is made by one worker of a run, and read by the others."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def made_once(own: Path, name: str, make: Callable[[], T]) -> T:
    """What ``make`` gives, made by the first worker that asks; every worker reads the same bytes.

    Args:
        own: This worker's base temporary folder; pytest-xdist keeps those of one run side by side.
        name: Of the thing, unique in the tests.
    """
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    path = folder / f"made-once-{name}.pickle"
    with (folder / f"made-once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        found: T = pickle.loads(path.read_bytes())
    return found
