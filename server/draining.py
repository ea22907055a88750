"""How a server ends: it takes nothing new, finishes what is there, and is gone; or is gone at once.

The first signal begins that, a second one cuts it short. What does not end within the time is ended
with an error that its caller reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from engine.client.process import EngineClient
from engine.errors import EngineDrainingError

_LOOK_S = 0.05

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A server that listens until its engine's requests have ended; made in its event loop.

    Args:
        config: uvicorn's settings.
        engine: whose requests are waited for.
        timeout_s: seconds that they may take.
        on_drain: is done first: what nobody waits for is given up.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: EngineClient,
        timeout_s: float,
        on_drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(config)
        # Streams would be cut as soon as nothing new is accepted, told to their end or not.
        AppStatus.enable_automatic_graceful_drain = False
        self._engine = engine
        self._timeout_s = timeout_s
        self._on_drain = on_drain
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal; uvicorn's place for it."""
        self._loop.call_soon_threadsafe(self._end, sig)

    def _end(self, sig: int) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
            return
        logger.warning("stopping signal=%d open_requests=%d", sig, self._engine.num_open)
        self._engine.kill()
        self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        engine = self._engine
        engine.drain()
        if self._on_drain is not None:
            await self._on_drain()
        logger.info("draining open_requests=%d timeout_s=%.0f", engine.num_open, self._timeout_s)
        end = time.monotonic() + self._timeout_s
        while engine.num_open and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)
        if engine.num_open:
            logger.warning("drain_timed_out open_requests=%d", engine.num_open)
            engine.give_up(
                EngineDrainingError(
                    "The server is shutting down, and this answer was not finished within the "
                    f"{self._timeout_s:.0f} s that it waits; ask another one."
                )
            )
        self.should_exit = True
