"""An engine that crashes or hangs is started anew, and nobody who waited is forgotten."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from engine.client.process import EngineClient
from engine.client.supervision import EngineState, SupervisionConfig
from engine.config import EngineConfig, ModelConfig
from engine.door import make_requests
from engine.errors import (
    EngineDeadError,
    EngineDrainingError,
    EngineError,
    EngineRestartingError,
    RefusedRequestError,
)
from engine.request import FinishReason, Request
from engine.sampling_params import SamplingParams
from tests.doubles import FakeCore
from tests.faulty_cores import HANG, POISON

CONFIG = EngineConfig(model=ModelConfig(max_model_len=512))


@asynccontextmanager
async def running(
    core: str = "TouchyCore",
    *,
    config: EngineConfig = CONFIG,
    is_awaited: bool = True,
    **settings: float,
) -> AsyncIterator[EngineClient]:
    supervision = SupervisionConfig(**settings)  # type: ignore[arg-type]
    client = EngineClient(
        config, core_factory=f"tests.faulty_cores:{core}", supervision=supervision
    )
    await client.start()
    try:
        if is_awaited:
            await client.wait_ready()
        yield client
    finally:
        await client.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 90)

    asyncio.run(bounded())


def made(name: str, first: int = 10, **values: object) -> list[Request]:
    """Make requests without a client, which may not be ready."""
    info = FakeCore(CONFIG).info
    params = SamplingParams(**{"max_tokens": 6, "ignore_eos": True} | values)  # type: ignore[arg-type]
    return make_requests([first, 20, 21], params, request_id=name, info=info)


async def outcome(client: EngineClient, requests: list[Request]) -> str:
    """Run requests, and tell how that ended in one word; more than one end is an error."""
    ends = 0
    sent = client.submit(requests)
    try:
        async with sent as stream:
            async for delta in stream:
                ends += delta.finish_reason is not None
    except EngineError as error:
        assert ends == 0
        return type(error).__name__
    assert ends == 1
    return "served"


async def until_ready(client: EngineClient) -> None:
    while client.state is not EngineState.OK:
        assert client.is_alive, "the engine is gone for good"
        await asyncio.sleep(0.02)


def children() -> list[psutil.Process]:
    """Give this process' engines, zombies included."""
    return [p for p in psutil.Process().children() if _is_engine(p)]


def _is_engine(process: psutil.Process) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return True
    return any("engine_process" in word for word in process.cmdline())


def test_a_crash_is_told_and_the_engine_is_started_anew() -> None:
    async def scenario() -> None:
        async with running() as client:
            assert client._link is not None
            old_pid, old_folder = client.pid, Path(client._link.folder)
            assert old_pid is not None
            streams = [client.submit(made(f"r{i}", max_tokens=400)) for i in range(3)]
            for stream in streams:
                await anext(stream)
            os.kill(old_pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(EngineDeadError, match="SIGKILL"):
                    async for _ in stream:
                        pass
            assert client.state is EngineState.RESTARTING
            assert client.is_alive
            assert client.stats.num_running == 0
            with pytest.raises(EngineRestartingError) as refused:
                client.submit(made("later"))
            assert refused.value.retry_after_s > 0
            await until_ready(client)
            assert client.pid != old_pid
            assert client.faults.num_restarts == 1
            assert await outcome(client, made("after")) == "served"
            assert not old_folder.exists()
            assert [child.pid for child in children()] == [client.pid]
            folder = Path(client._link.folder)
        assert not folder.exists()
        assert not children()

    run(scenario)


def test_after_so_many_restarts_it_stays_dead_and_says_so() -> None:
    async def scenario() -> None:
        async with running(engine_restarts=1) as client:
            for _ in range(2):
                await until_ready(client)
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                while client.state is EngineState.OK:
                    await asyncio.sleep(0.01)
            while client.state is not EngineState.DEAD:
                await asyncio.sleep(0.01)
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                client.submit(made("later"))
            assert client.faults.num_restarts == 1
            assert not children()

    run(scenario)


def test_an_engine_that_cannot_load_again_is_tried_until_it_is_enough(tmp_path: Path) -> None:
    config = EngineConfig(model=ModelConfig(model=str(tmp_path / "loaded"), max_model_len=512))

    async def scenario() -> None:
        async with running("OnceCore", config=config, engine_restarts=2) as client:
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            while client.is_alive:
                await asyncio.sleep(0.02)
            assert client.faults.num_restarts == 2
            with pytest.raises(EngineDeadError, match="still taken"):
                client.check_ready()

    run(scenario)


def test_a_hung_step_is_noticed_and_the_engine_started_anew() -> None:
    async def scenario() -> None:
        async with running(watchdog_s=2.0, watchdog_start_s=60.0) as client:
            stream = client.submit(made("r", HANG, max_tokens=400))
            with pytest.raises(EngineDeadError, match="nothing moved for 2 s"):
                async for _ in stream:
                    pass
            assert client.state is EngineState.RESTARTING
            await until_ready(client)
            assert client.faults.num_watchdog_kills >= 1
            assert client.faults.num_restarts >= 1
            assert await outcome(client, made("after")) == "served"
            assert [child.pid for child in children()] == [client.pid]

    run(scenario)


def test_a_stopped_engine_is_noticed_though_it_has_nothing_to_do() -> None:
    async def scenario() -> None:
        async with running(watchdog_s=3.0, watchdog_start_s=60.0) as client:
            old_pid = client.pid
            assert old_pid is not None
            while not client._watchdog._is_idle:
                await asyncio.sleep(0.02)
            os.kill(old_pid, signal.SIGSTOP)
            while client.faults.num_watchdog_kills == 0:
                await asyncio.sleep(0.02)
            assert client.state is EngineState.RESTARTING
            await until_ready(client)
            assert client.pid != old_pid
            assert await outcome(client, made("after")) == "served"

    run(scenario)


def test_an_idle_engine_is_left_in_peace() -> None:
    async def scenario() -> None:
        async with running(watchdog_s=4.0, watchdog_start_s=60.0) as client:
            await outcome(client, made("r"))
            await asyncio.sleep(6.0)
            assert client.faults.num_watchdog_kills == 0
            assert client.is_ready

    run(scenario)


def test_an_engine_that_never_finishes_loading_is_given_up() -> None:
    async def scenario() -> None:
        async with running("SleepyCore", is_awaited=False, watchdog_start_s=1.0) as client:
            with pytest.raises(EngineDeadError, match="nothing moved"):
                await client.wait_ready()
            assert client.state is EngineState.DEAD
            assert client.faults.num_restarts == 0
            assert not children()

    run(scenario)


def test_a_request_that_crashes_the_engine_twice_is_refused_afterwards() -> None:
    async def scenario() -> None:
        async with running() as client:
            for number in range(2):
                await until_ready(client)
                poisoned = made(f"bad{number}", POISON, max_tokens=60, seed=number)
                assert await outcome(client, poisoned) == "EngineDeadError"
            await until_ready(client)
            with pytest.raises(RefusedRequestError, match="2 steps that crashed") as refused:
                client.submit(made("bad2", POISON, max_tokens=60, n=2))
            assert refused.value.code == "request_crashed_engine"
            assert client.faults.num_requests_refused == 2
            assert await outcome(client, made("good")) == "served"
            assert client.faults.num_restarts == 2

    run(scenario)


def test_a_client_that_leaves_a_hung_request_does_not_clear_it() -> None:
    async def scenario() -> None:
        async with running(watchdog_s=4.0, watchdog_start_s=60.0) as client:
            for number in range(2):
                await until_ready(client)
                async with client.submit(made(f"bad{number}", HANG, max_tokens=400)) as stream:
                    for _ in range(20):
                        await anext(stream)
                    while client._watchdog._quiet_s < 1.0:
                        await asyncio.sleep(0.02)
                while client.faults.num_watchdog_kills == number:
                    await asyncio.sleep(0.02)
            await until_ready(client)
            with pytest.raises(RefusedRequestError):
                client.submit(made("bad2", HANG, max_tokens=400))

    run(scenario)


def test_a_request_that_cannot_be_taken_in_harms_nobody() -> None:
    async def scenario() -> None:
        async with running("BrittleCore") as client:
            (bad,) = make_requests(
                [1, 2],
                SamplingParams(max_tokens=4),
                request_id="x",
                info=FakeCore(CONFIG).info,
                priority=1,
            )
            assert await outcome(client, [bad]) == "EngineError"
            assert await outcome(client, made("good")) == "served"
            assert client.faults.num_restarts == 0

    run(scenario)


def test_every_request_ends_exactly_once_while_the_engine_is_killed_again_and_again() -> None:
    async def scenario() -> None:
        rng = random.Random(0)
        async with running(engine_restarts=100) as client:

            async def ask(index: int) -> str:
                await asyncio.sleep(rng.random() * 4)
                try:
                    requests = made(f"r{index}", max_tokens=rng.randrange(1, 60))
                    return await outcome(client, requests)
                except EngineRestartingError:
                    return "refused"

            asking = asyncio.gather(*map(ask, range(150)))
            for _ in range(3):
                await asyncio.sleep(1.0)
                await until_ready(client)
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                while client.state is EngineState.OK:
                    await asyncio.sleep(0.01)
            ends = await asking
            assert set(ends) == {"served", "EngineDeadError", "refused"}
            assert client.num_open == 0
            await until_ready(client)
            assert await outcome(client, made("after")) == "served"

    run(scenario)


def test_draining_takes_nothing_new_and_finishes_what_is_there() -> None:
    async def scenario() -> None:
        async with running() as client:
            stream = client.submit(made("old", max_tokens=40))
            await anext(stream)
            client.drain()
            assert client.state is EngineState.DRAINING
            with pytest.raises(EngineDrainingError):
                client.submit(made("new"))
            assert client.num_open == 1
            last = [delta async for delta in stream][-1]
            assert last.finish_reason is FinishReason.LENGTH
            assert client.num_open == 0

    run(scenario)


def test_what_is_given_up_ends_with_the_reason() -> None:
    async def scenario() -> None:
        async with running() as client:
            stream = client.submit(made("old", max_tokens=400))
            await anext(stream)
            client.give_up(EngineDrainingError("no more time"))
            with pytest.raises(EngineDrainingError, match="no more time"):
                async for _ in stream:
                    pass
            while client.stats.num_running:
                await asyncio.sleep(0.01)

    run(scenario)


def test_a_crash_while_draining_is_final() -> None:
    async def scenario() -> None:
        async with running() as client:
            stream = client.submit(made("old", max_tokens=400))
            await anext(stream)
            client.drain()
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass
            while client.is_alive:
                await asyncio.sleep(0.01)
            assert client.faults.num_restarts == 0

    run(scenario)


def test_a_supervisor_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running() as client:
            stream = client.submit(made("r", max_tokens=400))
            await anext(stream)

            def fail(_step: object) -> list[str]:
                raise ValueError("a bug")

            monkeypatch.setattr(client._suspects, "blame", fail)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError, match="a bug"):
                async for _ in stream:
                    pass
            assert client.state is EngineState.DEAD

    run(scenario)


def test_closing_while_the_engine_is_being_started_anew_leaves_nothing() -> None:
    async def scenario() -> None:
        async with running() as client:
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            while client.faults.num_restarts == 0:
                await asyncio.sleep(0.01)
            assert client._link is not None
            folder = Path(client._link.folder)
        assert not folder.exists()
        assert not children()

    run(scenario)
