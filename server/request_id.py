"""Gives each answer an `x-request-id`: the caller's own, or a fresh one. Pure ASGI.

Anthropic's clients know it as `request-id`, so it is there under both names.

Answers to unforeseen failures are made outside of all middleware; `server.errors` finds the id in
the scope.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
HEADERS = (HEADER, "request-id")
SCOPE_KEY = "outdraft.request_id"
_MAX_LENGTH = 128


class RequestIdMiddleware:
    """Adds the header to every HTTP answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, with the header added to the answer's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[SCOPE_KEY] = _choose(Headers(scope=scope).get(HEADER))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in HEADERS:
                    headers[name] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def _choose(given: str | None) -> str:
    if (
        given is not None
        and 0 < len(given) <= _MAX_LENGTH
        and given.isascii()
        and given.isprintable()
    ):
        return given
    return new_request_id()


def new_request_id() -> str:
    """Make an id that no other call has."""
    return f"req_{uuid.uuid4().hex}"
