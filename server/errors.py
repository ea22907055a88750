"""Errors on the wire: one table from error class to HTTP status, and OpenAI's error body.

The body always has all four keys; clients choose their exception by the status alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope
from typing_extensions import TypedDict

from engine.errors import (
    DeadlinePassedError,
    EngineDeadError,
    EngineNotReadyError,
    EngineRestartingError,
    InvalidRequestError,
    ModelNotFoundError,
    OutdraftError,
    RequestTooLargeError,
)
from server import request_id as request_id_header
from server import security_headers, synthetic_mark
from server.batches.storage_errors import NoDataDirError, StorageError, StorageFullError
from server.call_record import note_error
from server.refusals import (
    BodyTimeoutError,
    ForbiddenError,
    OverloadedError,
    RateLimitedError,
    RefusalError,
    SlowReaderError,
    UnauthorisedError,
)

logger = logging.getLogger(__name__)

ErrorShape = Callable[[Exception], Mapping[str, Any]]
_SHAPE_KEY = "outdraft.error_shape"
_MAX_MESSAGE_LENGTH = 2000


class UnsupportedMediaTypeError(InvalidRequestError):
    """A body is not declared to be what the route takes."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsupported_media_type")


class NotStoredError(InvalidRequestError):
    """What is asked for by its id is not stored here: it never was, or is no longer."""


# The first class that fits decides.
_STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (ModelNotFoundError, HTTPStatus.NOT_FOUND),
    (NotStoredError, HTTPStatus.NOT_FOUND),
    (RequestTooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (UnsupportedMediaTypeError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (InvalidRequestError, HTTPStatus.BAD_REQUEST),
    (RequestValidationError, HTTPStatus.BAD_REQUEST),
    (UnauthorisedError, HTTPStatus.UNAUTHORIZED),
    (ForbiddenError, HTTPStatus.FORBIDDEN),
    (OverloadedError, HTTPStatus.TOO_MANY_REQUESTS),
    (RateLimitedError, HTTPStatus.TOO_MANY_REQUESTS),
    (BodyTimeoutError, HTTPStatus.REQUEST_TIMEOUT),
    (SlowReaderError, HTTPStatus.REQUEST_TIMEOUT),
    (DeadlinePassedError, HTTPStatus.GATEWAY_TIMEOUT),
    (EngineNotReadyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (EngineDeadError, HTTPStatus.SERVICE_UNAVAILABLE),
    (NoDataDirError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageFullError, HTTPStatus.INSUFFICIENT_STORAGE),
    (Exception, HTTPStatus.INTERNAL_SERVER_ERROR),
)


class ErrorDetail(TypedDict):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """What every failed request, and every failed stream, ends with."""

    error: ErrorDetail


def status_of(error: Exception) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def error_body(error: Exception) -> ErrorBody:
    """Render an error as OpenAI does; errors that nobody foresaw show nothing of the inside."""
    status = status_of(error)
    message, param, code = _describe(error)
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = f"{message[:_MAX_MESSAGE_LENGTH]}..."
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if isinstance(error, RefusalError):
        kind = error.kind
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def use_error_shape(request: Request, shape: ErrorShape) -> None:
    """Answer the failures of one request in another shape than OpenAI's."""
    request.scope[_SHAPE_KEY] = shape


def install_error_handlers(app: FastAPI) -> None:
    """Answer every failure of the app in OpenAI's shape, or in the one its request uses."""
    for kind in (OutdraftError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    return error_response(request, error)


def error_shape_of(scope: Scope) -> ErrorShape:
    """Give the shape of one request's errors."""
    shape: ErrorShape = scope.get(_SHAPE_KEY, error_body)
    return shape


def error_response(request: Request, error: Exception) -> Response:
    """Answer one request's failure, in the shape that it uses."""
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request_failed path=%s", request.url.path, exc_info=error)
    request.app.state.served.metrics.observe_error(error)
    note_error(error)
    return Response(
        msgspec.json.encode(error_shape_of(request.scope)(error)),
        status_code=status,
        media_type="application/json",
        headers=_headers(request, error),
    )


def _headers(request: Request, error: Exception) -> dict[str, str]:
    given: dict[str, str] = security_headers.HEADERS | (getattr(error, "headers", None) or {})
    if isinstance(error, EngineNotReadyError):
        given["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, EngineDeadError) and request.app.state.served.engine.is_alive:
        given["retry-after"] = str(EngineRestartingError.retry_after_s)
    given |= request.scope.get(synthetic_mark.SCOPE_KEY, {})
    if isinstance(error, DeadlinePassedError):
        # Clients try again after any 504, which would take as long and cost as much.
        given["x-should-retry"] = "false"
    request_id: str | None = request.scope.get(request_id_header.SCOPE_KEY)
    if request_id is None:
        return given
    return given | dict.fromkeys(request_id_header.HEADERS, request_id)


def _describe(error: Exception) -> tuple[str, str | None, str | None]:
    """Give an error's message, the field at fault and its code."""
    if isinstance(error, InvalidRequestError):
        return str(error), error.param, error.code
    if isinstance(error, RequestValidationError):
        return _describe_validation(error.errors())
    if isinstance(error, HTTPException):
        return str(error.detail), None, None
    if isinstance(error, RefusalError):
        return str(error), None, error.code
    if isinstance(error, DeadlinePassedError):
        return str(error), "timeout", "request_timeout"
    if isinstance(error, EngineDeadError):
        return str(error), None, "engine_dead"
    if isinstance(error, EngineNotReadyError):
        return str(error), None, error.code
    if isinstance(error, StorageError):
        return str(error), None, error.code
    if isinstance(error, OutdraftError):
        return str(error), None, None
    return f"The server failed unexpectedly ({type(error).__name__}).", None, None


def _describe_validation(errors: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """Say what the schema found wrong with the first field that it did not take."""
    first = errors[0]
    place = _place(first)
    if not place:
        return f"The body is no JSON object: {first['msg']}.", None, "invalid_value"
    # A field that may be of several types has one complaint for each of them.
    complaints = dict.fromkeys(e["msg"] for e in errors if _place(e)[:1] == place[:1])
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return f"{'.'.join(place)}: {', or: '.join(complaints)}.", place[0], code


def _place(error: Any) -> list[str]:
    """Give the path to a field, without where it was and the names of types that were tried."""
    parts = [str(part) for part in error["loc"] if part not in {"body", "query"}]
    tried = {"str", "int", "constrained-str"}
    return [part for part in parts if part not in tried and "[" not in part]
