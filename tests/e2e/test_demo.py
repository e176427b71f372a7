"""`make demo` as a user runs it: once, whole, with everything real; only its time is left to the slow tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kasmina_edge.contracts.arrays import unpack_arrays

LIMIT_S = 180.0


@dataclass(frozen=True)
class Told:
    """One run of the demo."""

    folder: Path
    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("demo")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # a user's is not traced
    environment |= {"XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from kasmina_trainer.cli import main; sys.exit(main())", "demo", "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return Told(folder, done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def test_the_demo_tells_the_whole_story(told: Told) -> None:
    assert told.code == 0, told.err[-3000:]
    found = json.loads(told.out)
    facts, rows = found["facts"], {row["name"].split(" ")[0]: row for row in found["rows"]}
    assert rows["host"]["clean"] >= 0.95 and rows["host"]["target"] <= 0.45
    assert rows["+"]["target"] >= 0.80 and rows["+"]["clean"] >= rows["host"]["clean"] - 0.02
    assert facts["check_accuracy_drifted"] < facts["check_accuracy_clean"] - 0.3
    assert facts["check_accuracy_recovered"] > facts["check_accuracy_drifted"] + 0.3
    assert {"drift", "accuracy"} <= set(facts["alarm_seconds"])
    assert "reference probes" in facts["harmful_reason"] and "signature" in facts["forged_reason"]
    assert facts["identical_outputs"] == facts["test_samples"]
    parameters = sum(graft["parameters"] for graft in found["grafts"])
    assert all(graft["capture_batches"] for graft in found["grafts"])
    assert found["update_bytes"]["model delta"] <= parameters + 4500
    assert found["update_bytes"]["model delta"] <= 0.08 * facts["model_bytes"]
    assert (told.folder / "build" / "demo" / "report.html").is_file()


def running(pids: list[int]) -> list[int]:
    """Those that are alive with a command line of this project (an id may belong to somebody else by now)."""
    alive = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"kasmina" in line:
            alive.append(pid)
    return alive


def working_in(folder: Path) -> list[int]:
    """Every process of ours whose working folder this is: also a child that nobody recorded."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.readlink() == folder.resolve():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_process_that_is_left_running_is_seen(tmp_path: Path) -> None:
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "kasmina_edge"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as left:
        assert left.stdout is not None and left.stdout.readline() == b"up\n"
        assert running([left.pid, os.getppid()])[:1] == [left.pid] == working_in(tmp_path)
    assert running([left.pid]) == [] == working_in(tmp_path)


def test_the_demo_leaves_nothing_running_and_no_frame_in_the_open(told: Told) -> None:
    pids = json.loads(told.out)["facts"]["pids"]
    assert len(pids) == 8, "controller, three agents, three cameras, the rivals' trainer"
    assert running(pids) == [] == working_in(told.folder)
    demo = told.folder / "build" / "demo"
    assert b"PRIVATE" not in b"".join(p.read_bytes() for p in (demo / "logs").iterdir())
    opened = (demo / "captured.npz").read_bytes()
    frames = [frame.tobytes() for frame in unpack_arrays(opened, where="captured")["x"]]
    stored = b"".join(p.read_bytes() for p in (told.folder / "config").rglob("fleet.db*"))
    stored += b"".join(p.read_bytes() for p in demo.glob("cam-*/outbox.db*"))
    assert len(stored) > 100_000 and all(frame in opened for frame in frames)
    assert not any(frame in stored for frame in frames)


def test_what_the_demo_built_can_be_deployed(told: Told, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kasmina_edge", "deploy", "--profile", "coral", "--data", str(tmp_path / "d"), "--json"],
        cwd=told.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == "1.1.0"


@pytest.mark.slow
def test_the_demo_takes_less_than_three_minutes(told: Told) -> None:
    assert told.seconds < LIMIT_S
