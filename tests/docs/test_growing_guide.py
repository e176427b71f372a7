"""The growing guide: its code runs as it stands, and its tables and numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kasmina_trainer.acceptance import DEFAULT_LIMITS, FEWEST_GROUPS
from kasmina_trainer.cli.app import app
from kasmina_trainer.evolve import RECIPES
from kasmina_trainer.evolve.recipes import CLEAN_PRICE

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/growing.md").read_text()


def test_the_guide_runs_as_it_stands(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    told = capsys.readouterr().out.splitlines()
    assert len(blocks) == 2 and told[0] == "accepted", told
    for comment in re.findall(r"^print\(.*\)  # (.*)$", GUIDE, re.MULTILINE):
        assert comment in told
    assert names["light"].acceptance.accepted, names["light"].acceptance.reasons
    assert names["grown"].rival is not None and names["light"].parameters <= 450


def test_the_tables_are_the_code() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", GUIDE, re.MULTILINE) == list(RECIPES)
    assert f"less {'three' if CLEAN_PRICE == 3 else CLEAN_PRICE} times" in GUIDE
    limits = DEFAULT_LIMITS
    assert f"above {100 * limits.minimum_gain:.0f} points" in GUIDE
    assert (
        f"at most {100 * limits.maximum_clean_loss:.0f}," in GUIDE
        and f"at least {limits.minimum_samples} rows" in GUIDE
    )
    assert f"Fewer than {FEWEST_GROUPS} are" in GUIDE
    assert {"evolve", "blueprints"} <= {command.name for command in app.registered_commands}
