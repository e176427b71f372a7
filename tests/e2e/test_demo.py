"""`make demo` as a user runs it, whole: slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 180.0


@pytest.mark.slow
def test_the_demo_tells_the_whole_story_in_under_three_minutes(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from kasmina_trainer.cli import main; sys.exit(main())", "demo", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    facts, rows = found["facts"], {row["name"].split(" ")[0]: row for row in found["rows"]}
    assert rows["host"]["clean"] >= 0.95 and rows["host"]["target"] <= 0.45
    assert rows["+"]["target"] >= 0.80 and rows["+"]["clean"] >= rows["host"]["clean"] - 0.02
    assert facts["check_accuracy_drifted"] < facts["check_accuracy_clean"] - 0.3
    assert facts["check_accuracy_recovered"] > facts["check_accuracy_drifted"] + 0.3
    assert "reference probes" in facts["harmful_reason"] and "signature" in facts["forged_reason"]
    assert facts["identical_outputs"] == facts["test_samples"]
    parameters = sum(graft["parameters"] for graft in found["grafts"])
    assert found["update_bytes"]["model delta"] <= parameters + 4500
    assert found["update_bytes"]["model delta"] <= 0.08 * facts["model_bytes"]
    assert (tmp_path / "build" / "demo" / "report.html").is_file()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    assert left == [], "a process was left behind"
    assert seconds < LIMIT_S
