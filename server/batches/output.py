"""The lines of a batch's output and error files, as OpenAI writes them.

What was answered stands in the output file. What was not stands in the error file, with the number
of its line; where the route refused it, with the route's answer, too.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from typing_extensions import TypedDict

from server.batches.lines import BatchLine, BatchLineError
from server.json_line import as_line

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What the route answered to a line.

    Attributes:
        status_code: of HTTP.
        request_id: as the log knows the call.
        body: JSON.
    """

    status_code: int
    request_id: str
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it is an answer, and no refusal or failure."""
        return self.status_code < 400


class LineError(TypedDict):
    """Why a line was not answered."""

    code: str | None
    message: str
    param: str | None
    line: int | None


def answer_line(line: BatchLine, answer: LineAnswer) -> bytes:
    """Write what became of a line that was asked, its newline included."""
    response = {
        "status_code": answer.status_code,
        "request_id": answer.request_id,
        "body": msgspec.Raw(answer.body),
    }
    error = None if answer.is_success else _told(answer.body, line.number)
    return _written(line.custom_id, response, error)


def error_line(custom_id: str | None, error: LineError) -> bytes:
    """Write a line that was not asked, its newline included."""
    return _written(custom_id, None, error)


def line_error(error: BatchLineError) -> LineError:
    """Give what is wrong with a line as it stands in files and in a batch's `errors`."""
    return {
        "code": error.code,
        "message": str(error),
        "param": error.param,
        "line": error.number,
    }


def _told(body: bytes, number: int) -> LineError:
    """Give the error of a route's answer."""
    told: dict[str, Any] = msgspec.json.decode(body)["error"]
    return {
        "code": told["code"] or told["type"],
        "message": told["message"],
        "param": told["param"],
        "line": number,
    }


def _written(custom_id: str | None, response: Any, error: LineError | None) -> bytes:
    given = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return as_line(_encode(given))
