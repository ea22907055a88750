"""What a call's `cache-control` allows, and what its answer says of the cache. Pure ASGI."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.call_record import current_call

HEADER = "x-outdraft-cache"


class Outcome(enum.StrEnum):
    """Whether a call's answer was known."""

    HIT = "hit"
    MISS = "miss"


@dataclass(slots=True)
class CachePolicy:
    """One call and the cache.

    Attributes:
        may_read: whether it may be answered from memory; `no-cache` says no.
        may_store: whether memory may have to do with it at all; `no-store` says no.
        outcome: what came of it; None = it is none of those that can be remembered.
    """

    may_read: bool = True
    may_store: bool = True
    outcome: Outcome | None = None

    @classmethod
    def of(cls, headers: Headers) -> CachePolicy:
        """Read what a call allows."""
        given = ",".join(headers.getlist("cache-control")).lower().split(",")
        directives = {directive.strip() for directive in given}
        return cls("no-cache" not in directives, "no-store" not in directives)


# Whoever gives requests to the engine finds it here; None = there is no cache.
current_policy: ContextVar[CachePolicy | None] = ContextVar("current_policy", default=None)


class CachePolicyMiddleware:
    """Reads what calls allow, and adds what came of it to answers.

    Args:
        app: what is called.
        count: hears of each answer that the cache had to do with.
    """

    def __init__(self, app: ASGIApp, count: Callable[[Outcome], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, with the header added to its answer's; refusals have none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        policy = CachePolicy.of(Headers(scope=scope))
        current_policy.set(policy)

        async def send_with_outcome(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and policy.outcome is not None and message["status"] < 400:
                self._note(policy.outcome, message)
            await send(message)

        await self._app(scope, receive, send_with_outcome)

    def _note(self, outcome: Outcome, message: Message) -> None:
        MutableHeaders(scope=message)[HEADER] = outcome
        self._count(outcome)
        call = current_call.get()
        if call is not None:
            call.cache = outcome
