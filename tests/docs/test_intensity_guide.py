"""The intensity guide: its code runs as it stands with the file that it shows, and its tables are the code's."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from kasmina_trainer.blueprints import blueprint_names
from kasmina_trainer.cli.app import app
from kasmina_trainer.intensity_scaler import AXES, Intensity, Signals, load_intensities, lowered
from kasmina_trainer.intensity_scaler.levels import MOST
from kasmina_trainer.intensity_scaler.loading import CONF
from kasmina_trainer.intensity_scaler.overrides import SHUT_AT_DRIFT

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/intensity.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
FILE = re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guide_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILE:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(text)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)
    told = capsys.readouterr().out
    for comment in re.findall(r"^print\(.*\)  # (.*)$", GUIDE, re.MULTILINE):
        assert comment in told
    assert names["settings"].of("se") == Intensity(learning_rate=0.5)
    assert names["settings"].of("adapter") == Intensity(gain=0.9)
    assert (len(BLOCKS), len(FILE)) == (4, 1)


def test_the_command_can_be_called() -> None:
    (command,) = re.findall(r"```sh\n(.*?)\n```", GUIDE, re.DOTALL)
    program, verb, *rest = shlex.split(command)
    known: Any = typer.main.get_command(app)
    options = {name for parameter in known.commands[verb].params for name in parameter.opts}
    assert program == "kasmina-trainer"
    assert {word for word in rest if word.startswith("--")} == {"--intensities", "--intensity"} <= options
    given = [after for word, after in pairwise(rest) if word == "--intensity"]
    assert load_intensities(blueprint_names(), overrides=given).of("se") == Intensity(gain=0.8)


def test_the_tables_are_the_code() -> None:
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == list(AXES)
    assert f"at most {MOST:g}" in GUIDE and f"from {SHUT_AT_DRIFT:g} on the gate is shut" in GUIDE
    assert "kasmina_trainer/intensity_scaler/conf/blueprints/" in GUIDE and (CONF / "blueprints").is_dir()
    assert lowered(Intensity(), Signals(alert="warning"))[0].gain == 0.5
