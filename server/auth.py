"""Lets nobody in without a key, where there are keys: every path, known or not. Pure ASGI.

What is guarded is not listed, so a new route cannot be forgotten; what is open is: health checks,
and to be read only, one by one, the files of the playground's page. OpenAI's clients send
`Authorization: Bearer KEY`, Anthropic's `x-api-key: KEY`; either is taken on every path.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.error_shapes import answer_in_shape
from server.keys import ANYBODY, Caller, KeyRing
from server.metrics import ServerMetrics
from server.refusals import ForbiddenError, Refusal, RefusalError, UnauthorisedError

# For load balancers, which have no keys; they say whether requests can be served, and no more.
OPEN_PATHS = frozenset({"/health", "/ready"})
ADMIN_PATHS = frozenset({"/metrics", "/server_info", "/statistics"})
ADMIN_PREFIX = "/admin/"
_READING = frozenset({"GET", "HEAD"})
_SCOPE_KEY = "outdraft.caller"
_IPV6_HOST_BITS = 64


class AuthMiddleware:
    """Finds out who calls, and refuses who may not.

    Args:
        app: what is guarded.
        keys: that open it.
        metrics: hears of refusals.
        files: paths of files that anybody may read.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, metrics: ServerMetrics, files: Collection[str] = ()
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._files = frozenset(files)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on with its caller, or answer that it is refused."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if _SCOPE_KEY in scope:
            # Asked by this server itself: what comes in from outside cannot write there.
            await self._app(scope, receive, send)
            return
        try:
            scope[_SCOPE_KEY] = self._find(scope)
        except RefusalError as error:
            self._metrics.count_refusal(Refusal.UNAUTHORISED)
            response = answer_in_shape(Request(scope), error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _find(self, scope: Scope) -> Caller:
        """Say who calls.

        Raises:
            UnauthorisedError: the path needs a key, and none that fits is there.
            ForbiddenError: it needs another key.
        """
        path: str = scope["path"]
        is_admins = path in ADMIN_PATHS or path.startswith(ADMIN_PREFIX)
        is_admins = is_admins and self._keys.has_admin_keys
        if path in OPEN_PATHS or (path in self._files and scope["method"] in _READING):
            return ANYBODY
        given = _given_keys(Headers(scope=scope))
        caller = None if self._keys.is_empty else self._keys.find(given)
        if caller is None and (is_admins or self._keys.has_api_keys):
            raise UnauthorisedError(
                "Incorrect API key provided."
                if given
                else "You did not provide an API key. Give it in the header `Authorization: "
                "Bearer KEY`, or `x-api-key: KEY`."
            )
        if is_admins and caller is not None and not caller.is_admin:
            raise ForbiddenError(
                f"{path} needs an admin key.", code="insufficient_permissions", kind="forbidden"
            )
        if caller is None:
            is_isolated = self._keys.num_tenants > 1
            return Caller(is_isolated=is_isolated, account=f"address:{_network(scope)}")
        return caller


def caller_of(request: Request) -> Caller:
    """Give who sent a request."""
    caller: Caller = request.scope.get(_SCOPE_KEY, ANYBODY)
    return caller


def scope_of_caller(caller: Caller) -> Scope:
    """Give what a call's scope says where the server itself asks for somebody."""
    return {_SCOPE_KEY: caller}


def _given_keys(headers: Headers) -> list[str]:
    keys = []
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        keys.append(key.strip())
    if headers.get("x-api-key"):
        keys.append(headers["x-api-key"])
    return keys


def _network(scope: Scope) -> str:
    """Give where a call comes from; of IPv6 the network, since one machine has all of it."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return str(host)
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS)}/{_IPV6_HOST_BITS}"
