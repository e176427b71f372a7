"""The audit log: what its chain finds, what its head finds, and what a power cut does to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.disks import LOSSES, FullDisk, Lose, PowerCut, PowerDisk

from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.safety import audit
from kasmina_edge.safety.audit import AuditLog, Head, head_path, read_head, tail, verify
from kasmina_edge.storage import use_disk

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def ticking() -> Callable[[], float]:
    times = iter(range(1_795_000_000, 1_796_000_000))
    return lambda: float(next(times))


def golden_events(log: AuditLog) -> None:
    log.append("agent_started", boot=4)
    log.append("installed", bundle="digits 1.1.0", release=2, slot="b", digest="ab" * 32)
    log.append(
        "rolled_back", bundle="digits 1.1.0", reason="größer als erlaubt: 61.0 %, plan asks 95 %", at=[1, 2.5, None]
    )
    log.append("committed", ok=True, nested={"bytes": {"model": 5600}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five entries."""
    path = tmp_path / "audit.log"
    log = AuditLog(path, clock=ticking())
    for i in range(5):
        log.append("event", number=i)
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_golden_bytes(tmp_path: Path) -> None:
    golden_events(AuditLog(tmp_path / "audit_v1.log", clock=ticking()))
    for name in ("audit_v1.log", "audit_v1.head"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_old_logs_are_read_and_continued(tmp_path: Path) -> None:
    for name in ("audit_v1.log", "audit_v1.head"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    path = tmp_path / "audit_v1.log"
    assert verify(path).ok and verify(path).entries == 4
    AuditLog(path, clock=ticking()).append("later")
    assert verify(path).entries == 5 and tail(path, 1)[0].prev == tail(path, 2)[0].hash


def test_an_entry_can_be_checked_without_this_code() -> None:
    first, second = (json.loads(line) for line in lines_of(GOLDEN / "audit_v1.log")[:2])
    assert first["prev"] == "0" * 64 and second["prev"] == first["hash"]
    digest = first.pop("hash")
    assert sha256_hex(json.dumps(first, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()) == digest


def test_an_empty_log_is_in_order(tmp_path: Path) -> None:
    report = verify(tmp_path / "audit.log")
    assert (report.ok, report.entries, report.head) == (True, 0, None)
    assert tail(tmp_path / "audit.log", 3) == []


def test_a_whole_log_verifies_and_its_head_is_remembered(path: Path) -> None:
    report = verify(path)
    assert (report.ok, report.entries, report.first_bad_line, report.repaired) == (True, 5, None, 0)
    assert report.reason == "5 entries in order"
    assert report.head == read_head(path) == Head(5, tail(path, 1)[0].hash)
    assert [e.fields["number"] for e in tail(path, 2)] == [3, 4]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", range(5))
def test_a_changed_line_is_found(path: Path, line: int) -> None:
    lines = lines_of(path)
    lines[line] = lines[line].replace(b'"number":', b'"Number":')
    path.write_bytes(b"".join(lines))
    report = verify(path)
    assert (report.ok, report.first_bad_line) == (False, line + 1)


@pytest.mark.parametrize("line", range(5))
def test_a_changed_line_with_its_hash_made_anew_is_found_at_the_next(path: Path, line: int) -> None:
    lines = lines_of(path)
    entry = json.loads(lines[line]) | {"fields": {"number": 99}}
    del entry["hash"]
    lines[line] = canonical_bytes(entry | {"hash": sha256_hex(canonical_bytes(entry))}) + b"\n"
    path.write_bytes(b"".join(lines))
    report = verify(path)
    assert not report.ok
    assert report.first_bad_line == (line + 2 if line < 4 else 5)  # the last one differs from the head


@pytest.mark.parametrize("line", range(4))
def test_a_removed_line_is_found(path: Path, line: int) -> None:
    lines = lines_of(path)
    del lines[line]
    path.write_bytes(b"".join(lines))
    report = verify(path)
    assert (report.ok, report.first_bad_line) == (False, line + 1)
    assert "does not follow" in report.reason


def test_lines_that_changed_places_or_came_twice_are_found(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert verify(path).first_bad_line == 2
    path.write_bytes(b"".join([*lines[:2], lines[1], *lines[2:]]))
    assert verify(path).first_bad_line == 3


@given(st.data())
def test_any_flipped_byte_is_found(data: st.DataObject) -> None:
    whole = (GOLDEN / "audit_v1.log").read_bytes()
    at, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.log"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        shutil.copy(GOLDEN / "audit_v1.head", head_path(path))
        report = verify(path)
        assert not report.ok or at == len(whole) - 1  # the very last line end says nothing


@pytest.mark.parametrize("kept", range(5))
def test_a_cut_off_end_shows_against_the_head_only(path: Path, kept: int) -> None:
    path.write_bytes(b"".join(lines_of(path)[:kept]))
    report = verify(path)
    assert (report.ok, report.entries, report.first_bad_line) == (False, kept, None)
    assert "lacks entry 5" in report.reason
    assert verify(path, with_head=False).ok


def test_a_head_remembered_elsewhere_finds_what_this_machine_cannot(path: Path, tmp_path: Path) -> None:
    remembered = verify(path).head
    path.unlink()
    head_path(path).unlink()
    log = AuditLog(path, clock=ticking())
    for i in range(9):
        log.append("event", number=i + 100)
    assert verify(path).ok  # a whole new history, with a head of its own
    report = verify(path, remembered=remembered)
    assert not report.ok and report.first_bad_line == 5


def test_an_append_gives_the_entry_that_stands_in_the_log(path: Path) -> None:
    log = AuditLog(path, clock=ticking())
    entry = log.append("committed", release=3)
    assert tail(path, 1) == [entry] and log.head() == entry.head == verify(path).head
    assert AuditLog(path.with_name("other.log"), clock=ticking()).head() is None


def test_a_missing_head_is_told(path: Path) -> None:
    head_path(path).unlink()
    report = verify(path)
    assert not report.ok and "audit.head is missing" in report.reason
    assert verify(path, with_head=False).ok


def test_a_loss_stays_visible_after_more_entries(path: Path) -> None:
    path.write_bytes(b"".join(lines_of(path)[:3]))
    log = AuditLog(path, clock=ticking())
    log.append("after")
    log.append("again")
    report = verify(path)
    assert (report.ok, report.first_bad_line) == (False, 4)
    assert [e.event for e in tail(path, 3)] == ["log.damaged", "after", "again"]
    assert tail(path, 3)[0].fields["reason"].startswith("acknowledged up to entry 5")


@pytest.mark.parametrize("head", [None, b"{", b'{"seq":"5","hash":"x"}'])
def test_a_lost_or_damaged_head_stays_visible_after_more_entries(path: Path, head: bytes | None) -> None:
    head_path(path).unlink() if head is None else head_path(path).write_bytes(head)
    if head is not None:
        with pytest.raises(StorageError, match=r"audit\.head: damaged"):
            verify(path)
    AuditLog(path, clock=ticking()).append("after")
    report = verify(path)
    assert (report.ok, report.entries, report.first_bad_line) == (False, 5, 6)
    assert "the log was damaged before this line" in report.reason


def test_a_last_entry_that_was_changed_is_not_whitewashed_by_the_next(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:4]) + lines[4].replace(b'"number":4', b'"number":7'))
    AuditLog(path, clock=ticking()).append("after")
    report = verify(path)
    assert (report.ok, report.first_bad_line) == (False, 5)


def test_garbage_in_the_middle_is_not_taken_for_a_torn_line(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[2:]]))
    report = verify(path)
    assert (report.ok, report.first_bad_line, report.reason) == (False, 3, "not an entry of this log")


@pytest.mark.parametrize("torn", [b"{", b'{"at_s":1', b"\x00" * 700, b"\xff\n", b"a\r\x0bb\x85", b"\n"])
def test_a_torn_last_line_is_marked_and_the_log_goes_on(path: Path, torn: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(torn)
    report = verify(path)
    assert report.ok and report.reason == "5 entries in order, a torn line at the end"
    log = AuditLog(path, clock=ticking())
    log.append("after")
    log.append("again")
    report = verify(path)
    assert (report.ok, report.entries, report.repaired) == (True, 8, 1)
    assert tail(path, 3)[0].event == "log.repaired" and tail(path, 3)[0].fields["torn_bytes"] == len(torn)


def test_what_a_marker_says_of_the_torn_bytes_is_checked(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"torn")
    AuditLog(path, clock=ticking()).append("after")
    path.write_bytes(path.read_bytes().replace(b"torn\n", b"Torn\n"))
    report = verify(path)
    assert (report.ok, report.first_bad_line) == (False, 6)


@pytest.mark.parametrize("lose", LOSSES)
def test_every_power_cut_leaves_a_log_that_verifies_and_goes_on(tmp_path: Path, lose: Lose) -> None:
    def write(path: Path, told: list[int]) -> None:
        log = AuditLog(path, clock=ticking())
        for i in range(3):
            log.append("event", number=i)
            told.append(i)

    def cut(folder: Path, after: int | None) -> tuple[PowerDisk, list[int]]:
        for name in ("data", "attic"):
            (folder / name).mkdir(parents=True)
        disk, told = PowerDisk(folder / "attic", after, lose, seed=after or 0), list[int]()
        try:
            with use_disk(disk):
                write(folder / "data/audit.log", told)
        except PowerCut:
            assert after is not None
        return disk, told

    whole, _ = cut(tmp_path / "whole", None)
    assert len(whole.operations) > 20
    for after in range(1, len(whole.operations) + 1):
        _, told = cut(tmp_path / f"{after}", after)
        path = tmp_path / f"{after}" / "data/audit.log"
        report = verify(path)
        assert report.ok, (after, whole.operations[after - 1], report)
        log = AuditLog(path, clock=ticking())
        log.append("after")
        report = verify(path)
        assert report.ok, (after, whole.operations[after - 1], report)
        numbers = [e.fields["number"] for e in tail(path, 99) if e.event == "event"]
        assert numbers[: len(told)] == told and numbers == list(range(len(numbers)))
        assert sorted(p.name for p in path.parent.iterdir()) == ["audit.head", "audit.log"]


def test_cuts_while_repairing_are_repaired_as_well(path: Path, tmp_path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"torn")
    for round_ in range(1, 4):
        attic = tmp_path / f"attic{round_}"
        attic.mkdir()
        with use_disk(PowerDisk(attic, 2)), pytest.raises(PowerCut):  # half of the marker and its entry
            AuditLog(path, clock=ticking()).append("lost")
        assert verify(path).ok
    AuditLog(path, clock=ticking()).append("after")
    report = verify(path)
    assert report.ok and report.repaired >= 1 and tail(path, 1)[0].event == "after"


def test_an_entry_that_only_lost_its_line_end_counts(path: Path) -> None:
    head = head_path(path).read_bytes()
    AuditLog(path, clock=ticking()).append("sixth")
    path.write_bytes(path.read_bytes()[:-1])
    head_path(path).write_bytes(head)
    assert verify(path).entries == 6
    AuditLog(path, clock=ticking()).append("seventh")
    report = verify(path)
    assert (report.ok, report.entries, report.repaired) == (True, 7, 0)


def test_a_full_disk_leaves_the_log_as_it_was(path: Path) -> None:
    before = path.read_bytes()
    with use_disk(FullDisk(50)), pytest.raises(StorageError, match="no space left"):
        AuditLog(path, clock=ticking()).append("event")
    assert path.read_bytes() == before and verify(path).ok


def test_processes_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    code = (
        "import sys; from pathlib import Path; from kasmina_edge.safety.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for i in range(30): log.append('event', number=i, who=sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)], env=environment) for i in range(3)]
    assert [p.wait(60) for p in processes] == [0, 0, 0]
    assert verify(path).ok and verify(path).entries == 90
    for who in "012":
        assert [e.fields["number"] for e in tail(path, 90) if e.fields["who"] == who] == list(range(30))


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "x"},
        {"Token": "x"},
        {"password": 1},
        {"device": {"privateKey": "x"}},
        {"many": [{"client_secret": None}]},
        {"keyid": "x"},
        {"credentials": "x"},
    ],
)
def test_names_that_look_like_secrets_are_refused(path: Path, fields: dict[str, object]) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="looks like a secret"):
        AuditLog(path).append("event", **fields)
    assert path.read_bytes() == before


def test_a_private_key_is_refused_under_any_name(path: Path) -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nabc"
    with pytest.raises(InputError, match=r"fields\.note\[0\]: holds a private key"):
        AuditLog(path).append("event", note=[pem])


@pytest.mark.parametrize("event", ["", "Upper", "1st", "a b", "a\n", "log.damaged", "x" * 65])
def test_an_event_has_a_plain_name(path: Path, event: str) -> None:
    with pytest.raises(InputError, match="event"):
        AuditLog(path).append(event)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"bytes", "not plain JSON"),
        (float("nan"), "not plain JSON"),
        ({1: 2}, "the name 1 is not text"),
        ("\ud800", "not plain JSON"),
        ("x" * 17_000, "at most 16384 are written"),
    ],
)
def test_values_that_cannot_be_written_are_refused(path: Path, value: object, words: str) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        AuditLog(path).append("event", value=value)
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(StorageError, match=r"audit\.log"):
        verify(tmp_path / "audit.log")
    with pytest.raises(StorageError, match=r"audit\.log"):
        AuditLog(tmp_path / "audit.log").append("event")
    (tmp_path / "other.head").mkdir()
    with pytest.raises(StorageError, match=r"other\.head"):
        verify(tmp_path / "other.log")


@given(st.binary(max_size=400))
def test_random_bytes_are_no_entry(data: bytes) -> None:
    assert audit._parse_line(data) is None
    assert audit._parse_line(b"x" * (audit.MAX_ENTRY_BYTES + 1)) is None


def test_a_line_without_end_is_not_read_into_memory_whole(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x" * 200_000)
    AuditLog(path, clock=ticking()).append("after")
    assert tail(path, 1)[0].event == "after"
    assert not verify(path).ok  # more was there than an interrupted append can leave
