"""A small HTTP/1.1 client for streams of server-sent events, made to cost little per event.

One `asyncio.Protocol` per connection; httptools parses HTTP, and events are stamped as soon as
their bytes are there and read only later. It refuses to know what is in them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from engine.errors import ConfigError

Clock = Callable[[], float]
"""Gives seconds that only grow."""

_OK = 200


@dataclass(slots=True)
class Reply:
    """What came back of one request.

    Attributes:
        sent_s: when it was sent, a new connection's making included.
        end_s: when the reply ended, however it did.
        status: HTTP's; None = no reply began.
        events: arrival and data of each event, for streams.
        body: of replies that are no streams of events.
        failure: `timeout`, `connection`, `broken stream`, or None where the reply is whole.
    """

    sent_s: float
    end_s: float = 0.0
    status: int | None = None
    events: list[tuple[float, bytes]] = field(default_factory=list)
    body: bytes = b""
    failure: str | None = None


class EventSplitter:
    """Takes the bytes of a stream as they come apart into the data of events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Give the data of the events that end in this piece; comments and names are left out."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        ended = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif self._data and line in (b"", b"\r"):
                ended.append(b"\n".join(self._data))
                self._data.clear()
        return ended


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        host: name or address.
        port: of TCP.
        is_secure: whether TLS is spoken.
        base_path: in front of `/chat/completions`, usually `/v1`.
        headers: of every request, beside those that HTTP needs.
    """

    host: str
    port: int
    is_secure: bool
    base_path: str
    headers: Mapping[str, str]

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """Give a request as bytes."""
        lines = [
            f"{method} {self.base_path}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Accept: text/event-stream, application/json",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


def parse_target(url: str, headers: Mapping[str, str]) -> Target:
    """Read a base URL, with or without `/v1`.

    Raises:
        ConfigError: it is no address of HTTP.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ConfigError(f"url: {url!r} is no address such as http://127.0.0.1:8000.")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("url: takes host, port and path alone; a key comes by --api-key-env.")
    path = parts.path.rstrip("/")
    is_secure = parts.scheme == "https"
    return Target(
        host=parts.hostname,
        port=port or (443 if is_secure else 80),
        is_secure=is_secure,
        base_path=path if path.endswith("/v1") else f"{path}/v1",
        headers=headers,
    )


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._splitter = EventSplitter()
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._is_stream = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the methods, not the class.
        self._transport, self.is_open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        """Stamp what comes, then take it apart."""
        self._now = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("connection")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the reply that was being read, if one was."""
        self.is_open = False
        if self._reply is not None:
            self._now = self._clock()
            self._end("broken stream" if self._is_stream else "connection")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Learn whether events come."""
        if name.lower() == b"content-type":
            self._is_stream = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        """Note the status."""
        if self._reply is not None:
            self._reply.status = self._parser.get_status_code()
            self._is_stream = self._is_stream and self._reply.status == _OK

    def on_body(self, body: bytes) -> None:
        """Add events, or a piece of the body."""
        if self._reply is None:
            return
        if self._is_stream:
            self._reply.events += [(self._now, data) for data in self._splitter.feed(body)]
        else:
            self._reply.body += body

    def on_message_complete(self) -> None:
        """End the reply; the connection stays if the server lets it."""
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._end(None)

    async def exchange(self, request: bytes, reply: Reply) -> None:
        """Send a request and fill in its reply."""
        assert self._transport is not None, "connection_made() comes first"
        self._reply = reply
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._splitter, self._is_stream = EventSplitter(), False
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._reply = None

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, failure: str | None) -> None:
        if self._reply is None or self._done is None or self._done.done():
            return
        self._reply.failure = failure
        self._reply.end_s = self._now
        self._done.set_result(None)


class HttpClient:
    """Sends requests to one server, over connections that are kept.

    Args:
        target: where to.
        clock: stamps everything.
        timeout_s: seconds that a whole reply may take.
    """

    def __init__(self, target: Target, clock: Clock, timeout_s: float) -> None:
        self._target = target
        self._clock = clock
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if target.is_secure else None

    async def send(self, method: str, path: str, body: bytes = b"") -> Reply:
        """Give what came back; failures are told in the reply, never raised.

        Who gives up waiting hangs up.
        """
        request = self._target.request(method, path, body)
        reply = Reply(self._clock())
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._kept()
                if connection is not None:
                    await connection.exchange(request, reply)
                # A kept connection may be closed by the server just as it is used again.
                if connection is None or (reply.failure == "connection" and reply.status is None):
                    reply.failure = None
                    connection = await self._connect()
                    await connection.exchange(request, reply)
        except TimeoutError:
            reply.failure, reply.end_s = "timeout", self._clock()
            if connection is not None:
                connection.close()
        except OSError:
            reply.failure, reply.end_s = "connection", self._clock()
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        if connection is not None and connection.is_open:
            self._idle.append(connection)
        return reply

    def close(self) -> None:
        """Hang up all connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._clock), self._target.host, self._target.port, ssl=self._tls
        )
        return connection
