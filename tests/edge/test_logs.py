"""Log lines: one JSON object each, with the experiment, without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasmina_edge.logs import JsonLines, configure


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
