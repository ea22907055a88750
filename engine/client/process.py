"""The client's side of the engine process: talks to it, notices when it dies, and starts it anew.

It knows who waits for which request, and whether more are welcome; no torch, no text, no HTTP.
How a process is started and reached is `engine.client.link`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import engine.errors
from engine.client.link import EngineLink
from engine.client.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineReady,
    FromEngine,
    Heartbeat,
    NewRequest,
    StartEngine,
    StepOutputs,
    ToEngine,
)
from engine.client.step_note import read_step_note
from engine.client.streams import RequestStream
from engine.client.supervision import (
    EngineState,
    FaultCounts,
    RestartPolicy,
    SupervisionConfig,
)
from engine.client.suspects import Suspects
from engine.client.watchdog import TICK_S, Watchdog
from engine.config import EngineConfig
from engine.door import ModelInfo
from engine.errors import (
    EngineDeadError,
    EngineDrainingError,
    EngineError,
    EngineNotReadyError,
    EngineRestartingError,
    ModelLoadError,
    OutdraftError,
    RefusedRequestError,
)
from engine.log_format import TEXT
from engine.metrics import EngineStats
from engine.request import FinishReason, Request, RequestDelta

logger = logging.getLogger(__name__)


class EngineClient:
    """An engine in its own process, used from one event loop.

    Args:
        config: all settings, the models named.
        core_factory: `module:callable` that makes the core inside the process.
        log_level: of the process.
        log_format: of the process; see `engine.log_format`.
        supervision: when the process is ended and started anew; None = the defaults.

    Attributes:
        config: see above.
        stats: the engine's counters as of its last message.
        faults: what went wrong so far.
        supervision: see above.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        core_factory: str = "engine.client.own_process:make_core",
        log_level: str = "info",
        log_format: str = TEXT,
        supervision: SupervisionConfig | None = None,
    ) -> None:
        self.config = config
        self.supervision = supervision or SupervisionConfig()
        self.faults = FaultCounts()
        self.stats = EngineStats()
        self._start_message = StartEngine(config, core_factory, log_level, log_format)
        self._info: ModelInfo | None = None
        self._ready: asyncio.Future[ModelInfo] | None = None
        self._failure: EngineFailed | None = None
        self._death: EngineDeadError | None = None
        self._is_lost = False
        self._is_draining = False
        self._may_restart = True
        self._streams: dict[str, RequestStream] = {}
        self._suspects = Suspects()
        self._policy = RestartPolicy(self.supervision)
        self._watchdog = Watchdog(self.supervision)
        self._tasks: list[asyncio.Task[None]] = []
        self._link: EngineLink | None = None

    @property
    def state(self) -> EngineState:
        """Whether requests are welcome, and if not, why."""
        if self._death is not None:
            return EngineState.DEAD
        if self._is_lost:
            return EngineState.RESTARTING
        if self._is_draining:
            return EngineState.DRAINING
        return EngineState.LOADING if self._info is None else EngineState.OK

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        return self.state is EngineState.OK

    @property
    def is_alive(self) -> bool:
        """Whether the engine is not gone for good; it may be loading, or starting anew."""
        return self._death is None

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """The engine's process id, once started."""
        return self._link.pid if self._link is not None else None

    @property
    def info(self) -> ModelInfo:
        """What the engine says of its models.

        Raises:
            EngineNotReadyError: requests are not welcome now.
            EngineDeadError: it is gone.
        """
        self.check_ready()
        assert self._info is not None, "a ready engine has told its limits"
        return self._info

    def check_ready(self) -> None:
        """Check that requests are welcome.

        Raises:
            EngineNotReadyError: the engine is loading, starting anew, or being shut down.
            EngineDeadError: the engine is gone.
        """
        match self.state:
            case EngineState.DEAD:
                raise EngineDeadError(str(self._death))
            case EngineState.RESTARTING:
                raise EngineRestartingError(
                    "The engine stopped unexpectedly and is being started anew; try again soon."
                )
            case EngineState.DRAINING:
                raise EngineDrainingError("The server is shutting down; ask another one.")
            case EngineState.LOADING:
                raise EngineNotReadyError("The engine is still loading its models; try again soon.")

    async def start(self) -> None:
        """Start the process; it loads in the background. See `wait_ready`.

        Raises:
            OSError: it cannot be started.
        """
        self._ready = asyncio.get_running_loop().create_future()
        self._link = await EngineLink.start(self._start_message)
        self._watchdog = Watchdog(self.supervision)
        self._tasks = [asyncio.create_task(self._stand_by(self._link), name="engine-supervisor")]

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
            EngineNotReadyError: requests are not welcome now.
            EngineDeadError: the engine is gone.
            RefusedRequestError: they crashed the engine before.
        """
        self.check_ready()
        try:
            self._suspects.check(requests)
        except RefusedRequestError:
            self.faults.num_requests_refused += len(requests)
            raise
        stream = RequestStream(requests, self.abort)
        waiting = [request for request in requests if not request.is_finished]
        for request in waiting:
            self._streams[request.request_id] = stream
            self._suspects.enter(request)
        if waiting:
            self._watchdog.note_work()
            self._send(AddRequests([NewRequest.of(request) for request in waiting]))
        return stream

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests; their blocks are free at the next step."""
        known = [i for i in request_ids if self._streams.pop(i, None) is not None]
        for request_id in known:
            self._suspects.leave(request_id, is_served=False)
        if known and self._death is None:
            self._send(AbortRequests(known))

    def drain(self) -> None:
        """Take no more requests; those that are there go on, and a crash is final."""
        self._is_draining = True
        self._may_restart = False

    def give_up(self, error: EngineError) -> None:
        """End every request that has not ended with an error."""
        open_ids = list(self._streams)
        self._tell_all(error)
        for request_id in open_ids:
            self._suspects.leave(request_id, is_served=False)
        if open_ids and self._death is None:
            self._send(AbortRequests(open_ids))

    def kill(self) -> None:
        """End the process at once; it is not started anew."""
        self.drain()
        if self._link is not None:
            self._link.kill()

    async def close(self) -> None:
        """Stop the process, by force if it does not listen, and clean up."""
        may_ask = self._info is not None and not self._is_lost and self._death is None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._die(EngineDeadError("The engine was shut down."))
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # read, so that nobody complains that it was not
        if self._link is not None:
            # While it loads it hears nothing, so there is no use in asking.
            await self._link.stop(may_ask=may_ask)
            self._link.release()

    def _send(self, message: ToEngine) -> None:
        if self._link is not None and not self._is_lost:
            self._link.send(message)

    async def _stand_by(self, link: EngineLink) -> None:
        """Supervise; if that fails, nobody would be told anything any more."""
        try:
            await self._supervise(link)
        except Exception as error:
            logger.exception("supervisor_failed")
            self._may_restart = False
            self._die(EngineDeadError(f"The engine's supervisor failed: {error!r}"))
            if self._link is not None:
                self._link.kill()

    async def _supervise(self, link: EngineLink) -> None:
        """Attend to process after process, until there were enough of them."""
        while True:
            reason = await self._attend(link)
            failure, self._failure = self._failure, None
            logger.error("engine_died pid=%d reason=%s", link.pid, reason)
            blamed = self._suspects.blame(read_step_note(Path(link.folder)))
            if blamed:
                logger.error("engine_died_computing request_ids=%s", ",".join(blamed))
            death = EngineDeadError(f"The engine process is gone: {reason}")
            self._lose(death)
            may_restart = self._info is not None and self._may_restart
            delay_s = self._policy.next_delay_s() if may_restart else None
            if delay_s is None:
                self._die(death, failure)
                return
            link.release()
            logger.warning("engine_restarts in_s=%.2f", delay_s)
            await asyncio.sleep(delay_s)
            try:
                link = self._link = await EngineLink.start(self._start_message)
            except OSError as error:
                self._die(EngineDeadError(f"The engine cannot be started anew: {error}"))
                return
            self._watchdog = Watchdog(self.supervision)
            self.faults.num_restarts += 1

    async def _attend(self, link: EngineLink) -> str:
        """Read and watch a process until it is no more; says why."""
        reading = asyncio.create_task(link.read(self._handle), name="engine-reader")
        ending = asyncio.create_task(link.ended(), name="engine-watcher")
        watching = asyncio.create_task(self._watch_progress(), name="engine-watchdog")
        try:
            await asyncio.wait({ending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                end = ending.result()
                return f"{self._failure.message} ({end})" if self._failure is not None else end
            reason = f"nothing moved for {watching.result():.0f} s"
            self.faults.num_watchdog_kills += 1
            self._lose(EngineDeadError(f"The engine process hangs: {reason}, so it is ended"))
            if await link.kill_hung():
                return f"{reason}, so it was ended"
            self._may_restart = False
            return f"{reason}, and it cannot be ended"
        finally:
            tasks = (reading, ending, watching)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_progress(self) -> float:
        """Wait until nothing has moved for too long; gives the seconds of that."""
        while (overdue_s := self._watchdog.overdue_s()) is None:
            await asyncio.sleep(TICK_S)
        return overdue_s

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepOutputs(deltas, stats):
                self._watchdog.hear_step()
                self.stats = stats
                for delta in deltas:
                    self._pass_on(delta)
            case Heartbeat(num_heard):
                is_idle = self._link is not None and num_heard == self._link.num_sent
                self._watchdog.hear_life(is_idle=is_idle)
                if is_idle:
                    self._suspects.forget_left()
            case EngineReady(info):
                self._watchdog.hear_life(is_idle=False)
                self._info = info
                self._is_lost = False
                logger.info("engine_ready pid=%s restarts=%d", self.pid, self.faults.num_restarts)
                assert self._ready is not None, "start() comes first"
                if not self._ready.done():
                    self._ready.set_result(info)
            case EngineFailed():
                self._failure = message

    def _pass_on(self, delta: RequestDelta) -> None:
        stream = self._streams.get(delta.request_id)
        if delta.finish_reason is not None:
            is_served = delta.finish_reason is not FinishReason.ERROR and stream is not None
            self._suspects.leave(delta.request_id, is_served=is_served)
            self._streams.pop(delta.request_id, None)
        if stream is not None:
            stream.put(delta)

    def _lose(self, loss: EngineDeadError) -> None:
        """Tell every waiter that the process they waited for is gone, or as good as that."""
        self._is_lost = True
        self.stats = self.stats.at_rest()
        self._tell_all(loss)

    def _die(self, death: EngineDeadError, failure: EngineFailed | None = None) -> None:
        """Tell every waiter, once, and every later caller."""
        if self._death is not None:
            return
        self._lose(death)
        self._death = death
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(_as_raised(failure) or death)

    def _tell_all(self, error: EngineError) -> None:
        streams, self._streams = set(self._streams.values()), {}
        for stream in streams:
            stream.put(type(error)(str(error)))


def _as_raised(failure: EngineFailed | None) -> OutdraftError | None:
    """Make the error that the engine raised again, as far as our tree has its class."""
    if failure is None:
        return None
    kind = getattr(engine.errors, failure.error_class, None)
    if isinstance(kind, type) and issubclass(kind, OutdraftError):
        return kind(failure.message)
    return ModelLoadError(f"The engine could not start: {failure.message}")
