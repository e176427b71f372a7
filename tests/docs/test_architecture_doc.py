"""docs/architecture.md draws the arrows that import-linter holds, and the exit codes are those of errors.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kasmina_edge import errors

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize(("package", "label"), [("kasmina_edge", "edge"), ("kasmina_trainer", "trainer")])
def test_the_arrows_are_those_that_are_checked(package: str, label: str) -> None:
    (contract,) = [c for c in CONTRACTS if c.get("containers") == [package]]
    checked = " > ".join(layer.replace("(", "").replace(")", "") for layer in contract["layers"])
    drawn = re.search(
        rf"^{label}:\s+(.*?)(?:\n\n|\n```)", (ROOT / "docs/architecture.md").read_text(), re.DOTALL | re.M
    )
    assert drawn is not None
    assert re.sub(r"\s+", " ", drawn.group(1)).strip() == checked


def test_the_readme_tells_the_exit_codes() -> None:
    codes = {t.exit_code for t in vars(errors).values() if isinstance(t, type) and issubclass(t, errors.KasminaError)}
    told = re.search(r"Exit codes: (.*?)\.", (ROOT / "README.md").read_text(), re.DOTALL)
    assert told is not None
    assert codes | {0} == {int(n) for n in re.findall(r"\b(\d)\b", told.group(1))}
