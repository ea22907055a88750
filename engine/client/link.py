"""One engine process from its start to its end, and the socket to it.

It starts the process, carries messages, and says how it ended; it refuses to know of requests, and
of what comes after. What it made (a folder, a socket, a process) is gone when it is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from engine.client.messages import (
    FromEngine,
    StartEngine,
    StopEngine,
    ToEngine,
    encoder,
    from_engine_decoder,
)
from engine.config import EngineConfig

# What the process still had to say when it ended is read for this long.
_LAST_WORDS_S = 0.1
_STOP_S = 5.0
_DUMP_S = 0.2
# A process that waits for a device that does not answer cannot be ended.
_KILL_S = 30.0

logger = logging.getLogger(__name__)


class EngineLink:
    """An engine process and the way to it; made by `start`.

    Args:
        folder: holds the socket; removed in the end.
        process: the process.
        context: of the socket.
        socket: a bound PAIR socket.

    Attributes:
        folder: see above.
        num_sent: messages sent since the process was told to start.
    """

    def __init__(
        self,
        folder: str,
        process: asyncio.subprocess.Process,
        context: zmq.asyncio.Context,
        socket: zmq.asyncio.Socket,
    ) -> None:
        self.folder = folder
        self.num_sent = 0
        self._process = process
        self._context = context
        self._socket = socket
        self._is_released = False

    @classmethod
    async def start(cls, message: StartEngine) -> EngineLink:
        """Start a process, and tell it what to load.

        Raises:
            OSError: it cannot be started.
        """
        folder = tempfile.mkdtemp(prefix="outdraft-")
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PAIR)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        address = f"ipc://{folder}/engine"
        try:
            socket.bind(address)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "engine.client.engine_process",
                address,
                stdin=asyncio.subprocess.PIPE,
                env=_environment(message.config),
            )
        except BaseException:
            _remove(socket, context, folder)
            raise
        link = cls(folder, process, context, socket)
        link.send(message)
        link.num_sent = 0
        return link

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queue a message; there is no limit to the queue, so this never waits."""
        self.num_sent += 1
        sending = asyncio.ensure_future(self._socket.send(encoder.encode(message)))
        sending.add_done_callback(_ignore_outcome)

    async def read(self, handle: Callable[[FromEngine], None]) -> None:
        """Hand on what the process says, until this is cancelled.

        A message that cannot be handled ends the process: nobody would hear of its work any more.
        """
        try:
            while True:
                handle(from_engine_decoder.decode(await self._socket.recv()))
        except Exception:
            logger.exception("engine_unreadable pid=%d", self.pid)
            self.kill()

    async def ended(self) -> str:
        """Wait until the process has ended and its last words are read; says how it ended."""
        returncode = await self._process.wait()
        await asyncio.sleep(_LAST_WORDS_S)
        return _describe_end(returncode)

    def kill(self) -> None:
        """End the process by force."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def kill_hung(self) -> bool:
        """Let a process say in the log where it hangs, and end it; False where it will not end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(_DUMP_S)
        self.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _KILL_S)
        return self._process.returncode is not None

    async def stop(self, *, may_ask: bool) -> None:
        """End the process: by asking it, if it would hear that, and else by force."""
        if may_ask and self._process.returncode is None:
            self.send(StopEngine())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _STOP_S)
        self.kill()
        await self._process.wait()

    def release(self) -> None:
        """Remove the socket and its folder; once is enough."""
        if not self._is_released:
            self._is_released = True
            _remove(self._socket, self._context, self.folder)


def _remove(socket: zmq.asyncio.Socket, context: zmq.asyncio.Context, folder: str) -> None:
    socket.close()
    context.term()
    shutil.rmtree(folder, ignore_errors=True)


def _environment(config: EngineConfig) -> dict[str, str]:
    """Give the engine our import path, and OpenMP threads that sleep while they wait."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if config.model.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.model.threads)
    return environment


def _describe_end(returncode: int) -> str:
    if returncode >= 0:
        return f"it ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "unknown"
    return f"it was ended by signal {-returncode} ({name})"


def _ignore_outcome(future: asyncio.Future[Any]) -> None:
    """Let a message to a dead process be lost; its waiters hear of the death itself."""
    if not future.cancelled():
        future.exception()
