"""What callers and operators see of faults: statuses, codes, headers, and one count per error."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import httpx
import pytest

from engine.client.supervision import EngineState
from engine.errors import EngineDeadError, EngineDrainingError
from engine.metrics import EngineStats
from engine.request import FinishReason, RequestDelta
from tests.doubles import FakeCore
from tests.server.harness import USER, Api, error_of, run, serving


class FailingCore(FakeCore):
    """Ends every request with an error."""

    def step(self) -> list[RequestDelta]:
        ended, self._requests = list(self._requests), {}
        reason = "The model's logits held NaN."
        return [RequestDelta(i, [], finish_reason=FinishReason.ERROR, error=reason) for i in ended]


async def errors_by_type(api: Api) -> dict[str, float]:
    text = (await api.http.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("outdraft:errors_total{")]
    return {line.split('type="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


async def states(api: Api) -> dict[str, tuple[int, str]]:
    answers = {path: await api.http.get(path) for path in ("/health", "/ready")}
    return {path: (a.status_code, a.json()["status"]) for path, a in answers.items()}


def test_while_the_engine_is_started_anew_requests_are_told_to_come_again() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine._lose(EngineDeadError("gone"))
            assert api.engine.state is EngineState.RESTARTING
            assert set((await states(api)).values()) == {(503, "restarting")}
            for answer in (await api.chat(), await api.complete(stream=True)):
                assert error_of(answer, 503)["code"] == "engine_restarting"
                assert answer.headers["retry-after"] == "5"
            assert (await api.http.get("/server_info")).json()["status"] == "restarting"

    run(scenario)


def test_a_server_that_drains_is_well_and_not_ready() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.drain()
            assert await states(api) == {"/health": (200, "draining"), "/ready": (503, "draining")}
            answer = await api.chat()
            assert error_of(answer, 503)["code"] == "engine_draining"
            assert answer.headers["retry-after"] == "5"

    run(scenario)


def test_a_server_that_loads_tells_when_to_ask_again() -> None:
    async def scenario() -> None:
        async with serving(is_loaded=False) as api:
            assert set((await states(api)).values()) == {(503, "loading")}
            answer = await api.chat()
            assert error_of(answer, 503)["code"] == "engine_loading"
            assert answer.headers["retry-after"] == "5"

    run(scenario)


CALLS: dict[str, Callable[[Api], Awaitable[httpx.Response]]] = {
    "chat": lambda api: api.chat(),
    "chat streamed": lambda api: api.chat(stream=True),
    "completion": lambda api: api.complete(),
    "completion streamed": lambda api: api.complete(stream=True),
    "response": lambda api: api.post("/v1/responses", input="hi"),
    "response streamed": lambda api: api.post("/v1/responses", input="hi", stream=True),
    "message": lambda api: api.post("/v1/messages", messages=USER, max_tokens=9),
    "message streamed": lambda api: api.post(
        "/v1/messages", messages=USER, max_tokens=9, stream=True
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_error_is_told_and_counted_once_on_every_wire(name: str) -> None:
    async def scenario() -> None:
        async with serving(core=FailingCore()) as api:
            answer = await CALLS[name](api)
            assert "logits held NaN" in answer.text
            assert answer.status_code == (200 if "streamed" in name else 500)
            assert await errors_by_type(api) == {"EngineError": 1.0}

    run(scenario)


def test_refusals_are_counted_by_their_class() -> None:
    async def scenario() -> None:
        async with serving() as api:
            error_of(await api.complete(nonsense=1))
            error_of(await api.post("/v1/completions", prompt="x", max_tokens=10**6))
            assert (await api.chat()).status_code == 200
            counts = await errors_by_type(api)
            assert counts["ContextLengthExceededError"] == 1.0
            assert sum(counts.values()) == 2.0

    run(scenario)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_up_ends_with_the_reason_on_every_wire(name: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True

            def give_up(message: object) -> None:
                send(message)  # type: ignore[arg-type]
                api.engine.give_up(EngineDrainingError("The server is shutting down."))

            send = api.engine._send
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(api.engine, "_send", _once(send, give_up))
                answer = await CALLS[name](api)
            assert "shutting down" in answer.text
            assert api.engine.num_open == 0
            assert not api.engine.core.has_unfinished

    run(scenario)


def _once(plain: Callable[..., None], first: Callable[..., None]) -> Callable[..., None]:
    """Call one function the first time, and another from then on."""
    functions = [first]
    return lambda message: (functions.pop() if functions else plain)(message)


def test_metrics_tell_of_every_fault() -> None:
    async def scenario() -> None:
        core = FakeCore()
        stats = EngineStats(num_shed_steps=3, drafter_failures={"draft_model": 1, "ngram": 2})
        async with serving(core=core) as api:
            api.engine.stats = stats
            faults = api.engine.faults
            faults.num_restarts, faults.num_watchdog_kills, faults.num_requests_refused = 4, 5, 6
            text = (await api.http.get("/metrics")).text
            label = 'model_name="tiny"'
            for name, value in (
                ("engine_restarts_total", 4),
                ("watchdog_kills_total", 5),
                ("requests_refused_for_crashes_total", 6),
                ("shed_steps_total", 3),
            ):
                assert f"outdraft:{name}{{{label}}} {value}.0\n" in text
            for drafter, count in stats.drafter_failures.items():
                labels = f'{{drafter="{drafter}",{label}}}'
                swapped = f'{{{label},drafter="{drafter}"}}'
                assert any(
                    f"outdraft:drafter_failures_total{each} {count}.0\n" in text
                    for each in (labels, swapped)
                )

    run(scenario)


def test_the_settings_of_supervision_are_shown() -> None:
    async def scenario() -> None:
        async with serving() as api:
            info = json.loads((await api.http.get("/server_info")).text)
            assert info["supervision"]["engine_restarts"] == 10
            assert info["server"]["drain_timeout_s"] == 25.0

    run(scenario)
