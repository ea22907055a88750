"""The flow of records: read, asked, written, at most so many at once.

A record is read only where there is room for its answer, and room is made by writing, so a slow
consumer holds up the reading, and nothing piles up in between. It knows neither formats nor
engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from engine.errors import EngineError
from server.batches.lines import BatchLine, BatchLineError
from server.batches.output import LineAnswer
from server.offline.line_file import Destination
from server.offline.outcome import Job, Outcome, Recipe
from server.offline.progress import Progress
from server.offline.side_thread import SideThread

# In order, one slow answer must not stop those behind it; so many times as many are held back.
_HELD_BACK = 4
# A consumer that takes nothing does not keep an interrupted run from ending.
_LAST_WRITES_S = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many records are under way.

    Attributes:
        num_asked: that are asked at once.
        is_ordered: whether answers are written in the order of their records.
    """

    num_asked: int
    is_ordered: bool = False

    @property
    def num_held(self) -> int:
        """Records that are read and not written, at most."""
        return self.num_asked * (_HELD_BACK if self.is_ordered else 1)


class Flow:
    """One run over a source.

    Args:
        jobs: what is to be done; None = was done before.
        recipe: makes rows.
        ask: answers a line.
        destination: takes rows.
        bounds: how many at once.
        progress: hears of what is done.
    """

    def __init__(
        self,
        jobs: Iterator[Job | None],
        recipe: Recipe,
        ask: Callable[[BatchLine], Awaitable[LineAnswer]],
        destination: Destination,
        bounds: Bounds,
        progress: Progress,
    ) -> None:
        self._jobs = jobs
        self._recipe = recipe
        self._ask = ask
        self._destination = destination
        self._is_ordered = bounds.is_ordered
        self._progress = progress
        self._reader = SideThread("record-reader")
        self._writer = SideThread("row-writer")
        self._room = asyncio.Semaphore(bounds.num_held)
        self._asking = asyncio.Semaphore(bounds.num_asked)
        self._answers: set[asyncio.Task[Outcome]] = set()
        self._ready: asyncio.Queue[asyncio.Task[Outcome] | None] = asyncio.Queue()
        self._stopped = asyncio.Event()
        self._failure: EngineError | None = None

    def stop(self) -> None:
        """Read no more, give up what is being asked, and write what is done."""
        self._stopped.set()

    async def run(self) -> None:
        """Answer all records, or those until it is stopped.

        Raises:
            ConfigError: the source cannot be read any further.
            EngineError: the engine is gone for good.
            OutputError: a row could not be written.
            ReaderGoneError: nobody reads the rows any more.
        """
        reading = asyncio.create_task(self._read())
        writing = asyncio.create_task(self._write())
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({reading, writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.exception():
                await asyncio.wait({writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._wind_up(reading, writing)
        finally:
            for task in (reading, writing, stopping, *self._answers):
                task.cancel()
            await asyncio.gather(reading, writing, stopping, *self._answers, return_exceptions=True)
            self._reader.close()
            self._writer.close()
        for task in (writing, reading):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._failure is not None:
            raise self._failure

    async def _wind_up(self, reading: asyncio.Task[None], writing: asyncio.Task[None]) -> None:
        """End what was stopped or has failed, but write what is done already."""
        if writing.done():
            return
        reading.cancel()
        # Where only the source has failed, what was read of it is answered.
        for task in list(self._answers) if self._stopped.is_set() else ():
            task.cancel()
        await asyncio.gather(reading, *self._answers, return_exceptions=True)
        self._ready.put_nowait(None)
        await asyncio.wait({writing}, timeout=_LAST_WRITES_S)

    async def _read(self) -> None:
        while True:
            await self._room.acquire()
            job = await self._next_job()
            if job is None:
                break
            answer = asyncio.create_task(self._answer(job))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
            if self._is_ordered:
                self._ready.put_nowait(answer)
            else:
                answer.add_done_callback(self._ready.put_nowait)
        if self._answers:
            await asyncio.wait(self._answers)
        # Callbacks of the last ones may still be to come.
        await asyncio.sleep(0)
        self._ready.put_nowait(None)

    async def _next_job(self) -> Job | None:
        job, num_skipped = await self._reader.call(self._pull)
        self._progress.skip(num_skipped)
        return job

    def _pull(self) -> tuple[Job | None, int]:
        """Give the next thing to do, in the reader's thread, and how many were done before."""
        num_skipped = 0
        for job in self._jobs:
            if job is not None:
                return job, num_skipped
            num_skipped += 1
        return None, num_skipped

    async def _answer(self, job: Job) -> Outcome:
        if isinstance(job.asked, BatchLineError):
            return self._recipe.failed(job, job.asked)
        async with self._asking:
            answer = await self._ask(job.asked)
        return self._recipe.answered(job, answer)

    async def _write(self) -> None:
        while (answer := await self._ready.get()) is not None:
            await asyncio.wait({answer})
            if answer.cancelled() or self._has_failed(answer):
                if self._is_ordered:
                    return
                continue
            outcome = answer.result()
            await self._writer.call(partial(self._destination.write, outcome.row))
            self._progress.note(outcome)
            self._room.release()

    def _has_failed(self, answer: asyncio.Task[Outcome]) -> bool:
        """Whether the engine is gone; then all comes to its end."""
        error = answer.exception()
        if not isinstance(error, EngineError):
            return False
        self._failure = error
        self.stop()
        return True
