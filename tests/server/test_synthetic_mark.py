"""A server whose acceptance is synthetic says so in every answer; no other server says a word."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig, ModelConfig, SpeculationConfig
from engine.errors import EngineDeadError
from server.config import ServerConfig
from server.http import _load
from server.synthetic_mark import HEADER
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import FakeCore
from tests.server.harness import USER, Api, error_of, run, saying, serving
from tests.server.responses import until_over
from tests.server.test_openapi import check_answer, page_of

RATES = [0.9, 0.8]
CHAT = ("/v1/chat/completions", {"messages": USER})
COMPLETION = ("/v1/completions", {"prompt": "ab"})
RESPONSE = ("/v1/responses", {"input": "hi"})
MESSAGE = ("/v1/messages", {"messages": USER, "max_tokens": 20})
WIRES = [CHAT, COMPLETION, RESPONSE, MESSAGE]
USAGE = {"stream_options": {"include_usage": True}}
Body = dict[str, Any]


def config(rates: str | None = "0.9,0.8") -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(model="m"),
        speculation=SpeculationConfig(draft="d", synthetic_acceptance=rates),
    )


def marked(text: str = "hello", **values: Any) -> AbstractAsyncContextManager[Api]:
    return serving(saying(text), engine_config=config(), **values)


def streamed(answer: httpx.Response) -> list[Body]:
    """Give the data of every event."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def marks(part: Any) -> Iterator[Any]:
    """Give every `metrics.speculative_decoding.synthetic_acceptance`, however deep it lies."""
    if isinstance(part, dict):
        if "metrics" in part:
            yield part["metrics"]["speculative_decoding"]["synthetic_acceptance"]
        for value in part.values():
            yield from marks(value)


@pytest.mark.parametrize(("path", "body"), WIRES)
def test_whole_answers_are_marked_unasked(path: str, body: Body) -> None:
    async def scenario() -> None:
        async with marked() as api:
            page = await page_of(api)
            for asked in (
                {},
                {"speculation": {"report": False}},
                {"speculation": {"report": True}},
            ):
                answer = await api.post(path, **body, **asked)
                assert list(marks(answer.json())) == [RATES]
                assert answer.headers[HEADER] == "0.9,0.8"
                check_answer(page, answer)

    run(scenario)


@pytest.mark.parametrize(("path", "body"), [*WIRES, (CHAT[0], {**CHAT[1], **USAGE})])
def test_streams_are_marked_at_their_end(path: str, body: Body) -> None:
    async def scenario() -> None:
        async with marked() as api:
            answer = await api.post(path, **body, stream=True)
            *others, last = streamed(answer)
            if path == MESSAGE[0]:
                assert last["type"] == "message_stop"
                last = others.pop()
            assert list(marks(last)) == [RATES]
            assert not [mark for event in others for mark in marks(event)]
            assert answer.headers[HEADER] == "0.9,0.8"
            check_answer(await page_of(api), answer)

    run(scenario)


def test_several_choices_and_stored_answers_are_marked() -> None:
    async def scenario() -> None:
        async with marked() as api:
            answer = (await api.post(CHAT[0], **CHAT[1], n=3, store=True)).json()
            kept = (await api.http.get(f"{CHAT[0]}/{answer['id']}")).json()
            assert list(marks(answer)) == list(marks(kept)) == [RATES]
            body = {**RESPONSE[1], "background": True}
            response_id = (await api.post(RESPONSE[0], **body)).json()["id"]
            assert list(marks((await until_over(api, response_id)).json())) == [RATES]

    run(scenario)


def test_an_answer_without_tokens_is_marked() -> None:
    async def scenario() -> None:
        async with marked() as api:
            answer = await api.post(COMPLETION[0], **COMPLETION[1], max_tokens=0, echo=True)
            assert list(marks(answer.json())) == [RATES]

    run(scenario)


def test_the_fingerprint_says_it() -> None:
    async def scenario() -> None:
        async with marked() as api:
            whole = (await api.chat()).json()
            chunk = streamed(await api.chat(stream=True))[0]
            for told in (whole, chunk):
                assert told["system_fingerprint"].endswith("_synthetic")

    run(scenario)


def test_every_other_answer_has_the_header_failures_too() -> None:
    async def scenario() -> None:
        async with marked() as api:
            for path in ("/health", "/v1/models", "/metrics", "/server_info", "/openapi.json"):
                answer = await api.http.get(path)
                assert answer.status_code == 200
                assert answer.headers[HEADER] == "0.9,0.8"
            assert (await api.post("/tokenize", prompt="ab")).headers[HEADER] == "0.9,0.8"
            for answer, status in (
                (await api.http.get("/nowhere"), 404),
                (await api.http.delete("/health"), 405),
                (await api.chat(top_p=7), 400),
            ):
                assert answer.status_code == status
                assert answer.headers[HEADER] == "0.9,0.8"
            api.engine._die(EngineDeadError("gone"))
            assert (await api.chat()).headers[HEADER] == "0.9,0.8"

    run(scenario)


def test_unforeseen_failures_have_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with marked() as api:
            monkeypatch.setattr(FakeCore, "add_request", broken)
            answer = await api.chat()
            assert answer.status_code == 500
            assert answer.headers[HEADER] == "0.9,0.8"
            assert answer.headers["x-request-id"]

    def broken(*_arguments: Any) -> None:
        raise ZeroDivisionError

    run(scenario)


def test_a_server_that_loads_says_it_already() -> None:
    async def scenario() -> None:
        async with marked(is_loaded=False) as api:
            answer = await api.http.get("/server_info")
            assert answer.headers[HEADER] == "0.9,0.8"
            assert answer.json()["synthetic_acceptance"] == RATES
            check_answer(await page_of(api), answer)
            assert (await api.chat()).headers[HEADER] == "0.9,0.8"

    run(scenario)


def test_metrics_have_a_gauge_for_each_position() -> None:
    async def scenario() -> None:
        async with marked() as api:
            told = (await api.http.get("/metrics")).text
            for position, rate in enumerate(RATES):
                labels = f'model_name="tiny",position="{position}"'
                assert f"outdraft:synthetic_acceptance{{{labels}}} {rate}" in told

    run(scenario)


def test_the_server_warns_when_it_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with marked() as api:
            await _load(api.served, api.served.config, ServerConfig())

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "server.http"):
        patch.setattr("server.http.load_model_tokenizer", lambda _config: byte_tokenizer())
        run(scenario)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["synthetic_acceptance rates=0.9,0.8 words=not_the_models"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "structured_output"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"allowed_token_ids": [5]}, "allowed_token_ids"),
    ],
)
def test_what_cannot_hold_is_refused_by_name(body: Body, param: str) -> None:
    async def scenario() -> None:
        async with marked() as api:
            error = error_of(await api.chat(**body))
            assert error["param"] == param
            assert error["code"] == "unsupported_parameter"
            assert "--synthetic-acceptance" in error["message"]

    run(scenario)


def test_ranked_choices_are_refused() -> None:
    async def scenario() -> None:
        async with marked() as api:
            assert "best_of" in error_of(await api.complete(best_of=2))["message"]

    run(scenario)


def test_off_leaves_no_trace() -> None:
    async def scenario() -> None:
        async with serving(saying("hello"), engine_config=config(None)) as api:
            answers = [await api.http.get(path) for path in ("/metrics", "/health", "/nowhere")]
            for path, body in WIRES:
                answers += [await api.post(path, **body, stream=s) for s in (False, True)]
            answers.append(await api.chat(speculation={"report": True}))
            for answer in answers:
                assert HEADER not in answer.headers
                assert "synthetic" not in answer.text
            assert "synthetic_acceptance" not in (await api.http.get("/server_info")).json()

    run(scenario)


def test_answers_that_run_side_by_side_are_all_marked() -> None:
    async def scenario() -> None:
        async with marked() as api:
            asked = [api.post(path, **body) for path, body in WIRES * 3]
            for answer in await asyncio.gather(*asked):
                assert list(marks(answer.json())) == [RATES]

    run(scenario)
