"""The nesting guide: its code runs as it stands, with fewer steps, and its policies and limits are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from kasmina_trainer.nesting import MAX_CHILDREN, MAX_DEPTH, Fair, NestedBranch, Priority
from kasmina_trainer.nesting.arbitration import PATIENCE, POLICIES
from kasmina_trainer.nesting.spawning import IDLE_SHARE

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/nesting.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guide_runs_as_it_stands(capsys: Any) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(re.sub(r"steps=\d+", "steps=12", block), names)
    branch = names["branch"]
    assert isinstance(branch, NestedBranch) and len(BLOCKS) == 4
    comment = re.search(r"# (s1/sharp.*)", GUIDE)
    told = capsys.readouterr().out
    assert comment is not None and str(comment[1].split(", ")) in told
    assert re.findall(r"^(\w+) (?:True|False) .+$", told, re.MULTILINE) == ["edge", "late", "wide"]
    network, host = names["network"], names["host"]
    network.remove("s1")
    x = torch.rand(4, 1, 16, 16)
    assert torch.equal(network(x), host(x))


def test_policies_and_limits_are_those_of_the_code() -> None:
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == list(POLICIES)
    assert Fair().patience == Priority().ageing == Priority().patience == PATIENCE == 4
    assert "after 4 rounds" in GUIDE and "4 rounds of waiting count" in GUIDE
    assert IDLE_SHARE == 0.02 and "less than 2 %" in GUIDE
    assert (MAX_DEPTH, MAX_CHILDREN) == (3, 8) and "A fourth level, a ninth child" in GUIDE
