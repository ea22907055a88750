"""Exact repeats are answered from memory, in the same words and chunks, and nothing else is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.config import EngineConfig, SpeculationConfig
from engine.request import FinishReason, TokenLogprobs
from server.config import ServerConfig
from tests.doubles import FakeCore, SlowCore
from tests.server.harness import Api, events, run, saying, serving
from tests.server.remembering import (
    BODIES,
    CHAT,
    COMPLETIONS,
    HEADER,
    IN_MEMORY,
    MESSAGES,
    RESPONSES,
    ROOMY,
    NewWordsCore,
    ask,
    outcome,
    same,
)
from tests.server.responses import TOOL_TEMPLATE, WEATHER
from tests.server.test_operations import samples

REPORT = {"speculation": {"report": True}}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
CALL = '<tool_call>\n{{"name": "weather", "arguments": {{"city": "Oslo {}"}}}}\n</tool_call>'
CHAT_TOOL = {"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}
MESSAGES_TOOL = {"name": "weather", "input_schema": WEATHER["parameters"]}
ASKED: list[tuple[str, dict[str, Any]]] = [
    *((path, {}) for path in BODIES),
    *((path, {"stream": True}) for path in BODIES),
    *((path, {"temperature": 1.0, "seed": 7, "stream": True}) for path in BODIES),
    (CHAT, {"stream": True, "stream_options": USAGE, **REPORT}),
    (CHAT, {"n": 3, "stream": True, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"n": 3, "stop": "ok", "max_tokens": 200, **REPORT}),
    (CHAT, {"prediction": {"type": "content", "content": "answer"}, **REPORT}),
    (COMPLETIONS, {"prompt": ["ab", "cd"], "n": 2, "logprobs": 1, "echo": True}),
    (COMPLETIONS, {"prompt": ["ab", "cd"], "n": 2, "logprobs": 1, "echo": True, "stream": True}),
    (COMPLETIONS, {"best_of": 3, "n": 2, "prompt_logprobs": 1, **REPORT}),
    (COMPLETIONS, {"max_tokens": 0, "echo": True}),
    (RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 1}),
    (RESPONSES, {"stream": True, "max_output_tokens": 200, **REPORT}),
    (MESSAGES, {"stream": True, "stop_sequences": ["ok"], "max_tokens": 200, **REPORT}),
]


@pytest.mark.parametrize(("path", "changes"), ASKED)
def test_a_hit_is_the_miss_byte_for_byte(path: str, changes: dict[str, Any]) -> None:
    async def scenario() -> None:
        core = NewWordsCore()
        async with serving(core=core, config=IN_MEMORY, engine_config=ROOMY) as api:
            first = await ask(api, path, **changes)
            num_requests = core.num_requests
            second = await ask(api, path, **changes)
            other = await ask(api, path, **changes, headers={"cache-control": "no-cache"})
        assert (outcome(first), outcome(second), outcome(other)) == ("miss", "hit", "miss")
        assert same(first) == same(second)
        assert first.text != second.text, "ids are fresh"
        if num_requests:
            assert same(first) != same(other), "the core has new words for every request"
            assert core.num_requests == 2 * num_requests

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"tools": [CHAT_TOOL], "max_tokens": 200}),
        (RESPONSES, {"tools": [WEATHER], "max_output_tokens": 200}),
        (MESSAGES, {"tools": [MESSAGES_TOOL], "max_tokens": 200}),
    ],
)
def test_calls_are_read_again(path: str, changes: dict[str, Any], stream: bool) -> None:
    async def scenario() -> None:
        core = NewWordsCore(words=CALL)
        async with serving(core=core, config=IN_MEMORY, template=TOOL_TEMPLATE) as api:
            first = await ask(api, path, **changes, stream=stream)
            second = await ask(api, path, **changes, stream=stream)
        assert (outcome(first), outcome(second)) == ("miss", "hit")
        assert "weather" in second.text
        assert same(first) == same(second)
        assert core.num_requests == 1

    run(scenario)


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_and_a_whole_answer_share_an_entry(path: str) -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            streamed = await ask(api, path, stream=True)
            whole = await ask(api, path)
            again = await ask(api, path, stream=True)
        assert (outcome(streamed), outcome(whole), outcome(again)) == ("miss", "hit", "hit")
        assert same(streamed) == same(again)
        assert "answer 1" in whole.text

    run(scenario)


def test_wires_share_what_is_the_same_prompt() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            assert outcome(await ask(api, CHAT)) == "miss"
            assert outcome(await ask(api, MESSAGES)) == "hit"
            assert outcome(await ask(api, RESPONSES)) == "hit"

    run(scenario)


def test_an_answer_for_later_is_stored_again() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            first = (await ask(api, RESPONSES)).json()
            second = await ask(api, RESPONSES)
            assert outcome(second) == "hit"
            stored = await api.http.get(f"{RESPONSES}/{second.json()['id']}")
            assert stored.json()["output"] == second.json()["output"]
            follow = {"previous_response_id": first["id"], "input": "and?"}
            assert outcome(await ask(api, RESPONSES, **follow)) == "miss"
            follow["previous_response_id"] = second.json()["id"]
            # The conversation is the same, whichever of the two it goes on from.
            assert outcome(await ask(api, RESPONSES, **follow)) == "hit"

    run(scenario)


def test_it_is_off_unless_asked_for() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore()) as api:
            answers = [await ask(api, CHAT) for _ in range(2)]
            assert [outcome(answer) for answer in answers] == [None, None]
            assert same(answers[0]) != same(answers[1])
            assert "response_cache" not in (await api.http.get("/metrics")).text

    run(scenario)


@pytest.mark.parametrize("path", BODIES)
def test_what_is_left_to_chance_is_not_remembered(path: str) -> None:
    async def scenario() -> None:
        core = NewWordsCore()
        async with serving(core=core, config=IN_MEMORY) as api:
            for _ in range(2):
                assert outcome(await ask(api, path, temperature=0.7)) is None
            assert core.num_requests == 2
            assert cache_size(api) == 0

    run(scenario)


def test_what_dice_accept_is_not_remembered() -> None:
    settings = EngineConfig(
        speculation=SpeculationConfig(draft="ngram", synthetic_acceptance="0.5")
    )

    async def scenario() -> None:
        core = NewWordsCore(settings)
        async with serving(core=core, config=IN_MEMORY, engine_config=settings) as api:
            for _ in range(2):
                assert outcome(await ask(api, CHAT)) is None
            assert core.num_requests == 2

    run(scenario)


def test_no_store_leaves_no_trace() -> None:
    headers = {"Cache-Control": "max-age=0, No-Store"}

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            assert outcome(await ask(api, CHAT, headers=headers)) is None
            assert cache_size(api) == 0
            known = await ask(api, CHAT)
            unasked = await ask(api, CHAT, headers=headers)
            assert (outcome(known), outcome(unasked)) == ("miss", None)
            assert same(known) != same(unasked)

    run(scenario)


def test_no_cache_asks_anew_and_keeps_that() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            await ask(api, CHAT)
            anew = await ask(api, CHAT, headers={"cache-control": "no-cache"})
            after = await ask(api, CHAT)
            assert (outcome(anew), outcome(after)) == ("miss", "hit")
            assert same(anew) == same(after)
            assert cache_size(api) == 1

    run(scenario)


def test_refusals_and_errors_are_not_remembered() -> None:
    class BrokenCore(FakeCore):
        def step(self) -> list[Any]:
            deltas = super().step()
            for delta in deltas:
                delta.finish_reason, delta.error = FinishReason.ERROR, "out of order"
            return deltas

    async def scenario() -> None:
        async with serving(core=BrokenCore(), config=IN_MEMORY) as api:
            for stream in (False, True):
                answer = await ask(api, CHAT, stream=stream)
                assert "out of order" in answer.text or answer.status_code == 500
            refused = await ask(api, CHAT, max_tokens=-1)
            assert refused.status_code == 400
            assert HEADER not in refused.headers
            assert cache_size(api) == 0

    run(scenario)


def test_what_the_deadline_ends_is_not_remembered() -> None:
    async def scenario() -> None:
        core = SlowCore(ROOMY, saying("never at an end" * 100))
        async with serving(core=core, config=IN_MEMORY, engine_config=ROOMY) as api:
            answer = await ask(api, CHAT, timeout=0.05, max_tokens=2000)
            assert answer.status_code >= 400
            assert HEADER not in answer.headers
            assert cache_size(api) == 0

    run(scenario)


def test_whoever_leaves_early_leaves_nothing() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            served = api.served
            api.engine.is_paused = True
            asking = asyncio.create_task(ask(api, CHAT, stream=True))
            while not served.admission.num_waiting:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while served.admission.num_waiting:
                await asyncio.sleep(0)
            api.engine.is_paused = False
            assert cache_size(api) == 0
            assert outcome(await ask(api, CHAT)) == "miss"

    run(scenario)


def test_a_hit_takes_no_place_in_a_full_queue() -> None:
    config = ServerConfig(response_cache=True, response_cache_path="memory", max_queue=0)

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=config) as api:
            await ask(api, CHAT)
            api.engine.is_paused = True
            api.engine.stats.num_waiting = 1
            full = await ask(api, CHAT, max_tokens=3)
            assert full.status_code == 429
            assert HEADER not in full.headers
            known = await ask(api, CHAT)
            assert outcome(known) == "hit"
            assert api.served.admission.num_waiting == api.served.admission.num_begun == 0

    run(scenario)


def test_a_hit_counts_for_its_caller_s_limits() -> None:
    config = ServerConfig(
        response_cache=True, response_cache_path="memory", max_requests_per_minute=2
    )

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=config) as api:
            await ask(api, CHAT)
            assert outcome(await ask(api, CHAT)) == "hit"
            assert (await ask(api, CHAT)).status_code == 429

    run(scenario)


def test_keys_do_not_see_each_others_answers() -> None:
    alice, bob = "sk-alice-0123456789", "sk-bob-0123456789"
    config = ServerConfig(response_cache=True, response_cache_path="memory", api_key=(alice, bob))

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=config) as api:
            outcomes = [
                outcome(await ask(api, CHAT, headers={"x-api-key": key}, cache_salt=salt))
                for key, salt in (
                    *((alice, None), (bob, None), (alice, None)),
                    *((bob, "bob's"), (alice, "bob's"), (bob, "bob's")),
                )
            ]
            assert outcomes == ["miss", "miss", "hit", "miss", "miss", "hit"]
            nobody = await ask(api, CHAT)
            assert nobody.status_code == 401
            assert HEADER not in nobody.headers

    run(scenario)


def test_numbers_of_the_cache_are_told() -> None:
    one = ServerConfig(response_cache=True, response_cache_path="memory", response_cache_bytes=1000)

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=one) as api:
            for seed in (None, None, 1, 2, 3):
                await ask(api, CHAT, temperature=0 if seed is None else 1, seed=seed)
            await ask(api, CHAT, temperature=1)
            found = {
                name.removeprefix("outdraft:response_cache_"): value
                for name, value in (await samples(api)).items()
                if "response_cache" in name
            }
            size = api.served.response_cache
            assert size is not None
            assert found == {
                "hits_total": 1,
                "misses_total": 4,
                "stores_total": 4,
                'evictions_total{"reason": "size"}': 4 - size.num_entries,
                'evictions_total{"reason": "age"}': 0,
                "bytes": size.num_bytes,
                "entries": size.num_entries,
            }
            assert 0 < size.num_bytes <= 1000
            assert 0 < size.num_entries < 4

    run(scenario)


def test_hits_leave_times_of_the_engine_alone() -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            await ask(api, CHAT, n=2)
            before = await samples(api)
            await ask(api, CHAT, n=2, stream=True)
            after = await samples(api)
        changed = {
            name.partition("{")[0]
            for name, value in after.items()
            if value != before[name] and not name.startswith(("process", "python"))
        }
        assert changed == {"outdraft:request_success_total", "outdraft:response_cache_hits_total"}

    run(scenario)


def test_a_hit_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=IN_MEMORY) as api:
            with caplog.at_level("INFO", logger="server.access_log"):
                await ask(api, CHAT)
                await ask(api, CHAT)
                await ask(api, CHAT, temperature=1)
        lines = [record.getMessage() for record in caplog.records]
        assert ["cache=miss" in line for line in lines] == [True, False, False]
        assert ["cache=hit" in line for line in lines] == [False, True, False]

    run(scenario)


def test_a_long_replay_is_no_slow_reader() -> None:
    config = ServerConfig(response_cache=True, response_cache_path="memory", max_stream_buffer=4096)

    async def scenario() -> None:
        core = FakeCore(ROOMY)
        async with serving(core=core, config=config, engine_config=ROOMY) as api:
            first = await ask(api, CHAT, max_tokens=900)
            assert outcome(first) == "miss"
            told = events(await ask(api, CHAT, max_tokens=900, stream=True))
            assert sum(len(e["choices"][0]["delta"].get("content", "")) for e in told) == 900
            refused = await samples(api)
            assert refused['outdraft:requests_refused_total{"reason": "slow_reader"}'] == 0

    run(scenario)


def test_logprobs_are_those_of_the_first_time() -> None:
    class DriftingCore(FakeCore):
        def step(self) -> list[Any]:
            deltas = super().step()
            for delta in deltas:
                num = len(delta.new_token_ids)
                delta.logprobs = [TokenLogprobs(-0.125 * id(self), 1, [])] * num
            return deltas

    async def scenario() -> None:
        async with serving(core=DriftingCore(), config=IN_MEMORY) as api:
            first, second = [await ask(api, CHAT, logprobs=True) for _ in range(2)]
            assert outcome(second) == "hit"
            assert same(first) == same(second)

    run(scenario)


def cache_size(api: Api) -> int:
    assert api.served.response_cache is not None
    return api.served.response_cache.num_entries
