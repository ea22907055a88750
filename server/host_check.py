"""Under which names the server may be called. Pure ASGI.

A web page can let its own name lead to this machine and then call whatever listens here, as if it
were the page's own server (DNS rebinding). It cannot choose the `Host` header, so a server that is
for this machine alone, and asks nobody for a key, answers only to this machine's names.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import ServerConfig
from server.error_shapes import answer_in_shape
from server.metrics import ServerMetrics
from server.refusals import ForbiddenError, Refusal


def known_hosts(config: ServerConfig, *, has_keys: bool) -> frozenset[str] | None:
    """Give the names that a server answers to beside loopback addresses; None = any."""
    if config.allowed_host:
        return frozenset(name.lower() for name in config.allowed_host)
    if has_keys or not is_loopback(config.host):
        return None
    return frozenset({config.host.lower()})


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's, for itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class HostMiddleware:
    """Refuses calls that were meant for another name.

    Args:
        app: what is guarded.
        hosts: names, in small letters; loopback's are always good.
        metrics: hears of refusals.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], metrics: ServerMetrics) -> None:
        self._app = app
        self._hosts = hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer that it went astray."""
        given = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        # No browser leaves the header out, and it is browsers that are led astray.
        if given is None or self._is_ours(_name(given)):
            await self._app(scope, receive, send)
            return
        self._metrics.count_refusal(Refusal.WRONG_HOST)
        error = ForbiddenError(
            f"This server is not called {_name(given)[:100]!r}; if it should be, start it with "
            "--allowed-host.",
            code="wrong_host",
        )
        await answer_in_shape(Request(scope), error)(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        return name in self._hosts or is_loopback(name)


def _name(host: str) -> str:
    """Give the name of a `Host` header, without its port or an address's brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
