"""Asking one line: the route's own answers, and waiting where a client would be refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from engine.client.process import EngineClient
from engine.errors import EngineDeadError, EngineDrainingError
from server.background_work import IS_BACKGROUND
from server.batches.line_run import MAX_CRASHES, LineRunner
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer, answer_line
from server.config import ServerConfig
from server.keys import Caller
from tests.byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer
from tests.server.harness import MODEL, USER, run, saying, serving

CHAT = {"model": MODEL, "messages": USER}


def line(body: dict[str, Any], url: str = "/v1/chat/completions") -> BatchLine:
    return BatchLine(4, "a", "POST", url, body)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
        ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ],
)
def test_answers_as_the_route_does(url: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            answer = await LineRunner(api.app).run(line(body, url))
            called = await api.http.post(url, json=body)
        told, expected = json.loads(answer.body), called.json()
        assert (answer.status_code, answer.is_success) == (200, True)
        assert told["usage"] == expected["usage"]
        assert told["object"] == expected["object"]
        assert "hello" in answer.body.decode()

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other", "messages": USER}, 404, "model"),
        ({**CHAT, "temperature": -1}, 400, "temperature"),
        ({**CHAT, "stream": True}, 400, "stream"),
        ({**CHAT, "max_tokens": 10**6}, 400, "max_tokens"),
        ({"model": MODEL}, 400, "messages"),
    ],
)
def test_refuses_as_the_route_does(body: dict[str, Any], status: int, param: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            answer = await LineRunner(api.app).run(line(body))
        assert answer.status_code == status
        written = json.loads(answer_line(line(body), answer))
        assert written["response"]["body"]["error"]["param"] == param
        assert (written["error"]["param"], written["error"]["line"]) == (param, 4)
        assert written["response"]["request_id"] == answer.request_id

    run(scenario)


def test_background_responses_are_refused_by_name() -> None:
    async def scenario() -> None:
        async with serving() as api:
            body = {"model": MODEL, "input": "hi", "background": True}
            answer = await LineRunner(api.app).run(line(body, "/v1/responses"))
        assert answer.status_code == 400
        assert json.loads(answer.body)["error"]["param"] == "background"

    run(scenario)


def test_what_is_asked_for_a_line_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = []
    submit = EngineClient.submit

    def noting(self: EngineClient, requests: Any) -> Any:
        marks.append(IS_BACKGROUND.get())
        return submit(self, requests)

    monkeypatch.setattr(EngineClient, "submit", noting)

    async def scenario() -> None:
        async with serving() as api:
            await LineRunner(api.app).run(line(CHAT))
            await api.chat()

    run(scenario)
    assert marks == [True, False]


def test_waits_for_its_rate_limit_and_loses_nothing() -> None:
    async def scenario() -> None:
        config = ServerConfig(max_requests_per_minute=3000)
        async with serving(saying("x"), config=config) as api:
            runner = LineRunner(api.app, Caller(account="key:a"))
            account = api.served.admission.accounts.of("batch:key:a")
            for _ in range(3000):
                account.take_request()
            answers = await asyncio.gather(*(runner.run(line(CHAT)) for _ in range(3)))
            refused = api.served.metrics.render().decode()
        assert [answer.status_code for answer in answers] == [200] * 3
        assert 'reason="rate_limited"' in refused

    run(scenario)


def test_a_batch_has_a_limit_of_its_own() -> None:
    async def scenario() -> None:
        config = ServerConfig(max_requests_per_minute=1)
        async with serving(saying("x"), config=config) as api:
            answer = await LineRunner(api.app, Caller(account="address:127.0.0.1")).run(line(CHAT))
            called = await api.chat()
        assert (answer.status_code, called.status_code) == (200, 200)

    run(scenario)


@pytest.mark.parametrize("are_lines_first", [False, True])
def test_lines_and_calls_take_no_place_of_each_other(are_lines_first: bool) -> None:
    async def scenario() -> None:
        async with serving(saying("x"), config=ServerConfig(max_queue=0)) as api:
            api.engine.is_paused = True
            seats, runner = api.served.config.scheduler.max_num_seqs, LineRunner(api.app)
            for kind in (not are_lines_first, are_lines_first):
                asked = [runner.run(line(CHAT)) if not kind else api.chat() for _ in range(seats)]
                tasks = [asyncio.create_task(call) for call in asked]  # type: ignore[arg-type]
                before = api.engine.num_open
                while api.engine.num_open < before + seats:
                    await asyncio.sleep(0)
                waiting.extend(tasks)
            assert (await api.chat()).status_code == 429
            api.engine.is_paused = False
            api.engine._work.set()
            assert {(await task).status_code for task in waiting} == {200}

    waiting: list[asyncio.Task[Any]] = []
    run(scenario)


def test_the_time_of_a_call_is_not_that_of_a_line() -> None:
    async def scenario() -> None:
        async with serving(saying("x"), config=ServerConfig(request_timeout=0.01)) as api:
            api.engine.is_paused = True
            asking = asyncio.create_task(LineRunner(api.app).run(line(CHAT)))
            assert (await api.chat()).status_code == 504
            assert not asking.done()
            api.engine.is_paused = False
            api.engine._work.set()
            assert (await asking).status_code == 200

    run(scenario)


def test_a_server_that_ends_gives_lines_back() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.drain()
            with pytest.raises(EngineDrainingError):
                await LineRunner(api.app).run(line(CHAT))

    run(scenario)


def test_an_engine_that_is_gone_gives_lines_back() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine._die(EngineDeadError("gone"))
            with pytest.raises(EngineDeadError):
                await LineRunner(api.app).run(line(CHAT))

    run(scenario)


def test_a_line_that_is_given_up_is_forgotten_by_the_engine() -> None:
    async def scenario() -> None:
        async with serving(saying("x" * 4000)) as api:
            asking = asyncio.create_task(LineRunner(api.app).run(line(CHAT)))
            while not api.engine.num_open:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert api.engine.num_open == 0

    run(scenario)


def test_an_unforeseen_failure_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as api:
            monkeypatch.setattr(EngineClient, "submit", lambda *_: 1 / 0)
            answer: LineAnswer = await LineRunner(api.app).run(line(CHAT))
        assert answer.status_code == 500
        assert "ZeroDivisionError" in answer.body.decode()

    run(scenario)


def test_an_engine_that_crashes_again_and_again_is_asked_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        asked = []
        async with serving() as api:

            def crash(self: EngineClient, requests: Any) -> Any:
                asked.append(requests)
                raise EngineDeadError("The engine process is gone.")

            monkeypatch.setattr(EngineClient, "submit", crash)
            answer = await LineRunner(api.app).run(line(CHAT))
        assert answer.status_code == 503
        assert json.loads(answer.body)["error"]["code"] == "engine_dead"
        assert len(asked) == MAX_CRASHES

    run(scenario)


def test_waits_for_an_engine_that_loads_without_asking_it() -> None:
    async def scenario() -> None:
        async with serving(is_loaded=False) as api:
            asking = asyncio.create_task(LineRunner(api.app).run(line(CHAT)))
            await asyncio.sleep(0)
            assert not asking.done()
            await api.engine.start()
            api.served.install_tokenizer(byte_tokenizer(CHAT_TEMPLATE))
            assert (await asking).status_code == 200
            await api.engine.close()

    run(scenario)
