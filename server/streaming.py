"""How an answer leaves the server: as server-sent events, or whole; either ends with the client.

A client that goes away frees its blocks at once, streaming or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import OutdraftError
from server.answers import Answer, Event
from server.errors import error_body

_DONE = b"data: [DONE]\n\n"
_OK = 200
_CLIENT_CLOSED_REQUEST = 499
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
_encode = msgspec.json.Encoder().encode

# What makes an answer: it is left when the answer is sent, or when the client has gone.
Source = AbstractAsyncContextManager[Any]


async def respond(answer: Answer[Any, Any], request: Request, *, stream: bool | None) -> Response:
    """Send an answer as it comes, or whole."""
    if stream:
        return EventStream(_events(answer), answer.generation)
    return await respond_whole(answer.collect(), answer.generation, request)


class EventStream(Response):
    """Server-sent events: LF only, no pings.

    It costs a stream that waits two small tasks, since there may be thousands of them.

    Args:
        frames: the events as they are sent, blank lines included.
        source: what makes them; whatever ends the response also leaves it.
    """

    def __init__(self, frames: AsyncIterator[bytes], source: Source) -> None:
        super().__init__(status_code=_OK)
        # Not by `init_headers`, which would tell the length of a whole body.
        self.raw_headers = list(_HEADERS)
        self._frames = frames
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever ends the response also ends what makes them."""
        async with self._source:
            sending = asyncio.ensure_future(self._send_events(send))
            leaving = asyncio.ensure_future(_disconnected(receive))
            open_streams: OpenStreams = scope["app"].state.open_streams
            open_streams.add(sending)
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not sending.cancelled():
                    sending.result()
            finally:
                sending.cancel()
                leaving.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": _OK, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class OpenStreams:
    """The streams that are being sent, so that a server that stops need not wait for them."""

    def __init__(self) -> None:
        self._sending: set[asyncio.Future[None]] = set()

    def add(self, sending: asyncio.Future[None]) -> None:
        """Know a stream until it is sent."""
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    def end(self) -> None:
        """Break off all streams; their clients see that they are not whole."""
        for sending in tuple(self._sending):
            sending.cancel()


async def respond_whole(answer: Awaitable[Event], source: Source, request: Request) -> Response:
    """Send an answer when it is whole; a client that leaves before ends it.

    Args:
        answer: gives the body.
        source: what makes it; left when the answer is there, or the client gone.
        request: the call that is answered.
    """
    async with source:
        collecting = asyncio.ensure_future(answer)
        leaving = asyncio.ensure_future(_disconnected(request.receive))
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
        answer.generation.close(error)
        yield b"data: " + _encode(error_body(error)) + b"\n\n"
    yield _DONE


async def _disconnected(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
