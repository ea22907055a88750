"""Answers failures that no route has seen, in the shape of the API that their path belongs to."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from server.errors import error_response, use_error_shape
from server.messages_errors import messages_error_shape

_MESSAGES = "/v1/messages"


def answer_in_shape(request: Request, error: Exception) -> Response:
    """Answer a failure before the routes: in Anthropic's shape on its paths, else in OpenAI's."""
    path: str = request.scope["path"]
    if path == _MESSAGES or path.startswith(f"{_MESSAGES}/"):
        use_error_shape(request, messages_error_shape(request))
    return error_response(request, error)
