"""Batches as OpenAI's client sees them, from the file to the answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from server.config import ServerConfig
from tests.server.batch_server import batching, chat_line, chats, jsonl, run
from tests.server.harness import MODEL, saying


def has_begun(batch: Batch) -> bool:
    """Whether a line was answered."""
    return batch.request_counts is not None and batch.request_counts.completed > 0


def test_a_batch_is_answered_to_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            created = await server.create(chats(20), metadata={"project": "tales"})
            assert (created.status, created.object) == ("validating", "batch")
            assert created.expires_at == created.created_at + 24 * 3600
            batch = await server.ended(created.id)
            assert batch.status == "completed"
            assert (batch.model, batch.metadata) == (MODEL, {"project": "tales"})
            counts = batch.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (20, 20, 0)
            assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
            assert (batch.failed_at, batch.expired_at, batch.cancelled_at) == (None, None, None)
            assert (batch.error_file_id, batch.errors) == (None, None)
            lines = await server.lines_of(batch.output_file_id)
            assert set(lines) == {f"line-{place}" for place in range(20)}
            usages = []
            for line in lines.values():
                assert line["id"].startswith("batch_req_")
                assert line["error"] is None
                response = line["response"]
                assert response["status_code"] == 200
                assert response["request_id"].startswith("req_")
                assert response["body"]["choices"][0]["message"]["content"] == "hello"
                usages.append(response["body"]["usage"])
            assert batch.usage is not None
            assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
            assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
            file = await server.openai.files.retrieve(str(batch.output_file_id))
            assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")

    run(scenario)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
        ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ],
)
def test_other_endpoints_are_answered_too(tmp_path: Path, url: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            lines = jsonl([chat_line("a", url=url, body=body)])
            batch = await server.run(lines, endpoint=url)
            answers = await server.lines_of(batch.output_file_id)
            assert "hello" in json.dumps(answers["a"]["response"]["body"])
            assert batch.usage is not None
            assert batch.usage.input_tokens > 0

    run(scenario)


def test_bad_lines_stop_nobody_else(tmp_path: Path) -> None:
    bad: list[dict[str, Any] | bytes] = [
        b"{broken",
        chat_line("good"),
        chat_line("unknown model", body={**chat_line("")["body"], "model": "other"}),
        chat_line("too long", "x" * 5000),
        b"",
        chat_line("good"),
        chat_line("wrong url", url="/v1/completions"),
        chat_line("wrong method", method="GET"),
        {"method": "POST", "url": "/v1/chat/completions", "body": {}},
        chat_line("stream", body={**chat_line("")["body"], "stream": True}),
        chat_line("huge", "x" * 20_000),
        b"\xff\xfe",
        chat_line("last"),
    ]
    expected = {
        1: (None, "invalid_json_line"),
        3: ("unknown model", "model_not_found"),
        4: ("too long", "context_length_exceeded"),
        6: ("good", "duplicate_custom_id"),
        7: ("wrong url", "invalid_url"),
        8: ("wrong method", "invalid_method"),
        9: (None, "missing_required_parameter"),
        10: ("stream", "invalid_value"),
        11: (None, "line_too_long"),
        12: (None, "invalid_json_line"),
    }

    async def scenario() -> None:
        config = ServerConfig(max_batch_line_bytes=10_000)
        async with batching(tmp_path, config=config) as server:
            batch = await server.run(jsonl(bad))
            assert batch.status == "completed"
            counts = batch.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (12, 2, 10)
            assert set(await server.lines_of(batch.output_file_id)) == {"good", "last"}
            content = await server.openai.files.content(str(batch.error_file_id))
            told = [json.loads(line) for line in content.text.splitlines()]
        found = {line["error"]["line"]: (line["custom_id"], line["error"]["code"]) for line in told}
        assert found == expected
        for line in told:
            assert set(line) == {"id", "custom_id", "response", "error"}
            assert set(line["error"]) == {"code", "message", "param", "line"}
        statuses = {
            line["custom_id"]: line["response"]["status_code"] for line in told if line["response"]
        }
        assert statuses == {"unknown model": 404, "too long": 400, "stream": 400}

    run(scenario)


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\n \n\n", "empty_file", None),
        (b"\x00" * 100, "invalid_json_line", 1),
        (jsonl([b"{", chat_line("a", method="PUT")]), "invalid_json_line", 1),
        (chats(6), "too_many_lines", 6),
    ],
)
def test_a_file_with_nothing_to_ask_fails(
    tmp_path: Path, lines: bytes, code: str, line: int | None
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, config=ServerConfig(max_batch_lines=5)) as server:
            batch = await server.run(lines)
            assert batch.status == "failed"
            assert batch.failed_at is not None
            assert (batch.output_file_id, batch.error_file_id) == (None, None)
            assert batch.errors is not None
            assert batch.errors.data
            assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, line)

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"input_file_id": "../secret"}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        ({"extra_body": {"priority": 1}}, "priority"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], param: str
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
                await server.create(chats(1), **changes)
            assert caught.value.param == param
            assert (await server.openai.batches.list()).data == []

    run(scenario)


def test_batches_are_listed_page_by_page(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            made = [(await server.create(chats(1))).id for _ in range(5)]
            page = await server.openai.batches.list(limit=2)
            assert ([batch.id for batch in page.data], page.has_more) == (made[:2:-1], True)
            listed = [batch.id async for batch in server.openai.batches.list(limit=2)]
            assert listed == made[::-1]
            with pytest.raises(openai.NotFoundError):
                await server.openai.batches.list(after="batch_1")
            with pytest.raises(openai.NotFoundError):
                await server.openai.batches.retrieve("batch_1")

    run(scenario)


def test_a_batch_without_an_end_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ServerConfig(batch_concurrency=2)
        async with batching(tmp_path, saying("x" * 6), config=config) as server:
            batch = await server.create(chats(100))
            await server.until(
                batch.id, lambda b: bool(b.request_counts and b.request_counts.completed)
            )
            cancelled = await server.openai.batches.cancel(batch.id)
            assert cancelled.status == "cancelling"
            assert cancelled.cancelling_at is not None
            batch = await server.ended(batch.id)
            assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
            done = await server.lines_of(batch.output_file_id)
            left = await server.lines_of(batch.error_file_id)
            assert min(len(done), len(left)) > 0
            assert len(done) + len(left) == 100
            assert not set(done) & set(left)
            assert {line["error"]["code"] for line in left.values()} == {"batch_cancelled"}
            assert server.api.engine.num_open == 0
            # Once more changes nothing.
            assert (await server.openai.batches.cancel(batch.id)).status == "cancelled"

    run(scenario)


def test_a_batch_that_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            batch = await server.run(chats(1))
            with pytest.raises(openai.BadRequestError, match="status 'completed'"):
                await server.openai.batches.cancel(batch.id)

    run(scenario)


def test_metrics_tell_batches_and_lines(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            await server.run(jsonl([chat_line("a"), b"{"]))
            told = ""
            while 'outdraft:batches{model_name="tiny",status="completed"} 1.0' not in told:
                told = (await server.api.http.get("/metrics")).text
        assert 'outdraft:batch_lines_total{model_name="tiny",outcome="completed"} 1.0' in told
        assert 'outdraft:batch_lines_total{model_name="tiny",outcome="failed"} 1.0' in told
        assert 'outdraft:batch_lines_running{model_name="tiny"} 0.0' in told

    run(scenario)


def test_several_batches_take_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ServerConfig(batch_concurrency=2)
        async with batching(tmp_path, saying("x" * 6), config=config) as server:
            first = await server.create(chats(150))
            await server.until(
                first.id, lambda b: bool(b.request_counts and b.request_counts.completed)
            )
            second = await server.run(chats(3))
            assert second.status == "completed"
            assert (await server.openai.batches.retrieve(first.id)).status == "in_progress"
            await server.openai.batches.cancel(first.id)
            await server.ended(first.id)

    run(scenario)


def test_too_many_open_batches_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("server.batches.batch_store.MAX_OPEN_BATCHES", 1)

    async def scenario() -> None:
        async with batching(tmp_path) as server:
            server.api.engine.is_paused = True
            await server.create(chats(1))
            with pytest.raises(openai.BadRequestError, match="1 may be open"):
                await server.create(chats(1))
            server.api.engine.is_paused = False
            server.api.engine._work.set()
            await asyncio.sleep(0)

    run(scenario)
