"""Logs as JSON lines, one object an event, each with the experiment it belongs to.

Fields given by ``extra={...}`` become keys of the object. Values whose key speaks of a secret are blanked.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET = re.compile(r"password|passwd|secret|token|private|credential|api_?key", re.IGNORECASE)
_MAX_TEXT = 4000


class JsonLines(logging.Formatter):
    """One JSON object a record: ``at``, ``level``, ``logger``, ``message``, ``experiment_id``, then extra fields.

    Args:
        experiment_id: Stands in every line; a record's own ``experiment_id`` wins.

    >>> record = logging.makeLogRecord({"msg": "started", "levelname": "INFO", "created": 0.0, "password": "p"})
    >>> line = json.loads(JsonLines("e1").format(record))
    >>> line["at"], line["message"], line["experiment_id"], line["password"]
    ('1970-01-01T00:00:00.000Z', 'started', 'e1', '***')
    """

    def __init__(self, experiment_id: str) -> None:
        super().__init__()
        self._experiment_id = experiment_id

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
        for name, value in vars(record).items():
            if name not in _STANDARD and not name.startswith("_"):
                line[name] = "***" if _SECRET.search(name) else _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))[-_MAX_TEXT:]
        return json.dumps(line, ensure_ascii=False)


def configure(experiment_id: str, level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error when None) as JSON lines; calling it again replaces that.

    Args:
        experiment_id: What the lines belong to; empty when this is no experiment.
        level: Least severe level that is written.
        stream: An open text stream.
    """
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, JsonLines)]:
        root.removeHandler(old)
    new = logging.StreamHandler(stream or sys.stderr)
    new.setFormatter(JsonLines(experiment_id))
    root.addHandler(new)
    root.setLevel(level.upper() if isinstance(level, str) else level)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, str) else value[:_MAX_TEXT]
    return str(value)[:_MAX_TEXT]
