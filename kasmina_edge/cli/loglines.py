"""Log lines of a long-running verb: readable on a terminal, JSON anywhere else; nothing of what libraries write there.

Imports nothing heavy: the agent keeps what it imports.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO

from kasmina_edge.logs import configure

_MARKS = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}


class ReadableLines(logging.Formatter):
    """``12:00:01 cam-1  warning: text``, in the terminal's own time; control characters are written out.

    >>> record = logging.makeLogRecord({"msg": "up\\x1b[2J", "levelname": "INFO", "created": 0.0, "device": "cam-1"})
    >>> ReadableLines().format(record)[8:]
    ' cam-1  up\\\\x1b[2J'
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        who = "".join(f"{value} " for name, value in vars(record).items() if name == "device")
        text = f"{moment} {who} {_MARKS.get(record.levelname, '')}{record.getMessage()}"
        where = getattr(record, "where", None)
        lines = [text, *(str(where).splitlines() if where else ())]
        if record.exc_info and record.exc_info[0] is not None:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n".join(map(_printable, lines))


def configure_lines(experiment_id: str, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error): readable on a terminal, JSON elsewhere or when asked.

    Args:
        experiment_id: What JSON lines belong to.
        as_json: JSON on a terminal too.
        stream: An open text stream.
    """
    out = stream or sys.stderr
    configure(experiment_id, stream=out)
    if as_json or not out.isatty():
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is out:
            handler.setFormatter(ReadableLines())


def hush_native_libraries() -> None:
    """Send what C++ libraries write to file descriptor 2 to nowhere; Python's own ``stderr`` goes where it went."""
    kept = os.dup(2)
    sys.stderr = os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
