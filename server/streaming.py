"""How an answer leaves the server: as server-sent events, or whole; either ends with the client.

A client that goes away frees its blocks at once, streaming or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import OutdraftError
from server.answers import Answer
from server.errors import error_body

_DONE = b"data: [DONE]\n\n"
_CLIENT_CLOSED_REQUEST = 499
_encode = msgspec.json.Encoder().encode


async def respond(answer: Answer, request: Request, *, stream: bool | None) -> Response:
    """Send an answer as it comes, or whole."""
    return AnswerStream(answer) if stream else await _respond_whole(answer, request)


class AnswerStream(EventSourceResponse):
    """An answer as server-sent events: `data: {json}`, LF only, no pings, `[DONE]` at the end."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_events(answer), ping=0, sep="\n")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever ends the response also ends the generation."""
        async with self._answer.generation:
            await super().__call__(scope, receive, send)


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    try:
        async for event in answer.stream():
            yield b"data: " + _encode(event) + b"\n\n"
    except OutdraftError as error:
        # The status is sent already, so the failure is told inside the stream.
        answer.generation.close(error)
        yield b"data: " + _encode(error_body(error)) + b"\n\n"
    yield _DONE


async def _respond_whole(answer: Answer, request: Request) -> Response:
    async with answer.generation:
        collecting = asyncio.ensure_future(answer.collect())
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


async def _disconnected(request: Request) -> None:
    """Wait until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
