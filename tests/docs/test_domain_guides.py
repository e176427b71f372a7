"""The guides of toys, clusters, activities and Tiny-CLIP: their code runs with fewer steps; commands, links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.run import module_names
from kasmina_trainer.cli.app import app

GUIDES = Path(__file__).resolve().parents[2] / "docs/guides"
NAMES = ("toys", "clusters", "activities", "tiny-clip")


def code(name: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (GUIDES / f"{name}.md").read_text(), re.DOTALL))


def test_the_code_of_toys_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    assert "steps=1500" in code("toys")
    exec(code("toys").replace("steps=1500", "steps=400"), names)
    accuracy, entropy, gram = (line.split() for line in capsys.readouterr().out.splitlines())
    assert float(accuracy[0]) > 0.9 and entropy[0].startswith("1.25") and float(gram[0]) > 1.5


def test_the_code_of_clusters_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(code("clusters"), names)
    assert "expected at best 0." in capsys.readouterr().out
    assert 5000 <= names["alarms"][0].sample < 5200


def test_the_code_of_activities_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    assert "steps=300" in code("activities")
    exec(code("activities").replace("steps=300", "steps=60"), names)
    assert "'walking'" in capsys.readouterr().out
    assert sum(p.numel() for p in names["host"].parameters()) == 28_326
    assert len(names["twelve"].labels) == 12


def test_the_code_of_tiny_clip_runs_up_to_what_needs_private_pairs_or_a_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (GUIDES / "tiny-clip.md").read_text().split("## Private pairs")[0]
    told = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for long, short in (
        ("10_000", "200"),
        ("3000", "100"),
        ("1500", "60"),
        ("steps=600", "steps=2"),
        ("steps=250", "steps=2"),
    ):
        assert long in told
        told = told.replace(long, short)
    names: dict[str, Any] = {}
    exec(told, names)
    assert "picture to text R@1" in capsys.readouterr().out
    assert len(names["named"]) == 50 and set(names["seeds"].growths) == {"input", "blocks.3.site", "site"}


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_links_of_a_guide_exist(name: str) -> None:
    text = (GUIDES / f"{name}.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (GUIDES / link).resolve().is_file(), link
    known: Any = typer.main.get_command(app)
    for line in [li for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for li in block.splitlines() if li]:
        program, group, verb, *rest = shlex.split(line)
        command = known.commands[group].commands[verb]
        options = {option for parameter in command.params for option in parameter.opts}
        assert program == "kasmina-trainer" and {w for w in rest if w.startswith("--")} <= options
    for module in re.findall(r"benchmarks\.run --only (\w+)", text):
        assert module in module_names()
