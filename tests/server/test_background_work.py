"""What is asked for as background work reaches the engine as such, and nothing else does."""

from __future__ import annotations

import asyncio

from engine.request import Request
from server.background_work import IS_BACKGROUND, as_background
from tests.doubles import FakeCore
from tests.server.harness import run, serving


class Watching(FakeCore):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Request] = []

    def add_request(self, request: Request) -> None:
        self.heard.append(request)
        super().add_request(request)


def test_the_engine_hears_that_nobody_waits_for_it() -> None:
    async def scenario() -> None:
        core = Watching()
        async with serving(core=core) as api:
            with as_background():
                await api.complete(prompt=["a", "b"], max_tokens=2)
            await api.chat(max_tokens=2)
        assert [request.is_background for request in core.heard] == [True, True, False]

    run(scenario)


def test_tasks_that_begin_inside_are_background_work_and_others_are_not() -> None:
    async def ask() -> bool:
        await asyncio.sleep(0)
        return IS_BACKGROUND.get()

    async def scenario() -> None:
        with as_background():
            inside = asyncio.create_task(ask())
        outside = asyncio.create_task(ask())
        assert await inside
        assert not await outside

    run(scenario)
