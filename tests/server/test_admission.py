"""The queue is bounded: who finds no room is told so, with when to come again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from engine.config import EngineConfig, SchedulerConfig
from engine.errors import InvalidRequestError
from engine.metrics import EngineStats
from engine.request import FinishReason, Request
from engine.sampling_params import SamplingParams
from server.admission import Admission, QueueLimits, Ticket
from server.config import ServerConfig
from server.keys import ANYBODY
from server.metrics import ServerMetrics
from server.rate_limits import Accounts, CallerLimits
from server.refusals import OverloadedError
from tests.server.harness import USER, Api, error_of, run, saying, serving
from tests.server.test_rate_limits import refusals

TWO_SEATS = EngineConfig(scheduler=SchedulerConfig(max_num_seqs=2))


def admission(stats: EngineStats | None = None, **limits: int) -> Admission:
    """An admission whose engine has said this of itself."""
    told = stats or EngineStats()
    metrics = ServerMetrics("m", lambda: told)
    return Admission(QueueLimits(**limits), Accounts(CallerLimits()), lambda: told, metrics)


def prompt(name: str, num_choices: int = 1, num_tokens: int = 3) -> list[Request]:
    """The requests of one prompt."""
    return [
        Request(f"{name}-{index}", [1] * num_tokens, SamplingParams(seed=0))
        for index in range(num_choices)
    ]


def enter(door: Admission, name: str, num_choices: int = 1, num_tokens: int = 3) -> Ticket:
    """Ask for so many answers to one prompt."""
    return door.enter(ANYBODY, [prompt(name, num_choices, num_tokens)])


def test_as_many_may_wait_as_there_are_seats_and_places() -> None:
    door = admission(max_requests=3, num_seats=2)
    tickets = [enter(door, str(index)) for index in range(5)]
    with pytest.raises(OverloadedError, match="5 requests are waiting already, and 3 may"):
        enter(door, "late")
    tickets[0].begin("0-0")
    with pytest.raises(OverloadedError):
        enter(door, "late")
    tickets[0].end("0-0")
    enter(door, "late")
    assert (door.num_waiting, door.num_begun) == (5, 0)


def test_each_choice_is_one_and_a_call_comes_in_whole_or_not_at_all() -> None:
    door = admission(max_requests=2, num_seats=2)
    ticket = enter(door, "a", 3)
    with pytest.raises(OverloadedError, match="this call has 2"):
        enter(door, "b", 2)
    assert door.num_waiting == 3
    enter(door, "c")
    ticket.close()
    assert (door.num_waiting, door.num_waiting_tokens) == (1, 3)


def test_seats_that_the_engine_cannot_fill_are_no_room() -> None:
    door = admission(EngineStats(num_waiting=1), max_requests=2, num_seats=100)
    enter(door, "a", 2)
    with pytest.raises(OverloadedError):
        enter(door, "b")


def test_background_work_takes_no_places() -> None:
    stats = EngineStats(num_waiting=3, num_background_waiting=3)
    door = admission(stats, max_requests=0, num_seats=1)
    batch = [replace(request, is_background=True) for request in prompt("batch", 5)]
    tickets = [door.enter(ANYBODY, [batch])]
    tickets[0].begin("batch-0")
    assert (door.num_waiting, door.num_begun) == (0, 0)
    tickets.append(enter(door, "chat"))
    with pytest.raises(OverloadedError):
        enter(door, "late")
    for ticket in tickets:
        ticket.close()
    assert (door.num_waiting, door.num_waiting_tokens, door.num_begun) == (0, 0, 0)


def test_a_call_that_fits_no_empty_queue_is_refused_for_good() -> None:
    door = admission(max_requests=2, num_seats=2)
    with pytest.raises(InvalidRequestError, match="asks for 5 answers at once, and 4 fit"):
        enter(door, "a", 5)
    door = admission(max_tokens=10)
    with pytest.raises(InvalidRequestError, match="asks for 12 prompt tokens at once, and 10 fit"):
        enter(door, "a", 4)


def test_prompt_tokens_that_wait_are_bounded() -> None:
    door = admission(max_tokens=10)
    ticket = enter(door, "a", 2)
    with pytest.raises(OverloadedError, match="6 prompt tokens are waiting already, and 10 may"):
        enter(door, "b", 2)
    ticket.begin("a-0")
    assert door.num_waiting_tokens == 3
    enter(door, "b", 2)


def test_the_wait_is_told_by_the_pace_of_the_last_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("server.admission.time.monotonic", lambda: now)
    door = admission(max_requests=10, num_seats=10)
    full = enter(door, "full", 20)
    with pytest.raises(OverloadedError) as unknown:
        enter(door, "late", 4)
    assert unknown.value.headers["retry-after"] == "5"
    full.close()
    for index in range(5):
        enter(door, str(index)).end(f"{index}-0")
        now += 3
    full = enter(door, "full", 20)
    with pytest.raises(OverloadedError, match="try again in 12s") as told:
        enter(door, "late", 4)
    assert told.value.headers == {"retry-after": "12", "retry-after-ms": "12000"}
    now += 1e6
    with pytest.raises(OverloadedError) as stalled:
        enter(door, "late", 4)
    assert stalled.value.headers["retry-after"] == "60"


def test_a_ticket_gives_back_its_places_once() -> None:
    door = admission(max_requests=2, num_seats=2)
    ticket = enter(door, "a", 3)
    ticket.begin("a-0")
    ticket.begin("a-0")
    ticket.end("a-1")
    ticket.end("a-1")
    assert (door.num_waiting, door.num_begun) == (1, 1)
    ticket.close()
    ticket.close()
    assert (door.num_waiting, door.num_waiting_tokens, door.num_begun) == (0, 0, 0)
    assert ticket.account.num_open == 0


def test_answers_that_have_ended_already_need_no_place() -> None:
    door = admission(max_requests=0, num_seats=1)
    done = prompt("a", 5)
    for request in done:
        request.finish(FinishReason.LENGTH)
    door.enter(ANYBODY, [done])
    assert door.num_waiting == 0


async def fill(api: Api, count: int, **fields: object) -> list[asyncio.Task[object]]:
    """Send calls that stay in the queue."""
    api.engine.is_paused = True
    calls: list[asyncio.Task[object]] = [
        asyncio.create_task(api.complete(**fields)) for _ in range(count)
    ]
    while api.served.admission.num_waiting < count * int(fields.get("n", 1)):  # type: ignore[call-overload]
        await asyncio.sleep(0)
    return calls


def test_a_full_queue_answers_429_and_serves_again_when_it_is_emptier() -> None:
    config = ServerConfig(max_queue=1)

    async def scenario() -> None:
        async with serving(saying("a"), config=config, engine_config=TWO_SEATS) as api:
            calls = await fill(api, 1, n=3)
            response = await api.chat()
            error = error_of(response, 429)
            assert (error["code"], error["type"]) == ("queue_full", "requests")
            assert int(response.headers["retry-after"]) >= 1
            message = await api.post("/v1/messages", messages=[{"role": "user", "content": "x"}],
                                     max_tokens=1)  # fmt: skip
            assert message.status_code == 429
            assert message.json()["error"]["type"] == "rate_limit_error"
            stream = await api.chat(stream=True)
            assert stream.status_code == 429
            assert await refusals(api, "queue_full") == 3
            api.engine.is_paused = False
            api.engine._work.set()
            await asyncio.gather(*calls)
            assert (await api.chat()).status_code == 200

    run(scenario)


def test_best_of_counts_every_answer_that_is_made() -> None:
    config = ServerConfig(max_queue=1)

    async def scenario() -> None:
        async with serving(config=config, engine_config=TWO_SEATS) as api:
            assert (await api.complete(best_of=3, n=1)).status_code == 200
            error = error_of(await api.complete(best_of=4, n=1))
            assert "4 answers at once, and 3 fit" in error["message"]

    run(scenario)


def test_a_client_that_leaves_makes_room() -> None:
    config = ServerConfig(max_queue=0)

    async def scenario() -> None:
        async with serving(config=config, engine_config=TWO_SEATS) as api:
            (call,) = await fill(api, 1, n=2)
            assert (await api.chat()).status_code == 429
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert api.served.admission.num_waiting == 0

    run(scenario)


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": USER}),
     ("/v1/responses", {"input": "a"}), ("/v1/messages", {"messages": USER, "max_tokens": 1})],
)  # fmt: skip
def test_nobody_gets_ahead_of_the_lowest_priority_but_admins(path: str, fields: Any) -> None:
    config = ServerConfig(min_priority=-1, admin_key=("sk-admin-0123456789",))

    async def scenario() -> None:
        async with serving(saying("a"), config=config) as api:
            for priority, status in ((-1, 200), (0, 200), (-2, 400), (-(2**31), 400)):
                response = await api.post(path, **fields, priority=priority)
                assert response.status_code == status, response.text
            assert "-1, the lowest" in response.json()["error"]["message"]
            body = {"model": "tiny", **fields, "priority": -2}
            admin = {"x-api-key": "sk-admin-0123456789"}
            assert (await api.http.post(path, json=body, headers=admin)).status_code == 200

    run(scenario)


def test_a_prompt_that_cannot_fit_is_refused_at_once_and_takes_no_place() -> None:
    async def scenario() -> None:
        async with serving() as api:
            error = error_of(await api.complete(prompt=[1] * 200))
            assert error["code"] == "context_length_exceeded"
            assert "128 tokens" in error["message"]
            assert "200" in error["message"]
            assert api.served.admission.num_waiting == 0

    run(scenario)
