"""What the controller holds against, or for, a device: alerts that it sent, and the heads of its audit log.

Both stand in the fleet store's file, so a restart loses nothing. A security alert, from the device or found here,
stands until an operator acknowledges it: a device that was taken over would say that all is well. The rest is cleared
by the device that raised it.

The audit log's newest (sequence, hash) comes with every report, and with events. Within one life the sequence never
falls and a number never has two hashes; a device that contradicts what it said before has lost or rewritten its log. A
data folder that was made anew begins another life, which is told as well, or deleting one file would hide a rewrite.

Reports and events are kept apart: events never push out a head that was reported, and a device with more lives than are
kept is told of, while the lives before stay.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from sqlite3 import Connection
from typing import Literal

from kasmina_edge.contracts.record import DeviceAlert, Reported
from kasmina_edge.errors import InputError
from kasmina_edge.safety.alerts import Alert, Severity
from kasmina_edge.safety.audit import Head
from kasmina_edge.safety.security import SECURITY_KINDS, SECURITY_SEVERITY, SecurityKind, audit_conflict

log = logging.getLogger(__name__)

MAX_KINDS = 64
KEPT_HEADS = 512
KEPT_LIVES = 16
MAX_COUNTED = 2**53
_PARTS = ("state", "reported")

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS device_alert (
        device TEXT NOT NULL, kind TEXT NOT NULL, life TEXT NOT NULL, boot INTEGER NOT NULL, sequence INTEGER NOT NULL,
        raised INTEGER NOT NULL, latched INTEGER NOT NULL, at_s REAL NOT NULL, received_s REAL NOT NULL,
        severity TEXT NOT NULL, message TEXT NOT NULL, value REAL, line REAL, times INTEGER NOT NULL,
        PRIMARY KEY (device, kind)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS audit_head (
        device TEXT NOT NULL, life TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL, received_s REAL NOT NULL,
        reported INTEGER NOT NULL, PRIMARY KEY (device, life, seq)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS order_let_go (device TEXT NOT NULL, part TEXT NOT NULL, PRIMARY KEY (device, part)) "
    "WITHOUT ROWID",
)
TABLES = ("device_alert", "audit_head", "order_let_go")


def prepare(db: Connection) -> None:
    """Make the tables in a file that has none yet, also in one of an earlier release."""
    for statement in SCHEMA:
        db.execute(statement)


def take_alert(db: Connection, alert: DeviceAlert, now_s: float) -> bool:
    """Keep what a device raised or cleared; False when it is not news.

    Raises:
        InputError: The device sends more kinds than there can be.
    """
    row = db.execute(
        "SELECT life, boot, sequence, latched, times FROM device_alert WHERE device = ? AND kind = ?",
        (alert.device, alert.kind),
    ).fetchone()
    if row is not None and row[0] == alert.life and (alert.boot, alert.sequence) <= (row[1], row[2]):
        return False
    if row is None:
        (kinds,) = db.execute("SELECT count(*) FROM device_alert WHERE device = ?", (alert.device,)).fetchone()
        if kinds >= MAX_KINDS:
            raise InputError(f"{alert.device}: {kinds} kinds of alerts are kept, no place for {alert.kind}")
    raised = alert.state == "raised"
    times = (row[4] if row else 0) + raised
    if row is not None and row[3]:  # the first message of what is held stays readable
        db.execute(
            "UPDATE device_alert SET life = ?, boot = ?, sequence = ?, times = ? WHERE device = ? AND kind = ?",
            (alert.life, alert.boot, alert.sequence, times, alert.device, alert.kind),
        )
        return True
    security = alert.kind in SECURITY_KINDS
    severity = next((SECURITY_SEVERITY[k] for k in SECURITY_KINDS if k == alert.kind), alert.severity)
    db.execute(
        "INSERT OR REPLACE INTO device_alert VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            alert.device, alert.kind, alert.life, alert.boot, alert.sequence, raised, raised and security, alert.at_s,
            now_s, severity, alert.message, alert.value, alert.limit, times,
        ),
    )  # fmt: skip
    return True


def latch(db: Connection, device: str, kind: SecurityKind, message: str, now_s: float) -> None:
    """Hold a security alert that was found here; the first message stays until it is acknowledged."""
    log.error("%s: %s", device, message, extra={"device": device, "alert": kind})
    changed = db.execute(
        "UPDATE device_alert SET times = times + 1 WHERE device = ? AND kind = ? AND latched = 1", (device, kind)
    ).rowcount
    if changed:
        return
    db.execute(
        "INSERT INTO device_alert VALUES (?, ?, '', 0, 0, 1, 1, ?, ?, ?, ?, NULL, NULL, 1) ON CONFLICT (device, kind) "
        "DO UPDATE SET raised = 1, latched = 1, at_s = excluded.at_s, received_s = excluded.received_s, "
        "severity = excluded.severity, message = excluded.message, value = NULL, line = NULL, times = times + 1",
        (device, kind, now_s, now_s, SECURITY_SEVERITY[kind], message),
    )


def standing(db: Connection) -> dict[str, list[Alert]]:
    """Alerts that stand, by device: raised by it and not cleared, or security alerts that nobody acknowledged."""
    found: dict[str, list[Alert]] = {}
    for device, kind, severity, message, value, line, times in db.execute(
        "SELECT device, kind, severity, message, value, line, times FROM device_alert WHERE raised = 1 OR latched = 1 "
        "ORDER BY device, kind"
    ):
        told = f"{message} ({times} times)" if times > 1 and kind in SECURITY_KINDS else message
        level: Severity = "critical" if severity == "critical" else "warning"
        found.setdefault(device, []).append(Alert(device, kind, level, told, value, line))
    return found


def acknowledge(db: Connection, device: str, kinds: Sequence[str] | None = None) -> tuple[str, ...]:
    """Let go the security alerts of a device, all or some kinds; gives the kinds that stood.

    A regress of the audit log is let go together with the heads before it: the log that the device has now counts, and
    so does the next birth and report, whatever its boot counter (see `order_was_let_go`). With a new life the lives
    before it are forgotten.
    """
    rows = db.execute("SELECT kind FROM device_alert WHERE device = ? AND latched = 1 ORDER BY kind", (device,))
    stood = tuple(kind for (kind,) in rows if kinds is None or kind in kinds)
    for kind in stood:
        db.execute(
            "UPDATE device_alert SET latched = 0, raised = 0, times = 0 WHERE device = ? AND kind = ?", (device, kind)
        )
        if kind == "audit_regress":
            db.execute("DELETE FROM audit_head WHERE device = ?", (device,))
            db.executemany("INSERT OR IGNORE INTO order_let_go VALUES (?, ?)", ((device, p) for p in _PARTS))
        elif kind == "new_life":
            db.execute(
                "DELETE FROM audit_head WHERE device = ?1 AND life <> (SELECT life FROM audit_head WHERE device = ?1 "
                "ORDER BY reported DESC, received_s DESC LIMIT 1)",
                (device,),
            )
    return stood


def order_was_let_go(db: Connection, device: str, part: Literal["state", "reported"], *, taken: bool) -> bool:
    """Whether an operator let the order of messages go and none was taken since; ``taken`` ends it."""
    where = "FROM order_let_go WHERE device = ? AND part = ?"
    if taken:
        return bool(db.execute(f"DELETE {where}", (device, part)).rowcount)
    return db.execute(f"SELECT 1 {where}", (device, part)).fetchone() is not None


def was_put_back(db: Connection, known: Reported, news: Reported) -> bool:
    """Whether a report with a lower boot comes from a data folder that was put back to an earlier state.

    A report that is merely late repeats what was reported before. One of a restored folder is newer by the device's
    clock, and its audit log was never told of and contradicts what was: `note_report` holds that against it.
    """
    if known.life != news.life or news.boot >= known.boot or news.at_s <= known.at_s:
        return False
    if news.audit_seq is None or news.audit_hash is None:
        return False
    told = _told(db, news, known)
    if told.get(news.audit_seq) == news.audit_hash:
        return False
    heads = {**_heads(db, news.device, news.life), **told}
    return audit_conflict(heads, news.audit_seq, news.audit_hash) is not None or news.audit_seq < max(told, default=0)


def note_report(db: Connection, known: Reported | None, news: Reported, now_s: float) -> None:
    """Compare a report that is newer than ``known`` with what the device said of its audit log before."""
    if known is not None and known.life and news.life and known.life != news.life:
        latch(
            db, news.device, "new_life",
            f"the data folder was made anew: life {known.life[:8]} at boot {known.boot} is now {news.life[:8]} at boot "
            f"{news.boot}",
            now_s,
        )  # fmt: skip
    if known is not None and known.life == news.life and known.audit_seq is not None and news.audit_seq is None:
        latch(
            db, news.device, "audit_regress",
            f"the device stopped saying where its audit log stands; entry {known.audit_seq} was the last", now_s,
        )  # fmt: skip
    if news.audit_seq is None or news.audit_hash is None:
        return
    told = _told(db, news, known)
    heads = {**_heads(db, news.device, news.life), **told}
    conflict = audit_conflict(heads, news.audit_seq, news.audit_hash)
    newest = max(told, default=0)
    if conflict is None and news.audit_seq < newest:
        conflict = f"the log ends at entry {news.audit_seq}, entry {newest} {heads[newest][:12]} was told before"
    if conflict is not None:
        latch(db, news.device, "audit_regress", f"audit log: {conflict}", now_s)
        return
    _keep(db, news.device, news.life, Head(news.audit_seq, news.audit_hash), now_s, reported=True)


def note_event(db: Connection, device: str, payload: bytes, now_s: float) -> None:
    """Compare an audit event with what is known; events come late and more than once, so only contradictions count."""
    try:
        value = json.loads(payload)
        life, entry = value.get("life", ""), value["audit"]
        seq, entry_hash, prev = entry["seq"], entry["hash"], entry["prev"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    sound = isinstance(life, str) and len(life) <= 64 and type(seq) is int and 1 <= seq <= MAX_COUNTED
    if not sound or not (_is_hash(entry_hash) and _is_hash(prev)):
        return
    conflict = audit_conflict(_heads(db, device, life), seq, entry_hash, prev)
    if conflict is not None:
        latch(db, device, "audit_regress", f"audit log: {conflict}", now_s)
        return
    _keep(db, device, life, Head(seq, entry_hash), now_s, reported=False)


def _heads(db: Connection, device: str, life: str) -> dict[int, str]:
    return dict(db.execute("SELECT seq, hash FROM audit_head WHERE device = ? AND life = ?", (device, life)).fetchall())


def _told(db: Connection, news: Reported, known: Reported | None) -> dict[int, str]:
    """Heads of the life of ``news`` that came with reports, the last one included."""
    rows = db.execute(
        "SELECT seq, hash FROM audit_head WHERE device = ? AND life = ? AND reported = 1", (news.device, news.life)
    )
    told: dict[int, str] = dict(rows.fetchall())
    if known is not None and known.life == news.life and known.audit_seq is not None and known.audit_hash is not None:
        told[known.audit_seq] = known.audit_hash
    return told


def _keep(db: Connection, device: str, life: str, head: Head, now_s: float, *, reported: bool) -> None:
    if not _has_place(db, device, life, reported=reported):
        latch(
            db, device, "audit_regress",
            f"the device speaks of more than {KEPT_LIVES} lives; life {life[:8]}, entry {head.seq}, is not kept", now_s,
        )  # fmt: skip
        return
    db.execute(
        "INSERT INTO audit_head VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device, life, seq) DO UPDATE SET "
        "received_s = excluded.received_s, reported = max(reported, excluded.reported)",
        (device, life, head.seq, head.hash, now_s, reported),
    )
    order = "seq" if reported else "received_s"
    old = db.execute(
        "SELECT seq FROM audit_head WHERE device = ? AND life = ? AND reported = ? "  # noqa: S608 - the words above
        f"ORDER BY {order} DESC LIMIT -1 OFFSET ?",
        (device, life, reported, KEPT_HEADS),
    ).fetchall()
    db.executemany(
        "DELETE FROM audit_head WHERE device = ? AND life = ? AND seq = ?", [(device, life, seq) for (seq,) in old]
    )


def _has_place(db: Connection, device: str, life: str, *, reported: bool) -> bool:
    """Whether a life is known, or one more may be; a reported one takes the place of one that only events name."""
    lives = db.execute(
        "SELECT life, max(reported) FROM audit_head WHERE device = ? GROUP BY life ORDER BY max(received_s)", (device,)
    ).fetchall()
    if len(lives) < KEPT_LIVES or any(life == known for known, _ in lives):
        return True
    claimed = next((known for known, was_reported in lives if not was_reported), None)
    if claimed is None or not reported:
        return False
    db.execute("DELETE FROM audit_head WHERE device = ? AND life = ?", (device, claimed))
    return True


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
