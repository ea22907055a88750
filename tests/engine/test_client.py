"""The engine process: requests go down, deltas come up, and its death reaches everyone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from engine.client.process import EngineClient
from engine.client.streams import RequestStream
from engine.client.supervision import SupervisionConfig
from engine.config import EngineConfig, ModelConfig
from engine.door import make_requests
from engine.errors import (
    EngineDeadError,
    EngineError,
    EngineNotReadyError,
    ModelLoadError,
    ModelNotSupportedError,
)
from engine.request import FinishReason, Request, RequestDelta
from engine.sampling_params import SamplingParams
from tests.doubles import count_speculation

CONFIG = EngineConfig(model=ModelConfig(max_model_len=512))
PROMPT = [10, 11, 12]


@asynccontextmanager
async def running(
    core: str, *, wait: bool = True, **supervision: float
) -> AsyncIterator[EngineClient]:
    settings = SupervisionConfig(**{"engine_restarts": 0} | supervision)  # type: ignore[arg-type]
    client = EngineClient(CONFIG, core_factory=f"tests.doubles:{core}", supervision=settings)
    await client.start()
    try:
        if wait:
            await client.wait_ready()
        yield client
    finally:
        await client.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(bounded())


def requests_of(client: EngineClient, name: str = "r", **params: object) -> list[Request]:
    wanted = SamplingParams(**{"max_tokens": 6, "ignore_eos": True} | params)  # type: ignore[arg-type]
    return make_requests(PROMPT, wanted, request_id=name, info=client.info)


async def collect(client: EngineClient, requests: list[Request]) -> list[RequestDelta]:
    async with client.submit(requests) as stream:
        return [delta async for delta in stream]


async def drain(stream: RequestStream) -> None:
    async for _ in stream:
        pass


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def test_tells_its_limits_and_streams_deltas_until_the_end() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            assert client.is_ready
            assert client.info.max_model_len == 512
            assert client.info.eos_token_ids == frozenset({256})
            deltas = await collect(client, requests_of(client))
            tokens = [token for delta in deltas for token in delta.new_token_ids]
            assert tokens == [12, 11, 10, 12, 11, 10]
            assert [delta.finish_reason for delta in deltas] == [None, None, FinishReason.LENGTH]
            assert count_speculation(deltas).num_target_passes == 3
            assert client.stats.speculation.num_output_tokens == 6
            assert client.stats.num_running == 0

    run(scenario)


def test_requests_survive_the_wire_whole() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            requests = requests_of(
                client,
                n=2,
                logprobs=2,
                logit_bias={3: -1.5},
                stop=("x", "y"),
                stop_token_ids=(10,),
                bad_words_token_ids=((1, 2), (3,)),
                seed=2**64 - 1,
            )
            deltas = await collect(client, requests)
            ends = [delta for delta in deltas if delta.finish_reason is not None]
            assert {delta.request_id for delta in ends} == {"r-0", "r-1"}
            assert {delta.stop_reason for delta in ends} == {10}
            logprobs = deltas[0].logprobs
            assert logprobs is not None
            assert logprobs[0].top == [(12, -0.5), (13, -1.5)]

    run(scenario)


def test_many_streams_at_once_get_their_own_tokens() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            answers = await asyncio.gather(
                *(
                    collect(
                        client,
                        make_requests(
                            [5, 100 + i],
                            SamplingParams(max_tokens=4),
                            request_id=str(i),
                            info=client.info,
                        ),
                    )
                    for i in range(20)
                )
            )
            for i, deltas in enumerate(answers):
                tokens = [token for delta in deltas for token in delta.new_token_ids]
                assert tokens == [100 + i, 5, 100 + i, 5]

    run(scenario)


def test_leaving_a_stream_aborts_its_requests() -> None:
    async def scenario() -> None:
        async with running("SlowCore") as client:
            async with client.submit(requests_of(client, n=3, max_tokens=400)) as stream:
                await anext(stream)
                assert client.stats.num_running == 3
            await until(lambda: client.stats.num_running == 0)
            assert client.stats.kv_cache_usage == 0.0

    run(scenario)


def test_one_choice_can_be_given_up_alone() -> None:
    async def scenario() -> None:
        async with (
            running("SlowCore") as client,
            client.submit(requests_of(client, n=2, max_tokens=20)) as stream,
        ):
            await anext(stream)
            stream.abort("r-0")
            rest = [delta async for delta in stream]
            assert {delta.request_id for delta in rest} == {"r-1"}
            assert rest[-1].finish_reason is FinishReason.LENGTH

    run(scenario)


def test_requests_of_no_tokens_end_without_the_engine() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            (delta,) = await collect(client, requests_of(client, max_tokens=0))
            assert delta.finish_reason is FinishReason.LENGTH
            assert delta.new_token_ids == []

    run(scenario)


def test_refuses_requests_while_loading() -> None:
    async def scenario() -> None:
        async with running("FakeCore", wait=False) as client:
            assert not client.is_ready
            assert client.is_alive
            with pytest.raises(EngineNotReadyError, match="loading"):
                client.submit([])
            await client.wait_ready()
            assert client.submit([])

    run(scenario)


def test_load_failures_come_back_as_the_error_that_was_raised() -> None:
    async def scenario() -> None:
        async with running("UnloadableCore", wait=False) as client:
            with pytest.raises(ModelNotSupportedError, match="MambaForCausalLM"):
                await client.wait_ready()
            assert not client.is_alive

    run(scenario)


def test_unforeseen_load_failures_say_what_happened() -> None:
    async def scenario() -> None:
        async with running("BrokenCore", wait=False) as client:
            with pytest.raises(ModelLoadError, match="ZeroDivisionError: no reason at all"):
                await client.wait_ready()

    run(scenario)


def test_killing_the_engine_ends_every_stream_and_refuses_later_ones() -> None:
    async def scenario() -> None:
        async with running("SlowCore") as client:
            assert client.pid is not None
            streams = [client.submit(requests_of(client, f"r{i}", max_tokens=400)) for i in (1, 2)]
            for stream in streams:
                await anext(stream)
            killed = time.monotonic()
            os.kill(client.pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(EngineDeadError, match="SIGKILL"):
                    await drain(stream)
            assert time.monotonic() - killed < 1.0
            assert not client.is_ready
            assert not client.is_alive
            with pytest.raises(EngineDeadError):
                client.submit([])
            with pytest.raises(EngineDeadError):
                assert client.info

    run(scenario)


def test_a_step_that_raises_tells_every_waiter_why() -> None:
    async def scenario() -> None:
        async with running("FailingCore") as client:
            with pytest.raises(EngineDeadError, match="RuntimeError: the third step went wrong"):
                await collect(client, requests_of(client, max_tokens=400))

    run(scenario)


def test_an_engine_that_dies_on_its_own_is_noticed() -> None:
    async def scenario() -> None:
        async with running("DyingCore") as client:
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await collect(client, requests_of(client, max_tokens=400))

    run(scenario)


def test_a_request_that_fails_alone_leaves_the_others_be() -> None:
    async def scenario() -> None:
        async with running("RefusingCore") as client:
            (bad,) = make_requests(
                PROMPT, SamplingParams(), request_id="bad", info=client.info, priority=11
            )
            with pytest.raises(EngineError, match="too low"):
                await collect(client, [bad])
            assert await collect(client, requests_of(client))

    run(scenario)


def test_a_request_that_fails_halfway_in_is_not_computed_for_nobody() -> None:
    async def scenario() -> None:
        async with running("HalfwayCore") as client:
            (bad,) = make_requests(
                PROMPT, SamplingParams(max_tokens=400), request_id="bad", info=client.info
            )
            with pytest.raises(EngineError, match="halfway"):
                await collect(client, [bad])
            assert await collect(client, requests_of(client, "good"))

    run(scenario)


def test_idle_engine_does_not_spin() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            await collect(client, requests_of(client))
            process = psutil.Process(client.pid)
            before = process.cpu_times()
            await asyncio.sleep(1.0)
            after = process.cpu_times()
            used = after.user + after.system - before.user - before.system
            assert used <= 0.02

    run(scenario)


def test_interrupt_from_the_terminal_does_not_end_the_engine() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            assert client.pid is not None
            os.kill(client.pid, signal.SIGINT)
            assert await collect(client, requests_of(client))

    run(scenario)


def test_close_ends_the_process_and_removes_its_socket() -> None:
    async def scenario() -> None:
        async with running("FakeCore") as client:
            pid = client.pid
            folder = Path(client._link.folder)
            assert folder.is_dir()
        assert pid is not None
        assert not psutil.pid_exists(pid)
        assert not folder.exists()

    run(scenario)


PARENT = """
import asyncio, os, signal
from engine.client.process import EngineClient
from engine.config import EngineConfig

async def main():
    client = EngineClient(EngineConfig(), core_factory="tests.doubles:FakeCore")
    await client.start()
    await client.wait_ready()
    print(client.pid, client._link.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_engine_ends_and_cleans_up_when_its_parent_is_killed(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = int(done.stdout.split()[0]), Path(done.stdout.split()[1])
    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the engine outlived its parent"
        time.sleep(0.02)
    assert not folder.exists()
