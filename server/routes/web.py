"""`GET /` and `GET /web/...`: the playground, a page that talks to this server alone.

Anybody may have these files, also where callers need keys: they hold no secret, and the page asks
for a key when it needs one. They are no part of the API, so its description does not name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.web_files import WebFile

# No inline script or style, nothing from elsewhere, no text that becomes markup by itself.
PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_ISOLATION = {
    "content-security-policy": PAGE_POLICY,
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def web_routes(files: Mapping[str, WebFile]) -> list[Route]:
    """Give a route for each of the page's files."""
    return [_route(path, file) for path, file in files.items()]


def _route(path: str, file: WebFile) -> Route:
    # The browser keeps what it has, and asks whether it is still good.
    headers = {"etag": file.etag, "cache-control": "no-cache"}
    if file.is_page:
        headers |= _ISOLATION

    async def show(request: Request) -> Response:
        if _has_it(request, file):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return Route(path, show, methods=["GET"], include_in_schema=False)


def _has_it(request: Request, file: WebFile) -> bool:
    """Whether the browser has this very version."""
    known = request.headers.get("if-none-match", "")
    return file.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}
