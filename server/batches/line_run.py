"""Asks one line of a batch: calls the application in this process, as a client would by a socket.

So what a line may ask, and how it is refused, is exactly what the route says. Waiting is its own
business: a batch has time, so a line that there is no room for is asked again until there is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.types import Message, Scope

from engine.errors import EngineDeadError, EngineDrainingError, InvalidRequestError
from server.auth import scope_of_caller
from server.background_work import as_background
from server.batches.lines import BATCH_URLS, RESPONSES_URL, BatchLine
from server.batches.output import LineAnswer
from server.errors import error_body
from server.keys import ANYBODY, Caller
from server.request_id import new_request_id

# Several lines of a crashed step may each be in more of them until it is known which one it was.
MAX_CRASHES = 5
_LONGEST_WAIT_S = 30.0
_UNKNOWN_WAIT_S = 1.0

logger = logging.getLogger(__name__)


class LineRunner:
    """Asks the lines of one caller.

    Args:
        app: answers them; its engine may be loading.
        caller: whose lines they are; its cached prefixes and stored answers are theirs.
    """

    def __init__(self, app: FastAPI, caller: Caller = ANYBODY) -> None:
        self._app = app
        # Limits are as high as for calls, but apart: a batch must not shut its own caller out.
        account = caller.account and f"batch:{caller.account}"
        self._caller = replace(caller, account=account)

    async def run(self, line: BatchLine) -> LineAnswer:
        """Ask a line, as often as it takes until it is answered or refused for what it asks.

        Cancelling this gives the line up: the engine forgets it at its next step.

        Raises:
            EngineDrainingError: the server is being shut down; the line was not answered.
            EngineDeadError: the engine is gone for good.
        """
        request_id = new_request_id()
        refusal = _refusal(line)
        if refusal is not None:
            return _answer_of(refusal, request_id)
        num_crashes = 0
        while True:
            call = _Call(self._app, self._caller, line.url, request_id)
            with as_background():
                answer = await call.ask(line.body)
            wait_s = self._wait_s(answer, call.headers)
            if wait_s is None:
                return answer
            num_crashes += _code_of(answer) == "engine_dead"
            if num_crashes >= MAX_CRASHES:
                logger.warning("batch_line_gave_up crashes=%d", num_crashes)
                return answer
            await asyncio.sleep(wait_s)

    def _wait_s(self, answer: LineAnswer, headers: Mapping[str, str]) -> float | None:
        """Give the seconds after which to ask again; None = this is the answer.

        Raises:
            EngineDrainingError: the server is being shut down.
            EngineDeadError: the engine is gone for good.
        """
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            return _told_wait_s(headers)
        if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        if _code_of(answer) == "engine_draining":
            raise EngineDrainingError("The server is shutting down.")
        if not self._app.state.served.engine.is_alive:
            raise EngineDeadError("The engine is gone; start the server anew.")
        return _UNKNOWN_WAIT_S


@dataclass(slots=True)
class _Call:
    """One call of the application.

    Attributes:
        app: what is called.
        caller: who calls.
        path: of the route.
        request_id: of the call.
        headers: of the answer.
    """

    app: FastAPI
    caller: Caller
    path: str
    request_id: str
    headers: dict[str, str] = field(default_factory=dict)
    _status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    _body: list[bytes] = field(default_factory=list)
    _asked: bytes | None = None

    async def ask(self, body: dict[str, Any]) -> LineAnswer:
        """Send a body, and wait for the whole answer."""
        self._asked = json.dumps(body).encode()
        try:
            await self.app(self._scope(), self._receive, self._send)
        except Exception as error:
            # What nobody foresaw was answered and logged, and is raised once more for the server.
            if not self._body:
                return _answer_of(error, self.request_id)
        return LineAnswer(self._status, self.request_id, b"".join(self._body))

    def _scope(self) -> Scope:
        path = self.path.encode()
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": path,
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"x-request-id", self.request_id.encode()),
            ],
            "client": None,
            "server": None,
            "state": {},
            **scope_of_caller(self.caller),
        }

    async def _receive(self) -> Message:
        if self._asked is not None:
            body, self._asked = self._asked, None
            return {"type": "http.request", "body": body, "more_body": False}
        # Nobody hangs up; whoever wants no answer any more cancels.
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets has come")

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            self.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        elif message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))


def _refusal(line: BatchLine) -> InvalidRequestError | None:
    """Say what a batch cannot do though the route could."""
    if line.url not in BATCH_URLS:
        return InvalidRequestError(
            f"url: {line.url!r} is not {' or '.join(BATCH_URLS)}.", param="url", code="invalid_url"
        )
    if line.body.get("stream"):
        return InvalidRequestError(
            "stream: the answer to a batch's line is always whole; leave it out.",
            param="stream",
            code="invalid_value",
        )
    if line.url == RESPONSES_URL and line.body.get("background"):
        return InvalidRequestError(
            "background: a batch runs in the background as it is; leave it out.",
            param="background",
            code="invalid_value",
        )
    return None


def _answer_of(error: Exception, request_id: str) -> LineAnswer:
    is_ours = isinstance(error, InvalidRequestError)
    status = HTTPStatus.BAD_REQUEST if is_ours else HTTPStatus.INTERNAL_SERVER_ERROR
    return LineAnswer(status, request_id, msgspec.json.encode(error_body(error)))


def _code_of(answer: LineAnswer) -> str | None:
    if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    code: str | None = msgspec.json.decode(answer.body)["error"]["code"]
    return code


def _told_wait_s(headers: Mapping[str, str]) -> float:
    given = headers.get("retry-after-ms", "")
    wait_s = int(given) / 1000 if given.isdecimal() else _UNKNOWN_WAIT_S
    return min(wait_s, _LONGEST_WAIT_S)
