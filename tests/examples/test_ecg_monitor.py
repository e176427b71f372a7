"""The ECG example as a reader starts it: it grows for swapped electrodes, ships, and answers by the clock.

It is also where an export with a parent met a concatenation whose inputs the quantizer rescales (KeyError before).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_monitor_learns_swapped_electrodes_and_loses_nothing(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/04_ecg_monitor.py"), str(tmp_path / "out")], cwd=tmp_path,
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        (version, domain): float(value)
        for version, domain, value in re.findall(r"ecg (1\.\d\.0), ([a-z ]+): macro AUC ([\d.]+)", done.stdout)
    }
    assert len(found) == 4
    assert found["1.0.0", "as learned"] > 0.97 and found["1.1.0", "as learned"] > 0.97
    assert found["1.1.0", "electrodes swapped"] > found["1.0.0", "electrodes swapped"] + 0.05
    assert done.stdout.count("300 windows within 5 ms") == 2
