"""The audit log: one JSON line an event, each carrying the hash of the line before it.

What it proves. Changing, removing or reordering a line breaks the chain at that line. Cutting off the end leaves a
whole chain, so the newest hash is kept beside the log (``audit.head``): a log that ends before its head was cut. What
it does not prove: whoever can write both files can write a whole new history. Only a `Head` remembered elsewhere tells
that, and `verify` takes one: the floor file keeps one, and every report carries one to the controller.

A power cut may tear the last line. The next `append` then ends it and adds a ``log.repaired`` entry with the SHA-256 of
the torn bytes; `verify` accepts such a line only where the head shows that it was never acknowledged. A log that lost
acknowledged entries gets a ``log.damaged`` entry instead, and never verifies again.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.logs import current_trace
from kasmina_edge.storage import append_durable, as_storage_error, hold_lock, remove_temporaries, write_durable

MAX_ENTRY_BYTES = 16 * 1024
GENESIS = "0" * 64
REPAIRED, DAMAGED = "log.repaired", "log.damaged"
_LOCK_WAIT_S = 10.0
_TAIL_BYTES = 4 * MAX_ENTRY_BYTES
_EVENT = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_SECRET_WORDS = ("key", "token", "password", "passwd", "passphrase", "private", "secret", "credential")


@dataclass(frozen=True)
class Head:
    """The newest entry that was acknowledged: remember it elsewhere, and nobody can cut or rewrite what lies before."""

    seq: int
    hash: str


@dataclass(frozen=True)
class AuditEntry:
    """One line.

    Attributes:
        seq: Counts from 1 without a gap.
        at_s: Wall clock, seconds since 1970 UTC.
        event: What happened, e.g. ``committed``.
        fields: Plain values; never secrets.
        prev: Hash of the entry before; 64 zeros for the first.
        hash: SHA-256 of this entry's canonical bytes without this field.
    """

    seq: int
    at_s: float
    event: str
    fields: Mapping[str, Any]
    prev: str
    hash: str

    @property
    def head(self) -> Head:
        """What to remember of it elsewhere."""
        return Head(self.seq, self.hash)


@dataclass(frozen=True)
class AuditReport:
    """What `verify` found.

    Attributes:
        entries: Entries that are in order.
        ok: Whether the whole log is.
        first_bad_line: Line number from 1, or None; None with ``ok`` false means that lines are missing at the end.
        reason: One sentence.
        repaired: Torn lines that no acknowledged entry was lost with.
        head: The newest good entry, or None in an empty log.
    """

    entries: int
    ok: bool
    first_bad_line: int | None
    reason: str
    repaired: int = 0
    head: Head | None = None


class AuditLog:
    """Appends to one log; several processes may do so at once.

    Args:
        path: The log; ``audit.head`` is kept beside ``audit.log``.
        clock: Wall clock, seconds since 1970 UTC.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def append(self, event: str, **fields: Any) -> AuditEntry:
        """Write one event durably: two files, four flushes.

        Args:
            event: 1 to 64 of ``a-z 0-9 _ . -``, starting with a letter; ``log.`` is the log's own.
            fields: Plain JSON values by name; within `kasmina_edge.logs.tracing` a ``trace_id`` is added.

        Returns:
            The entry as it stands in the log.

        Raises:
            InputError: A name looks like a secret, a value is not plain JSON, or the entry is longer than 16 KiB.
            StorageError: The disk refused; the event is not in the log, or not acknowledged there: where only the head
                could not be written, it stands, and the next entry takes the chain up behind it.
        """
        if not _EVENT.fullmatch(event) or event.startswith("log."):
            raise InputError(f"event {event!r}: expected 1 to 64 of a-z, 0-9, _, . and -, and not log.*")
        trace = current_trace()
        if trace is not None:
            fields = {"trace_id": trace.trace_id, **fields}
        _refuse_secrets(fields, "fields")
        at_s = float(self._clock())
        _make_line(1, at_s, event, fields, GENESIS)  # before anything is touched: values and length
        with hold_lock(self._path, wait_s=_LOCK_WAIT_S):
            remove_temporaries(head_path(self._path))
            last, before = self._settle(at_s)
            line, head = _make_line(last.seq + 1, at_s, event, fields, last.hash)
            append_durable(self._path, before + line)
            write_durable(head_path(self._path), canonical_bytes({"hash": head.hash, "seq": head.seq}) + b"\n")
        return AuditEntry(head.seq, at_s, event, fields, last.hash, head.hash)

    def head(self) -> Head | None:
        """The newest entry that was acknowledged; None in an empty log.

        Raises:
            StorageError: The head cannot be read or is damaged.
        """
        return read_head(self._path)

    def _settle(self, at_s: float) -> tuple[Head, bytes]:
        """Where the chain goes on, and what has to be written first to end a torn or damaged log."""
        fault = ""
        try:
            known = read_head(self._path)
        except StorageError as exc:
            known, fault = None, exc.message
        good, torn, line_end = _read_end(self._path)
        newest = Head(good.seq, good.hash) if good is not None else Head(0, GENESIS)
        if known is None and newest.seq > 1:
            fault = fault or f"{head_path(self._path).name} was missing"
        elif known is not None and (newest.seq < known.seq or (newest.seq == known.seq and newest.hash != known.hash)):
            fault = (
                f"acknowledged up to entry {known.seq} {known.hash[:12]}, found entry {newest.seq} {newest.hash[:12]}"
            )
            newest = known
        if fault:
            line, head = _make_line(newest.seq + 1, at_s, DAMAGED, {"reason": fault}, newest.hash)
            return head, line_end + line
        if not torn:
            return newest, line_end
        told = {"torn_bytes": len(torn), "torn_sha256": sha256_hex(torn + line_end)}
        line, head = _make_line(newest.seq + 1, at_s, REPAIRED, told, newest.hash)
        return head, line_end + line


def head_path(path: Path) -> Path:
    """``audit.head`` for ``audit.log``."""
    return path.with_suffix(".head")


def read_head(path: Path) -> Head | None:
    """The head kept beside the log ``path``, or None when there is none.

    Raises:
        StorageError: It is damaged or cannot be read.
    """
    where = head_path(path)
    try:
        value = json.loads(where.read_bytes())
        head = Head(value["seq"], value["hash"])
        if type(head.seq) is not int or type(head.hash) is not str or len(head.hash) != 64:
            raise ValueError("not a sequence and a hash")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise as_storage_error(exc, where) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise StorageError(
            f"{where}: damaged ({exc})", "Keep a copy of log and head for whoever looks into it, then move both away."
        ) from exc
    return head


def verify(path: Path, *, remembered: Head | None = None, with_head: bool = True) -> AuditReport:
    """Walk the whole chain.

    Args:
        path: The log.
        remembered: A head from elsewhere; the log must contain it.
        with_head: Ask for the head beside the log; false for a copy that was taken without it, where cutting off the
            end then shows only against ``remembered``.

    Raises:
        StorageError: The log cannot be read, or its head is damaged.
    """
    kept = read_head(path) if with_head else None
    wanted = [h for h in (kept, remembered) if h is not None]
    acknowledged = max((h.seq for h in wanted), default=0)
    seen: set[Head] = {h for h in wanted if h.seq == 0}
    last, repaired = Head(0, GENESIS), 0
    torn_at, torn = 0, sha256()

    def bad(line: int | None, reason: str) -> AuditReport:
        return AuditReport(last.seq, False, line, reason, repaired, last if last.seq else None)

    for number, line in enumerate(_lines(path), start=1):
        entry = _parse_line(line)
        if entry is None:
            torn_at = torn_at or number
            torn.update(line)
            continue
        if torn_at:
            told = entry.event == REPAIRED and entry.fields.get("torn_sha256") == torn.hexdigest()
            if not told:
                return bad(torn_at, "not an entry of this log")
            repaired, torn_at, torn = repaired + 1, 0, sha256()
        if entry.prev != last.hash or entry.seq != last.seq + 1:
            return bad(
                number, f"entry {entry.seq} does not follow entry {last.seq}: lines were changed, removed or moved"
            )
        if entry.event == DAMAGED:
            return bad(number, f"the log was damaged before this line: {entry.fields.get('reason', '')}")
        last = Head(entry.seq, entry.hash)
        seen.update(h for h in wanted if h == last)
    if torn_at and last.seq < acknowledged:
        return bad(torn_at, "not an entry of this log")
    for head in wanted:
        if head not in seen:
            where = None if last.seq < head.seq else head.seq
            return bad(
                where, f"ends at entry {last.seq} and lacks entry {head.seq} {head.hash[:12]} that was acknowledged"
            )
    if with_head and kept is None and last.seq > 1:
        return bad(None, f"{head_path(path).name} is missing, so a cut-off end would not show")
    reason = f"{last.seq} entries in order" + (", a torn line at the end" if torn_at else "")
    return AuditReport(last.seq, True, None, reason, repaired, last if last.seq else None)


def tail(path: Path, n: int) -> list[AuditEntry]:
    """The last ``n`` entries that can be read, oldest first; nothing is verified.

    Raises:
        StorageError: The log cannot be read.
    """
    entries = (entry for entry in map(_parse_line, _lines(path)) if entry is not None)
    return list(deque(entries, maxlen=max(0, n)))


def _make_line(seq: int, at_s: float, event: str, fields: Mapping[str, Any], prev: str) -> tuple[bytes, Head]:
    body = {"seq": seq, "at_s": at_s, "event": event, "fields": dict(fields), "prev": prev}
    try:
        digest = sha256_hex(canonical_bytes(body))
        line = canonical_bytes({**body, "hash": digest}) + b"\n"
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"event {event}: fields are not plain JSON values ({exc})") from exc
    if len(line) > MAX_ENTRY_BYTES:
        raise InputError(f"event {event}: the entry has {len(line)} bytes, at most {MAX_ENTRY_BYTES} are written")
    return line, Head(seq, digest)


def _parse_line(line: bytes) -> AuditEntry | None:
    """The entry, when the line is whole, canonical and carries its own hash."""
    body = line.removesuffix(b"\n")
    if len(body) > MAX_ENTRY_BYTES:
        return None
    try:
        value = json.loads(body)
        entry = AuditEntry(**value)
        if type(entry.seq) is not int or canonical_bytes(value) != body:
            return None
        if not all(type(t) is str for t in (entry.event, entry.prev)) or not isinstance(entry.fields, dict):
            return None
        del value["hash"]
        return entry if entry.hash == sha256_hex(canonical_bytes(value)) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _read_end(path: Path) -> tuple[AuditEntry | None, bytes, bytes]:
    """The last good entry near the end, the bytes behind it, and the line end that is missing behind those."""
    try:
        with path.open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
            stream.seek(start)
            lines = stream.readlines()
    except OSError as exc:
        raise as_storage_error(exc, path) from exc
    line_end = b"\n" if lines and not lines[-1].endswith(b"\n") else b""
    for i in reversed(range(len(lines))):
        entry = _parse_line(lines[i])
        if entry is not None:
            return entry, b"".join(lines[i + 1 :]), line_end
    return None, b"".join(lines), line_end


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends; one longer than any entry comes in pieces, none of which parses."""
    try:
        with path.open("rb") as stream:
            while line := stream.readline(2 * MAX_ENTRY_BYTES):
                yield line
    except FileNotFoundError:
        return
    except OSError as exc:
        raise as_storage_error(exc, path) from exc


def _refuse_secrets(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if type(name) is not str:
                raise InputError(f"{where}: the name {name!r} is not text")
            if any(word in name.lower() for word in _SECRET_WORDS):
                raise InputError(f"{where}.{name}: looks like a secret, and the audit log keeps none")
            _refuse_secrets(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _refuse_secrets(inner, f"{where}[{i}]")
    elif isinstance(value, str) and "PRIVATE KEY-----" in value:
        raise InputError(f"{where}: holds a private key, and the audit log keeps none")
