"""The outbox: bounds, order, durable counts, damage, several real processes, and a kill in the middle of appends."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds.telemetry import NOW, Clock

from kasmina_edge.errors import InputError, LockedError, StorageError
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.renewed_file import MAX_GENERATION
from kasmina_edge.telemetry.sqlite_file import SqliteFile, is_damage

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import hashlib, sys
from pathlib import Path
from kasmina_edge.telemetry.outbox import Outbox
outbox, who, count = Outbox(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for i in range(count):
    body = f"{who}:{i}:".encode() * 40
    outbox.append("stats", hashlib.sha256(body).digest() + body)
    print(i, flush=True)
"""


def start_writer(path: Path, who: str, count: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", WRITER, str(path), who, str(count)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def whole(payload: bytes) -> bool:
    return hashlib.sha256(payload[32:]).digest() == payload[:32]


def test_first_in_first_out_by_priority(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", clock=Clock())
    for payload, priority in ((b"1", 0), (b"2", 5), (b"3", 0), (b"4", 5)):
        outbox.append("stats", payload, priority=priority)
    assert [e.payload for e in outbox.peek()] == [b"2", b"4", b"1", b"3"]
    assert [e.payload for e in outbox.peek(2)] == [b"2", b"4"]
    assert outbox.peek()[0].at_s == NOW and outbox.size().entries == 4


def test_entries_stay_until_acknowledged_over_restarts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    ids = [outbox.append("stats", bytes([i])) for i in range(3)]
    assert outbox.peek() == outbox.peek()
    assert outbox.acknowledge(ids[:1]) == 1
    outbox.close()
    again = Outbox(tmp_path / "o.db")
    assert [e.id for e in again.peek()] == ids[1:]
    assert again.acknowledge([*ids, 999, ids[1]]) == 2 and again.acknowledge(ids) == 0
    assert again.size() == again.size().__class__(0, 0) and again.dropped() == 0
    assert again.append("stats", b"") > ids[-1]  # ids are never used twice


def test_peek_by_bytes_stream_and_age_of_id(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    ids = [outbox.append("stats" if i % 2 else "event", b"x" * 100) for i in range(6)]
    assert len(outbox.peek(max_bytes=250)) == 2 and len(outbox.peek(max_bytes=1)) == 1
    assert [e.id for e in outbox.peek(stream="stats")] == ids[1::2]
    outbox.acknowledge(ids[3:4])
    assert [e.id for e in outbox.newer(ids[1], stream="stats")] == [ids[5]]
    assert [e.id for e in outbox.newer(0, 1, stream="stats")] == [ids[1]]


def noise(name: bytes, size: int = 100) -> bytes:
    """Bytes that begin with ``name`` and do not compress."""
    return (
        name + b"".join(hashlib.sha512(name + bytes([i])).digest() for i in range(size // 64 + 1))[: size - len(name)]
    )


def test_the_oldest_of_the_lowest_priority_goes_first(tmp_path: Path) -> None:
    probe = Outbox(tmp_path / "probe.db")
    probe.append("stats", noise(b"a"))
    outbox = Outbox(tmp_path / "o.db", max_bytes=4 * probe.size().bytes)
    for name, priority in ((b"a", 1), (b"b", 0), (b"c", 0), (b"d", 1), (b"e", 1), (b"f", 1)):
        outbox.append("stats", noise(name), priority=priority)
    assert [e.payload[:1] for e in outbox.peek()] == [b"a", b"d", b"e", b"f"] and outbox.dropped() == 2
    outbox.append("stats", noise(b"g"), priority=1)
    assert [e.payload[:1] for e in outbox.peek()] == [b"d", b"e", b"f", b"g"]
    outbox.append("stats", noise(b"h"), priority=0)  # itself the lowest
    assert [e.payload[:1] for e in outbox.peek()] == [b"d", b"e", b"f", b"g"]
    outbox.close()
    assert Outbox(tmp_path / "o.db").dropped() == 4  # counted durably


def test_old_entries_are_dropped_unless_the_clock_was_never_set(tmp_path: Path) -> None:
    clock = Clock(1000.0)  # 1970: before the device had the time
    outbox = Outbox(tmp_path / "o.db", max_age_s=60.0, clock=clock)
    outbox.append("stats", b"early")
    clock.now = NOW
    outbox.append("stats", b"old")
    clock.now = NOW + 61.0
    outbox.append("stats", b"new")
    assert [e.payload for e in outbox.peek()] == [b"early", b"new"] and outbox.dropped() == 1


def test_entries_given_up_are_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    outbox.acknowledge([outbox.append("stats", b"spoiled")], dropped=True)
    assert outbox.dropped() == 1


def test_what_can_never_fit_is_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", max_bytes=200)
    with pytest.raises(InputError, match="entry of 264 bytes, the outbox holds 200"):
        outbox.append("stats", b"x" * 200)
    with pytest.raises(InputError, match="must be positive"):
        Outbox(tmp_path / "p.db", max_bytes=0)


STREAMS = ("stats", "event", "capture")
STEPS = st.lists(
    st.tuples(st.just("append"), st.integers(1, 12), st.integers(0, 2), st.sampled_from(STREAMS), st.booleans())
    | st.tuples(st.just("acknowledge"), st.integers(0, 9), st.booleans())
    | st.tuples(st.just("some"), st.integers(1, 7), st.booleans())
    | st.tuples(st.just("reopen"))
    | st.tuples(st.just("look"), st.sampled_from(STREAMS), st.integers(0, 40)),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_against_a_model_in_memory(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    """Whatever is buffered, joined into blocks and partly acknowledged: a sorted list says the same."""
    path = tmp_path_factory.mktemp("outbox") / "o.db"
    outbox = Outbox(path, flush_s=60.0)
    model: list[tuple[int, int, str, bytes]] = []  # (-priority, id, stream, payload)
    following, dropped = 1, 0
    for kind, *values in steps:
        if kind == "append":
            count, priority, stream, durable = values
            for i in range(count):
                payload = f"{following}:{stream}".encode() * (1 + i % 3)
                got = outbox.append(stream, payload, priority=priority, durable=durable)
                assert got == (following if durable or priority else 0)
                model.append((-priority, following, stream, payload))
                following += 1
        elif kind in ("acknowledge", "some"):
            count, given_up = values
            ids = [row[1] for row in sorted(model)]
            ids = ids[:count] if kind == "acknowledge" else ids[::count]
            outbox.flush()
            assert outbox.acknowledge([*ids, *ids, 10**9], dropped=given_up) == len(ids)
            model = [row for row in model if row[1] not in ids]
            dropped += len(ids) if given_up else 0
        elif kind == "reopen":
            outbox.close()
            outbox = Outbox(path, flush_s=60.0)
        else:
            stream, after = values
            expected = sorted((row[1], row[3]) for row in model if row[2] == stream and row[1] > after)
            assert [(e.id, e.payload) for e in outbox.newer(after, 1000, stream=stream)] == expected
            here = [(row[1], row[3]) for row in sorted(model) if row[2] == stream]
            assert [(e.id, e.payload) for e in outbox.peek(1000, stream=stream)] == here
        found = [(-e.priority, e.id, e.stream, e.payload) for e in outbox.peek(1000)]
        assert found == sorted(model)
        assert (outbox.dropped(), outbox.size().entries, outbox.newest()) == (dropped, len(model), following - 1)
    outbox.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), st.booleans()), max_size=60), st.integers(600, 4000))
def test_the_bound_holds_and_only_the_right_ones_leave(
    tmp_path_factory: pytest.TempPathFactory, appends: list[tuple[int, int, bool]], bound: int
) -> None:
    outbox = Outbox(tmp_path_factory.mktemp("outbox") / "o.db", max_bytes=bound, flush_s=60.0)
    held: dict[int, int] = {}  # id: priority
    for number, (size, priority, durable) in enumerate(appends, start=1):
        outbox.append("stats", noise(b"%d" % number, size + 4), priority=priority, durable=durable)
        held[number] = priority
        entries = {e.id: e.priority for e in outbox.peek(1000)}
        gone = {(held[i], i) for i in held.keys() - entries.keys()}
        assert not gone or max(gone) < min((p, i) for i, p in entries.items()) or max(gone)[1] == number
        assert entries.items() <= held.items() and outbox.size().bytes <= bound
        assert len(entries) == outbox.size().entries == number - outbox.dropped()
        held = entries
    outbox.close()


def test_several_processes_append_while_one_drains(tmp_path: Path) -> None:
    path, count = tmp_path / "o.db", 60
    writers = [start_writer(path, name, count) for name in ("a", "b", "c")]
    outbox = Outbox(path)
    seen: dict[bytes, int] = {}
    try:
        while len(seen) < 3 * count:
            entries = outbox.peek(20)
            assert all(whole(e.payload) for e in entries)
            for entry in entries:
                assert seen.setdefault(entry.payload, entry.id) == entry.id
            assert outbox.acknowledge(e.id for e in entries) == len(entries)
            if all(w.poll() is not None for w in writers) and not outbox.size().entries:
                break
    finally:
        for writer in writers:
            writer.communicate(timeout=20)
    assert [w.returncode for w in writers] == [0, 0, 0]
    assert len(seen) == 3 * count and outbox.size().entries == 0 and outbox.dropped() == 0
    for name in ("a", "b", "c"):  # each writer's own order is kept
        mine = [int(p[32:].split(b":")[1]) for p in seen if p[32:].startswith(name.encode() + b":")]
        assert mine == sorted(mine)


@pytest.mark.parametrize("after", [0, 1, 7, 23])
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, after: int) -> None:
    path = tmp_path / "o.db"
    writer = start_writer(path, "k", 100_000)
    assert writer.stdout is not None
    acknowledged = -1
    for _ in range(after + 1):
        acknowledged = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest, _ = writer.communicate(timeout=20)
    acknowledged = max([acknowledged, *map(int, rest.split())])
    assert writer.returncode == -signal.SIGKILL
    outbox = Outbox(path)
    payloads = [e.payload for e in outbox.peek(100_000)]
    assert all(whole(p) for p in payloads)
    numbers = [int(p[32:].split(b":")[1]) for p in payloads]
    assert numbers == list(range(len(numbers))) and len(numbers) - 1 >= acknowledged
    assert outbox.append("stats", b"goes on") > 0


def test_every_commit_is_flushed(tmp_path: Path) -> None:
    """A kill test cannot see a missing fsync: the setting that a power cut depends on is read back."""
    file = SqliteFile(tmp_path / "x.db", schema="CREATE TABLE t (x)", version=1)
    with file.read() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    file.close()


def damage(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(b"not a database at all" * 400)


def test_a_damaged_file_is_left_aside_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path)
    old_id = first.append("stats", b"before")
    first.close()
    damage(path)
    outbox = Outbox(path)
    assert (outbox.damaged(), outbox.size().entries) == (1, 0)
    new_id = outbox.append("stats", b"after")
    assert new_id > old_id and [e.payload for e in outbox.peek()] == [b"after"]
    assert path.read_bytes().startswith(b"not a database")  # kept for a look
    assert first.peek()[0].payload == b"after"  # the other one follows
    assert Outbox(path).damaged() == 1


def test_a_process_that_still_has_the_old_file_open_follows(tmp_path: Path) -> None:
    """Its appends must not go where nobody reads, and its closing must not take the new file's log along."""
    path = tmp_path / "o.db"
    stale = Outbox(path)
    stale.append("stats", b"before")
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what is in the log would hide the damage
    raw.close()
    with path.open("r+b") as stream:  # the same inode, spoiled under its feet
        stream.write(b"\xff" * 4096)
    fresh = Outbox(path)
    assert fresh.damaged() == 1
    fresh.append("stats", b"one")
    stale.append("stats", b"two")
    stale.close()
    assert [e.payload for e in fresh.peek()] == [b"one", b"two"]
    assert [e.payload for e in Outbox(path).peek()] == [b"one", b"two"]


def test_a_file_that_others_left_is_left_even_if_it_looks_whole_from_here(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    stale = Outbox(path)
    stale.append("stats", b"before")
    path.with_name("o.db.generation").write_bytes(b"1")  # as a process does that met damage this one has not met
    stale.append("stats", b"after")
    assert [e.payload for e in Outbox(path).peek()] == [b"after"]


def test_damage_inside_the_file_is_found_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    outbox = Outbox(path)
    for i in range(200):
        outbox.append("stats", noise(b"%d" % i, 300), durable=False)
    outbox.close()
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(data)
    assert Outbox(path).damaged() == 1


def test_a_removed_file_is_replaced_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    one, two = Outbox(path), Outbox(path)
    two.append("stats", b"x")
    path.unlink()
    one.append("stats", b"y")
    two.append("stats", b"z")
    assert [e.payload for e in two.peek()] == [b"y", b"z"] and one.damaged() == two.damaged() == 1


def test_only_the_newest_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    Outbox(path).close()
    damage(path)
    for generation in range(1, 4):
        Outbox(path).close()
        damage(path.with_name(f"o.db.{generation}"))
    assert Outbox(path).damaged() == 4
    names = {p.name for p in tmp_path.iterdir() if not p.name.endswith(("-wal", "-shm"))}
    assert names == {"o.db.lock", "o.db.generation", "o.db.2", "o.db.3", "o.db.4"}


def test_a_newer_schema_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE future (x)")
    db.execute("PRAGMA user_version=9")
    db.commit()
    db.close()
    with pytest.raises(StorageError, match="schema version 9, this program reads version 2"):
        Outbox(path)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (9,)


def test_a_full_disk_is_a_storage_error_and_loses_nothing(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "x.db", schema="CREATE TABLE t (x BLOB)", version=1)
    with file.write() as db:
        db.execute("INSERT INTO t VALUES (x'01')")
    with file.read() as db:
        db.execute("PRAGMA max_page_count=3")  # SQLite's own way to a full disk
    with pytest.raises(StorageError, match="no space left") as caught, file.write() as db:
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert not is_damage(caught.value)
    with file.read() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
    file.close()


def test_a_file_in_the_way_and_a_spoiled_generation_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        Outbox(tmp_path / "file" / "o.db")
    (tmp_path / "o.db").mkdir()
    with pytest.raises(StorageError):
        Outbox(tmp_path / "o.db")
    (tmp_path / "p.db.generation").write_bytes(b"%d" % MAX_GENERATION)
    (tmp_path / f"p.db.{MAX_GENERATION}").write_bytes(b"not a database at all" * 400)
    with pytest.raises(StorageError, match="at most 8388607 can be"):
        Outbox(tmp_path / "p.db")


GARBLED = [b"", b"\0\0", b"1x", b"-1", b"9" * 23, b"8388608", b"\xb2", None]


@pytest.mark.parametrize("spoiled", GARBLED)
def test_a_spoiled_generation_costs_nothing_but_its_own_mending(tmp_path: Path, spoiled: bytes | None) -> None:
    path = tmp_path / "o.db"
    number = path.with_name("o.db.generation")
    Outbox(path).close()
    damage(path)
    running = Outbox(path)
    first = running.append("alert", b"before", priority=2)
    path.with_name("o.db.99999999999").write_bytes(b"somebody's copy")
    number.write_bytes(spoiled) if spoiled is not None else number.unlink()
    fresh = Outbox(path)
    assert [e.payload for e in fresh.peek()] == [b"before"] and number.read_bytes() == b"1"
    number.write_bytes(spoiled) if spoiled is not None else number.unlink()
    assert running.append("alert", b"after", priority=2) == first + 1  # also under the feet of one that has it open
    assert [e.payload for e in fresh.peek()] == [b"before", b"after"] and fresh.damaged() == 1
    damage(path.with_name("o.db.1"))
    number.write_bytes(spoiled) if spoiled is not None else number.unlink()
    assert Outbox(path).append("stats", b"x") > first + 1 and running.damaged() == 2


FROZEN = """
import sys
from pathlib import Path
from kasmina_edge.storage import hold_lock
from kasmina_edge.telemetry.outbox import Outbox
path, shared = Path(sys.argv[1]), sys.argv[2] == "shared"
Outbox(path).close()
with hold_lock(path.with_name(path.name + ".lock"), shared=shared):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_a_frozen_process_holds_nobody_up_for_ever(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "o.db"
    running = Outbox(path, lock_wait_s=0.2)
    frozen = subprocess.Popen(
        [sys.executable, "-c", FROZEN, str(path), kind],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert frozen.stdout is not None and frozen.stdout.readline() == "held\n"
        os.kill(frozen.pid, signal.SIGSTOP)
        began = time.monotonic()
        if kind == "shared":  # who only uses the file is in nobody's way, also not in that of one who opens it
            assert Outbox(path, lock_wait_s=0.2).append("alert", b"x", priority=2) == 1
            running.close()
            damage(path)
        for attempt in (lambda: Outbox(path, lock_wait_s=0.2), lambda: running.append("stats", b"y")):
            with pytest.raises(LockedError, match=r"o\.db\.lock: another process holds this lock \(waited 0\.2 s\)"):
                attempt()
        assert time.monotonic() - began < 5.0
        os.kill(frozen.pid, signal.SIGCONT)
        frozen.communicate("", timeout=10)
        assert running.append("stats", b"z") > 0
    finally:
        frozen.kill()
        frozen.wait()


def test_a_clock_that_jumps_ages_nothing(tmp_path: Path) -> None:
    """Forty years ahead (a GPS week that rolled over), and back again."""
    clock, day = Clock(), 86_400.0
    outbox = Outbox(tmp_path / "o.db", clock=clock)
    for i in range(5):
        outbox.append("alert", b"%d" % i, priority=2)
    outbox.append("stats", b"waits", durable=False)  # stamped before the jump, written after it
    for jump in (40 * 365 * day, 0.0):
        clock.now = NOW + jump
        outbox.append("stats", b"late")
    assert outbox.size().entries == 8 and outbox.dropped() == 0
    outbox.close()
    again = Outbox(tmp_path / "o.db", clock=clock)
    for hours in range(0, 14 * 24 + 1, 12):  # by a clock that goes on as clocks do
        assert again.dropped() == 0, hours
        clock.now = NOW + hours * 3600.0
        again.append("stats", b"new")
    clock.now += 3601.0
    again.append("stats", b"last")
    assert {e.payload for e in again.peek(1000)} == {b"new", b"last"} and again.dropped() == 8 + 1


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_clock_that_shows_no_time_is_a_clock_that_is_not_set(tmp_path: Path, now: float) -> None:
    clock = Clock()
    outbox = Outbox(tmp_path / "o.db", max_age_s=60.0, clock=clock)
    for clock.now in (NOW, now, NOW + 1.0):
        outbox.append("stats", b"x")
    assert [e.at_s for e in outbox.peek()] == [NOW, 0.0, NOW + 1.0] and outbox.dropped() == 0


BAD = [
    ("stats", "text", 0), ("stats", None, 0), ("stats", 3, 0), ("bad\ud800", b"x", 0), ("", b"x", 0), (None, b"x", 0),
    ("a\0b", b"x", 0), ("s" * 129, b"x", 0), ("stats", b"x", 2**70), ("stats", b"x", -(2**63) - 1),
    ("stats", b"x", 0.5),
]  # fmt: skip


@pytest.mark.parametrize("durable", [True, False])
def test_what_can_never_be_stored_is_refused_before_others_wait_behind_it(tmp_path: Path, durable: bool) -> None:
    outbox = Outbox(tmp_path / "o.db", flush_s=60.0)
    for stream, payload, priority in BAD:
        with pytest.raises(InputError, match="outbox: "):
            outbox.append(stream, payload, priority=priority, durable=durable)  # type: ignore[arg-type]
    assert outbox.append("alert", b"alarm", priority=2) == 1 and outbox.size().entries == 1
    outbox.append("stats", memoryview(bytearray(b"view")), durable=durable)  # type: ignore[arg-type]
    assert [e.payload for e in outbox.peek()] == [b"alarm", b"view"]


def test_ids_that_nothing_can_have_are_unknown_ids(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    mine = outbox.append("stats", b"x")
    strange = [2**63, -1, 2**70, -(2**70), 0, "1", None, 1.0]
    assert outbox.acknowledge(strange) == outbox.erase(strange) == 0  # type: ignore[arg-type]
    assert outbox.newer(2**63, stream="stats") == [] and len(outbox.newer(-(2**70), stream="stats")) == 1
    assert outbox.acknowledge([*strange, mine]) == 1  # type: ignore[list-item]


def test_some_streams_can_be_left_out(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    for stream in ("a", "b", "c", "a"):
        outbox.append(stream, stream.encode())
    assert [e.stream for e in outbox.peek(without=["a", "c"])] == ["b"]
    assert outbox.peek(stream="a", without=["a"]) == [] and len(outbox.peek(without=[])) == 4


def test_no_look_reads_more_blocks_than_it_gives(tmp_path: Path) -> None:
    """A sort would load every block: memory would grow with what is held."""
    outbox = Outbox(tmp_path / "o.db")
    asked: list[str] = []
    with outbox._file._file.read() as db:  # type: ignore[union-attr]
        db.set_trace_callback(asked.append)
    outbox.peek(), outbox.peek(stream="stats"), outbox.newer(5, stream="stats")
    looks = [query for query in asked if "data FROM block" in query]
    assert len(looks) == 3
    with outbox._file._file.read() as db:  # type: ignore[union-attr]
        db.set_trace_callback(None)
        for query in looks:
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert "USING INDEX" in plan[0] and not any("TEMP B-TREE" in step for step in plan), plan
        plan = [row[3] for row in db.execute("EXPLAIN QUERY PLAN SELECT data FROM block ORDER BY raw")]
        assert "TEMP B-TREE" in plan[-1]  # what the check looks for


def test_the_files_are_private(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "new" / "o.db")
    outbox.append("stats", b"x")
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "new").iterdir()} == {0}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
