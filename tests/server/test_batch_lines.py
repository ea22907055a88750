"""One line of a batch: what it must be, and what is told of one that cannot be asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.batches.lines import BatchLine, BatchLineError, LineParser

GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": []},
}


def written(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def test_reads_a_line() -> None:
    line = LineParser().parse(written() + b"\r\n", 7)
    assert line == BatchLine(7, "a", "POST", "/v1/chat/completions", {"messages": []})


@pytest.mark.parametrize(
    ("raw", "param", "code"),
    [
        (b"", None, "invalid_json_line"),
        (b"{", None, "invalid_json_line"),
        (b"\xff", None, "invalid_json_line"),
        (b"[1]", None, "invalid_json_line"),
        (without("custom_id"), "custom_id", "missing_required_parameter"),
        (written(custom_id=""), "custom_id", "invalid_value"),
        (written(custom_id=3), "custom_id", "invalid_value"),
        (written(custom_id="x" * 513), "custom_id", "invalid_value"),
        (without("method"), "method", "missing_required_parameter"),
        (written(method="GET"), "method", "invalid_method"),
        (without("url"), "url", "missing_required_parameter"),
        (written(url="/v1/embeddings"), "url", "invalid_url"),
        (written(url="http://localhost/v1/completions"), "url", "invalid_url"),
        (without("body"), "body", "missing_required_parameter"),
        (written(body="x"), "body", "invalid_value"),
        (written(priority=1), "priority", "unknown_parameter"),
        (written(body={"prompt": "x" * 300}), None, "line_too_long"),
    ],
)
def test_says_which_line_and_field_cannot_be_asked(
    raw: bytes, param: str | None, code: str
) -> None:
    limit = 300 if code == "line_too_long" else 4096
    with pytest.raises(BatchLineError, match=r"^Line 12: ") as caught:
        LineParser(max_line_bytes=limit).parse(raw, 12)
    assert (caught.value.number, caught.value.param, caught.value.code) == (12, param, code)


def test_refuses_an_id_that_came_before() -> None:
    parser = LineParser()
    parser.parse(written(), 1)
    parser.parse(written(custom_id="b"), 2)
    with pytest.raises(BatchLineError, match="line 1 has 'a' already") as caught:
        parser.parse(written(), 3)
    assert caught.value.code == "duplicate_custom_id"


def test_takes_the_endpoint_of_the_batch_alone() -> None:
    with pytest.raises(BatchLineError, match="is not /v1/completions") as caught:
        LineParser(("/v1/completions",)).parse(written(), 1)
    assert (caught.value.param, caught.value.custom_id) == ("url", "a")
