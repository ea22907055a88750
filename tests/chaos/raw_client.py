"""A client without manners: it sends any bytes, reads as it likes, and leaves when it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from urllib.parse import urlsplit

_LINGER = struct.pack("ii", 1, 0)


class RawClient:
    """One connection.

    Args:
        url: of the server.
        receive_bytes: that the kernel keeps for us; None = as many as it likes.
    """

    def __init__(self, url: str, receive_bytes: int | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 0
        self._receive_bytes = receive_bytes
        self._socket = socket.socket()

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            OSError: nobody listens.
        """
        if self._receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, (self.host, self.port))

    def post(self, path: str, body: bytes, length: int | None = None) -> bytes:
        """Give a request as bytes, with the length that it claims to have."""
        claimed = len(body) if length is None else length
        lines = [
            f"POST /v1{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {claimed}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def send(self, content: bytes) -> None:
        """Send bytes; a server that hung up is no reason to complain."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(self._socket, content)

    async def read(self, most: int = 2**16) -> bytes:
        """Read what is there; nothing = the server is done with us."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, most)
        except ConnectionResetError:
            return b""

    async def read_until(self, mark: bytes, most: int = 2**30) -> bytes:
        """Read until something has come, or everything, or as many bytes."""
        content = b""
        while mark not in content and len(content) < most:
            piece = await self.read()
            if not piece:
                break
            content += piece
        return content

    def leave(self, *, rudely: bool) -> None:
        """Hang up, with a reset where that is to be rude."""
        if rudely:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self._socket.close()
