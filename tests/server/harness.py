"""The server in this process, over a made-up engine, driven by an in-process HTTP client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from engine.client.messages import (
    AbortRequests,
    AddRequests,
    EngineReady,
    StepOutputs,
    ToEngine,
)
from engine.client.process import EngineClient
from engine.config import EngineConfig
from engine.request import Request
from server.app import create_app
from server.config import ServerConfig
from server.served import Served, make_served
from tests.byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer
from tests.doubles import EOS, AnswerFn, FakeCore, echo_backwards

MODEL = "tiny"
USER = [{"role": "user", "content": "hi"}]


class InlineEngine(EngineClient):
    """The engine's client with the core in this process, for tests."""

    def __init__(self, core: FakeCore) -> None:
        super().__init__(EngineConfig())
        self.core = core
        self.is_paused = False
        self._work = asyncio.Event()

    async def start(self) -> None:
        self._ready = asyncio.get_running_loop().create_future()
        self._handle(EngineReady(self.core.info))
        self._tasks = [asyncio.create_task(self._run())]

    async def close(self) -> None:
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, AddRequests):
            for request in message.requests:
                self.core.add_request(request.make())
        elif isinstance(message, AbortRequests):
            self.core.abort(message.request_ids)
        self._work.set()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self.core.has_unfinished and not self.is_paused:
                self._handle(StepOutputs(self.core.step(), self.core.stats()))
                await asyncio.sleep(0)


@dataclass(slots=True)
class Api:
    """A server under test."""

    app: FastAPI
    http: httpx.AsyncClient
    engine: InlineEngine
    served: Served

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json={"model": MODEL, **body})

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", **{"messages": USER, **body})

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", **{"prompt": "abc", **body})


@asynccontextmanager
async def serving(
    answer: AnswerFn = echo_backwards,
    *,
    core: FakeCore | None = None,
    template: str | None = CHAT_TEMPLATE,
    config: ServerConfig | None = None,
    is_loaded: bool = True,
    engine_config: EngineConfig | None = None,
) -> AsyncIterator[Api]:
    settings = engine_config or EngineConfig()
    engine = InlineEngine(core or FakeCore(settings, answer))
    config = config or ServerConfig()
    served = make_served(engine, settings, name=MODEL, names=config.served_model_name)
    if is_loaded:
        await engine.start()
        served.install_tokenizer(byte_tokenizer(template))
    app = create_app(served, config)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield Api(app, http, engine, served)
    if is_loaded:
        await engine.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


def saying(text: str) -> AnswerFn:
    """Answer every prompt with a text, and then the end of the sequence."""
    token_ids = [*byte_tokenizer().encode(text), EOS]
    return lambda _request, position: token_ids[min(position, len(token_ids) - 1)]


def saying_in_turn(texts: list[str]) -> AnswerFn:
    """Answer each choice with its own text."""
    answers = [saying(text) for text in texts]

    def answer(request: Request, position: int) -> int:
        return answers[request.choice_index](request, position)

    return answer


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Check a stream's frame, and give its events without the `[DONE]`."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "\r" not in response.text
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def choices(stream: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give every choice of every chunk."""
    for event in stream:
        yield from event["choices"]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """Check the shape of an error, and give it."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
