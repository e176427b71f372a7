"""docs/guides/service.md is walked: its verbs and options exist, and those that need neither root nor systemd run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds.bundles import make_bundle
from worlds.fleets import MemoryFleet

from kasmina_edge.agent import updating
from kasmina_edge.agent.heart import USUAL_SILENCE_S
from kasmina_edge.agent.loop import FLUSH_WITHIN_S
from kasmina_edge.cli import main
from kasmina_edge.service.signals import STOP_WITHIN_S
from kasmina_edge.service.starts import FREE_STARTS, LONGEST_DELAY_S, STEADY_S
from kasmina_edge.service.unit import STOP_S, WATCHDOG_S
from kasmina_edge.settings import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/service.md").read_text()
CALLS = sorted(set(re.findall(r"kasmina-edge ((?:service|status|top|doctor|run)[a-z0-9 /-]*)", GUIDE)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a device whose agent runs."""
    with MemoryFleet(tmp_path_factory.mktemp("guide")) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        fleet.wait_reported("cam-1", "committed")
        yield fleet.data("cam-1")


def test_the_guide_has_calls_to_walk() -> None:
    assert len(CALLS) >= 7 and {call.split()[0] for call in CALLS} >= {"service", "status", "top", "doctor"}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_the_guide_is_understood(call: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(data) if w == "/var/lib/kasmina" else w for w in shlex.split(call)]
    if words[:2] in (["service", "install"], ["service", "remove"]):
        words = [*words, *(["--dry-run"] if words[1] == "install" and "--dry-run" not in words else ["--help"])]
    elif words[0] == "top":
        words += ["--count", "1", "--json"]
    elif words[0] == "run":
        words += ["--help"]
    elif words[0] == "status" and "--data" not in words:
        words += ["--data", str(data)]
    words = [w for i, w in enumerate(words) if not (w == "--dry-run" and "--dry-run" in words[:i])]
    assert main(words) == 0, capsys.readouterr().err


def test_the_options_of_the_table_are_those_of_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "install", "--help"]) == 0
    shown = capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE)) - {"--health"}
    assert {option for option in named if option not in shown} == set()


def test_the_figures_of_the_guide_are_those_of_the_code() -> None:
    flat = " ".join(GUIDE.split())
    assert f"watchdog ({WATCHDOG_S} s; judging an update may take {updating.JUDGE_WITHIN_S / 60:.0f} minutes" in flat
    assert f"ended within {STEADY_S / 60:.0f} minutes the agent waits 1, 2, 4 ... {LONGEST_DELAY_S:.0f} s" in flat
    assert FREE_STARTS == 3 and "After three starts" in flat
    assert f"Within {STOP_WITHIN_S:.0f} s: what waits is sent as far as {FLUSH_WITHIN_S:.0f} s go" in flat
    assert STOP_WITHIN_S < STOP_S and USUAL_SILENCE_S <= WATCHDOG_S
    assert set(re.findall(r"`(agent\.[a-z_]+)`", GUIDE)) <= set(DEFAULTS)
