"""The controller's memory: what devices said, in one SQLite file.

Telemetry is kept as received, one compressed batch a row, beside a small summary of each device that the monitor reads.
Everything is accepted at least once and counted once: repeated telemetry, reports, states and captures change nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from sqlite3 import Connection

from kasmina_edge.contracts.change_plan import Erasure
from kasmina_edge.contracts.record import DeviceAlert, DeviceState, Reported, TelemetryRecord
from kasmina_edge.errors import InputError, TrustError
from kasmina_edge.fleet import ledger
from kasmina_edge.fleet.monitor import DeviceView, window_view, with_alerts
from kasmina_edge.fleet.rows import load_row, name_of, read_batch, read_names, read_windows, view_of
from kasmina_edge.safety.alerts import AlertLimits
from kasmina_edge.safety.encryption import same_bytes
from kasmina_edge.storage import hold_lock, make_private_folder
from kasmina_edge.telemetry.capture import read_header, verify_capture
from kasmina_edge.telemetry.publisher import MAX_DECODED_RECORDS, encode_batch
from kasmina_edge.telemetry.sqlite_file import SqliteFile

VERSION = 1
KEPT_WINDOWS = 30
KEPT_NAMES = 256
KEEP_TELEMETRY_S = 30 * 86_400.0
MAX_CAPTURES = 50_000
MAX_CAPTURE_BYTES = 2 * 1024**3
MAX_EVENTS = 10_000

_SCHEMA = """
CREATE TABLE telemetry (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, received_s REAL NOT NULL, first_s REAL NOT NULL,
    last_s REAL NOT NULL, records INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX telemetry_device ON telemetry (device, last_s);
CREATE INDEX telemetry_age ON telemetry (received_s);
CREATE TABLE device (
    device TEXT PRIMARY KEY, heard_s REAL NOT NULL, state BLOB, reported BLOB, latest BLOB, windows TEXT, names BLOB
) WITHOUT ROWID;
CREATE TABLE capture (
    device TEXT NOT NULL, sequence INTEGER NOT NULL, received_s REAL NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (device, sequence)
);
CREATE TABLE event (id INTEGER PRIMARY KEY, device TEXT NOT NULL, received_s REAL NOT NULL, payload BLOB NOT NULL);
CREATE INDEX event_device ON event (device, id);
CREATE TABLE expectation (bundle TEXT PRIMARY KEY, accuracy REAL NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True)
class StoredCapture:
    """A sealed frame as it arrived; ``received_s`` is the controller's clock."""

    device: str
    sequence: int
    received_s: float
    payload: bytes


@dataclass(frozen=True)
class StoredEvent:
    """An audit event as it arrived."""

    device: str
    received_s: float
    payload: bytes


def accepts_state(known: DeviceState | None, news: DeviceState) -> bool:
    """Whether a birth or will is news: a will of an earlier boot, or of an earlier connection of this one, is not.

    A data folder that was made anew (another ``life``) counts its boots from the beginning, and is news. So is a birth
    of a lower boot that is later by the device's clock: the folder was put back to an earlier state. A will never
    is: it may come late.

    >>> birth = DeviceState(device="cam-1", online=True, boot=2)
    >>> accepts_state(birth, DeviceState(device="cam-1", online=False, boot=1))
    False
    """
    if known is None or _is_another_life(known, news) or news.boot > known.boot:
        return True
    if news == known:
        return False
    timed = news.at_s is not None and known.at_s is not None
    if news.boot < known.boot:
        return news.online and timed and (news.at_s or 0.0) > (known.at_s or 0.0)
    late = timed and (news.at_s or 0.0) < (known.at_s or 0.0)
    return not (late and not news.online)


def accepts_reported(known: Reported | None, news: Reported) -> bool:
    """Whether a report is newer than the known one: of another life, or by boot and sequence."""
    if known is None or _is_another_life(known, news):
        return True
    return (news.boot, news.sequence) > (known.boot, known.sequence)


def _is_another_life(known: DeviceState | Reported, news: DeviceState | Reported) -> bool:
    return bool(known.life and news.life and known.life != news.life)


class FleetStore:
    """Everything the controller remembers of its devices; safe for several threads and processes.

    Args:
        path: The SQLite file, made 0600 when missing; ``NAME.lock`` lies beside it.
        clock: The controller's wall clock, seconds since 1970 UTC.
        limits: Where the alert lines of `devices` are.
        keep_telemetry_s: Telemetry that arrived earlier is removed as new telemetry comes in.
        is_erased: Whether a capture of a device at a moment must not be kept.
        key_of: Ed25519 public key (hex) of an enrolled device, None for one that is not: captures are then checked as
            they come. Without it, `open_capture` checks them later.
        max_capture_bytes: Most that the captures of one device may take.

    Raises:
        StorageError: The disk refuses, the file is damaged, or of another schema version.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        limits: AlertLimits | None = None,
        keep_telemetry_s: float = KEEP_TELEMETRY_S,
        is_erased: Callable[[str, float], bool] = lambda device, at_s: False,
        key_of: Callable[[str], str | None] | None = None,
        max_capture_bytes: int = MAX_CAPTURE_BYTES,
    ) -> None:
        self._max_capture_bytes = max_capture_bytes
        self._is_erased = is_erased
        self._key_of = key_of
        self._clock = clock
        self._limits = limits or AlertLimits()
        self._keep_telemetry_s = keep_telemetry_s
        make_private_folder(path.parent)
        with hold_lock(path.with_name(path.name + ".lock"), wait=True):
            self._file = SqliteFile(path, schema=_SCHEMA, version=VERSION, check=False)
            with self._file.write() as db:
                ledger.prepare(db)

    def record_telemetry(self, records: Iterable[TelemetryRecord]) -> int:
        """Keep records, committed when this returns.

        Args:
            records: As they came in one message, of any devices; repeated ones are left out.

        Returns:
            How many were new.
        """
        now = self._clock()
        added = 0
        with self._file.write() as db:
            for device, group in groupby(sorted(records, key=lambda r: r.device), key=lambda r: r.device):
                for part in _chunks(list(group), MAX_DECODED_RECORDS):
                    added += self._record_part(db, device, part, now)
            db.execute("DELETE FROM telemetry WHERE received_s < ?", (now - self._keep_telemetry_s,))
        return added

    def telemetry(self, device: str, since: float = 0.0) -> list[TelemetryRecord]:
        """Records of windows that began at or after ``since`` (device clock), in the order of their beginning."""
        with self._file.read() as db:
            rows = db.execute(
                "SELECT body FROM telemetry WHERE device = ? AND last_s >= ? ORDER BY id", (device, since)
            ).fetchall()
        found = [record for (body,) in rows for record in read_batch(device, body) if record.started_s >= since]
        return sorted(found, key=lambda r: r.started_s)

    def set_reported(self, reported: Reported) -> bool:
        """Keep what a device runs; False when it is not newer than what is known.

        What it says of its audit log is held against what it said before: see `kasmina_edge.fleet.ledger`.
        """
        with self._file.write() as db:
            known = load_row(Reported, self._cell(db, reported.device, "reported"), reported.device)
            if not (
                accepts_reported(known, reported)
                or (known is not None and ledger.was_put_back(db, known, reported))
                or (known != reported and ledger.order_was_let_go(db, reported.device, "reported", taken=False))
            ):
                return False
            ledger.order_was_let_go(db, reported.device, "reported", taken=True)
            ledger.note_report(db, known, reported, self._clock())
            self._put(db, reported.device, "reported", reported.to_bytes())
        return True

    def set_state(self, state: DeviceState) -> bool:
        """Keep a birth or will; False for a late one (see `accepts_state`)."""
        with self._file.write() as db:
            known = load_row(DeviceState, self._cell(db, state.device, "state"), state.device)
            let_go = state.online and known != state
            if not accepts_state(known, state) and not (
                let_go and ledger.order_was_let_go(db, state.device, "state", taken=False)
            ):
                return False
            ledger.order_was_let_go(db, state.device, "state", taken=True)
            self._put(db, state.device, "state", state.to_bytes(), heard=state.online)
        return True

    def set_expected_accuracy(self, bundle: str, accuracy: float) -> None:
        """Say what a bundle was accepted at; without it, field accuracy is shown and never alerted.

        Args:
            bundle: As telemetry names it (its digest), or ``NAME VERSION``.
            accuracy: Share of 1, on clean data.

        Raises:
            InputError: ``accuracy`` outside 0 to 1.
        """
        if not 0.0 <= accuracy <= 1.0:
            raise InputError(f"accuracy {accuracy} of {bundle}: expected 0 to 1")
        with self._file.write() as db:
            db.execute("INSERT OR REPLACE INTO expectation VALUES (?, ?)", (bundle, accuracy))

    def add_capture(self, device: str, payload: bytes, *, device_public_hex: str | None = None) -> bool:
        """Keep a sealed frame; False when it is there already.

        Args:
            device: Whose topic it came on.
            payload: As `CaptureStore.upload` made it.
            device_public_hex: Check the signature with this key, rather than with what ``key_of`` says.

        Raises:
            TrustError: Not a captured frame, of another or an unknown device, not signed by it, or its sequence was
                used before.
            InputError: The device has too many, or an erasure covers the frame.
        """
        if device_public_hex is None and self._key_of is not None:
            device_public_hex = self._key_of(device)
            if device_public_hex is None:
                raise TrustError(f"a capture of {device}: no such device is enrolled")
        header = read_header(payload) if device_public_hex is None else verify_capture(payload, device_public_hex)
        if header.device != device:
            raise TrustError(f"capture {header.sequence}: sent by {device} in the name of {header.device}")
        with self._file.write() as db:
            if self._is_erased(device, header.at_s):  # asked here, or an erasure could pass between answer and insert
                raise InputError(f"capture {header.sequence} of {device}: an erasure covers it, it is not kept")
            known = db.execute(
                "SELECT payload FROM capture WHERE device = ? AND sequence = ?", (device, header.sequence)
            ).fetchone()
            if known is not None:
                if same_bytes(known[0], payload):
                    return False
                raise TrustError(f"capture {header.sequence} of {device}: this sequence holds another frame already")
            count, held_bytes = db.execute(
                "SELECT count(*), total(length(payload)) FROM capture WHERE device = ?", (device,)
            ).fetchone()
            if count >= MAX_CAPTURES or held_bytes + len(payload) > self._max_capture_bytes:
                raise InputError(
                    f"{device}: {count} captured frames of {held_bytes:.0f} bytes are held, at most {MAX_CAPTURES} "
                    f"frames and {self._max_capture_bytes} bytes are kept"
                )
            db.execute("INSERT INTO capture VALUES (?, ?, ?, ?)", (device, header.sequence, self._clock(), payload))
        return True

    def erase_captures(
        self, erasure: Erasure, note: Callable[[Sequence[tuple[str, int]]], None] = lambda gone: None
    ) -> list[tuple[str, int]]:
        """Remove every captured frame that ``erasure`` covers, and overwrite it in the file and in its log.

        Args:
            erasure: What is to go.
            note: Told what will be removed, before it is; when it raises, nothing is removed.

        Returns:
            Device and sequence of each, in order.
        """
        where, values = ("WHERE device = ?", (erasure.device,)) if erasure.device is not None else ("", ())
        query = f"SELECT device, sequence, payload FROM capture {where} ORDER BY device, sequence"  # noqa: S608
        with self._file.rewrite() as db:
            gone = [
                (device, sequence)
                for device, sequence, payload in db.execute(query, values)
                if erasure.covers(device, read_header(payload).at_s)
            ]
            note(gone)
            db.executemany("DELETE FROM capture WHERE device = ? AND sequence = ?", gone)
        return gone

    def captures(self, device: str | None = None) -> list[StoredCapture]:
        """Sealed frames of one device, or of all, by sequence."""
        where, values = ("WHERE device = ?", (device,)) if device is not None else ("", ())
        query = f"SELECT device, sequence, received_s, payload FROM capture {where} ORDER BY device, sequence"  # noqa: S608
        with self._file.read() as db:
            return [StoredCapture(*row) for row in db.execute(query, values)]

    def add_alert(self, alert: DeviceAlert) -> bool:
        """Keep what a device raised or cleared; False when it is not newer than what is known.

        Raises:
            InputError: The device sends more kinds of alerts than are kept.
        """
        with self._file.write() as db:
            return ledger.take_alert(db, alert, self._clock())

    def acknowledge(self, device: str, kinds: Sequence[str] | None = None) -> tuple[str, ...]:
        """Let go the security alerts of a device that stand until somebody looked; gives their kinds."""
        with self._file.write() as db:
            return ledger.acknowledge(db, device, kinds)

    def add_event(self, device: str, payload: bytes) -> None:
        """Keep an audit event as it came; of each device the last `MAX_EVENTS` stay."""
        with self._file.write() as db:
            ledger.note_event(db, device, payload, self._clock())
            db.execute(
                "INSERT INTO event (device, received_s, payload) VALUES (?, ?, ?)", (device, self._clock(), payload)
            )
            db.execute(
                "DELETE FROM event WHERE device = ? AND id <= "
                "(SELECT id FROM event WHERE device = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (device, device, MAX_EVENTS),
            )

    def events(self, device: str, limit: int = 100) -> list[StoredEvent]:
        """The last events of a device, oldest first."""
        with self._file.read() as db:
            rows = db.execute(
                "SELECT device, received_s, payload FROM event WHERE device = ? ORDER BY id DESC LIMIT ?",
                (device, limit),
            ).fetchall()
        return [StoredEvent(*row) for row in reversed(rows)]

    def devices(self) -> list[DeviceView]:
        """What is known of every device, with the alerts that stand now, by device id."""
        now = self._clock()
        with self._file.read() as db:
            expected = dict(db.execute("SELECT bundle, accuracy FROM expectation").fetchall())
            rows = db.execute(
                "SELECT device, heard_s, state, reported, latest, windows FROM device ORDER BY device"
            ).fetchall()
            held = ledger.standing(db)
        views = [replace(view_of(row, expected), held=tuple(held.pop(row[0], ()))) for row in rows]
        views += [DeviceView(device=device, held=tuple(alerts)) for device, alerts in held.items()]
        return [with_alerts(view, now=now, limits=self._limits) for view in sorted(views, key=lambda v: v.device)]

    def forget(self, device: str) -> None:
        """Remove everything of a device: it was revoked or enrolled anew, or its owner asks for erasure."""
        with self._file.rewrite() as db:
            for table in ("telemetry", "device", "capture", "event", *ledger.TABLES):
                db.execute(f"DELETE FROM {table} WHERE device = ?", (device,))  # noqa: S608 - the names above

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._file.close()

    def _record_part(self, db: Connection, device: str, records: list[TelemetryRecord], now: float) -> int:
        row = db.execute("SELECT windows, names FROM device WHERE device = ?", (device,)).fetchone() or (None, None)
        windows, names = read_windows(row[0], device), read_names(row[1])
        known = set(names)
        fresh: list[TelemetryRecord] = []
        for record in records:
            name = name_of(record)
            if name not in known:
                known.add(name)
                names.append(name)
                fresh.append(record)
        if not fresh:
            return 0
        db.execute(
            "INSERT INTO telemetry (device, received_s, first_s, last_s, records, body) VALUES (?, ?, ?, ?, ?, ?)",
            (
                device, now, min(r.started_s for r in fresh), max(r.started_s for r in fresh), len(fresh),
                encode_batch([record.to_bytes() for record in fresh]),
            ),
        )  # fmt: skip
        windows = [*windows, *map(window_view, fresh)][-KEPT_WINDOWS:]
        db.execute(
            "INSERT INTO device (device, heard_s, latest, windows, names) VALUES (?, ?, ?, ?, ?) ON CONFLICT (device) "
            "DO UPDATE SET heard_s = excluded.heard_s, latest = excluded.latest, windows = excluded.windows, "
            "names = excluded.names",
            (
                device, now, fresh[-1].to_bytes(), json.dumps(windows),
                b"".join(names[-max(KEPT_NAMES, len(records)) :]),
            ),
        )  # fmt: skip
        return len(fresh)

    def _cell(self, db: Connection, device: str, column: str) -> bytes | None:
        row = db.execute(f"SELECT {column} FROM device WHERE device = ?", (device,)).fetchone()  # noqa: S608
        return None if row is None else row[0]

    def _put(self, db: Connection, device: str, column: str, value: bytes, *, heard: bool = True) -> None:
        db.execute(
            f"INSERT INTO device (device, heard_s, {column}) VALUES (?, ?, ?) "  # noqa: S608 - a literal of this file
            f"ON CONFLICT (device) DO UPDATE SET {column} = excluded.{column}"
            + (", heard_s = excluded.heard_s" if heard else ""),
            (device, self._clock(), value),
        )


def _chunks(records: list[TelemetryRecord], size: int) -> Iterator[list[TelemetryRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
