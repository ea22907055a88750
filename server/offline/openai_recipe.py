"""Lines as OpenAI's batch API has them, in and out."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from server.batches.lines import BatchLine, BatchLineError, LineParser
from server.batches.output import LineAnswer, answer_line, error_line, line_error
from server.offline.outcome import (
    Job,
    Outcome,
    PastRow,
    TableShape,
    body_of,
    is_passing,
    past_row,
    usage_of,
)
from server.offline.records import BrokenRecordError, Record


class OpenAIRecipe:
    """A record is a line of OpenAI's batches, or a row of a table with its fields as columns.

    Args:
        max_line_bytes: of a line at most.
    """

    table_shape = TableShape(texts=("response", "error"))

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes

    def line(self, record: Record) -> BatchLine:
        """See `Recipe`."""
        content = record.content
        if isinstance(content, BrokenRecordError):
            raise broken(record.number, content)
        if isinstance(content, dict):
            content = _line_of_columns(content)
        # A parser of its own each, since it remembers ids, and streams have no end.
        return LineParser(max_line_bytes=self._max_line_bytes).parse(content, record.number)

    def answered(self, job: Job, answer: LineAnswer) -> Outcome:
        """See `Recipe`."""
        assert isinstance(job.asked, BatchLine), "only lines are asked"
        row, body = answer_line(job.asked, answer), body_of(answer)
        if not answer.is_success:
            code = body["error"]["code"] or body["error"]["type"]
            return Outcome(row, code, is_passing(answer.status_code))
        return Outcome(row, None, False, *usage_of(body))

    def failed(self, job: Job, error: BatchLineError) -> Outcome:
        """See `Recipe`."""
        return Outcome(error_line(error.custom_id, line_error(error)), error.code)

    def past(self, row: dict[str, Any]) -> PastRow | None:
        """See `Recipe`."""
        custom_id, response = row.get("custom_id"), row.get("response")
        if not {"custom_id", "response", "error"} <= row.keys():
            return None
        status = response.get("status_code") if isinstance(response, dict) else None
        name = custom_id if isinstance(custom_id, str) else None
        return past_row(name, row["error"], status)


def broken(number: int, error: BrokenRecordError) -> BatchLineError:
    """Make the error of a record that could not be read."""
    return BatchLineError(str(error), number=number, param=None, code=error.code)


def _line_of_columns(columns: dict[str, Any]) -> bytes:
    """Write a row as the line that it stands for; a body may be JSON text."""
    given = {name: value for name, value in columns.items() if value not in (None, "")}
    body = given.get("body")
    if isinstance(body, str):
        # What is no JSON is refused by the line's parser, as no object.
        with suppress(ValueError):
            given["body"] = json.loads(body)
    elif isinstance(body, dict):
        # A column of structs has every field in every row.
        given["body"] = {name: value for name, value in body.items() if value is not None}
    return json.dumps(given, default=str).encode()
