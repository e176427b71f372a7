"""The guide to the ECG domain: its code runs as it stands, its table has every pattern, its picture is the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kasmina_trainer.datasets.medical_simulator import strips
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"
GUIDE = (GUIDES / "ecg.md").read_text()


def test_the_code_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)), names)
    told = capsys.readouterr().out
    assert "(3, 3600)" in told and "example 3 360 3600" in told and "(12, 3, 1, 1280)" in told
    assert "20 windows within 5 ms" in told and told.count("two cohorts") == 4
    assert names["found"].pattern == "bigeminy"


def test_the_table_has_every_pattern() -> None:
    rows = re.findall(r"^\| ([a-z0-9_, ]+) \|", GUIDE, re.MULTILINE)
    told = [name for row in rows for name in row.split(", ") if name != "pattern"]
    assert told == [*NAMES]


def test_the_picture_is_what_the_code_draws() -> None:
    """Repair: strips.svg(strips.every_pattern(number=5)) into docs/guides/pictures/ecg-patterns.svg."""
    drawn = strips.svg(strips.every_pattern(number=5))
    kept = (GUIDES / "pictures/ecg-patterns.svg").read_text()
    words = re.compile(r"<text[^>]*>([^<]*)</text>")
    assert words.findall(drawn) == words.findall(kept)
