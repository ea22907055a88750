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
from server.config import ServerConfig
from server.connection import hang_up
from server.errors import error_body, error_shape_of
from server.generation import Generation
from server.refusals import Refusal, SlowReaderError
from server.send_buffer import SendBuffer
from server.served import Served

_DONE = b"data: [DONE]\n\n"
_CLIENT_CLOSED_REQUEST = 499
# A reader who is cut off has so long to take the last event, which tells it why.
_LAST_WORDS_S = 2.0
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

    What is generated does not wait for who reads it: it is taken as it comes, so it is known how
    much waits to be sent, and a reader who is too slow is cut off. What lies in a store already, or
    is remembered, is read from there as fast as it is sent.

    Args:
        frames: the events as they are sent, blank lines included.
        generation: makes them; whatever ends the response also leaves it. None = they are stored.
    """

    def __init__(self, frames: AsyncIterator[bytes], generation: Generation | None = None) -> None:
        super().__init__(frames, ping=0, sep="\n")
        self._frames = frames
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever ends the response also ends what makes them."""
        if self._generation is None:
            await super().__call__(scope, receive, send)
            return
        if self._generation.is_replay:
            async with self._generation:
                await super().__call__(scope, receive, send)
            return
        config: ServerConfig = scope["app"].state.config
        buffer = SendBuffer(config.max_stream_buffer)
        self.body_iterator = buffer.chunks()
        async with self._generation as generation:
            filling = asyncio.create_task(self._fill(buffer, generation, scope))
            try:
                await super().__call__(scope, receive, send)
            finally:
                filling.cancel()
                await asyncio.gather(filling, return_exceptions=True)

    async def _fill(self, buffer: SendBuffer, generation: Generation, scope: Scope) -> None:
        """Take what is generated; where it is too much, say so, and hang up."""
        try:
            async for frame in self._frames:
                await buffer.put(frame)
        except SlowReaderError as error:
            generation.close(error)
            served: Served = scope["app"].state.served
            served.metrics.count_refusal(Refusal.SLOW_READER)
            buffer.cut(_error_frame(error, scope))
            await asyncio.sleep(_LAST_WORDS_S)
            hang_up(scope)
        except Exception as error:
            buffer.end(error)
        else:
            buffer.end()


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


def _error_frame(error: Exception, scope: Scope) -> bytes:
    """Write an error as the last event of a stream, in the shape that its request uses."""
    body = error_shape_of(scope)(error)
    return named_frame(body) if "type" in body else b"data: " + _encode(body) + b"\n\n"
