"""The stream of statistics: what it says, that it is what /metrics says, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from engine.errors import ConfigError
from server.config import ServerConfig
from server.protocol.statistics import Statistics, StatisticsHistory
from server.statistics.channel import Channels
from server.statistics.percentiles import percentile, since
from server.statistics.reading import Reading, read
from server.statistics.summary import Span, summarise
from tests.server.harness import Api, error_of, run, saying, serving

SCHEMA = TypeAdapter(Statistics)
HISTORY = TypeAdapter(StatisticsHistory)
PRICED = ServerConfig(price_per_hour=3.6)
LATENCIES = ("ttft_ms", "itl_ms", "e2e_ms")


def parsed(frames: str) -> list[tuple[str, dict[str, Any]]]:
    """Give names and data of a stream's events, checked against their schemas."""
    found = []
    for frame in frames.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        name = name.removeprefix("event: ")
        schema: TypeAdapter[Any] = HISTORY if name == "history" else SCHEMA
        # What the schema does not know would be dropped.
        assert schema.validate_python(event) == event
        found.append((name, event))
    return found


async def listen(api: Api, num_events: int = 1, interval_s: float = 0.25) -> list[dict[str, Any]]:
    """Give so many statistics, without the history."""
    query = {"events": num_events, "interval_s": interval_s}
    response = await api.http.get("/statistics", params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    (first, _), *others = parsed(response.text)
    assert first == "history"
    assert {name for name, _ in others} == {"statistics"}
    return [data for _, data in others]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def channels_of(api: Api) -> Channels:
    channels: Channels = api.app.state.statistics
    return channels


def test_totals_are_what_metrics_say() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            await api.chat(n=2)
            await api.complete(stream=True, stop="l")
            await api.http.get("/v1/nothing")
            (told,) = await listen(api)
            text = (await api.http.get("/metrics")).text
            expected = {}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
                    telling = ",".join(f'{k}="{v}"' for k, v in labels.items())
                    name = sample.name + (f"{{{telling}}}" if telling else "")
                    if not sample.name.endswith(("_bucket", "_created")):
                        expected[name] = sample.value
            assert told["totals"] == expected
            assert expected["outdraft:generation_tokens_total"] > 0
            assert 'outdraft:spec_decode_drafter_drafts_total{drafter="draft_model"}' in expected

    run(scenario)


def test_first_event_of_an_idle_server_says_that_nothing_happened() -> None:
    async def scenario() -> None:
        async with serving() as api:
            (told,) = await listen(api)
            assert (told["model"], told["status"], told["interval_s"]) == ("tiny", "ok", 0.25)
            assert (told["tokens_per_second"], told["kv_blocks_total"]) == (0.0, 64)
            for name in ("tokens_per_target_pass", "acceptance_rate", "prefix_hit_rate"):
                assert told[name] is None
            assert all(told[name] is None for name in LATENCIES)
            assert told["cost_per_million_tokens"] is told["price_per_hour"] is None
        async with serving(is_loaded=False) as api:
            (told,) = await listen(api)
            assert (told["status"], told["kv_blocks_total"]) == ("loading", 0)

    run(scenario)


def test_rates_are_those_of_what_was_answered() -> None:
    async def scenario() -> None:
        async with serving(saying("hello"), config=PRICED) as api:
            before = read(api.served.metrics.collect())
            await api.complete()
            span = Span(before, read(api.served.metrics.collect()))
            told = summarise(api.served, span, span, interval_s=1.0, price_per_hour=3.6)
            # Six tokens in three passes: each drafted one, and two of two are its tokens.
            assert told["tokens_per_second"] == pytest.approx(6 / span.seconds)
            assert told["prompt_tokens_per_second"] == pytest.approx(3 / span.seconds)
            assert told["tokens_per_target_pass"] == 2.0
            assert told["draft_tokens_per_pass"] == 1.0
            assert told["acceptance_rate"] == 1.0
            assert told["acceptance_by_position"] == [1.0]
            assert told["by_position"] == [{"proposed": 3, "accepted": 3}]
            assert told["by_drafter"] == {"draft_model": {"proposed": 3, "accepted": 3}}
            assert told["prefix_hit_rate"] == 0.0
            assert told["cost_per_million_tokens"] == pytest.approx(
                3.6 / 3600.0 * span.seconds / 6 * 1e6
            )
            for name, found in (
                ("ttft_ms", told["ttft_ms"]),
                ("itl_ms", told["itl_ms"]),
                ("e2e_ms", told["e2e_ms"]),
            ):
                assert found is not None, name
                assert 0.0 < found["p50"] <= found["p90"] <= found["p99"]

    run(scenario)


def test_running_answers_hold_blocks() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.engine.is_paused = True
            asking = asyncio.create_task(api.complete(max_tokens=20))
            await until(lambda: api.engine.core.has_unfinished)
            api.engine.stats = api.engine.core.stats()
            (told,) = await listen(api)
            assert (told["requests_running"], told["kv_blocks_used"]) == (1, 1)
            api.engine.is_paused = False
            api.engine._work.set()
            await asking

    run(scenario)


def reading(moment: float, **totals: float) -> Reading:
    return Reading(totals, {"c": {"x": totals.get("n", 0.0)}}, {}, moment, moment)


def test_an_engine_that_was_started_anew_counts_from_zero() -> None:
    assert Span(reading(0.0, n=5.0), reading(2.0, n=9.0)).growth("n") == 4.0
    assert Span(reading(0.0, n=50.0), reading(2.0, n=6.0)).per_second("n") == 3.0
    assert Span(reading(0.0, n=50.0), reading(2.0, n=6.0)).growth_by_label("c") == {"x": 6.0}


def test_percentiles_lie_in_their_bucket() -> None:
    infinity = float("inf")
    before = [(1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (infinity, 1.0)]
    now = [(1.0, 1.0), (2.0, 5.0), (4.0, 9.0), (infinity, 11.0)]
    fresh = since(before, now)
    assert percentile(fresh, 0.2) == 1.5
    assert percentile(fresh, 0.4) == 2.0
    assert percentile(fresh, 0.6) == 3.0
    assert percentile(fresh, 0.99) == 4.0
    assert percentile(since(now, now), 0.5) is None


def test_five_listeners_cost_no_more_than_one_and_none_cost_nothing() -> None:
    async def scenario() -> None:
        async with serving() as api:
            num_reads = 0
            collect = api.served.metrics.collect

            def counted() -> Iterable[Metric]:
                nonlocal num_reads
                num_reads += 1
                return collect()

            api.served.metrics.collect = counted  # type: ignore[method-assign]
            told = await asyncio.gather(*(listen(api, 3) for _ in range(5)))
            assert num_reads == 3
            assert all(events == told[0] for events in told)
            await until(lambda: not channels_of(api).intervals)
            assert not [t for t in asyncio.all_tasks() if t.get_name() == "statistics"]
            other = await asyncio.gather(listen(api, 2, 0.25), listen(api, 2, 0.5))
            assert num_reads == 3 + 4
            assert [events[0]["interval_s"] for events in other] == [0.25, 0.5]

    run(scenario)


async def events_of(frames: AsyncIterator[bytes], count: int) -> str:
    """Read so many events."""
    text = ""
    while text.count("\n\n") < count:
        text += (await anext(frames)).decode()
    return text


def test_who_comes_later_is_told_what_was_before() -> None:
    async def scenario() -> None:
        async with serving() as api:
            frames = channels_of(api).listen(0.25, None)
            early = parsed(await events_of(frames, 4))
            later = parsed((await api.http.get("/statistics?interval_s=0.25&events=1")).text)
            (name, history), (_, latest) = later
            assert (name, history["interval_s"]) == ("history", 0.25)
            # What is told last is not history yet.
            assert latest == early[-1][1]
            past = [{k: v for k, v in data.items() if k != "totals"} for _, data in early[1:-1]]
            assert history["samples"] == past
            await frames.aclose()  # type: ignore[attr-defined]
            assert not channels_of(api).intervals

    run(scenario)


def test_stream_ends_when_the_server_does_however_long_its_interval() -> None:
    async def scenario() -> None:
        async with serving() as api:
            asking = asyncio.create_task(api.http.get("/statistics?interval_s=60"))
            await until(lambda: bool(channels_of(api).intervals))
            api.engine.drain()
            told = parsed((await asking).text)
            assert told[-1][1]["status"] == "draining"
            assert not channels_of(api).intervals

    run(scenario)


def test_a_failure_to_read_ends_the_stream_instead_of_holding_it() -> None:
    async def scenario() -> None:
        async with serving() as api:
            frames = channels_of(api).listen(0.25, None)
            await events_of(frames, 2)

            def fail() -> Iterable[Metric]:
                raise ZeroDivisionError

            api.served.metrics.collect = fail  # type: ignore[method-assign]
            with pytest.raises(ZeroDivisionError):
                await events_of(frames, 99)
            assert not channels_of(api).intervals

    run(scenario)


@pytest.mark.parametrize("query", ["interval_s=0.2", "interval_s=61", "interval_s=x", "events=0"])
def test_intervals_have_limits(query: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            error_of(await api.http.get(f"/statistics?{query}"))
            assert not channels_of(api).intervals

    run(scenario)


def test_no_text_of_a_request_is_told() -> None:
    async def scenario() -> None:
        async with serving(saying("an answer of words")) as api:
            await api.complete(prompt="words of a prompt", user="somebody")
            response: httpx.Response = await api.http.get("/statistics?events=1")
            assert not any(word in response.text for word in ("words", "answer", "somebody"))

    run(scenario)


@pytest.mark.parametrize("price", [-1.0, float("inf"), float("nan")])
def test_a_price_is_a_number(price: float) -> None:
    with pytest.raises(ConfigError, match="price_per_hour"):
        ServerConfig(price_per_hour=price)
