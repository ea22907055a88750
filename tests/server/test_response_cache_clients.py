"""The response cache as real clients meet it: over sockets, through SDKs, from a process."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2

from engine.config import EngineConfig, ModelConfig
from engine.request import RequestDelta
from server.config import ServerConfig
from server.response_cache.cache_policy import Outcome
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import FakeCore
from tests.server.harness import MODEL, USER, InlineEngine, run, serving
from tests.server.live_server import Live, listening, read_all, request
from tests.server.remembering import (
    CHAT,
    HEADER,
    IN_MEMORY,
    ROOMY,
    NewWordsCore,
    ask,
    outcome,
    same,
)
from tests.server.responses import sdk
from tests.server.test_response_cache_disk import rows_of
from tests.server.test_slow_clients import MANY, EndlessCore, until
from tests.server_process import running_server, wait_for

LONG = {**MANY, "temperature": 0, "max_tokens": 4000}


def test_the_sdk_of_openai_sees_nothing_unusual() -> None:
    async def scenario() -> None:
        core = NewWordsCore()
        asked: dict[str, Any] = {"model": MODEL, "messages": USER, "temperature": 0}
        setting = serving(core=core, config=IN_MEMORY, engine_config=ROOMY)
        async with setting as api, sdk(api) as client:
            create = client.chat.completions.with_raw_response.create
            raw = [await create(**asked) for _ in range(2)]
            assert [each.headers[HEADER] for each in raw] == ["miss", "hit"]
            first, second = (each.parse() for each in raw)
            ids = {first.id, second.id}
            assert len(ids) == 2
            assert first.choices == second.choices
            assert first.usage == second.usage
            stream = await client.chat.completions.create(**asked, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == first.choices[0].message.content
            made = await client.responses.create(model=MODEL, input="hi", temperature=0)
            assert made.output_text == text
            assert (await client.responses.retrieve(made.id)).output_text == text
        assert core.num_requests == 1

    run(scenario)


def test_the_sdk_of_anthropic_sees_nothing_unusual() -> None:
    async def scenario() -> None:
        core = NewWordsCore()
        async with serving(core=core, config=IN_MEMORY, engine_config=ROOMY) as api:
            transport = httpx2.ASGITransport(app=api.app)
            async with anthropic.AsyncAnthropic(
                base_url="http://localhost",
                api_key="none",
                http_client=httpx2.AsyncClient(transport=transport),
            ) as client:
                asked: dict[str, Any] = {"model": MODEL, "max_tokens": 50}
                asked["extra_body"] = {"temperature": 0}
                first = await client.messages.create(messages=USER, **asked)
                async with client.messages.stream(messages=USER, **asked) as stream:
                    second = await stream.get_final_message()
                assert [b.text for b in first.content] == [b.text for b in second.content]
                assert first.usage.output_tokens == second.usage.output_tokens
        assert core.num_requests == 1

    run(scenario)


async def post(live: Live, body: dict[str, Any], receive_bytes: int | None = None) -> Any:
    client = await live.connect(receive_bytes)
    sent = request(CHAT, json.dumps(body).encode())
    await asyncio.get_running_loop().sock_sendall(client, sent)
    return client


def num_remembered(live: Live) -> int:
    assert live.served.response_cache is not None
    return live.served.response_cache.num_entries


def test_whoever_hangs_up_in_the_middle_leaves_nothing() -> None:
    async def scenario() -> None:
        core = EndlessCore()
        async with listening(IN_MEMORY, core) as live:
            client = await post(live, {**LONG, "max_tokens": 100_000})
            told = await asyncio.get_running_loop().sock_recv(client, 2**16)
            assert b"x-outdraft-cache: miss" in told
            assert isinstance(live.served.engine, InlineEngine)
            live.served.engine.is_paused = True
            client.close()
            await until(lambda: core.aborted)
            await until(lambda: not live.server.server_state.connections)
            assert num_remembered(live) == 0

    run(scenario)


def test_a_reader_who_is_cut_off_leaves_nothing() -> None:
    config = ServerConfig(
        response_cache=True, response_cache_path="memory", max_stream_buffer=2**16
    )

    async def scenario() -> None:
        core = EndlessCore()
        async with listening(config, core) as live:
            client = await post(live, {**LONG, "max_tokens": 100_000}, receive_bytes=4096)
            await until(lambda: core.aborted)
            assert num_remembered(live) == 0
            client.close()

    run(scenario)


def test_a_replay_waits_for_its_reader_and_not_for_ever() -> None:
    config = ServerConfig(
        response_cache=True,
        response_cache_path="memory",
        max_stream_buffer=2**16,
        send_timeout=0.5,
    )

    async def scenario() -> None:
        async with listening(config, EndlessCore()) as live:
            cache = live.served.response_cache
            assert cache is not None
            account = live.served.admission.accounts.of("address:127.0.0.1")
            whole = await post(live, {**LONG, "stream": False})
            await read_until(whole, b'"usage"')
            whole.close()
            assert num_remembered(live) == 1
            slow = await post(live, LONG, receive_bytes=4096)
            await until(lambda: cache.outcomes[Outcome.HIT] == 1)
            # Far more than the buffer's limit is there at once, and nobody takes it.
            await until(lambda: not account.num_open)
            told = await read_all(slow)
            assert b"x-outdraft-cache: hit" in told
            assert b"[DONE]" not in told
            slow.close()
            patient = await post(live, LONG)
            assert (await read_until(patient, b"[DONE]")).count(b"data: ") > 1000
            patient.close()

    run(scenario)


async def read_until(client: Any, end: bytes) -> bytes:
    told = b""
    while end not in told:
        part = await asyncio.get_running_loop().sock_recv(client, 2**16)
        assert part, "the server hung up"
        told += part
    return told


def test_others_go_on_while_a_long_answer_is_replayed() -> None:
    async def scenario() -> None:
        settings = EngineConfig(model=ModelConfig(max_model_len=1000))
        async with serving(config=IN_MEMORY, engine_config=settings) as api:
            long = {"max_tokens": 900, "logprobs": True, "top_logprobs": 5}
            await ask(api, CHAT, **long)
            replaying = asyncio.create_task(ask(api, CHAT, **long))
            assert (await api.http.get("/health")).status_code == 200
            assert not replaying.done()
            assert outcome(await replaying) == "hit"

    run(scenario)


def test_pages_may_read_the_header() -> None:
    page = "https://page.example"
    config = ServerConfig(response_cache=True, response_cache_path="memory", cors_origin=(page,))

    async def scenario() -> None:
        async with serving(core=NewWordsCore(), config=config) as api:
            answer = await ask(api, CHAT, headers={"origin": page})
            assert HEADER in answer.headers["access-control-expose-headers"]

    run(scenario)


def has_grown(file: Path, size: int) -> bool:
    return file.stat().st_size > size


def test_a_served_process_remembers_after_it_ended_and_after_it_was_killed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    file = tmp_path / "cache" / "answers.sqlite3"
    words = [str(model), "BrittleCore", "--served-model-name", MODEL, "--response-cache"]
    words += ["--response-cache-path", str(file)]
    told = []
    log = file.with_name(f"{file.name}-wal")
    for is_killed in (True, False):
        with running_server(words, tmp_path / "log", ("tests.faulty_server",)) as server:
            body = {"model": MODEL, "prompt": "abc", "temperature": 0, "max_tokens": 40}
            wait_for(log.exists, 30, "not opened")
            size = log.stat().st_size
            told.append(httpx.post(f"{server.api}/completions", json=body, timeout=60))
            info = httpx.get(f"{server.url}/server_info").json()["server"]
            assert info["response_cache_path"] == str(file)
            if is_killed:
                # What was answered is written soon, whatever comes.
                wait_for(partial(has_grown, log, size), 30, "nothing was written")
                server.process.kill()
                server.process.wait()
    assert [outcome(answer) for answer in told] == ["miss", "hit"]
    # A server that ends in peace leaves one file.
    assert not log.exists()
    assert len({same(answer) for answer in told}) == 1
    assert len(rows_of(file)) == 1


def test_deltas_are_replayed_as_they_were_cut() -> None:
    class UnevenCore(FakeCore):
        """Tells two steps at once now and then."""

        num_steps = 0

        def step(self) -> list[RequestDelta]:
            self.num_steps += 1
            return super().step() + (super().step() if self.num_steps % 3 == 0 else [])

    async def scenario() -> None:
        async with serving(core=UnevenCore(), config=IN_MEMORY) as api:
            first, second = [
                await ask(api, CHAT, stream=True, n=2, max_tokens=30) for _ in range(2)
            ]
            assert outcome(second) == "hit"
            assert same(first) == same(second)

    run(scenario)
