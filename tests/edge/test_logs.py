"""Log lines: one JSON object each, with the experiment and the trace, without secrets."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasmina_edge.errors import InputError
from kasmina_edge.logs import (
    JsonLines,
    configure,
    current_trace,
    is_journal,
    new_trace_id,
    publication_trace,
    tracing,
)
from kasmina_edge.safety.audit import AuditLog, tail, verify


@pytest.fixture
def root_as_it_was() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield root
    root.setLevel(level)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)


def test_lines_are_objects_with_the_experiment_and_extra_fields(root_as_it_was: logging.Logger) -> None:
    out = io.StringIO()
    configure("exp-7", "debug", out)
    configure("exp-8", logging.INFO, out)
    log = logging.getLogger("kasmina_edge.sample")
    log.debug("too quiet")
    log.info("dropped %d of\n%d", 1, 2, extra={"device": "cam-1", "share": 0.5, "path": Path("a/b"), "nothing": None})
    (line,) = [json.loads(text) for text in out.getvalue().splitlines()]
    assert line["message"] == "dropped 1 of\n2"
    assert (line["level"], line["logger"], line["experiment_id"]) == ("info", "kasmina_edge.sample", "exp-8")
    assert (line["device"], line["share"], line["path"], line["nothing"]) == ("cam-1", 0.5, "a/b", None)
    assert line["at"].endswith("Z") and len(line["at"]) == 24


def test_secrets_given_by_name_are_blanked(root_as_it_was: logging.Logger) -> None:
    out = io.StringIO()
    configure("", stream=out)
    extra = {"broker_password": "hunter2", "api_key": "hunter2", "privateKey": "hunter2", "public_key": "ab"}
    logging.getLogger("x").warning("connected", extra=extra)
    assert "hunter2" not in out.getvalue()
    assert json.loads(out.getvalue())["public_key"] == "ab"


def test_an_exception_stands_in_the_same_line(root_as_it_was: logging.Logger) -> None:
    out = io.StringIO()
    configure("e", stream=out)
    try:
        raise ValueError("bad value")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: bad value" in json.loads(line)["error"]


def test_a_record_may_belong_to_another_experiment() -> None:
    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", "experiment_id": "other"})
    assert json.loads(JsonLines("mine").format(record))["experiment_id"] == "other"


def line_of(**fields: object) -> dict[str, object]:
    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", **fields})
    found: dict[str, object] = json.loads(JsonLines("e").format(record))
    return found


def test_secrets_are_blanked_at_any_depth_and_no_value_breaks_the_line() -> None:
    line = line_of(
        settings={"broker": {"password": "hunter2", "port": 1}, "list": [{"token": "hunter2"}]},
        share=math.nan, deep=[[[[[["hunter3"]]]]]], path=Path("a"), mapping={1: {2: 3}},
    )  # fmt: skip
    assert "hunter2" not in json.dumps(line)
    assert line["settings"] == {"broker": {"password": "***", "port": 1}, "list": [{"token": "***"}]}
    assert line["share"] == "nan" and line["mapping"] == {"1": {"2": 3}}


def test_a_trace_stands_in_every_line_and_audit_entry_of_its_block(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.log", clock=lambda: 1.0)
    trace_id = publication_trace("ab" * 32, 7)
    assert "trace_id" not in line_of()
    with tracing(trace_id) as trace:
        assert line_of()["trace_id"] == trace_id and line_of()["span_id"] == trace.span_id
        with tracing(new_trace_id(), "0123456789abcdef") as inner:
            assert line_of()["span_id"] == "0123456789abcdef" and current_trace() == inner
        audit.append("committed", release=7)
    audit.append("agent_stopped")
    first, second = tail(tmp_path / "audit.log", 2)
    assert first.fields == {"release": 7, "trace_id": trace_id} and second.fields == {}
    assert verify(tmp_path / "audit.log").ok and current_trace() is None
    assert trace.traceparent == f"00-{trace_id}-{trace.span_id}-01"


def test_one_publication_has_one_trace_wherever_it_is_computed() -> None:
    assert publication_trace("ab" * 32, 7) == publication_trace("ab" * 32, 7)
    assert len({publication_trace("ab" * 32, 8), publication_trace("cd" * 32, 7), publication_trace("ab" * 32, 7)}) == 3


def test_an_attempt_has_a_span_of_its_own_and_a_thread_begins_without_a_trace() -> None:
    trace_id = new_trace_id()
    with tracing(trace_id) as first, tracing(trace_id) as second:
        assert first.span_id != second.span_id
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(current_trace()))
        thread.start()
        thread.join()
        assert seen == [None]


@pytest.mark.parametrize("wrong", ["", "0" * 32, "A" * 32, "ab" * 15, "zz" * 16])
def test_what_is_no_trace_id_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="32 and 16 hex digits"), tracing(wrong):
        pass


def test_lines_for_the_journal_begin_with_their_priority() -> None:
    for name, priority in {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}.items():
        record = logging.makeLogRecord({"msg": "a\nb", "levelname": name, "levelno": getattr(logging, name)})
        text = JsonLines("e", for_journal=True).format(record)
        assert text.startswith(f"<{priority}>{{") and "\n" not in text and json.loads(text[3:])["message"] == "a\nb"


def test_the_journal_is_told_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": "nonsense"}) and not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
