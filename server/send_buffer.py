"""What waits to be sent to one reader, up to a limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from server.refusals import SlowReaderError

# Few large writes are cheaper than many small ones, and no single one is beyond a socket's buffer.
_CHUNK_BYTES = 2**16
# A reader may be behind for so long before it counts as too slow.
_PATIENCE_S = 1.0


class SendBuffer:
    """Frames between who makes them and who sends them.

    Args:
        max_bytes: with as much waiting, no more is taken.

    Attributes:
        num_bytes: size of what is not sent yet; the last frame may reach beyond the limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._is_over = False
        self._error: Exception | None = None
        self.num_bytes = 0

    async def put(self, frame: bytes) -> None:
        """Take a frame as soon as there is room.

        Raises:
            SlowReaderError: there was none in time.
        """
        if self.num_bytes >= self._max_bytes:
            await self._wait_for_room()
        self._frames.append(frame)
        self.num_bytes += len(frame)
        self._news.set()

    def end(self, error: Exception | None = None) -> None:
        """Note that nothing more will come.

        Args:
            error: what whoever sends has to hear of.
        """
        self._is_over, self._error = True, error
        self._news.set()

    def cut(self, last: bytes) -> None:
        """Forget what waits, and send one last frame instead."""
        self._frames = deque([last])
        self.end()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give what there is, several frames at once where they have gathered, until the end."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._frames:
                chunk = self._take()
                yield chunk
                # It counts until it is sent.
                self.num_bytes -= len(chunk)
                self._room.set()
            if self._is_over:
                if self._error is not None:
                    raise self._error
                return

    def _take(self) -> bytes:
        size = 0
        taken: list[bytes] = []
        while self._frames and (not taken or size + len(self._frames[0]) <= _CHUNK_BYTES):
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        return b"".join(taken)

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while self.num_bytes >= self._max_bytes:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError as error:
            raise SlowReaderError(
                f"The stream was cut off: {self.num_bytes} bytes were waiting to be read, and "
                f"{self._max_bytes} may. Read faster, ask for less, or start the server with a "
                "larger --max-stream-buffer."
            ) from error
