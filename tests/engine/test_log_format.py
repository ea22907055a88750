"""Lines of the log: text that stays one line, JSON whose values keep their types."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.log_format import JsonFormatter, TextFormatter, adopt_loggers, fields_of
from tests.conftest import ROOT


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("house.room", logging.INFO, "file.py", 1, message, args, None)
    vars(made).update(extra)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert line.isascii()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_a_line_of_json_tells_when_how_grave_who_and_what() -> None:
    made = record("ready model=%s port=%d", "tiny", 8000)
    made.created = 0.25
    line = as_json(made)
    assert line.pop("pid") == made.process
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "house.room",
        "message": "ready model=tiny port=8000",
        "fields": {"model": "tiny", "port": 8000},
    }


def test_fields_keep_their_types() -> None:
    made = record(
        "e a=%d b=%.2f c=%s d=%s f=%r g=%s://%s:%d h=%s i=100%% j=%s",
        3, 0.126, None, True, "x y", "http", "host", 80, 1.5, b"z",
    )  # fmt: skip
    assert fields_of(made) == {
        "a": 3,
        "b": 0.13,
        "c": None,
        "d": True,
        "f": "'x y'",
        "g": "http://host:80",
        "h": 1.5,
        "i": "100%",
        "j": "b'z'",
    }


def test_what_an_argument_holds_is_no_field() -> None:
    made = record("failed reason=%s pid=%d", "no room level=3 pid=9", 7)
    assert fields_of(made) == {"reason": "no room level=3 pid=9", "pid": 7}


def test_a_message_without_arguments_has_its_fields_written_out() -> None:
    told = fields_of(record("draft_not_used draft=x reason=too slow by half seconds=3"))
    assert told == {"draft": "x", "reason": "too slow by half", "seconds": "3"}


def test_messages_of_others_have_no_fields_but_their_text() -> None:
    for made in (record("%s is %*d", "a", 3, 4), record("a=%(b)s", {"b": 1}), record("100%")):
        assert fields_of(made) == {}
        assert as_json(made)["message"] == made.getMessage()


def test_what_json_has_no_word_for_is_text() -> None:
    made = record("e a=%f b=%s", float("nan"), float("inf"), odd=object, request_id="r\n1")
    fields = as_json(made)["fields"]
    assert (fields["a"], fields["b"], fields["request_id"]) == ("nan", "inf", "r\n1")
    assert "object" in fields["odd"]


def test_a_traceback_is_part_of_its_line() -> None:
    made = record("failed")
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    assert "ZeroDivisionError: by nothing" in as_json(made)["exception"]


def test_text_is_one_line_with_the_id_of_its_request() -> None:
    line = TextFormatter().format(record("e path=%s", "/a\nERROR b", request_id="mine"))
    assert line.endswith("INFO house.room e path=/a\\nERROR b request_id=mine")
    assert "\n" not in line
    assert "request_id" not in TextFormatter().format(record("e"))


class OwnHandler(logging.StreamHandler[Any]):
    """A handler that is not for the terminal alone."""


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """A library's logger that writes to the terminal by itself."""
    logger = logging.getLogger("a_library")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(sys.stderr))
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def test_libraries_that_write_by_themselves_are_adopted(library: logging.Logger) -> None:
    kept = [OwnHandler(sys.stderr), logging.StreamHandler(io.StringIO())]
    others = logging.getLogger("another_library")
    others.propagate = False
    for handler in kept:
        others.addHandler(handler)
    adopt_loggers()
    # pytest adds handlers of its own.
    assert not [each for each in library.handlers if type(each) is logging.StreamHandler]
    assert library.propagate
    assert set(kept) <= set(others.handlers)
    assert not others.propagate
    others.handlers.clear()
    others.propagate = True


LINES = """
import logging, warnings
from engine.log_format import start_logging
start_logging("info", "json", lambda record: bool(setattr(record, "request_id", "r1")) or True)
logging.getLogger("uvicorn.error").info("Started [%d]", 7, extra={"color_message": "x"})
logging.getLogger("quiet").debug("not told")
warnings.warn("old words")
logging.getLogger("house").error("bad \\udc80 text=%s", chr(10) + chr(233))
"""


def test_a_whole_process_writes_json_warnings_included() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["uvicorn.error", "py.warnings", "house"]
    assert "old words" in lines[1]["message"]
    assert lines[2]["fields"] == {"text": "\né", "request_id": "r1"}
    assert lines[0]["fields"] == {"request_id": "r1"}
