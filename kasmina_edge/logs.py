"""Logs as JSON lines, one object an event, each with the experiment and the trace it belongs to.

Fields given by ``extra={...}`` become keys of the object. Values whose key speaks of a secret are blanked, also inside
mappings.

A *trace* ties together what one update causes, on the controller and on every device, from publication to commit or
rollback. Its id has the form of W3C Trace Context (2021, section 3.2): 16 bytes in hex. It is computed from what was
published (`publication_trace`), so no message has to carry it; each attempt on each device is a *span* of its own, 8
random bytes. `tracing` sets both for everything that is logged or written to the audit log within its block.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any, NamedTuple, TextIO

from kasmina_edge.errors import InputError

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET = re.compile(r"password|passwd|secret|token|private|credential|api_?key", re.IGNORECASE)
_MAX_TEXT = 4000
_MAX_ITEMS = 64
_MAX_DEPTH = 4
_TRACE, _SPAN = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class Trace(NamedTuple):
    """What the work of this moment belongs to: 32 hex digits, and the attempt's own 16."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """The header of W3C Trace Context, version 00, sampled."""
        return f"00-{self.trace_id}-{self.span_id}-01"


_current: ContextVar[Trace | None] = ContextVar("kasmina_trace", default=None)


def current_trace() -> Trace | None:
    """The trace of the block that runs; a thread begins without one."""
    return _current.get()


@contextmanager
def tracing(trace_id: str, span_id: str | None = None) -> Iterator[Trace]:
    """Everything logged or audited within the block belongs to this trace; blocks nest.

    Args:
        trace_id: 32 lower-case hex digits, not all zero.
        span_id: 16 lower-case hex digits; random when None.

    Raises:
        InputError: Not such digits.
    """
    trace = Trace(trace_id, span_id or new_span_id())
    if not _TRACE.fullmatch(trace_id) or not _SPAN.fullmatch(trace.span_id) or not trace_id.strip("0"):
        raise InputError(f"trace {trace_id!r}, span {trace.span_id!r}: expected 32 and 16 hex digits, not all zero")
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def publication_trace(digest: str, release: int) -> str:
    """The trace id of one publication, the same wherever it is computed.

    Args:
        digest: The bundle's content digest.
        release: Its release number.

    >>> publication_trace("ab" * 32, 3)
    'd2d0aa308d739a5f0650c7e7d4572f0e'
    """
    return sha256(f"kasmina publication {digest} {release}".encode()).hexdigest()[:32]


def new_trace_id() -> str:
    """A random trace id, for work that no publication caused."""
    return secrets.token_hex(16)


def new_span_id() -> str:
    """A random span id."""
    return secrets.token_hex(8)


class JsonLines(logging.Formatter):
    """One JSON object a record: ``at``, ``level``, ``logger``, ``message``, ``experiment_id``, then extra fields.

    Within `tracing` the object also has ``trace_id`` and ``span_id``.

    Args:
        experiment_id: Stands in every line; a record's own ``experiment_id`` wins.
        for_journal: Begin each line with ``<N>``, the syslog priority that journald takes off again (sd-daemon(3)).

    >>> record = logging.makeLogRecord({"msg": "started", "levelname": "INFO", "created": 0.0, "password": "p"})
    >>> line = json.loads(JsonLines("e1").format(record))
    >>> line["at"], line["message"], line["experiment_id"], line["password"]
    ('1970-01-01T00:00:00.000Z', 'started', 'e1', '***')
    """

    def __init__(self, experiment_id: str, *, for_journal: bool = False) -> None:
        super().__init__()
        self._experiment_id = experiment_id
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{moment}.{int(record.created * 1000) % 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_TEXT],
            "experiment_id": self._experiment_id,
        }
        trace = current_trace()
        if trace is not None:
            line |= trace._asdict()
        for name, value in vars(record).items():
            if name not in _STANDARD and not name.startswith("_"):
                line[name] = _BLANK if _SECRET.search(name) else _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))[-_MAX_TEXT:]
        text = json.dumps(line, ensure_ascii=False)
        return f"<{_priority(record.levelno)}>{text}" if self._for_journal else text


def configure(experiment_id: str, level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error when None) as JSON lines; calling it again replaces that.

    Under systemd, where the stream is the journal's, each line carries its priority.

    Args:
        experiment_id: What the lines belong to; empty when this is no experiment.
        level: Least severe level that is written.
        stream: An open text stream.
    """
    out = stream or sys.stderr
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, JsonLines)]:
        root.removeHandler(old)
    new = logging.StreamHandler(out)
    new.setFormatter(JsonLines(experiment_id, for_journal=is_journal(out, os.environ)))
    root.addHandler(new)
    root.setLevel(level.upper() if isinstance(level, str) else level)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream goes to journald: ``JOURNAL_STREAM`` names its device and inode (systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


_BLANK = "***"


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        items = list(value.items())[:_MAX_ITEMS]
        return {str(k): _BLANK if _SECRET.search(str(k)) else _plain(v, depth + 1) for k, v in items}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value[:_MAX_ITEMS]]
    return str(value)[:_MAX_TEXT]
