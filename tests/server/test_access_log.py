"""Every call is told once, when it and what it asked for are over: how it ended, and no words."""

from __future__ import annotations

import logging

import pytest

from engine.log_format import fields_of
from engine.request import Request
from server.access_log import logger as access_logger
from server.call_record import current_call
from tests.doubles import FakeCore
from tests.server.harness import MODEL, USER, error_of, run, saying, serving
from tests.server.responses import respond, until_over
from tests.server.test_operations import call_and_leave

MINE = {"x-request-id": "mine-1"}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, access_logger.name)
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Give the fields of every call's line, without the time, and forget them."""
    told = []
    for record in log.records:
        if record.name == access_logger.name:
            fields = {**fields_of(record), "request_id": vars(record)["request_id"]}
            seconds = fields.pop("seconds")
            assert isinstance(seconds, float)
            assert seconds >= 0
            told.append(fields)
    log.clear()
    return told


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_told_with_its_tokens_and_how_it_ended(
    log: pytest.LogCaptureFixture, stream: bool
) -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            body = {"model": MODEL, "messages": USER, "n": 2, "stream": stream}
            response = await api.http.post("/v1/chat/completions?secret=1", json=body, headers=MINE)
            assert response.headers["x-request-id"] == "mine-1"
            (line,) = lines(log)
            answer_id = line.pop("id")
            assert isinstance(answer_id, str)
            assert answer_id in response.text
            assert line == {
                "method": "POST",
                "path": "/v1/chat/completions",
                "status": 200,
                "request_id": "mine-1",
                "prompt_tokens": len("<user>hi<assistant>"),
                "cached_tokens": 4,
                "completion_tokens": 12,
                "finish": "stop,stop",
            }

    run(scenario)


def test_a_call_that_is_refused_is_told_with_its_error(log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as api:
            error_of(await api.chat(nonsense=1))
            error_of(await api.http.get("/v1/models/a%0Ab%20c"), 404)
            refused, missing = lines(log)
            assert (refused["status"], refused["error"]) == (400, "InvalidRequestError")
            assert "prompt_tokens" not in refused
            assert (missing["status"], missing["path"]) == (404, "/v1/models/a%0Ab%20c")

    run(scenario)


def test_a_failure_that_nobody_foresaw_is_told_with_its_id(log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as api:

            @api.app.get("/broken")
            async def broken() -> None:
                raise ZeroDivisionError

            response = await api.http.get("/broken", headers=MINE)
            assert response.status_code == 500
            (line,) = lines(log)
            assert (line["status"], line["error"]) == (500, "ZeroDivisionError")
            assert line["request_id"] == "mine-1"

    run(scenario)


def test_a_client_that_leaves_is_told_as_an_abort(log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            await call_and_leave(api, {"messages": USER, "stream": True})
            (line,) = lines(log)
            assert (line["finish"], line["completion_tokens"]) == ("abort", 0)

    run(scenario)


def test_what_runs_in_the_background_is_told_when_it_is_over(log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            api.engine.is_paused = True
            body = {"model": MODEL, "input": "hi", "background": True}
            made = await api.http.post("/v1/responses", json=body, headers=MINE)
            assert lines(log) == []
            api.engine.is_paused = False
            api.engine._work.set()
            await until_over(api, made.json()["id"])
            (line,) = [told for told in lines(log) if told["method"] == "POST"]
            assert (line["request_id"], line["finish"]) == ("mine-1", "stop")
            assert line["completion_tokens"] == 6

    run(scenario)


def test_who_is_cancelled_by_another_call_is_told_under_its_own_id(
    log: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            body = {"model": MODEL, "input": "hi", "background": True}
            made = await api.http.post("/v1/responses", json=body, headers=MINE)
            await api.http.post(f"/v1/responses/{made.json()['id']}/cancel")
            cancelled, cancelling = lines(log)
            assert (cancelled["request_id"], cancelled["finish"]) == ("mine-1", "abort")
            assert cancelling["request_id"] != "mine-1"

    run(scenario)


def test_what_machines_ask_all_the_time_is_told_at_the_finest_level(
    log: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with serving() as api:
            for path in ("/health", "/ready", "/metrics", "/v1/models"):
                await api.http.get(path)
            levels = {fields_of(r)["path"]: r.levelno for r in log.records}
            assert levels.pop("/v1/models") == logging.INFO
            assert set(levels.values()) == {logging.DEBUG}

    run(scenario)


def test_the_engine_hears_the_id_that_the_caller_knows() -> None:
    class Watching(FakeCore):
        heard: list[Request] = []

        def add_request(self, request: Request) -> None:
            self.heard.append(request)
            super().add_request(request)

    async def scenario() -> None:
        core = Watching()
        async with serving(core=core) as api:
            body = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 2}
            await api.http.post("/v1/completions", json=body, headers=MINE)
            assert [request.external_id for request in core.heard] == ["mine-1", "mine-1"]
            assert len({request.request_id for request in core.heard}) == 2

    run(scenario)


def test_a_call_is_known_in_its_own_task_alone() -> None:
    async def scenario() -> None:
        async with serving() as api:
            await respond(api)
            seen = []

            @api.app.get("/seen")
            async def see() -> None:
                call = current_call.get()
                assert call is not None
                seen.append(call.request_id)

            await api.http.get("/seen", headers=MINE)
            await api.http.get("/seen")
            assert seen[0] == "mine-1"
            assert seen[1] != "mine-1"

    run(scenario)
