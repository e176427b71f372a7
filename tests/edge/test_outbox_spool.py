"""The agent's outbox in memory: when it is used, and what killed processes leave of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from kasmina_edge.agent.spool import Spool, sweep
from kasmina_edge.errors import StorageError
from kasmina_edge.telemetry import sqlite_file
from kasmina_edge.telemetry.outbox import Outbox

ROOT = Path(__file__).resolve().parents[2]
SPOOL = """
import sys, time
from pathlib import Path
from kasmina_edge.agent.spool import Spool
from kasmina_edge.errors import StorageError
def refuse(): raise StorageError("no disk")
spool = Spool(refuse, time.time, memory=[Path(sys.argv[1])])
print(spool.outbox.append("alert", b"x", priority=2), flush=True)
sys.stdin.read()
"""


def refuse() -> Outbox:
    raise StorageError("no disk")


def start(memory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", SPOOL, str(memory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "1\n"
    return child


def test_what_a_killed_process_left_in_memory_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    children = [start(tmp_path), start(tmp_path)]
    try:
        others = [tmp_path / "kasmina-outbox-1234567890-x", tmp_path / "kasmina-other", tmp_path / "kasmina-outbox-7"]
        for folder in others:  # half made, another program's
            folder.mkdir()
        (tmp_path / "kasmina-outbox-1234567890-y").symlink_to(others[1])
        before = set(tmp_path.iterdir())
        children[0].kill()
        children[0].wait()
        spool = Spool(refuse, lambda: 1.0, memory=[tmp_path / "none", tmp_path])
        (gone,) = before - set(tmp_path.iterdir())
        assert f"-{children[0].pid}-" in gone.name
        assert sweep([tmp_path]) == [] and spool.outbox.path.exists()
        spool.close()
        assert set(tmp_path.iterdir()) == before - {gone}
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_living_process_of_another_pid_namespace_keeps_its_folder(tmp_path: Path) -> None:
    """Its number means nothing here; its lock does."""
    child = start(tmp_path)
    (mine,) = tmp_path.iterdir()
    elsewhere = mine.rename(tmp_path / "kasmina-outbox-1234567890-x")
    assert sweep([tmp_path]) == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert sweep([tmp_path]) == [elsewhere] and not list(tmp_path.iterdir())


def test_an_outbox_that_opens_and_takes_nothing_is_not_used(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A frozen process that is in the middle of a write keeps everybody from writing, and nobody from opening."""
    path = tmp_path / "box/o.db"
    Outbox(path).close()
    before = sqlite_file.BUSY_TIMEOUT_S
    request.addfinalizer(lambda: setattr(sqlite_file, "BUSY_TIMEOUT_S", before))
    sqlite_file.BUSY_TIMEOUT_S = 0.1
    frozen = sqlite3.connect(path, isolation_level=None)
    frozen.execute("BEGIN IMMEDIATE")
    spool = Spool(lambda: Outbox(path), lambda: 1.0, memory=[tmp_path])
    assert isinstance(spool.fault, StorageError)
    spool.outbox.append("alert", b"x", priority=2)
    assert not spool.retry()
    frozen.execute("ROLLBACK")
    assert spool.retry() and [e.payload for e in spool.outbox.peek()] == [b"x"]
    assert [p.name for p in tmp_path.iterdir()] == ["box"]
    spool.close()
