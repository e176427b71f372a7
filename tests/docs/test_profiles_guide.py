"""docs/guides/profiles.md: its table is what the program writes now, its verbs exist, its example is a profile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kasmina_edge.cli.output import run_app
from kasmina_edge.cli.profile import app
from kasmina_edge.contracts.profile import Anchor, HardwareProfile, list_profiles
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.context import HardwareContext
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.published import BEGIN, END, markdown, shipped, written_into

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/profiles.md").read_text()
README = (ROOT / "profiles/README.md").read_text()
REPAIR = "run: python -m kasmina_edge.hardware_simulator.published docs/guides/profiles.md"


def test_the_table_is_as_the_program_writes_it() -> None:
    assert written_into(GUIDE, markdown(shipped())) == GUIDE, REPAIR


def test_every_anchor_of_every_profile_is_in_it() -> None:
    inside = GUIDE[GUIDE.index(BEGIN) : GUIDE.index(END)]
    lines = inside.splitlines()
    for name, profile in list_profiles().items():
        assert any(f"`{name}`" in line for line in lines)
        for anchor in profile.anchors:
            assert any(f"| `{name}` | {anchor.network} |" in line for line in lines)


def test_a_text_without_a_place_is_refused() -> None:
    with pytest.raises(InputError, match="no place for the table"):
        written_into("# Nothing here", "| a |")
    assert written_into(f"{BEGIN}\nold\n{END}\n", "new") == f"{BEGIN}\n\nnew\n\n{END}\n"


def test_its_example_is_a_profile_that_estimates() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    profile = HardwareProfile.parse(tomllib.loads(text))
    found = HardwareContext(profile).estimate(table("mlperf-tiny-vww"))
    assert found.band == 0.4 and found.latency_ms > profile.anchors[0].latency_ms


@pytest.mark.parametrize("verb", ["list", "show", "check", "calibrate"])
def test_its_verbs_exist(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"kasmina-edge profile {verb}" in GUIDE
    assert run_app(app, [verb, "--help"], program="kasmina-edge profile") == 0
    assert "Usage" in capsys.readouterr().out


def test_the_readme_explains_every_key() -> None:
    for key in (*HardwareProfile.model_fields, *(f"anchors[].{key}" for key in Anchor.model_fields)):
        said = f"`{key}`" in README or f"`{key}[]" in README or f"`.{key.rpartition('.')[2]}`" in README
        assert said, f"profiles/README.md says nothing of {key}"
    for name in list_profiles():
        assert f"`{name}`" in README, f"profiles/README.md says nothing of {name}"
