"""What one transaction does to the outbox's tables: put blocks, join small ones, take entries out, keep the bounds.

Every function works on a connection inside a transaction of its caller. Schema 2: a row is a block (`blocks`) of
entries with consecutive ids; ``gone`` has a bit for each that has left, ``live`` counts those that have not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kasmina_edge.errors import TrustError
from kasmina_edge.safety.vault import Sealer
from kasmina_edge.telemetry.blocks import (
    BLOCK_BYTES,
    BLOCK_RECORDS,
    PLAIN,
    Place,
    Waiting,
    close_block,
    open_block,
    pack,
    runs,
)

VERSION = 2
ROW_BYTES = 64
"""Bytes that a block counts for beside what is stored of it."""
CLOCK_WAS_SET_S = 1_700_000_000.0
"""Entries stamped earlier were appended before the device had the time; they are never dropped for their age."""
JUMP_S = 86_400.0
"""Between two appends the clock moves on by less, unless the device was off or the clock was set."""
MAX_ID = (1 << 63) - 1
JOINED = 8
"""So many small blocks in a row become one: an entry is written four times at most, and a slow device's file stays as
dense as a busy one's."""
LONG_ENTRY = 64
"""Entries longer than this part of a block are not worth joining."""
IDS_A_FILE = 1 << 40

_TABLES = """
CREATE TABLE block (
    first_id INTEGER PRIMARY KEY, count INTEGER NOT NULL, live INTEGER NOT NULL, stream TEXT NOT NULL,
    priority INTEGER NOT NULL, first_s REAL NOT NULL, last_s REAL NOT NULL, raw INTEGER NOT NULL,
    bytes INTEGER NOT NULL, key INTEGER NOT NULL, gone BLOB, data BLOB NOT NULL
);
CREATE INDEX block_order ON block (priority DESC, first_id);
CREATE INDEX block_stream ON block (stream, first_id);
CREATE INDEX block_stream_order ON block (stream, priority DESC, first_id);
CREATE INDEX block_age ON block (first_s)
"""
SCHEMA = (
    _TABLES
    + """;
CREATE TABLE tally (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO tally VALUES ('bytes', 0), ('entries', 0), ('dropped', 0), ('sealed', 0), ('next_id', {first_id})
"""
)


@dataclass(frozen=True)
class Bounds:
    """What a file may hold: bytes on the disk, and seconds of age."""

    max_bytes: int
    max_age_s: float

    @property
    def span_s(self) -> float:
        """Longest time between the entries of one block, which leaves as a whole when its oldest entry is too old."""
        return self.max_age_s / 64

    @property
    def block_bytes(self) -> int:
        """Most payload bytes of one block: what is dropped at a time is a small part of the whole."""
        return max(1024, min(BLOCK_BYTES, self.max_bytes // 8))


def first_id(generation: int) -> int:
    """The first id of a file; ids are never used twice, also not by the file that replaces a damaged one."""
    return generation * IDS_A_FILE + 1


def tally(db: sqlite3.Connection, name: str) -> int:
    """One of the durable counts."""
    return int(db.execute("SELECT value FROM tally WHERE name = ?", (name,)).fetchone()[0])


def add_to_tally(db: sqlite3.Connection, name: str, change: int) -> None:
    """Change one of the durable counts."""
    if change:
        db.execute("UPDATE tally SET value = value + ? WHERE name = ?", (change, name))


def put(
    db: sqlite3.Connection,
    batch: Sequence[tuple[Sequence[Waiting], bytes]],
    now_s: float,
    bounds: Bounds,
    sealer: Sealer | None,
) -> int:
    """Store runs of entries, each with its packed bytes, and keep the bounds.

    Returns:
        Id of the first entry; the others follow.
    """
    start = following = tally(db, "next_id")
    for run, packed in batch:
        times = [entry.at_s for entry in run]
        place = Place(following, len(run), run[0].stream, run[0].priority)
        raw = sum(len(entry.payload) for entry in run)
        _insert(db, place, packed, (min(times), max(times)), raw, sealer)
        following += len(run)
        add_to_tally(db, "entries", len(run))
        while _join_newest(db, bounds, sealer):
            pass
    add_to_tally(db, "next_id", following - start)
    if now_s > CLOCK_WAS_SET_S:
        _drop_aged(db, now_s, bounds.max_age_s)
    _keep_within(db, bounds.max_bytes)
    return start


def _drop_aged(db: sqlite3.Connection, now_s: float, max_age_s: float) -> None:
    """Drop what is too old by stamps that can be compared with the clock; a clock that was set ages nothing.

    Where the clock is more than `JUMP_S` away from where it was at the last append, nobody knows how old the entries
    are: all that there are, these new ones too, count as appended now.
    """
    now = int(now_s)
    seen = _noted(db, "seen_s")
    if seen is None or abs(now - seen) > JUMP_S:
        _note(db, "aged_from_id", tally(db, "next_id"))
        _note(db, "aged_from_s", now)
    if seen != now:
        _note(db, "seen_s", now)
    from_id, from_s = _noted(db, "aged_from_id") or 0, _noted(db, "aged_from_s") or 0
    since = "SELECT first_id, live, bytes FROM block WHERE first_s < ? AND first_s > ? AND first_id >= ?"
    drop(db, db.execute(since, (now_s - max_age_s, CLOCK_WAS_SET_S, from_id)).fetchall())
    if now_s - from_s > max_age_s:
        before = "SELECT first_id, live, bytes FROM block WHERE first_id < ? AND first_s > ?"
        drop(db, db.execute(before, (from_id, CLOCK_WAS_SET_S)).fetchall())


def _noted(db: sqlite3.Connection, name: str) -> int | None:
    row = db.execute("SELECT value FROM tally WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else None


def _note(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO tally VALUES (?, ?)", (name, value))


def known(ids: Iterable[int]) -> list[int]:
    """Those that can be ids at all."""
    return [entry_id for entry_id in ids if isinstance(entry_id, int) and 0 < entry_id <= MAX_ID]


def take_out(db: sqlite3.Connection, ids: Iterable[int]) -> int:
    """Mark entries as gone; a block of which all are gone is deleted. Unknown ids are ignored.

    Returns:
        How many were there.
    """
    taken = 0
    place: tuple[int, int, int, int] | None = None  # first id, count, live, bytes
    gone = before = 0

    def leave() -> int:
        if place is None or gone == before:
            return 0
        left = gone.bit_count() - before.bit_count()
        if place[2] == left:
            db.execute("DELETE FROM block WHERE first_id = ?", (place[0],))
            add_to_tally(db, "bytes", -place[3])
        else:
            bits = gone.to_bytes((place[1] + 7) // 8, "little")
            db.execute("UPDATE block SET gone = ?, live = live - ? WHERE first_id = ?", (bits, left, place[0]))
        return left

    for entry_id in sorted(set(ids)):
        if place is None or entry_id >= place[0] + place[1]:
            taken += leave()
            row = db.execute(
                "SELECT first_id, count, live, bytes, gone FROM block WHERE first_id <= ? "
                "ORDER BY first_id DESC LIMIT 1",
                (entry_id,),
            ).fetchone()
            place = row[:4] if row and entry_id < row[0] + row[1] else None
            gone = before = int.from_bytes(row[4] or b"", "little") if place else 0
        if place is not None:
            gone |= 1 << (entry_id - place[0])
    taken += leave()
    add_to_tally(db, "entries", -taken)
    return taken


def erase(db: sqlite3.Connection, ids: Iterable[int], sealer: Sealer | None) -> int:
    """As `take_out`, and the payloads are taken out of the blocks that stay; the caller overwrites what was there."""
    doomed = set(ids)
    taken = take_out(db, doomed)
    blocks: set[int] = set()
    for entry_id in doomed:
        row = db.execute("SELECT max(first_id) FROM block WHERE first_id <= ?", (entry_id,)).fetchone()
        blocks.update(row[:1] if row[0] is not None else ())
    for first in blocks:
        count, stream, priority, before, key, data = db.execute(
            "SELECT count, stream, priority, bytes, key, data FROM block WHERE first_id = ?", (first,)
        ).fetchone()
        if doomed.isdisjoint(range(first, first + count)):
            continue
        place = Place(first, count, stream, priority)
        try:
            found = open_block(data, key, place, sealer)
        except TrustError as exc:
            if exc.breach is None:
                raise
            drop(db, db.execute("SELECT first_id, live, bytes FROM block WHERE first_id = ?", (first,)).fetchall())
            continue
        entries = [(at_s, b"" if first + offset in doomed else payload) for offset, (at_s, payload) in enumerate(found)]
        key, stored = close_block(pack(entries), place, sealer)
        size = len(stored) + ROW_BYTES
        db.execute("UPDATE block SET key = ?, bytes = ?, data = ? WHERE first_id = ?", (key, size, stored, first))
        add_to_tally(db, "bytes", size - before)
    return taken


def drop(db: sqlite3.Connection, rows: Iterable[tuple[int, int, int]], *, counted: bool = True) -> int:
    """Delete whole blocks given as (first id, live, bytes); gives the bytes that this frees."""
    freed = 0
    for first, live, size in rows:
        db.execute("DELETE FROM block WHERE first_id = ?", (first,))
        add_to_tally(db, "bytes", -size)
        add_to_tally(db, "entries", -live)
        add_to_tally(db, "dropped", live if counted else 0)
        freed += size
    return freed


def seal_all(db: sqlite3.Connection, sealer: Sealer) -> None:
    """Seal every block that is plain, and note that this file holds no plain block from here on."""
    for (first,) in db.execute("SELECT first_id FROM block WHERE key = ?", (PLAIN,)).fetchall():
        count, stream, priority, before, data = db.execute(
            "SELECT count, stream, priority, bytes, data FROM block WHERE first_id = ?", (first,)
        ).fetchone()
        key, stored = close_block(data, Place(first, count, stream, priority), sealer)
        size = len(stored) + ROW_BYTES
        db.execute("UPDATE block SET key = ?, bytes = ?, data = ? WHERE first_id = ?", (key, size, stored, first))
        add_to_tally(db, "bytes", size - before)
    db.execute("UPDATE tally SET value = 1 WHERE name = 'sealed'")


def upgrade_from_1(db: sqlite3.Connection, bounds: Bounds, sealer: Sealer | None) -> None:
    """Turn schema 1 (a row an entry) into schema 2; ids, times, order and counts stay."""
    (last,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'entry'").fetchone()
    for statement in _TABLES.split(";"):
        db.execute(statement)
    db.execute("UPDATE tally SET value = 0 WHERE name IN ('bytes', 'entries')")
    db.execute("INSERT INTO tally VALUES ('sealed', ?), ('next_id', ?)", (int(sealer is not None), (last or 0) + 1))
    rows = db.execute("SELECT id, stream, priority, at_s, payload FROM entry ORDER BY id")
    for number, consecutive in _consecutive(rows):
        first = number
        for run in runs(consecutive, block_bytes=bounds.block_bytes, span_s=bounds.span_s):
            times = [entry.at_s for entry in run]
            place = Place(first, len(run), run[0].stream, run[0].priority)
            packed = pack([(entry.at_s, entry.payload) for entry in run])
            raw = sum(len(entry.payload) for entry in run)
            _insert(db, place, packed, (min(times), max(times)), raw, sealer)
            add_to_tally(db, "entries", len(run))
            first += len(run)
    db.execute("DROP TABLE entry")


def _consecutive(rows: Iterable[tuple[int, str, int, float, bytes]]) -> Iterator[tuple[int, list[Waiting]]]:
    """First id and entries of each stretch without a gap, at most a block long."""
    first, entries = 0, list[Waiting]()
    for entry_id, stream, priority, at_s, payload in rows:
        if entries and (entry_id != first + len(entries) or len(entries) >= BLOCK_RECORDS):
            yield first, entries
            entries = []
        if not entries:
            first = entry_id
        entries.append(Waiting(stream, priority, at_s, payload))
    if entries:
        yield first, entries


def _insert(
    db: sqlite3.Connection, place: Place, packed: bytes, times: tuple[float, float], raw: int, sealer: Sealer | None
) -> None:
    key, stored = close_block(packed, place, sealer)
    size = len(stored) + ROW_BYTES
    fields = (place.first_id, place.count, place.count, place.stream, place.priority, *times, raw, size, key, stored)
    db.execute("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)", fields)
    add_to_tally(db, "bytes", size)


def _join_newest(db: sqlite3.Connection, bounds: Bounds, sealer: Sealer | None) -> bool:
    """Make one block of the newest ones, where they are small, whole, alike and in a row; whether there were any."""
    newest = db.execute(
        "SELECT first_id, count, stream, priority, first_s, last_s, raw, bytes, key, gone IS NULL FROM block "
        "ORDER BY first_id DESC LIMIT ?",
        (JOINED,),
    ).fetchall()
    chosen: list[tuple[Place, float, float, int, int, int]] = []
    full = False
    count = raw = 0
    low, high = float("inf"), float("-inf")
    for first, n, stream, priority, first_s, last_s, raw_bytes, size, key, whole in newest:
        place = Place(first, n, stream, priority)
        low, high = min(low, first_s), max(high, last_s)
        if chosen:
            after = chosen[-1][0]
            if (first + n, stream, priority) != (after.first_id, after.stream, after.priority):
                break
        if not whole or n >= BLOCK_RECORDS or _tier(n) != _tier(newest[0][1]) or high - low > bounds.span_s:
            break
        if raw_bytes > n * bounds.block_bytes // LONG_ENTRY:
            break
        if count + n > BLOCK_RECORDS or raw + raw_bytes > bounds.block_bytes:
            full = len(chosen) > 1
            break
        chosen.append((place, first_s, last_s, raw_bytes, size, key))
        count, raw = count + n, raw + raw_bytes
    if not full and len(chosen) < JOINED:
        return False
    chosen.reverse()
    entries: list[tuple[float, bytes]] = []
    try:
        for place, *_, key in chosen:
            (stored,) = db.execute("SELECT data FROM block WHERE first_id = ?", (place.first_id,)).fetchone()
            entries += open_block(stored, key, place, sealer)
    except TrustError:
        return False  # whether it is lost shows when its turn to be sent comes
    db.executemany("DELETE FROM block WHERE first_id = ?", [(place.first_id,) for place, *_ in chosen])
    add_to_tally(db, "bytes", -sum(size for *_, size, _ in chosen))
    whole_place = Place(chosen[0][0].first_id, count, chosen[0][0].stream, chosen[0][0].priority)
    times = (min(c[1] for c in chosen), max(c[2] for c in chosen))
    _insert(db, whole_place, pack(entries), times, raw, sealer)
    return True


def _tier(count: int) -> int:
    return next(tier for tier in range(9) if count < JOINED ** (tier + 1))


def _keep_within(db: sqlite3.Connection, max_bytes: int) -> None:
    held = tally(db, "bytes")
    while held > max_bytes:
        lowest = "SELECT min(priority) FROM block"
        rows = db.execute(
            f"SELECT first_id, live, bytes FROM block WHERE priority = ({lowest}) ORDER BY first_id LIMIT 16"  # noqa: S608
        ).fetchall()
        if not rows:
            return
        for row in rows:
            held -= drop(db, [row])
            if held <= max_bytes:
                return
