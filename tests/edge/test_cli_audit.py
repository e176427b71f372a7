"""``kasmina-edge audit``: what it says of whole, cut and rewritten logs, in words, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kasmina_edge.cli.audit import app
from kasmina_edge.cli.output import run_app
from kasmina_edge.safety.audit import AuditLog, head_path
from kasmina_edge.updates.trust import TrustStore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    log, trust = AuditLog(tmp_path / "audit.log", clock=lambda: 1.0), TrustStore(tmp_path / "trust", clock=lambda: 1.0)
    for i in range(4):
        trust.anchor_audit(log.append("committed", release=i).head)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = run_app(app, [str(a) for a in args], program="kasmina-edge audit")
    found = capsys.readouterr()
    return code, found.out + found.err


def cut(data: Path, entries: int) -> None:
    """Back to an earlier state of log and head, as a copy of the folder would give it."""
    text = (data / "audit.log").read_bytes().splitlines(keepends=True)[:entries]
    (data / "audit.log").write_bytes(b"".join(text))
    last = json.loads(text[-1])
    head_path(data / "audit.log").write_bytes(json.dumps({"hash": last["hash"], "seq": last["seq"]}).encode())


def test_a_whole_log(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "verify", str(data / "audit.log"))
    assert code == 0 and "4 entries, the chain holds, and it has entry 4" in " ".join(out.split())
    code, out = call(capsys, "verify", str(data / "audit.log"), "--json")
    value = json.loads(out)
    assert code == 0 and value["head"]["seq"] == value["anchor"]["seq"] == 4 and value["ok"]


def test_a_log_that_was_cut_with_its_head(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(data, 2)
    code, out = call(capsys, "verify", str(data / "audit.log"), "--json")
    assert code == 3 and "lacks entry 4" in json.loads(out)["message"]


def test_a_head_that_the_controller_remembers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = AuditLog(data / "audit.log").head()
    assert head is not None
    assert call(capsys, "verify", str(data / "audit.log"), "--head", f"{head.seq}:{head.hash}")[0] == 0
    code, out = call(capsys, "verify", str(data / "audit.log"), "--head", f"3:{head.hash}")
    assert code == 3 and "lacks entry 3" in " ".join(out.split())
    for wrong in ("3", "x:" + head.hash, "3:abc"):
        code, out = call(capsys, "verify", str(data / "audit.log"), "--head", wrong)
        assert code == 2 and "SEQUENCE:HASH" in out


def test_what_is_not_there(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "verify", str(tmp_path / "none" / "audit.log"))[0] == 2
    (tmp_path / "empty").mkdir()
    assert call(capsys, "tail", str(tmp_path / "empty"))[0] == 2
    for name in ("audit.log", "audit.head"):
        (data / name).unlink()
    code, out = call(capsys, "verify", str(data / "audit.log"))
    assert code == 3 and "lacks entry 4" in " ".join(out.split()), "log and head are gone, and the floor knows of them"


def test_tail(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AuditLog(data / "audit.log", clock=lambda: 2.0).append("committed", bundle="ab" * 32, note="x")
    code, out = call(capsys, "tail", "-n", "2", "--json", str(data / "audit.log"))
    assert code == 0 and [entry["seq"] for entry in json.loads(out)["entries"]] == [4, 5]
    code, out = call(capsys, "tail", str(data))
    assert code == 0 and "1970-01-01 00:00:02" in out and "bundle abababababab, note x" in out and "ab" * 7 not in out
    assert call(capsys, "verify", str(data))[0] == 0
