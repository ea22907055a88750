"""What one request may ask for is limited by number and depth, before any work is done for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.body_limits import MAX_NESTING
from server.protocol.chat_messages import MAX_TOOLS
from server.protocol.sampling import MAX_MESSAGES, MAX_STOPS
from server.structured_outputs import MAX_SCHEMA_BYTES
from tests.server.harness import USER, error_of, run, serving

TOOL = {"type": "function", "function": {"name": "f"}}
CHATS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def nested(depth: int) -> dict[str, Any]:
    """An object with objects inside each other."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def large_schema() -> dict[str, Any]:
    """A schema beyond the limit."""
    return {"type": "object", "description": "x" * MAX_SCHEMA_BYTES}


@pytest.mark.parametrize(
    ("path", "field", "body", "limit"),
    [
        (CHATS, "messages", {"messages": USER * (MAX_MESSAGES + 1)}, MAX_MESSAGES),
        ("/tokenize", "messages", {"messages": USER * (MAX_MESSAGES + 1)}, MAX_MESSAGES),
        (MESSAGES, "messages", {"messages": USER * (MAX_MESSAGES + 1), "max_tokens": 1},
         MAX_MESSAGES),
        (RESPONSES, "input", {"input": USER * (MAX_MESSAGES + 1)}, MAX_MESSAGES),
        (CHATS, "tools", {"messages": USER, "tools": [TOOL] * (MAX_TOOLS + 1)}, MAX_TOOLS),
        (RESPONSES, "tools", {"input": "a", "tools": [{"type": "function", "name": "f"}] * 129},
         MAX_TOOLS),
        (MESSAGES, "tools", {"messages": USER, "max_tokens": 1, "tools":
                             [{"name": "f", "input_schema": {"type": "object"}}] * 129}, MAX_TOOLS),
        (CHATS, "stop", {"messages": USER, "stop": ["a"] * (MAX_STOPS + 1)}, MAX_STOPS),
        (CHATS, "response_format", {"messages": USER, "response_format": {"type": "json_schema",
            "json_schema": {"name": "s", "schema": large_schema()}}}, MAX_SCHEMA_BYTES),
        ("/v1/completions", "structured_outputs", {"prompt": "a", "structured_outputs":
            {"json": large_schema()}}, MAX_SCHEMA_BYTES),
        (CHATS, "response_format", {"messages": USER, "response_format": {"type": "json_schema",
            "json_schema": {"name": "s", "schema": nested(MAX_NESTING)}}}, MAX_NESTING),
        (CHATS, "chat_template_kwargs", {"messages": USER, "chat_template_kwargs":
            nested(MAX_NESTING + 1)}, MAX_NESTING),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_beyond_a_limit_is_refused_by_field_and_number(
    path: str, field: str, body: dict[str, Any], limit: int
) -> None:
    async def scenario() -> None:
        async with serving() as api:
            response = await api.post(path, **body)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["message"].startswith(field)
            assert str(limit) in error["message"]
            if path != MESSAGES:
                assert error_of(response)["param"].startswith(field)
            assert api.engine.core.stats().num_prompt_tokens == 0

    run(scenario)


@pytest.mark.parametrize("depth", [200, 5000, 100_000])
@pytest.mark.parametrize("is_closed", [False, True])
def test_json_that_comes_as_text_may_be_nested_no_deeper(depth: int, is_closed: bool) -> None:
    async def scenario() -> None:
        async with serving() as api:
            text = '{"a":' * depth + ("1" + "}" * depth if is_closed else "")
            for fields in ({"guided_json": text}, {"structured_outputs": {"json": text}}):
                error = error_of(await api.complete(**fields))
                assert error["param"].startswith(next(iter(fields)))

    run(scenario)


def test_limits_are_inclusive() -> None:
    async def scenario() -> None:
        async with serving() as api:
            deep = nested(MAX_NESTING)
            response = await api.chat(chat_template_kwargs=deep, max_tokens=1)
            assert response.status_code == 200, response.text
            many = await api.post("/tokenize", messages=USER * MAX_MESSAGES)
            assert "List should have" not in many.text

    run(scenario)


def test_lists_count_as_levels_too() -> None:
    async def scenario() -> None:
        async with serving() as api:
            deep = b'{"prompt": "a", "metadata": ' + b"[" * 150 + b"]" * 150 + b"}"
            response = await api.http.post(
                "/v1/completions", content=deep, headers={"content-type": "application/json"}
            )
            error = error_of(response)
            assert error["param"] == "metadata"
            assert f"more than {MAX_NESTING} levels" in error["message"]

    run(scenario)


def test_the_limits_are_told() -> None:
    async def scenario() -> None:
        async with serving() as api:
            limits = json.loads((await api.http.get("/server_info")).text)["limits"]
            assert limits["max_messages"] == MAX_MESSAGES
            assert limits["max_nesting"] == MAX_NESTING
            assert limits["max_tools"] == MAX_TOOLS

    run(scenario)
