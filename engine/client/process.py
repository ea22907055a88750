"""The client's side of the engine process: starts it, talks to it, notices when it dies.

It knows sockets and processes and who waits for which request; no torch, no text, no HTTP.
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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import zmq
import zmq.asyncio

import engine.errors
from engine.client.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineReady,
    FromEngine,
    NewRequest,
    StartEngine,
    StepOutputs,
    StopEngine,
    ToEngine,
    encoder,
    from_engine_decoder,
)
from engine.client.streams import RequestStream
from engine.config import EngineConfig
from engine.door import ModelInfo
from engine.errors import EngineDeadError, EngineNotReadyError, ModelLoadError, OutdraftError
from engine.metrics import EngineStats
from engine.request import Request, RequestDelta

# What the process still had to say when it ended is read for this long.
_LAST_WORDS_S = 0.1
_STOP_S = 5.0

logger = logging.getLogger(__name__)


class EngineClient:
    """An engine in its own process, used from one event loop.

    Args:
        config: all settings, the models named.
        core_factory: `module:callable` that makes the core inside the process.
        log_level: of the process.

    Attributes:
        stats: the engine's counters as of its last message.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        core_factory: str = "engine.client.own_process:make_core",
        log_level: str = "info",
    ) -> None:
        self._start_message = StartEngine(config, core_factory, log_level)
        self._info: ModelInfo | None = None
        self._ready: asyncio.Future[ModelInfo] | None = None
        self._failure: EngineFailed | None = None
        self._death: EngineDeadError | None = None
        self._streams: dict[str, RequestStream] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None
        self.stats = EngineStats()

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        return self._info is not None and self._death is None

    @property
    def is_alive(self) -> bool:
        """Whether the engine has not failed; it may still be loading."""
        return self._death is None

    @property
    def pid(self) -> int | None:
        """The engine's process id, once started."""
        return self._process.pid if self._process is not None else None

    @property
    def info(self) -> ModelInfo:
        """What the engine says of its models.

        Raises:
            EngineNotReadyError: it is still loading.
            EngineDeadError: it is gone.
        """
        self.check_ready()
        assert self._info is not None, "a ready engine has told its limits"
        return self._info

    def check_ready(self) -> None:
        """Check that requests are welcome.

        Raises:
            EngineNotReadyError: the engine is still loading.
            EngineDeadError: the engine is gone.
        """
        if self._death is not None:
            raise EngineDeadError(str(self._death))
        if self._info is None:
            raise EngineNotReadyError("The engine is still loading its models; try again soon.")

    async def start(self) -> None:
        """Start the process; it loads in the background. See `wait_ready`."""
        self._ready = asyncio.get_running_loop().create_future()
        self._folder = tempfile.mkdtemp(prefix="outdraft-")
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        address = f"ipc://{self._folder}/engine"
        self._socket.bind(address)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "engine.client.engine_process",
            address,
            stdin=asyncio.subprocess.PIPE,
            env=_environment(self._start_message.config),
        )
        self._send(self._start_message)
        self._tasks = [
            asyncio.create_task(self._read(self._process), name="engine-reader"),
            asyncio.create_task(self._watch(self._process), name="engine-watcher"),
        ]

    async def wait_ready(self) -> ModelInfo:
        """Wait until the models are loaded.

        Raises:
            OutdraftError: loading failed; of the class that the engine raised.
        """
        assert self._ready is not None, "start() comes first"
        return await asyncio.shield(self._ready)

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """Give requests, made at the door, to the engine.

        Returns:
            The deltas of all of them, as they come.

        Raises:
            EngineNotReadyError: the engine is still loading.
            EngineDeadError: the engine is gone.
        """
        self.check_ready()
        stream = RequestStream(requests, self.abort)
        waiting = [request for request in requests if not request.is_finished]
        for request in waiting:
            self._streams[request.request_id] = stream
        if waiting:
            self._send(AddRequests([NewRequest.of(request) for request in waiting]))
        return stream

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests; their blocks are free at the next step."""
        known = [i for i in request_ids if self._streams.pop(i, None) is not None]
        if known and self._death is None:
            self._send(AbortRequests(known))

    async def close(self) -> None:
        """Stop the process, by force if it does not listen, and clean up."""
        if self._process is None:
            return
        # While it loads it hears nothing, so there is no use in asking.
        if self._process.returncode is None and self._info is not None:
            self._send(StopEngine())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _STOP_S)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._die(EngineDeadError("The engine was shut down."))
        self._release()

    def _release(self) -> None:
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # read, so that nobody complains that it was not
        self._socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, message: ToEngine) -> None:
        """Queue a message; there is no limit to the queue, so this never waits."""
        sending = asyncio.ensure_future(self._socket.send(encoder.encode(message)))
        sending.add_done_callback(_ignore_outcome)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        try:
            while True:
                self._handle(from_engine_decoder.decode(await self._socket.recv()))
        except Exception:
            # Without a reader every stream would hang; the watcher tells them of the death.
            logger.exception("engine_unreadable pid=%d", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepOutputs(deltas, stats):
                self.stats = stats
                for delta in deltas:
                    self._pass_on(delta)
            case EngineReady(info):
                self._info = info
                assert self._ready is not None, "start() comes first"
                self._ready.set_result(info)
            case EngineFailed():
                self._failure = message

    def _pass_on(self, delta: RequestDelta) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:
            return
        if delta.finish_reason is not None:
            del self._streams[delta.request_id]
        stream.put(delta)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        returncode = await process.wait()
        await asyncio.sleep(_LAST_WORDS_S)
        end = _describe_end(returncode)
        reason = f"{self._failure.message} ({end})" if self._failure is not None else end
        logger.error("engine_died pid=%d returncode=%d reason=%s", process.pid, returncode, reason)
        self._die(EngineDeadError(f"The engine process is gone: {reason}"))

    def _die(self, death: EngineDeadError) -> None:
        """Tell every waiter, once, and every later caller."""
        if self._death is not None:
            return
        self._death = death
        self.stats = replace(self.stats, num_running=0, num_waiting=0, kv_cache_usage=0.0)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(_as_raised(self._failure) or death)
        streams, self._streams = set(self._streams.values()), {}
        for stream in streams:
            stream.put(EngineDeadError(str(death)))


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


def _as_raised(failure: EngineFailed | None) -> OutdraftError | None:
    """Make the error that the engine raised again, as far as our tree has its class."""
    if failure is None:
        return None
    kind = getattr(engine.errors, failure.error_class, None)
    if isinstance(kind, type) and issubclass(kind, OutdraftError):
        return kind(failure.message)
    return ModelLoadError(f"The engine could not start: {failure.message}")


def _ignore_outcome(future: asyncio.Future[Any]) -> None:
    """Let a message to a dead process be lost; its waiters hear of the death itself."""
    if not future.cancelled():
        future.exception()
