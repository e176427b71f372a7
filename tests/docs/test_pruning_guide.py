"""The pruning guide: its code runs as it stands, with fewer steps, and its table names what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from kasmina_trainer import pruning
from kasmina_trainer.cli.app import app
from kasmina_trainer.pruning import Strategy
from kasmina_trainer.seeds import SiteState

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/pruning.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_code_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(BLOCKS)
    assert code.count("steps=300") == 2 and code.count("steps=450") == 1
    names: dict[str, Any] = {}
    assert "lost <= 0.6" in code
    for told, quick in (("steps=300", "steps=25"), ("steps=450", "steps=80"), ("lost <= 0.6", "lost <= 20")):
        code = code.replace(told, quick)
    exec(code, names)
    before, after = names["smaller"].macs
    assert after <= 0.6 * before
    assert names["trial"].accepted and names["seeds"].states["s2"] is SiteState.REMOVED
    told = capsys.readouterr().out
    assert f"({before}, {after})" in told and "taylor: " in told and "block1.pointwise 32" in told


def test_the_table_of_strategies_is_the_codes() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no)[^|]* \|$", GUIDE, re.MULTILINE))
    kinds = {name: kind for name, kind in vars(pruning).items() if isinstance(kind, type) and kind is not Strategy}
    found = {name: kind.shrinks for name, kind in kinds.items() if issubclass(kind, Strategy)}
    assert told == {name: "yes" if shrinks else "no" for name, shrinks in found.items()}
    assert len(found) >= 3


def test_the_command_of_the_guide_can_be_called() -> None:
    known: Any = typer.main.get_command(app)
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL):
        program, verb, *rest = shlex.split(block)
        assert program == "kasmina-trainer"
        options = {name for parameter in known.commands[verb].params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options
