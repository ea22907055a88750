"""What operators see: health, models, metrics, request ids, disconnects, a dead engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import EngineDeadError
from engine.metrics import EngineStats
from engine.request import FinishReason
from tests.doubles import FakeCore
from tests.server.harness import MODEL, USER, Api, error_of, run, saying, serving


async def samples(api: Api) -> dict[str, float]:
    """Give every sample of /metrics by its name and its telling labels."""
    response = await api.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[sample.name + (json.dumps(labels) if labels else "")] = sample.value
    return found


def test_health_is_ok_once_loaded() -> None:
    async def scenario() -> None:
        async with serving() as api:
            for path in ("/health", "/ready"):
                response = await api.http.get(path)
                assert (response.status_code, response.json()) == (200, {"status": "ok"})

    run(scenario)


def test_everything_is_unavailable_while_loading() -> None:
    async def scenario() -> None:
        async with serving(is_loaded=False) as api:
            response = await api.http.get("/health")
            assert (response.status_code, response.json()) == (503, {"status": "loading"})
            error = error_of(await api.chat(stream=True), 503)
            assert error["code"] == "engine_loading"
            assert (await api.http.get("/v1/models")).status_code == 200
            assert (await api.http.get("/metrics")).status_code == 200

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_death_of_the_engine_reaches_open_and_later_requests(stream: bool) -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            asking = asyncio.create_task(api.chat(stream=stream))
            await asyncio.sleep(0.05)
            api.engine._die(EngineDeadError("The engine process is gone: SIGKILL"))
            response = await asking
            if stream:
                assert response.text.endswith("data: [DONE]\n\n")
                error = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))["error"]
                assert set(error) == {"message", "type", "param", "code"}
            else:
                error = error_of(response, 503)
            assert "gone" in error["message"]
            assert error["code"] == "engine_dead"
            health = await api.http.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "dead"})
            assert error_of(await api.complete(), 503)["code"] == "engine_dead"
            assert (await samples(api))[
                'outdraft:request_success_total{"finished_reason": "error"}'
            ]

    run(scenario)


def test_models_are_listed_and_described() -> None:
    async def scenario() -> None:
        async with serving() as api:
            (card,) = (await api.http.get("/v1/models")).json()["data"]
            assert card["id"] == MODEL
            assert card["object"] == "model"
            assert card["max_model_len"] == 128
            assert (await api.http.get(f"/v1/models/{MODEL}")).json() == card
            error_of(await api.http.get("/v1/models/org/other"), 404)

    run(scenario)


def test_metrics_tell_background_work_apart() -> None:
    class Busy(FakeCore):
        def stats(self) -> EngineStats:
            return replace(
                super().stats(),
                num_background_running=3,
                num_background_paused=2,
                num_background_waiting=5,
            )

    async def scenario() -> None:
        async with serving(core=Busy()) as api:
            await api.chat()
            found = await samples(api)
            names = ("running", "paused", "waiting")
            counts = [found[f"outdraft:num_background_{name}"] for name in names]
            assert counts == [3, 2, 5]

    run(scenario)


def test_metrics_count_what_the_engine_and_the_server_saw() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            await api.chat()
            await api.chat(stream=True, n=2)
            found = await samples(api)
            prefix = "outdraft:"
            assert found[f"{prefix}num_requests_running"] == 0
            assert found[f"{prefix}num_requests_waiting"] == 0
            assert found[f"{prefix}kv_cache_usage_perc"] == 0
            assert found[f"{prefix}prompt_tokens_total"] == 3 * len("<user>hi<assistant>")
            assert found[f"{prefix}generation_tokens_total"] == 18
            assert found[f"{prefix}prefix_cache_queries_total"] > 0
            assert found[f"{prefix}prefix_cache_hits_total"] == 0
            assert found[f"{prefix}spec_decode_num_drafts_total"] == 9
            assert found[f"{prefix}spec_decode_num_draft_tokens_total"] == 9
            assert found[f"{prefix}spec_decode_num_accepted_tokens_total"] == 9
            position = '{"position": "0"}'
            assert found[f"{prefix}spec_decode_num_accepted_tokens_per_pos_total{position}"] == 9
            drafter = '{"drafter": "draft_model"}'
            assert found[f"{prefix}spec_decode_drafter_draft_tokens_total{drafter}"] == 9
            assert found[f"{prefix}spec_decode_drafter_wasted_tokens_total{drafter}"] == 0
            assert found[f"{prefix}spec_decode_drafter_drafts_total{drafter}"] == 9
            assert found[f"{prefix}spec_decode_drafter_accepted_tokens_total{drafter}"] == 9
            drafting, verifying = (f"spec_decode_drafter_{n}_seconds" for n in ("draft", "verify"))
            assert found[f"{prefix}{drafting}_total{drafter}"] == pytest.approx(0.009)
            assert found[f"{prefix}{verifying}_total{drafter}"] == pytest.approx(0.009)
            place = '{"drafter": "draft_model", "position": "0"}'
            per_pos = "spec_decode_drafter_accepted_tokens_per_pos"
            assert found[f"{prefix}{per_pos}_total{place}"] == 9
            assert found[f"{prefix}spec_decode_num_wasted_tokens_total"] == 0
            assert found[f"{prefix}draft_seconds_total"] == pytest.approx(0.009)
            assert found[f"{prefix}target_seconds_total"] == pytest.approx(0.018)
            assert found[f"{prefix}overhead_seconds_total"] == pytest.approx(0.0045)
            assert found[f"{prefix}controller_seconds_total"] == 0
            assert found[f"{prefix}estimated_speedup"] == 1
            assert found[f"{prefix}num_graphs"] == 3
            assert found[f"{prefix}graph_bytes"] == 4096
            stop = '{"finished_reason": "stop"}'
            assert found[f"{prefix}request_success_total{stop}"] == 3
            assert found[f"{prefix}time_to_first_token_seconds_count"] == 3
            assert found[f"{prefix}inter_token_latency_seconds_count"] == 12
            assert found[f"{prefix}e2e_request_latency_seconds_count"] == 3

    run(scenario)


def test_metrics_tell_what_answers_took_and_what_became_of_each_position() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            await api.chat(n=3)
            found, prefix = await samples(api), "outdraft:"
            position = '{"position": "0"}'
            place = '{"drafter": "draft_model", "position": "0"}'
            for name in ("queue", "prefill", "decode"):
                assert found[f"{prefix}request_{name}_time_seconds_count"] == 3
            assert found[f"{prefix}request_time_per_output_token_seconds_count"] == 3
            assert found[f"{prefix}request_prompt_tokens_sum"] == 3 * len("<user>hi<assistant>")
            assert found[f"{prefix}request_generation_tokens_sum"] == 18
            assert found[f"{prefix}spec_decode_num_target_passes_total"] == 9
            assert found[f"{prefix}spec_decode_num_draft_tokens_per_pos_total{position}"] == 9
            per_pos = "spec_decode_drafter_draft_tokens_per_pos"
            assert found[f"{prefix}{per_pos}_total{place}"] == 9

    run(scenario)


def test_metrics_tell_how_large_steps_are() -> None:
    async def scenario() -> None:
        async with serving() as api:
            for size in (1, 3, 4, 5000):
                api.engine.stats.step_requests.observe(size)
            found = await samples(api)
            name = "outdraft:iteration_requests"
            for bound, count in (("1", 1), ("2", 1), ("4", 3), ("1024", 3), ("+Inf", 4)):
                assert found[f'{name}_bucket{{"le": "{bound}"}}'] == count
            assert (found[f"{name}_count"], found[f"{name}_sum"]) == (4, 5008)
            assert found["outdraft:iteration_tokens_total_count"] == 0

    run(scenario)


def test_a_choice_without_a_token_is_counted_but_has_no_phases() -> None:
    async def scenario() -> None:
        async with serving() as api:
            assert (await api.complete(echo=True, max_tokens=0)).status_code == 200
            found = await samples(api)
            assert found["outdraft:e2e_request_latency_seconds_count"] == 1
            assert found["outdraft:request_queue_time_seconds_count"] == 0
            assert found["outdraft:request_time_per_output_token_seconds_count"] == 0

    run(scenario)


def test_each_answer_has_a_request_id() -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            fresh = [
                (await api.chat()).headers["x-request-id"],
                (await api.chat(stream=True)).headers["x-request-id"],
                (await api.chat(nonsense=1)).headers["x-request-id"],
                (await api.http.get("/health")).headers["x-request-id"],
            ]
            assert len(set(fresh)) == 4
            mine = await api.http.get("/health", headers={"x-request-id": "mine-1"})
            assert mine.headers["x-request-id"] == "mine-1"
            odd = await api.http.get("/health", headers={"x-request-id": "x" * 500})
            assert odd.headers["x-request-id"] != "x" * 500

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_aborts_every_choice(stream: bool) -> None:
    async def scenario() -> None:
        core = FakeCore()
        async with serving(core=core) as api:
            api.engine.is_paused = True
            await call_and_leave(api, {"messages": USER, "n": 2, "stream": stream})
            assert len(core.aborted) == 2
            assert not core.has_unfinished
            aborted = '{"finished_reason": "abort"}'
            assert (await samples(api))[f"outdraft:request_success_total{aborted}"] == 2

    run(scenario)


def test_a_client_that_is_gone_before_the_first_byte_aborts_too() -> None:
    async def scenario() -> None:
        core = FakeCore()
        async with serving(core=core) as api:
            api.engine.is_paused = True

            async def broken(_message: Any) -> None:
                raise OSError("connection lost")

            with pytest.raises(OSError, match="connection lost"):
                await call_and_leave(api, {"messages": USER, "stream": True}, send=broken)
            assert len(core.aborted) == 1

    run(scenario)


async def call_and_leave(api: Api, body: dict[str, Any], send: Any = None) -> None:
    """Post a chat as a client that hangs up once its request is in the engine."""
    sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        while not api.engine.core.has_unfinished:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def swallow(_message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "client": ("client", 1),
        "server": ("server", 80),
    }
    await asyncio.wait_for(api.app(scope, receive, send or swallow), 5)


def test_outcomes_have_every_reason() -> None:
    async def scenario() -> None:
        async with serving() as api:
            found = await samples(api)
            for reason in FinishReason:
                label = json.dumps({"finished_reason": str(reason)})
                assert found[f"outdraft:request_success_total{label}"] == 0

    run(scenario)
