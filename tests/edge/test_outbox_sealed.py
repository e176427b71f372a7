"""The outbox at rest: sealed blocks, tampering, erasure, key rotation, and the files of schema 1."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from worlds.telemetry import Clock, make_record

from kasmina_edge.errors import InputError, StorageError, TrustError
from kasmina_edge.safety.vault import RETIRE_AFTER_S, Sealer, Vault, open_vault
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.outbox import KEY_AGE_S, Outbox, open_outbox

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MARK = b"a text that compresses to itself 0123456789"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return open_vault(tmp_path / "data", key_file=str(tmp_path / "key"), environ={}, clock=Clock())


@pytest.fixture
def sealer(vault: Vault) -> Sealer:
    return vault.sealer("outbox")


def stored(folder: Path) -> bytes:
    """Every byte of every file of the outbox."""
    return b"".join(p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith("o.db"))


def test_what_is_stored_cannot_be_read_without_the_vault(tmp_path: Path, sealer: Sealer) -> None:
    plain = Outbox(tmp_path / "plain" / "o.db")
    sealed = Outbox(tmp_path / "sealed" / "o.db", sealer=sealer)
    for outbox in (plain, sealed):
        for i in range(20):
            outbox.append("stats", b"%d " % i + MARK)
    assert MARK in stored(tmp_path / "plain")  # the check sees what it looks for
    assert MARK not in stored(tmp_path / "sealed")
    assert [e.payload for e in sealed.peek()] == [e.payload for e in plain.peek()]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_changed_block_is_dropped_and_counted_and_the_rest_goes_on(
    tmp_path: Path, sealer: Sealer, sealed: bool
) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer if sealed else None)
    for number in range(4):
        outbox.append(f"s{number}", MARK)
    outbox.close()
    db = sqlite3.connect(tmp_path / "o.db")
    (data,) = db.execute("SELECT data FROM block WHERE first_id = 2").fetchone()
    db.execute("UPDATE block SET data = ? WHERE first_id = 2", (data[:-1] + bytes([data[-1] ^ 1]) + b"",))
    db.execute("UPDATE block SET data = ? WHERE first_id = 3", (data[: len(data) // 2],))
    db.commit()
    db.close()
    again = Outbox(tmp_path / "o.db", sealer=sealer if sealed else None)
    assert [e.id for e in again.peek()][:1] == [1] and 3 not in [e.id for e in again.peek()]
    if sealed:  # a plain block shows a changed byte only where its structure breaks
        assert [e.id for e in again.peek()] == [1, 4] and again.dropped() == 2
        assert again.size().entries == 2


def test_a_vault_that_cannot_be_read_for_a_while_costs_no_entry(tmp_path: Path, vault: Vault, sealer: Sealer) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer)
    for i in range(9):
        outbox.append("alert", b"%d" % i, priority=2)
    ring = vault.folder / "keys.json"
    whole = ring.read_bytes()
    for spoiled in (
        whole.replace(b'"format":1', b'"format":7'),
        whole[:-20],
        b"",
        whole.replace(b'"mac":"', b'"mac":"0'),
    ):
        ring.write_bytes(spoiled)
        fresh = Outbox(tmp_path / "o.db", sealer=sealer)
        for look in (fresh.peek, lambda fresh=fresh: fresh.newer(0, stream="alert")):
            with suppress(TrustError, StorageError):
                assert look() == []
        assert (fresh.dropped(), fresh.size().entries) == (0, 9)
        with pytest.raises((TrustError, StorageError)):
            fresh.append("alert", b"x", priority=2)
        fresh._buffer._entries.clear()
        ring.write_bytes(whole)
        assert len(fresh.peek()) == 9 and fresh.dropped() == 0


def test_entries_whose_key_is_not_at_hand_stay_and_the_others_go_on(
    tmp_path: Path, vault: Vault, sealer: Sealer, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer, flush_s=60.0)
    for i in range(3):
        outbox.append("stats", b"old %d" % i, durable=False)
    outbox.flush()
    both = vault.folder / "keys.json"
    vault.rotate("outbox")
    outbox.append("alert", b"new", priority=2)
    whole = both.read_bytes()
    vault.clock.now += RETIRE_AFTER_S  # type: ignore[attr-defined]
    assert vault.retire("outbox", [2]) == [1]  # as a ring does that was put back from a copy
    fresh = Outbox(tmp_path / "o.db", sealer=sealer)
    for _ in range(3):
        assert [e.payload for e in fresh.peek()] == [b"new"]
    assert len([r for r in caplog.records if "waits for it" in r.message]) == 1
    assert (fresh.dropped(), fresh.size().entries) == (0, 4)
    with pytest.raises(TrustError, match="no key 1"):
        fresh.erase([1])  # of a block that cannot be written anew without what stays of it
    both.write_bytes(whole)
    assert [e.payload for e in fresh.peek()] == [b"new", b"old 0", b"old 1", b"old 2"]


def test_erasing_goes_on_behind_a_block_that_is_lost(tmp_path: Path, sealer: Sealer) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer, flush_s=60)
    for number in range(4):
        outbox.append("a" if number < 2 else "b", MARK, durable=False)
    outbox.close()
    db = sqlite3.connect(tmp_path / "o.db")
    (data,) = db.execute("SELECT data FROM block WHERE first_id = 1").fetchone()
    db.execute("UPDATE block SET data = ? WHERE first_id = 1", (data[:-1] + bytes([data[-1] ^ 1]),))
    db.commit()
    db.close()
    again = Outbox(tmp_path / "o.db", sealer=sealer)
    assert again.erase([1, 3]) == 2
    assert [e.id for e in again.peek()] == [4] and (again.dropped(), again.size().entries) == (1, 1)


def test_a_block_cannot_be_moved_renamed_or_shortened(tmp_path: Path, sealer: Sealer) -> None:
    for change in ("stream = 'b'", "priority = 1", "first_id = 7", "count = 1"):
        path = tmp_path / change.replace(" ", "") / "o.db"
        outbox = Outbox(path, sealer=sealer, flush_s=60)
        for _ in range(2):
            outbox.append("a", MARK, durable=False)
        outbox.close()
        db = sqlite3.connect(path)
        db.execute(f"UPDATE block SET {change}")
        db.commit()
        db.close()
        assert Outbox(path, sealer=sealer).peek() == [], change


def test_a_sealed_outbox_is_refused_without_the_vault(tmp_path: Path, sealer: Sealer) -> None:
    running = Outbox(tmp_path / "o.db")  # a process that was started without a vault
    running.append("stats", MARK)
    Outbox(tmp_path / "o.db", sealer=sealer).append("stats", MARK)
    with pytest.raises(InputError, match="no vault was given"):
        Outbox(tmp_path / "o.db")
    with pytest.raises(InputError, match="no vault was given"):
        running.append("stats", MARK)  # nothing plain gets in again
    assert Outbox(tmp_path / "o.db", sealer=sealer).size().entries == 2


def test_what_was_plain_is_sealed_once_and_overwritten(tmp_path: Path, sealer: Sealer) -> None:
    outbox = Outbox(tmp_path / "box" / "o.db")
    for i in range(30):
        outbox.append("stats", b"%d " % i + MARK)
    before = outbox.peek()
    outbox.acknowledge(e.id for e in before[:9])
    outbox.close()
    assert MARK in stored(tmp_path / "box")
    again = Outbox(tmp_path / "box" / "o.db", sealer=sealer)
    assert MARK not in stored(tmp_path / "box")
    assert again.peek() == before[9:] and again.keys_in_use() == {1}


@pytest.mark.parametrize("sealed", [True, False])
def test_a_file_of_schema_1_is_taken_over(tmp_path: Path, sealer: Sealer, sealed: bool) -> None:
    """tests/golden/outbox_v1.db was written by the release that had schema 1."""
    (tmp_path / "box").mkdir()
    shutil.copy(GOLDEN / "outbox_v1.db", tmp_path / "box/o.db")
    golden = json.loads((GOLDEN / "outbox_v1.json").read_text())
    for _ in range(2):  # the second time it is schema 2 already
        outbox = Outbox(tmp_path / "box/o.db", sealer=sealer if sealed else None, clock=Clock())
        found = [
            {"id": e.id, "stream": e.stream, "priority": e.priority, "at_s": e.at_s, "payload": e.payload.hex()}
            for e in outbox.peek(1000)
        ]
        assert found == golden["entries"]
        assert (outbox.dropped(), outbox.newest(), outbox.size().entries) == (
            golden["dropped"], golden["next_id"] - 1, len(found)
        )  # fmt: skip
        assert outbox.damaged() == 0
        outbox.close()
    assert outbox.append("stats", b"next") == golden["next_id"]
    assert outbox.acknowledge(e["id"] for e in golden["entries"]) == len(golden["entries"])
    assert (b'"device":"cam-1"' in stored(tmp_path / "box")) is False or not sealed


def test_taking_over_leaves_no_plaintext(tmp_path: Path, sealer: Sealer) -> None:
    (tmp_path / "box").mkdir()
    shutil.copy(GOLDEN / "outbox_v1.db", tmp_path / "box/o.db")
    assert b'"device":"cam-1"' in stored(tmp_path / "box")
    Outbox(tmp_path / "box/o.db", sealer=sealer)
    assert b'"device":"cam-1"' not in stored(tmp_path / "box") and b"note" not in stored(tmp_path / "box")


@pytest.mark.parametrize("sealed", [True, False])
def test_erasing_takes_the_bytes_off_the_disk(tmp_path: Path, sealer: Sealer, sealed: bool) -> None:
    outbox = Outbox(tmp_path / "box" / "o.db", sealer=sealer if sealed else None, flush_s=60)
    for i in range(20):
        outbox.append("capture", b"%02d " % i + MARK, durable=False)
    ids = [e.id for e in outbox.peek()]
    data = stored(tmp_path / "box")
    assert outbox.erase([ids[3], ids[5], 999]) == 2 and outbox.erase(ids[3:4]) == 0
    left = [e.payload for e in outbox.peek()]
    assert len(left) == 18 and not any(p.startswith((b"03", b"05")) for p in left)
    outbox.close()
    db = sqlite3.connect(tmp_path / "box/o.db")
    (kept,) = db.execute("SELECT data FROM block").fetchone()
    db.close()
    assert kept not in data  # another block than before, and the one before is overwritten:
    old = data[data.rindex(kept[:4]) :][: len(kept) // 2]
    assert old[8:] not in stored(tmp_path / "box")
    again = Outbox(tmp_path / "box" / "o.db", sealer=sealer if sealed else None)
    assert again.erase(ids) == 18 and again.size() == again.size().__class__(0, 0)


def test_keys_rotate_under_a_filled_outbox(tmp_path: Path, vault: Vault, sealer: Sealer) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer)
    first = outbox.append("stats", b"old")
    vault.rotate("outbox")
    outbox.append("event", b"new", priority=1)
    assert outbox.keys_in_use() == {1, 2} and [e.payload for e in outbox.peek()] == [b"new", b"old"]
    vault.clock.now += RETIRE_AFTER_S  # type: ignore[attr-defined]
    assert vault.retire("outbox", outbox.keys_in_use()) == []
    outbox.acknowledge([first])
    assert vault.retire("outbox", outbox.keys_in_use()) == [1]
    assert [e.payload for e in Outbox(tmp_path / "o.db", sealer=sealer).peek()] == [b"new"]


def test_tending_the_keys_rotates_and_retires_by_itself(tmp_path: Path, vault: Vault, sealer: Sealer) -> None:
    outbox = Outbox(tmp_path / "o.db", sealer=sealer)
    assert Outbox(tmp_path / "plain.db").tend_keys() == []
    first = outbox.append("stats", b"old")
    assert outbox.tend_keys() == [] and len(vault.inventory()) == 1
    vault.clock.now += KEY_AGE_S + 1.0  # type: ignore[attr-defined]
    assert outbox.tend_keys() == [] and [k.number for k in vault.inventory()] == [1, 2]
    outbox.append("stats", b"new")
    vault.clock.now += RETIRE_AFTER_S  # type: ignore[attr-defined]
    assert outbox.tend_keys() == []  # an entry still needs it
    outbox.acknowledge([first])
    assert outbox.tend_keys() == [1] and [e.payload for e in outbox.peek()] == [b"new"]


def test_the_outbox_of_a_data_folder_is_sealed_as_its_settings_say(tmp_path: Path) -> None:
    flags = {"safety.key_file": str(tmp_path / "key"), "telemetry.outbox_mb": 0.001}
    settings = Settings.read(None, environ={}, flags=flags, system_file=tmp_path / "none")
    app, agent = (open_outbox(tmp_path / "data", settings) for _ in range(2))
    app.append("stats", make_record().to_bytes())
    assert agent.peek()[0].payload == make_record().to_bytes()
    assert b"cam-1" not in (tmp_path / "data/outbox.db-wal").read_bytes()
    with pytest.raises(InputError, match="the outbox holds 1048"):
        app.append("stats", bytes(2000))
