"""How one client's connection is held: uvicorn's, with limits to how long a client may be silent.

uvicorn waits for as long as it takes until a request's head has come, and until what is sent has
been taken; either way a client could hold a connection, and memory, for as long as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.config import ServerConfig
from server.metrics import ServerMetrics
from server.refusals import Refusal

_EXTENSION = "outdraft.connection"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a client may be silent.

    Attributes:
        head_timeout_s: until a request's head has come.
        send_timeout_s: while it takes nothing of what it is sent.
        on_slow_reader: hears of those who took nothing.
    """

    head_timeout_s: float
    send_timeout_s: float
    on_slow_reader: Callable[[], None]


class _Alarm:
    """Does something unless it is stopped in time.

    Args:
        loop: that waits.
        delay_s: from its start.
        action: what it does.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, delay_s: float, action: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._action = action
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to wait, anew if it waits already."""
        self.stop()
        self._timer = self._loop.call_later(self._delay_s, self._action)

    def stop(self) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(HttpToolsProtocol):
    """One client's connection.

    Args:
        limits: how long it may be silent.
        options: uvicorn's own.
    """

    def __init__(self, *, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._head_alarm = _Alarm(self.loop, limits.head_timeout_s, self._hang_up)
        self._send_alarm = _Alarm(self.loop, limits.send_timeout_s, self._give_up_reader)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_alarm.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._head_alarm.stop()
        self._send_alarm.stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a request's head."""
        super().on_message_begin()
        self._head_alarm.start()

    def on_headers_complete(self) -> None:
        """Hand the request on, with a way to hang up."""
        self._head_alarm.stop()
        scope: Any = self.scope
        scope["extensions"] = {_EXTENSION: self.transport.abort}
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what it was sent."""
        super().pause_writing()
        self._send_alarm.start()

    def resume_writing(self) -> None:
        """Note that the client has taken something."""
        self._send_alarm.stop()
        super().resume_writing()

    def _hang_up(self) -> None:
        # Closing would wait for a client that does not answer.
        self.transport.abort()

    def _give_up_reader(self) -> None:
        self._limits.on_slow_reader()
        self._hang_up()


def connection_options(config: ServerConfig, metrics: ServerMetrics) -> dict[str, Any]:
    """Give uvicorn's options of how connections are held."""
    limits = ConnectionLimits(
        head_timeout_s=config.body_timeout,
        send_timeout_s=config.send_timeout,
        on_slow_reader=partial(metrics.count_refusal, Refusal.SLOW_READER),
    )
    return {
        "http": partial(Connection, limits=limits),
        # There are no web sockets to guard.
        "ws": "none",
        "proxy_headers": bool(config.trusted_proxy),
        "forwarded_allow_ips": list(config.trusted_proxy),
        "server_header": False,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
    }


def hang_up(scope: Scope) -> None:
    """End a request's connection at once, whatever waits to be sent; where the server can."""
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(_EXTENSION)
    if abort is not None:
        abort()
