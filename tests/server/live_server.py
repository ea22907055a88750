"""The server behind a real socket in this process, over a made-up engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn

from engine.config import EngineConfig
from server.app import create_app
from server.config import ServerConfig
from server.http import uvicorn_config
from server.served import Served, make_served
from tests.byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer
from tests.doubles import FakeCore
from tests.server.harness import MODEL, InlineEngine


@dataclass(slots=True)
class Live:
    """A server that listens."""

    port: int
    served: Served
    core: FakeCore
    server: uvicorn.Server

    async def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """Connect as a client that has so much room for what it does not read."""
        client = socket.socket()
        client.setblocking(False)
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        return client


@asynccontextmanager
async def listening(config: ServerConfig, core: FakeCore | None = None) -> AsyncIterator[Live]:
    """Serve on a free port until the block ends."""
    core = core or FakeCore()
    engine = InlineEngine(core)
    served = make_served(engine, EngineConfig(), name=MODEL)
    await engine.start()
    served.install_tokenizer(byte_tokenizer(CHAT_TEMPLATE))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn_config(create_app(served, config), served, config))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield Live(listener.getsockname()[1], served, core, server)
    finally:
        server.should_exit = True
        await serving
        await engine.close()


async def read_all(client: socket.socket) -> bytes:
    """Read until the server hangs up."""
    loop = asyncio.get_running_loop()
    parts = []
    while part := await loop.sock_recv(client, 2**16):
        parts.append(part)
    return b"".join(parts)


def request(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """Write a POST; of a longer body than there is, if told so."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body
