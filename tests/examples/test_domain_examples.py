"""The domains' examples train, grow, export, deploy and answer, as a reader starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0
LEAST_GAIN = {"06_drifting_clusters": 5.0, "07_activities": 10.0, "08_two_spirals": 5.0, "09_tiny_clip": 20.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST_GAIN)
def test_a_domain_s_example_grows_what_the_device_then_answers_better(name: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["KASMINA_DATASETS"] = str(tmp_path / "cache")  # no real users: the simulated ones
    done = subprocess.run(
        [sys.executable, str(ROOT / f"examples/{name}.py"), str(tmp_path / "out")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    right = {version: float(share) for version, share in re.findall(r" (1\.\d\.0) is right: ([\d.]+)%", done.stdout)}
    assert set(right) == {"1.0.0", "1.1.0"} and right["1.1.0"] > right["1.0.0"] + LEAST_GAIN[name], done.stdout
    assert re.search(r"gain [\d.]+ points", done.stdout) and "accepted" in done.stdout
