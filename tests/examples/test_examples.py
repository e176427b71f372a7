"""The examples run as a reader starts them, and stay short enough to be read in one go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GROWING = [path for path in EXAMPLES if "_grow_" in path.name]
LIMIT_S = 600.0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_shorter_than_80_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", GROWING, ids=lambda p: p.name)
def test_the_network_is_typed_in_the_example(path: Path) -> None:
    text = path.read_text()
    assert "(nn.Module)" in text and "kasmina_trainer.hosts" not in text and "seed_sites" not in text


@pytest.mark.parametrize("path", GROWING, ids=lambda p: p.name)
def test_a_network_that_is_not_ours_grows_ships_and_shrinks_back(path: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # a reader's is not traced
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    right = {version: float(share) for version, share in re.findall(r" (1\.\d\.0) is right: ([\d.]+)%", done.stdout)}
    assert set(right) == {"1.0.0", "1.1.0"} and right["1.1.0"] > right["1.0.0"] + 10
    assert "taken back on the device, every answer as before: True" in done.stdout
    assert "removed on the desk, every bit as the host's: True" in done.stdout
    assert re.search(r"Active: \w+ 1\.0\.0 in slot", done.stdout)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"device", "desk"}


def test_there_is_such_an_example() -> None:
    assert GROWING
