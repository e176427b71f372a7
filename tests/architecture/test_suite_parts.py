"""What the suite itself leans on: coverage that stands still and goes on, and things made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from worlds.sharing import made_once

TESTS = Path(__file__).resolve().parents[1]
COUNTED = """
from worlds.untraced import untraced
def work(deep):
    answer = 1
    return work(False) if deep else answer
def outer():
    before = 1
    with untraced():
        work(True)
        answer = 2
    after = later()
    return after
def later():
    return 3
def raising():
    try:
        with untraced():
            work(True)
            raise ValueError
    except ValueError:
        answer = 4
    return later()
outer()
raising()
last = 5
"""
PROGRAM = """
import coverage, json, sys
watching = coverage.Coverage(data_file=None, config_file=False, include=[sys.argv[1]])
watching.start()
import counted
watching.stop()
print(json.dumps(sorted(watching.get_data().lines(sys.argv[1]))))
"""


def counted(folder: Path, text: str) -> set[str]:
    """The lines that coverage saw, as text."""
    path = folder / "counted.py"
    path.write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{TESTS}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = text.splitlines()
    return {lines[number - 1].strip() for number in json.loads(done.stdout)}


def test_coverage_stands_still_inside_and_goes_on_after(tmp_path: Path) -> None:
    after = {"after = later()", "return after", "return 3", "answer = 4", "return later()", "last = 5"}
    inside = {"work(True)", "answer = 2", "answer = 1", "raise ValueError"}
    seen = counted(tmp_path, COUNTED)
    assert after | {"before = 1"} <= seen and not inside & seen
    everything = counted(tmp_path, COUNTED.replace("with untraced():", "if True:"))
    assert after | inside <= everything


def test_a_thing_is_made_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return made

    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    for worker in ("gw0", "gw1", "gw1"):
        (tmp_path / worker).mkdir(exist_ok=True)
        assert made_once(tmp_path / worker, "thing", make) == [1]
    assert made_once(tmp_path / "gw1", "other", make) == [1, 1]
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    made_once(tmp_path / "gw1", "thing", make)
    assert len(made) == 3
