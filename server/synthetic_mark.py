"""Marks every answer of a server whose acceptance is synthetic: its words are not the model's.

Pure ASGI. Such a server is for benchmarks, and nobody who gets to one by mistake may overlook it.
Answers to unforeseen failures are made outside of all middleware; `server.errors` finds the mark in
the scope.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.config import acceptance_text

HEADER = "x-outdraft-synthetic-acceptance"
SCOPE_KEY = "outdraft.synthetic_mark"


class SyntheticMarkMiddleware:
    """Adds the rates to every HTTP answer as a header, errors included."""

    def __init__(self, app: ASGIApp, rates: Sequence[float]) -> None:
        self._app = app
        self._mark = {HEADER: acceptance_text(rates)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, with the header added to the answer's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SCOPE_KEY] = self._mark

        async def send_with_mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._mark)
            await send(message)

        await self._app(scope, receive, send_with_mark)
