"""One run of `outdraft batch`, from an engine that is not started to its exit status."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from rich.console import Console

from engine.client.process import EngineClient
from engine.errors import OutdraftError
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer
from server.offline.flow import Bounds, Flow
from server.offline.jobs import FinishedRecords, jobs_of
from server.offline.line_file import Destination, ReaderGoneError
from server.offline.outcome import Recipe
from server.offline.output import Output
from server.offline.progress import EngineCount, Progress
from server.offline.progress_display import shown, summary
from server.offline.records import Source
from server.offline.side_thread import SideThread

ALL_ANSWERED, SOME_FAILED, NOTHING_RAN, INTERRUPTED = 0, 1, 2, 130

_FOR_ONCE = ("--overwrite", "--no-resume")
# Shorter ones could be other flags, too, and are not taken.
_SHORTEST = len("--no-")

Ask = Callable[[BatchLine], Awaitable[LineAnswer]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        source: where records come from.
        output: where rows go.
        recipe: makes requests of records, and rows of answers.
        bounds: how many records at once.
        price_per_hour: of the machine; None = nobody asked.
        command: as it was typed, to be told to whoever wants to go on.
    """

    source: Source
    output: Output
    recipe: Recipe
    bounds: Bounds
    price_per_hour: float | None
    command: tuple[str, ...]


class Run:
    """One run.

    Args:
        plan: what it is to do.
        console: on which it tells what it did.
        shows_bar: whether it shows there how far it has come; else the log tells.
    """

    def __init__(self, plan: Plan, console: Console, *, shows_bar: bool = False) -> None:
        self._plan = plan
        self._console = console
        self._bar = console if shows_bar else None
        self._interrupted = asyncio.Event()
        self._destination: Destination | None = None
        self._finished: FinishedRecords | None = None
        self._has_failed = False
        self._is_reader_gone = False

    async def run(self, engine: EngineClient, load: Callable[[], Awaitable[Ask]]) -> int:
        """Answer all there is.

        Args:
            engine: not started yet.
            load: gives what answers lines, once the engine is ready.

        Returns:
            The exit status.

        Raises:
            OutdraftError: nothing could be answered.
        """
        plan = self._plan
        if plan.output.is_complete:
            self._tell(f"{plan.output.place} is complete; --overwrite starts anew.")
            return ALL_ANSWERED
        plan.source.check()
        self._destination, self._finished = plan.output.open(plan.recipe)
        self._listen_to_signals()
        progress = Progress(EngineCount(lambda: engine.stats.speculation), plan.price_per_hour)
        counting = asyncio.create_task(self._count(progress))
        try:
            if self._has_nothing_left():
                await counting
                progress.skip(progress.total or 0)
            else:
                await self._answer(engine, load, progress)
        finally:
            counting.cancel()
        return self._end(progress)

    async def _answer(
        self, engine: EngineClient, load: Callable[[], Awaitable[Ask]], progress: Progress
    ) -> None:
        await engine.start()
        try:
            ask = await self._unless_interrupted(load())
            if ask is not None:
                progress.start()
                await self._flow(ask, progress)
        finally:
            await engine.close()

    async def _flow(self, ask: Ask, progress: Progress) -> None:
        """Let all records through; failures are told once something has been answered."""
        plan = self._plan
        assert self._destination is not None, "it is opened first"
        jobs = jobs_of(plan.source.read(), plan.recipe, self._finished)
        flow = Flow(jobs, plan.recipe, ask, self._destination, plan.bounds, progress)
        stopping = asyncio.create_task(self._stop_when_interrupted(flow))
        try:
            await shown(flow.run(), progress, self._bar)
        except ReaderGoneError:
            self._is_reader_gone = True
        except OutdraftError as error:
            if progress.num_done == 0:
                raise
            self._has_failed = True
            self._tell(f"{type(error).__name__}: {error}")
        finally:
            stopping.cancel()

    async def _stop_when_interrupted(self, flow: Flow) -> None:
        await self._interrupted.wait()
        flow.stop()

    async def _unless_interrupted(self, work: Awaitable[Ask]) -> Ask | None:
        loading = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return loading.result() if loading.done() else None
        finally:
            for task in (loading, stopping):
                task.cancel()
            await asyncio.gather(loading, stopping, return_exceptions=True)

    async def _count(self, progress: Progress) -> None:
        """Count the records meanwhile; a source that fails is told where it is read."""
        thread = SideThread("record-counter")
        try:
            progress.total = await thread.call(self._plan.source.count)
        except OutdraftError:
            return
        finally:
            thread.close()

    def _has_nothing_left(self) -> bool:
        """Whether an earlier run has finished all; then no engine is needed."""
        if self._finished is None or self._finished.num_kept == 0:
            return False
        if self._plan.source.is_stream:
            return False
        jobs = jobs_of(self._plan.source.read(), self._plan.recipe, self._finished)
        return all(job is None for job in jobs)

    def _end(self, progress: Progress) -> int:
        """Tell what was done, and give the exit status."""
        plan, is_whole = self._plan, not (self._interrupted.is_set() or self._has_failed)
        if is_whole and not self._is_reader_gone:
            self._finish_table(progress)
        if self._destination is not None and not plan.output.is_stream:
            self._destination.close()
        is_whole = is_whole and not self._has_failed
        kept = self._finished.errors if self._finished is not None else {}
        if not self._is_reader_gone:
            self._summarise(progress, kept, is_whole=is_whole)
        if self._interrupted.is_set():
            return INTERRUPTED
        return ALL_ANSWERED if is_whole and not progress.errors and not kept else SOME_FAILED

    def _summarise(self, progress: Progress, kept: Mapping[str, int], *, is_whole: bool) -> None:
        for line in summary(progress):
            self._tell(line)
        for code, count in kept.items():
            self._tell(f"  {count} x {code} before")
        if not is_whole and self._finished is not None:
            self._tell(f"To go on: {resuming(self._plan.command)}")

    def _finish_table(self, progress: Progress) -> None:
        try:
            self._plan.output.finish(
                self._plan.recipe, self._plan.source, may_go_on=progress.num_passing > 0
            )
        except OutdraftError as error:
            self._has_failed = True
            self._tell(f"{type(error).__name__}: {error}")

    def _listen_to_signals(self) -> None:
        """Let the first signal end the run in order; the second one ends the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)

    def _interrupt(self) -> None:
        if self._interrupted.is_set():
            self._console.show_cursor()
            os._exit(INTERRUPTED)
        self._interrupted.set()

    def _tell(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def resuming(command: tuple[str, ...]) -> str:
    """Write the command that goes on where this one ended."""
    return shlex.join(word for word in command if not _is_for_once(word))


def _is_for_once(word: str) -> bool:
    """Whether a word, perhaps cut short, is a flag that would not let the command go on."""
    return len(word) > _SHORTEST and any(flag.startswith(word) for flag in _FOR_ONCE)
