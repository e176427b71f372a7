"""Virtual environments for libraries that cannot live beside the main ones; made once under ``build/`` by pip.

A library that an environment lacks is taken from the interpreter that runs the tests, so that only what must differ is
downloaded. Where the index is out of reach the test that asks is skipped, and says so.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "venvs"


def python_of(name: str, *requirements: str, python: str = sys.executable) -> Path:
    """The interpreter of the environment ``name`` with ``requirements`` installed; made anew when they change."""
    folder = FOLDER / name
    wanted = "\n".join((python, *requirements))
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "made-of.txt"
        if not made.is_file() or made.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*pip, "--retries", "1", *requirements], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"pip cannot install {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1:]}")
            site = next((folder / "lib").glob("python*/site-packages"))
            (site / "behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
            made.write_text(wanted)
    return folder / "bin" / "python"


def run_python(python: Path, *args: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run a command there with the checkout and the tests' own modules on the path."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    environ.pop("COVERAGE_PROCESS_START", None)
    return subprocess.run(
        [str(python), *args], capture_output=True, text=True, timeout=timeout_s, check=False, env=environ, cwd=ROOT
    )
