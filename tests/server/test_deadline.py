"""An answer whose time is over is given up, and whoever waits for it is told, on every wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.config import ServerConfig
from server.generation import Generation
from server.served import Served
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import FakeCore
from tests.server.harness import MODEL, USER, Api, error_of, run, saying, serving
from tests.server.test_rate_limits import refusals

BODIES = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "abc", "max_tokens": 5},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 5},
}


async def stuck(api: Api, path: str, **fields: Any) -> Any:
    """Ask for an answer that never comes."""
    api.engine.is_paused = True
    return await api.post(path, **BODIES[path], **fields)


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_that_takes_too_long_is_given_up(path: str) -> None:
    async def scenario() -> None:
        core = FakeCore()
        async with serving(core=core) as api:
            response = await stuck(api, path, timeout=0.05)
            assert response.status_code == 504, response.text
            error = response.json()["error"]
            assert "not complete within 0.05 seconds" in error["message"]
            # Clients would try again by themselves, and wait as long.
            assert response.headers["x-should-retry"] == "false"
            if path == "/v1/messages":
                assert error["type"] == "timeout_error"
            else:
                assert (error["param"], error["code"]) == ("timeout", "request_timeout")
            assert len(core.aborted) == 1
            assert not core.has_unfinished
            assert api.served.admission.num_waiting == 0
            assert await refusals(api, "timeout") == 1

    run(scenario)


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_ends_with_an_error_after_what_came_in_time(path: str) -> None:
    async def scenario() -> None:
        core = FakeCore()
        async with serving(core=core) as api:
            (tilde,) = byte_tokenizer().encode("~")

            def answer(_request: Any, position: int) -> int:
                api.engine.is_paused = position > 2
                return tilde

            core._answer = answer
            body = {**BODIES[path], "timeout": 0.5, "model": MODEL, "stream": True}
            body.pop("max_tokens", None)
            if path == "/v1/messages":
                body["max_tokens"] = 50
            response = await api.http.post(path, json=body)
            assert response.status_code == 200
            told = [line.removeprefix("data: ") for line in response.text.splitlines()]
            events = [json.loads(line) for line in told if line.startswith("{")]
            assert response.text.count("~") >= 4
            last = events[-1]
            if path == "/v1/responses":
                assert last["type"] == "response.failed"
                last = last["response"]
            assert "not complete within 0.5 seconds" in last["error"]["message"]
            assert len(core.aborted) == 1

    run(scenario)


def test_the_servers_limit_holds_where_a_request_has_none_or_a_longer_one() -> None:
    async def scenario() -> None:
        async with serving(config=ServerConfig(request_timeout=0.05)) as api:
            for fields in ({}, {"timeout": 1000}):
                error = error_of(await stuck(api, "/v1/completions", **fields), 504)
                assert "within 0.05 seconds" in error["message"]
            error = error_of(await stuck(api, "/v1/completions", timeout=0.01), 504)
            assert "within 0.01 seconds" in error["message"]

    run(scenario)


def test_an_answer_in_time_is_not_given_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Generation] = []
    generate = Served.generate

    def noting(self: Served, *args: Any, **options: Any) -> Generation:
        made.append(generate(self, *args, **options))
        return made[-1]

    monkeypatch.setattr(Served, "generate", noting)

    async def scenario() -> None:
        async with serving(saying("a"), config=ServerConfig(request_timeout=1000)) as api:
            for stream in (False, True):
                assert (await api.chat(n=2, stream=stream)).status_code == 200
                alarm = made.pop()._alarm
                assert alarm is not None
                assert alarm.cancelled()
            assert api.engine.core.aborted == []

    run(scenario)


def test_a_response_in_the_background_fails_when_its_time_is_over() -> None:
    async def scenario() -> None:
        async with serving() as api:
            made = await stuck(api, "/v1/responses", background=True, timeout=0.05)
            assert made.status_code == 200
            path = f"/v1/responses/{made.json()['id']}"
            while (await api.http.get(path)).json()["status"] != "failed":
                await asyncio.sleep(0.01)
            assert len(api.engine.core.aborted) == 1

    run(scenario)


@pytest.mark.parametrize("timeout", [0, -1, 86_401, "5", True])
@pytest.mark.parametrize("path", BODIES)
def test_a_timeout_is_a_number_of_seconds(path: str, timeout: Any) -> None:
    async def scenario() -> None:
        async with serving() as api:
            response = await api.post(path, **BODIES[path], timeout=timeout)
            assert response.status_code == 400
            assert response.json()["error"]["message"].startswith("timeout: ")

    run(scenario)
