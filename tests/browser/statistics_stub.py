"""The page's real server with a made-up `/statistics`: a test says what it sends, and when."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.config import EngineConfig
from server.app import create_app
from server.config import ServerConfig
from server.served import make_served
from tests.doubles import FakeCore
from tests.server.harness import MODEL, InlineEngine

START = 1_764_321_000.0  # seconds of the epoch
_RATES = (
    "tokens_per_target_pass",
    "draft_tokens_per_pass",
    "acceptance_rate",
    "estimated_speedup",
    "prefix_hit_rate",
    "tokens_per_step",
    "cost_per_million_tokens",
)


def sample(second: int, **given: Any) -> dict[str, Any]:
    """Make a sample of an idle server, with what is given in the place of that."""
    idle: dict[str, Any] = {
        "time": START + second,
        "interval_s": 1.0,
        "status": "ok",
        "model": MODEL,
        "draft": None,
        "speculation": "auto",
        "tokens_per_second": 0.0,
        "prompt_tokens_per_second": 0.0,
        **dict.fromkeys(_RATES),
        "acceptance_by_position": [],
        "by_position": [],
        "by_drafter": {},
        "requests_running": 0,
        "requests_waiting": 0,
        "kv_blocks_used": 0,
        "kv_blocks_total": 64,
        "ttft_ms": None,
        "itl_ms": None,
        "e2e_ms": None,
        "preemptions": 0,
        "price_per_hour": None,
    }
    assert given.keys() <= idle.keys()
    return idle | given


class StatisticsStub:
    """Serves the page, and the statistics that it is told to send.

    Attributes:
        url: of the page.
        key: that `/statistics` wants; None = nobody needs one.
        is_down: whether it answers 503.
        history: what a new connection hears first.
        totals: of every event.
        num_connections: how many were opened.
    """

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.key: str | None = None
        self.is_down = False
        self.history: list[dict[str, Any]] = []
        self.totals: dict[str, float] = {}
        self.num_connections = 0
        self._loop = loop
        self._listeners: set[asyncio.Queue[list[dict[str, Any]] | None]] = set()

    @property
    def num_listeners(self) -> int:
        """How many connections are open."""
        return len(self._listeners)

    def send(self, *samples: dict[str, Any]) -> None:
        """Send events to all who listen."""
        self._tell(list(samples))

    def drop(self) -> None:
        """End all connections."""
        self._tell(None)

    def answer(self, request: Request) -> Response:
        """Answer a call of `/statistics`."""
        if self.is_down:
            return _refusal(503, "The server is away.")
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _refusal(403, "/statistics needs an admin key.")
        self.num_connections += 1
        return StreamingResponse(self._events(), media_type="text/event-stream")

    def _tell(self, message: list[dict[str, Any]] | None) -> None:
        def tell() -> None:
            for listener in self._listeners:
                listener.put_nowait(message)

        self._loop.call_soon_threadsafe(tell)

    async def _events(self) -> AsyncIterator[str]:
        listener: asyncio.Queue[list[dict[str, Any]] | None] = asyncio.Queue()
        self._listeners.add(listener)
        try:
            yield _event("history", {"interval_s": 1.0, "samples": self.history})
            while (samples := await listener.get()) is not None:
                yield "".join(
                    _event("statistics", {**each, "totals": self.totals}) for each in samples
                )
        finally:
            self._listeners.discard(listener)


@contextmanager
def statistics_stub() -> Iterator[StatisticsStub]:
    """Serve in a thread until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    stub = StatisticsStub(f"http://127.0.0.1:{listener.getsockname()[1]}", loop)
    served = make_served(InlineEngine(FakeCore()), EngineConfig(), name=MODEL)
    app = _with_statistics(create_app(served, ServerConfig()), stub)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = server.serve(sockets=[listener])
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
    thread.start()
    try:
        yield stub
    finally:
        stub.drop()
        server.should_exit = True
        thread.join()
        loop.close()


def _with_statistics(app: ASGIApp, stub: StatisticsStub) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/statistics":
            await stub.answer(Request(scope))(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
