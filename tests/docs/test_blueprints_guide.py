"""The guides of blueprints and of telemetry: their code runs as it stands, and their tables are the code's."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_trainer.blueprints import registry
from kasmina_trainer.cli.app import app

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"
LIBRARY = (GUIDES / "blueprints.md").read_text()
TELEMETRY = (GUIDES / "telemetry.md").read_text()


@pytest.mark.parametrize("guide", [LIBRARY, TELEMETRY], ids=["blueprints", "telemetry"])
def test_the_code_of_the_guide_runs(
    guide: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {**registry._loaded()})  # what the guide registers stays in it
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)  # where copies and pickles find its classes
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    exec("\n".join(blocks), vars(module))
    told = capsys.readouterr().out.splitlines()
    comments = re.findall(r"^print\(.*\)  # (.*)$", guide, re.MULTILINE)
    assert comments and all(comment in told for comment in comments), told
    assert ("edges" in registry.blueprint_names()) == (guide == LIBRARY)


def test_the_table_is_the_library() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", LIBRARY, re.MULTILINE)
    assert [row[0] for row in rows] == list(registry.blueprint_names())
    for name, axes, settings, summary in rows:
        kind = registry.find_blueprint(name)
        assert axes == (", ".join(map(str, sorted(kind.ranks))) or "host")
        assert re.findall(r"`(\w+)`", settings) == list(kind.Config.model_fields)
        for setting, default in re.findall(r"`(\w+)` (-?[\d.]+)", settings):
            assert kind.Config.model_fields[setting].default == float(default)
        assert summary == kind.summary


def test_the_commands_can_be_called() -> None:
    known: Any = typer.main.get_command(app)
    lines = "".join(re.findall(r"```sh\n(.*?)```", LIBRARY, re.DOTALL)).splitlines()
    assert len(lines) == 2
    for line in lines:
        program, verb, *rest = shlex.split(line)
        options = {name for parameter in known.commands[verb].params for name in parameter.opts}
        assert program == "kasmina-trainer" and {word for word in rest if word.startswith("--")} <= options


def test_every_figure_of_a_seed_is_explained() -> None:
    told = "".join(line.split("|")[1] for line in TELEMETRY.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", told)) == set(SeedTelemetry.BITS)
