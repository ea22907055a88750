"""Works on batches: reads their files, has their lines asked, and ends them; one task for each.

What it knows of a batch is in the database, so it may be ended at any moment and goes on where it
was. It is told of new and cancelled batches, and looks itself for those whose time is over.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from engine.errors import EngineError
from server.batches.asking import Asking
from server.batches.batch_store import BatchStore
from server.batches.ending import Endings
from server.batches.file_store import Clock, FileStore
from server.batches.intake import LineLimits, read_input
from server.batches.journal import Journal
from server.batches.line_run import LineRunner
from server.batches.metrics import BatchMetrics
from server.batches.status import Status
from server.batches.turns import Turns

LOOK_S = 1.0
_SETTLE_S = 5.0
MakeRunner = Callable[[str], LineRunner | None]

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Run:
    """A batch that is being worked on.

    Attributes:
        row: of the batch, as it was when work on it began.
        ends: set when no more of its lines are to be asked.
        ends_as: how it ends.
        halted: why it does not go on, if it does not.
        task: works on it.
    """

    row: sqlite3.Row
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    ends_as: Status = Status.COMPLETED
    halted: str | None = None
    task: asyncio.Task[None] | None = None

    def end(self, status: Status) -> None:
        """Ask no more of its lines; it ends like this."""
        if not self.ends.is_set():
            self.ends_as = status
            self.ends.set()


class BatchWorker:
    """Works on everybody's batches.

    Args:
        files: hold lines and answers.
        batches: say what is to do.
        journal: takes answers.
        endings: begin and end batches.
        limits: of a batch's lines.
        metrics: hear of lines.
        now: gives Unix seconds.
        look_s: seconds between looks at whose time is over.
    """

    def __init__(
        self,
        files: FileStore,
        batches: BatchStore,
        journal: Journal,
        endings: Endings,
        limits: LineLimits,
        metrics: BatchMetrics,
        *,
        now: Clock = time.time,
        look_s: float = LOOK_S,
    ) -> None:
        self._files = files
        self._batches = batches
        self._journal = journal
        self._endings = endings
        self._limits = limits
        self._metrics = metrics
        self._now = now
        self._look_s = look_s
        self._runs: dict[int, _Run] = {}
        self._turns = Turns(1)
        self._make_runner: MakeRunner = lambda _: None
        self._clock: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def start(self, make_runner: MakeRunner, num_places: int) -> None:
        """Go on with every batch that has not ended.

        Args:
            make_runner: gives what asks an owner's lines; None where nobody has its key any more.
            num_places: lines that are asked at once.

        Raises:
            StorageError: it is not known which these are.
        """
        self._make_runner = make_runner
        self._turns = Turns(num_places)
        self._metrics.num_running = lambda: self._turns.num_taken
        self._metrics.is_paused = lambda: self._journal.trouble is not None
        self._journal.start()
        for row in await self._batches.open_batches():
            logger.info("batch_resumed %s", _told(row))
            self.take(row)
        await self.recount()
        self._clock = asyncio.create_task(self._look_at_clock(), name="batch-clock")

    async def stop(self) -> None:
        """Ask nothing more; lines that are being asked are asked anew at the next start."""
        self._is_stopping = True
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        tasks += [self._clock] if self._clock is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What is answered is kept, unless the disk does not let us.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._journal.settle(), _SETTLE_S)
        await self._journal.stop()

    async def recount(self) -> None:
        """Count batches anew."""
        self._metrics.counts = await self._journal.insist(self._batches.counts)

    def take(self, row: sqlite3.Row) -> None:
        """Work on a batch."""
        if self._is_stopping:
            return
        run = _Run(row)
        if row["status"] == Status.CANCELLING:
            run.end(Status.CANCELLED)
        self._runs[row["seq"]] = run
        run.task = asyncio.create_task(self._work(run), name="batch")

    def cancel(self, row: sqlite3.Row) -> None:
        """Ask no more lines of a batch that is marked so; those being asked are given up."""
        run = self._runs.get(row["seq"])
        if run is not None:
            run.end(Status.CANCELLED)

    def paused(self, row: sqlite3.Row) -> str | None:
        """Say why a batch does not go on now; None = it does."""
        if self._journal.trouble is not None:
            return str(self._journal.trouble)
        run = self._runs.get(row["seq"])
        return None if run is None else run.halted

    async def _work(self, run: _Run) -> None:
        try:
            await self._until_ended(run)
            await self._end(run)
        except Exception:
            run.halted = "The server failed unexpectedly; its log says more."
            logger.exception("batch_failed_unexpectedly id=%s", run.row["id"])
        else:
            del self._runs[run.row["seq"]]

    async def _until_ended(self, run: _Run) -> None:
        """Work until no line is to be asked any more."""
        try:
            await self._validate(run)
            await self._answer(run)
        except EngineError as error:
            # The server ends, or has no engine: the next one goes on, if there is time left.
            run.halted = str(error)
            logger.warning("batch_halted id=%s reason=%r", run.row["id"], run.halted)
            await run.ends.wait()

    async def _validate(self, run: _Run) -> None:
        if run.row["status"] != Status.VALIDATING:
            return
        seq, batch_id = run.row["seq"], run.row["id"]
        path = self._files.path_of(run.row["input_file_id"])
        intake = await asyncio.to_thread(read_input, path, run.row["endpoint"], self._limits)
        num_lines, num_bad = len(intake.refs), len(intake.bad)
        if intake.errors:
            await self._journal.insist(lambda: self._batches.fail(seq, intake.errors))
            logger.info("batch_refused id=%s code=%s", batch_id, intake.errors[0]["code"])
        else:
            await self._journal.insist(lambda: self._endings.begin(seq, intake))
            self._metrics.count_lines(is_success=False, number=num_bad)
            logger.info("batch_begun id=%s lines=%d bad=%d", batch_id, num_lines, num_bad)
        await self.recount()

    async def _answer(self, run: _Run) -> None:
        """Have lines asked until there are no more, or none are to be."""
        row = await self._journal.insist(lambda: self._batches.refresh(run.row["seq"]))
        if row["status"] != Status.IN_PROGRESS:
            return
        asking = asyncio.create_task(self._ask(run), name="batch-lines")
        ending = asyncio.create_task(run.ends.wait(), name="batch-end")
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
        finally:
            asking.cancel()
            ending.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)

    async def _ask(self, run: _Run) -> None:
        runner = self._make_runner(run.row["owner"])
        if runner is None:
            run.halted = "Its key opens this server no longer."
            logger.warning("batch_without_key id=%s", run.row["id"])
            await run.ends.wait()
            return
        path = self._files.path_of(run.row["input_file_id"])
        asking = Asking(
            run.row,
            path,
            runner,
            self._batches,
            self._journal,
            self._turns,
            lambda is_success: self._metrics.count_lines(is_success=is_success),
        )
        await asking.run()

    async def _end(self, run: _Run) -> None:
        seq = run.row["seq"]
        num_unasked = await self._endings.end(seq, run.ends_as)
        self._metrics.count_lines(is_success=False, number=num_unasked)
        row = await self._journal.insist(lambda: self._batches.refresh(seq))
        await self.recount()
        logger.info("batch_ended %s unasked=%d", _told(row), num_unasked)

    async def _look_at_clock(self) -> None:
        while True:
            for run in self._runs.values():
                if self._now() >= run.row["expires_at"]:
                    run.end(Status.EXPIRED)
            num_deleted = await self._journal.insist(self._files.delete_expired)
            if num_deleted:
                logger.info("files_expired count=%d", num_deleted)
            await asyncio.sleep(self._look_s)


def _told(row: sqlite3.Row) -> str:
    names = ("id", "status", "total", "completed", "failed")
    return " ".join(f"{name}={row[name]}" for name in names)
