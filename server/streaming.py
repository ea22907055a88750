"""How an answer leaves the server: as server-sent events, or whole; either ends with the client.

A client that goes away frees its blocks at once, streaming or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import OutdraftError
from server.answers import Answer, Event
from server.errors import error_body

_DONE = b"data: [DONE]\n\n"
_CLIENT_CLOSED_REQUEST = 499
_encode = msgspec.json.Encoder().encode

# What makes an answer: it is left when the answer is sent, or when the client has gone.
Source = AbstractAsyncContextManager[Any]


async def respond(answer: Answer[Any, Any], request: Request, *, stream: bool | None) -> Response:
    """Send an answer as it comes, or whole."""
    if stream:
        return EventStream(_events(answer), answer.generation)
    return await respond_whole(answer.collect(), answer.generation, request)


class EventStream(EventSourceResponse):
    """Server-sent events: LF only, no pings.

    Args:
        frames: the events as they are sent, blank lines included.
        source: what makes them; whatever ends the response also leaves it.
    """

    def __init__(self, frames: AsyncIterator[bytes], source: Source) -> None:
        super().__init__(frames, ping=0, sep="\n")
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever ends the response also ends what makes them."""
        async with self._source:
            await super().__call__(scope, receive, send)


async def respond_whole(answer: Awaitable[Event], source: Source, request: Request) -> Response:
    """Send an answer when it is whole; a client that leaves before ends it.

    Args:
        answer: gives the body.
        source: what makes it; left when the answer is there, or the client gone.
        request: the call that is answered.
    """
    async with source:
        collecting = asyncio.ensure_future(answer)
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=_CLIENT_CLOSED_REQUEST)
            return Response(_encode(collecting.result()), media_type="application/json")
        finally:
            collecting.cancel()
            leaving.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)


def named_frame(event: Event) -> bytes:
    """Write an event for wires whose events have names: its type is the name."""
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + _encode(event) + b"\n\n"


async def _events(answer: Answer[Any, Any]) -> AsyncIterator[bytes]:
    """Write the events of an answer for wires whose events have no names, `[DONE]` last."""
    try:
        async for event in answer.stream():
            yield b"data: " + _encode(event) + b"\n\n"
    except OutdraftError as error:
        # The status is sent already, so the failure is told inside the stream.
        answer.generation.fail(error)
        yield b"data: " + _encode(error_body(error)) + b"\n\n"
    yield _DONE


async def _disconnected(request: Request) -> None:
    """Wait until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
