"""``run`` in its light form, what long-running verbs print, and the small things that a user meets first."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge import __version__
from kasmina_edge.cli import main
from kasmina_edge.cli.agent_process import SWITCHES, VALUES, light_arguments
from kasmina_edge.cli.loglines import ReadableLines, configure_lines
from kasmina_edge.cli.status import _asked, _span, agent_rows, require_access, watch
from kasmina_edge.errors import InputError

Read = pytest.CaptureFixture[str]


def test_the_light_form_knows_every_option_of_run(capsys: Read) -> None:
    assert main(["run", "--help"]) == 0
    shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert shown - {"--help"} == {*VALUES, *SWITCHES}


def test_the_light_form_reads_what_a_service_writes() -> None:
    call = ["run", "--data", "/d", "--address=mqtts://b:8883", "--profile", "coral", "--wait-for-broker", "--insecure"]
    assert light_arguments(call, {}) == {
        "data": Path("/d"), "address": "mqtts://b:8883", "profile": "coral", "wait_for_broker": True,
        "insecure": True, "as_json": False,
    }  # fmt: skip
    found = light_arguments(["run"], {"KASMINA_DATA": "/e"})
    assert found is not None and found["data"] == Path("/e")


@pytest.mark.parametrize(
    "call",
    [[], ["status"], ["run", "--help"], ["run", "--nonsense"], ["run", "--data"], ["run", "x"], ["run", "--json=1"],
     ["run", "--data", "--json"], ["run", "--data="], ["--debug", "run"], ["run", "--debug"]],
)  # fmt: skip
def test_whatever_is_not_plain_goes_the_way_of_all_verbs(call: list[str]) -> None:
    assert light_arguments(call, {}) is None


@given(st.lists(st.sampled_from(["run", "--data", "--json", "x", "", "--", "-h", "--profile=", "=", "--data=a"])))
def test_no_call_makes_the_light_form_fail(call: list[str]) -> None:
    found = light_arguments(call, {})
    assert found is None or set(found) == {*VALUES.values(), *SWITCHES.values()}


def test_errors_of_the_light_form_are_one_sentence_or_one_object(tmp_path: Path, capsys: Read) -> None:
    assert main(["run", "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no broker address is set" in err and err.endswith("(exit 2)\n") and "Traceback" not in err
    assert main(["run", "--data", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "InputError"
    assert main(["run", "--nonsense"]) == 2


def test_the_version(capsys: Read) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kasmina-edge {__version__}\n"


@pytest.mark.parametrize("verb", [["deploy"], ["bundle", "show"], ["bundle", "verify"]])
def test_a_bundle_that_is_not_there_is_a_wrong_call(verb: list[str], tmp_path: Path, capsys: Read) -> None:
    assert main([*verb, str(tmp_path / "gone-1.0.0.kasmina")]) == 2
    assert "no such file" in " ".join(capsys.readouterr().err.split())


LINES = """
import logging, sys
from kasmina_edge.cli.loglines import configure_lines
configure_lines("e1", as_json="--json" in sys.argv)
logging.getLogger("x").warning("disk \\x1b[31mfull", extra={"device": "cam-1"})
"""


def printed(*arguments: str, terminal: bool) -> str:
    """What a process logs, on a terminal or into a pipe."""
    command = [sys.executable, "-c", LINES, *arguments]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    leader, follower = os.openpty()
    with open(leader, "rb", closefd=True) as screen:
        subprocess.run(command, stderr=follower, timeout=60, check=True)
        os.close(follower)
        return screen.read1(4096).decode()  # type: ignore[attr-defined, no-any-return]


def test_people_read_lines_and_machines_json() -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d cam-1  warning: disk \\x1b\[31mfull", printed(terminal=True).strip())
    for line in (printed(terminal=False), printed("--json", terminal=True)):
        value = json.loads(line)
        assert value["message"].startswith("disk") and value["device"] == "cam-1" and value["experiment_id"] == "e1"


def test_a_traceback_is_readable_and_harmless() -> None:
    try:
        raise ValueError("a\x1b[2Jb")
    except ValueError:
        record = logging.makeLogRecord({"msg": "m", "levelname": "ERROR", "exc_info": sys.exc_info()})
    text = ReadableLines().format(record)
    assert "error: m" in text and "ValueError" in text and "\x1b" not in text
    assert configure_lines is not None


def test_the_agents_answer_in_rows() -> None:
    rows = dict(agent_rows({"status": "ok", "uptime_s": 4000, "alerts": [{"severity": "critical", "text": "hot"}]}))
    assert rows["agent"] == "ok, process -, up 66 min" and rows["alert"] == "critical: hot"
    assert dict(agent_rows({}))["outbox"] == "- waiting, -, - dropped"
    assert [_span(s) for s in (None, 5, 119.9, 120, 7200, 172_800)] == [
        "-",
        "5 s",
        "119 s",
        "2 min",
        "2 h 0 min",
        "2 d 0 h",
    ]


def test_the_rows_say_that_times_are_simulated() -> None:
    engine = {"names": ["simulated", "litert"], "profile": "coral-usb", "simulated": True}
    rows = dict(agent_rows({"status": "ok", "engine": engine}))
    said = "simulated then litert, simulated: times are predicted for coral-usb, not measured (profile coral-usb)"
    assert rows["engine"] == said
    real = dict(agent_rows({"engine": {"names": ["litert"], "profile": "x86-cpu", "simulated": False}}))
    assert real["engine"] == "litert (profile x86-cpu)"
    assert "engine" not in dict(agent_rows({"status": "ok"})), "an older agent does not tell"


@pytest.mark.parametrize(
    ("names", "simulated"),
    [(["simulated"], True), (["simulated-onnx"], True), (["litert", "simulated"], False), (["auto"], False),
     (["no-such"], False), ([], False)],
)  # fmt: skip
def test_an_answer_is_told_apart_by_the_engine_it_names(
    names: list[str], simulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kasmina_edge.cli.status.ask", lambda path: {"status": "ok", "engine": {"names": names}})
    found = _asked(tmp_path)
    assert found is not None and found["engine"] == {"names": names, "simulated": simulated}
    for silent in (None, {"status": "ok"}, {"status": "ok", "engine": None}):
        monkeypatch.setattr("kasmina_edge.cli.status.ask", lambda path, silent=silent: silent)
        assert _asked(tmp_path) == silent


def test_watching_goes_on_when_the_agent_is_gone(capsys: Read) -> None:
    answers = iter([{"status": "ok"}, None, {"status": "braked"}])
    pauses: list[float] = []
    watch(lambda: next(answers), every_s=0.5, count=3, as_json=True, pause=pauses.append)
    said = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    assert said == ["ok", "not running", "braked"] and pauses == [0.5, 0.5]
    answers = iter([{"status": "ok"}, None])
    watch(lambda: next(answers), every_s=0.5, count=2, as_json=False, pause=pauses.append)
    assert "not running" in capsys.readouterr().out


def test_a_folder_that_is_closed_to_this_user_is_told(tmp_path: Path) -> None:
    require_access(tmp_path, access=lambda path, mode: True)
    require_access(tmp_path / "gone", access=lambda path, mode: False)
    with pytest.raises(InputError, match="may not be read by this user"):
        require_access(tmp_path, access=lambda path, mode: False)
