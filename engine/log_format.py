"""How a line of the log looks, text or JSON; every record of a process goes through one formatter.

Messages of this house read `event key=value key=value`. As JSON the values keep their types, since
the template of the message says which of its arguments is what. It knows records, and nothing of
requests or settings.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

TEXT, JSON = "text", "json"
LOG_FORMATS = (TEXT, JSON)
_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_PLACE = re.compile(r"%[-#0+]*\d*(?:\.\d+)?([a-zA-Z%])")
_LITERAL_FIELD = re.compile(r"(?<!\S)(\w+)=(.*?)(?=\s+\w+=|$)", re.DOTALL)
# What every record has; anything else was given as `extra`.
_OWN = {*vars(logging.makeLogRecord({})), "asctime", "color_message", "message", "taskName"}
REQUEST_ID = "request_id"


def start_logging(
    level: str, log_format: str, note: Callable[[logging.LogRecord], bool] | None = None
) -> None:
    """Write this process' log to its standard error; Python's warnings are part of it.

    Args:
        level: a level name of the logging module.
        log_format: one of `LOG_FORMATS`.
        note: sees each record before it is written, and may add to it; True = it is written.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == JSON else TextFormatter())
    if note is not None:
        handler.addFilter(note)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


def adopt_loggers() -> None:
    """Take from libraries the handlers that they write to the terminal with; call it when imported.

    Their records come to the root's handler like all others. Levels stay as they are.
    """
    for logger in list(logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        own = [handler for handler in logger.handlers if _is_terminal(handler)]
        for handler in own:
            logger.removeHandler(handler)
        if own:
            logger.propagate = True


class TextFormatter(logging.Formatter):
    """Writes a record as a line, with the id of its request where there is one."""

    def __init__(self) -> None:
        super().__init__(_TEXT_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Write all but the traceback; what looks like a line's end in it is none."""
        line = super().formatMessage(record)
        request_id = getattr(record, REQUEST_ID, None)
        if request_id is not None:
            line += f" {REQUEST_ID}={request_id}"
        return line.replace("\r", "\\r").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """Writes a record as a JSON object: time, level, logger, message, fields; in ASCII alone."""

    def format(self, record: logging.LogRecord) -> str:
        """Write all of it, tracebacks included."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            "fields": {**fields_of(record), **_extra(record)},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, allow_nan=False)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Give the values that a record's message names, by name; none where it names none."""
    template = str(record.msg)
    if not record.args:
        return dict(_LITERAL_FIELD.findall(template))
    if not isinstance(record.args, tuple):
        return {}
    try:
        return dict(_read(template, record.args))
    except (TypeError, ValueError):
        return {}  # a placeholder that is not known here; the message has it all


def _read(template: str, args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Give the names and values of a template's words, whatever its arguments hold."""
    for word in template.split():
        kinds = [kind for kind in _PLACE.findall(word) if kind != "%"]
        mine, args = args[: len(kinds)], args[len(kinds) :]
        name, _, value = word.partition("=")
        if not value or not name.isidentifier():
            continue
        if not _PLACE.fullmatch(value) or not kinds:
            yield name, value % mine
        elif kinds[0] in "eEfFgG":
            yield name, _plain(float(value % mine))
        elif kinds[0] in "ds":
            yield name, _plain(mine[0])
        else:
            yield name, value % mine


def _plain(value: Any) -> Any:
    """Give a value as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(record).items() if name not in _OWN}


def _is_terminal(handler: logging.Handler) -> bool:
    # Not of a subclass: torch's tracer is one, and what it is told is meant for no log.
    return type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.stdout)
