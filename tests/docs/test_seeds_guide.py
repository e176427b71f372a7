"""The guide to seeds: its code runs as it stands, and its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kasmina_trainer.seeds import STEPS, SiteState, outputs_equal

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/seeds.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_code_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec("\n".join(BLOCKS), names)
    told = capsys.readouterr().out
    ports = [line.partition(":")[0] for line in told.splitlines() if ": " in line]
    assert {"input", "1.conv1", "1.relu_1", "1.add", "1.relu_2"} <= set(ports)
    assert "as before, bit for bit: True" in told and "judged on held-out rows" in told
    assert names["guard"].steps == 5 and names["seeds"].states["1.add"] is SiteState.REMOVED
    assert outputs_equal(names["parent"], names["host"].eval(), names["x"])
    assert f"{names['merge'].host.parent_hash[:12]} became" in told


def test_the_table_of_steps_is_the_codes() -> None:
    told = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `", GUIDE, re.MULTILINE)
    assert sorted(told) == sorted((str(a), str(b)) for a, after in STEPS.items() for b in after)
