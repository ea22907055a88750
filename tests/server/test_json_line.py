"""A line of JSON is one line for everybody."""

from __future__ import annotations

import json

import msgspec
import pytest

from server.batches.lines import BatchLine
from server.batches.output import LineAnswer, answer_line
from server.json_line import as_line

TEXTS = [
    "plain",
    "a\u0085b\u2028c\u2029d",
    "\u2028" * 3,
    "\\u2028 is not \u2028",
    "\r\n\v\f\x1c\x1d\x1e",
    "\u2027\u202a\u0084\u0086 \U0001f600 \u00c2\u0085",
]


@pytest.mark.parametrize("text", TEXTS)
def test_whoever_breaks_lines_anywhere_reads_what_was_written(text: str) -> None:
    line = as_line(msgspec.json.encode({text: [text]}))
    (told,) = line.decode().splitlines()
    assert json.loads(told) == {text: [text]}


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_of_a_batch_is_one_line(text: str) -> None:
    line = BatchLine(1, "a", "POST", "/v1/completions", {})
    body = msgspec.json.encode({"text": text})
    (told,) = answer_line(line, LineAnswer(200, "req", body)).decode().splitlines()
    assert json.loads(told)["response"]["body"] == {"text": text}
