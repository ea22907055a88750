"""One line of the log for every call, when it and what it asked for are over. Pure ASGI.

The line says who was asked for what, how it ended, how long it took and how many tokens it was; no
query, no header and no word of a body.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.log_format import REQUEST_ID
from server.call_record import Call, current_call
from server.request_id import SCOPE_KEY
from server.served import Served

# Asked every few seconds by machines.
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_TRACE_HEADERS = ("traceparent", "tracestate")
_MAX_PATH_LENGTH = 256

logger = logging.getLogger(__name__)


class CallMiddleware:
    """Makes the record of each call, and tells it; stands inside of `server.request_id`.

    Args:
        app: what is called.
        served: its tracer hears of calls, if there is one.
    """

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and note how it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = Call(
            request_id=scope[SCOPE_KEY],
            method=scope["method"],
            path=scope["path"],
            on_over=self._tell,
            trace_headers={name: headers[name] for name in _TRACE_HEADERS if name in headers},
        )
        # It stays: failures that nobody foresaw are logged outside of here, in the same task.
        current_call.set(call)

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as error:
            call.status = call.status or HTTPStatus.INTERNAL_SERVER_ERROR
            call.error = type(error).__name__
            raise
        finally:
            call.end()

    def _tell(self, call: Call) -> None:
        fields = dict(_fields(call))
        level = logging.DEBUG if call.path in _PROBES else logging.INFO
        message = " ".join(f"{name}=%s" for name in fields)
        # What one call asked for in the background may be ended by another.
        told = {REQUEST_ID: call.request_id}
        logger.log(level, f"request_finished {message}", *fields.values(), extra=told)
        if self._served.trace is not None:
            self._served.trace(call)


def _fields(call: Call) -> Iterator[tuple[str, Any]]:
    yield "method", call.method
    yield "path", quote(call.path)[:_MAX_PATH_LENGTH]
    yield "status", None if call.status is None else int(call.status)
    yield "seconds", round(call.seconds, 3)
    answer = call.answer
    if answer is not None:
        yield "id", answer.answer_id
        yield "prompt_tokens", answer.num_prompt_tokens
        yield "cached_tokens", answer.num_cached_tokens
        yield "completion_tokens", answer.num_tokens
        yield "finish", ",".join(str(choice.finish_reason) for choice in answer.choices)
    if call.cache is not None:
        yield "cache", call.cache
    if call.error is not None:
        yield "error", call.error
