"""How every route reads its body: within limits of size and time, as JSON, and into its model.

A body that is too large is refused before it is all in memory. What a model refuses by name is
dropped instead where the server was told so, and then named in one line of the log.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from engine.errors import InvalidRequestError, RequestTooLargeError
from server.body_limits import check_nesting
from server.config import ServerConfig
from server.errors import ErrorShape, UnsupportedMediaTypeError, use_error_shape
from server.protocol.wire import IgnoredFields, WireModel
from server.refusals import BodyTimeoutError, Refusal
from server.served import Served

Model = TypeVar("Model", bound=WireModel)

logger = logging.getLogger(__name__)


async def read_body(
    request: Request, kind: type[Model], *, error_shape: ErrorShape | None = None
) -> Model:
    """Read, parse and validate the body of a request.

    Args:
        request: not read from yet.
        kind: what the body must be.
        error_shape: the bodies of this request's errors, now and later; None = OpenAI's.

    Raises:
        RequestTooLargeError: the body has more bytes than the server takes.
        BodyTimeoutError: it did not come in time.
        UnsupportedMediaTypeError: the body is not declared as JSON.
        InvalidRequestError: it is no JSON, or has a field that is not served.
        RequestValidationError: a field has the wrong type or value.
    """
    if error_shape is not None:
        use_error_shape(request, error_shape)
    config: ServerConfig = request.app.state.config
    _check_media_type(request)
    values = _parse(await _read_in_time(request, config))
    check_nesting(values)
    ignored = IgnoredFields() if config.ignore_unknown_fields else None
    try:
        body = kind.model_validate(values, context=ignored)
    except ValidationError as error:
        # The input is left out: it may be large, and is the caller's own.
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError(found) from error
    if ignored is not None and ignored.count > 0:
        _log_ignored(request, ignored)
    return body


def _check_media_type(request: Request) -> None:
    """Refuse what a browser sends across origins without asking first."""
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return
    raise UnsupportedMediaTypeError(
        f"The body must have the header `content-type: application/json`, not {given[:100]!r}."
    )


async def _read_in_time(request: Request, config: ServerConfig) -> bytes:
    try:
        async with asyncio.timeout(config.body_timeout):
            return await _read_bytes(request, config.max_body_bytes)
    except TimeoutError as error:
        served: Served = request.app.state.served
        served.metrics.count_refusal(Refusal.SLOW_BODY)
        raise BodyTimeoutError(
            f"The body was not complete within {config.body_timeout:g} seconds; send it faster, "
            "or start the server with a larger --body-timeout."
        ) from error


async def _read_bytes(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(f"{int(declared)} bytes", limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large("more", limit)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise InvalidRequestError("The client left before its body was complete.") from error
    return b"".join(chunks)


def _too_large(found: str, limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The body may have {limit} bytes at most and has {found}; "
        "send less, or start the server with a larger --max-body-bytes."
    )


def _parse(content: bytes) -> Any:
    try:
        # Nesting is limited by the parser; of a key that stands twice the last one counts.
        return from_json(content)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.", code="invalid_json") from error


def _log_ignored(request: Request, ignored: IgnoredFields) -> None:
    shown = ",".join(repr(name) for name in ignored.names)
    logger.warning(
        "fields_ignored path=%s count=%d fields=%s", request.url.path, ignored.count, shown
    )
