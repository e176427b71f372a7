"""The guide to inputs gone wrong: its code runs as it stands, its table is the code's, its pictures are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kasmina_trainer.adversarial.published import PUBLISHED, Published
from kasmina_trainer.datasets.catalogue import data_set

PLACE = Path(__file__).resolve().parents[2] / "docs/guides/adversarial.md"
GUIDE = PLACE.read_text()


@pytest.mark.skipif(not data_set("mnist").here, reason="MNIST is not here: kasmina-trainer data fetch mnist")
def test_the_guide_runs_as_it_stands(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    told = capsys.readouterr().out.splitlines()
    assert told == re.findall(r"^print\(.*\)  # (.*)$", GUIDE, re.MULTILINE)


def spelled(here: Published) -> str:
    steps = ["/".join(f"{number:g}" for number in step) for step in here.steps]
    return ", ".join(f"**{step}**" if at == here.data_set else step for at, step in enumerate(steps, 1) if step)


def test_the_table_is_the_code() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| ?(.*?) ?\|$", GUIDE, re.MULTILINE)
    assert [(kind, means, steps.strip()) for kind, means, steps in rows] == [
        (kind, here.means, spelled(here)) for kind, here in PUBLISHED.items()
    ]


def test_its_pictures_and_links_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", GUIDE) if "://" not in link]
    assert len(links) == 5 and all((PLACE.parent / link).is_file() for link in links)
    assert "impulse-noise" in (PLACE.parent / "pictures/mnist-c.svg").read_text()
