"""Counts each call of a caller, refuses those beyond the limit, and tells what is left. Pure ASGI.

It stands inside of `server.auth`, so it knows who calls, and before the routes, so a call that is
refused has had no work done for it and its body is not read.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import caller_of
from server.error_shapes import answer_in_shape
from server.metrics import ServerMetrics
from server.rate_limits import Accounts
from server.refusals import RateLimitedError, Refusal


class RateLimitMiddleware:
    """Holds `max_requests_per_minute`, and adds OpenAI's headers to every counted answer.

    Args:
        app: what is limited.
        accounts: of the callers.
        metrics: hears of refusals.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts, metrics: ServerMetrics) -> None:
        self._app = app
        self._accounts = accounts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer that it is one too many."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = caller_of(Request(scope))
        # Whoever operates the server may look at any time, and nobody counts health checks.
        if caller.is_admin or not caller.account:
            await self._app(scope, receive, send)
            return
        account = self._accounts.of(caller.account)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(account.headers())
            await send(message)

        try:
            account.take_request()
        except RateLimitedError as error:
            self._metrics.count_refusal(Refusal.RATE_LIMITED)
            await answer_in_shape(Request(scope), error)(scope, receive, send_with_limits)
            return
        await self._app(scope, receive, send_with_limits)
