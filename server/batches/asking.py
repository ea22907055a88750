"""Has the lines of one batch asked: as many at once as it has turns, each until it is kept."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from pydantic_core import from_json

from engine.errors import EngineError
from server.batches.batch_store import BatchStore, LineRef
from server.batches.journal import Entry, Journal
from server.batches.line_run import LineRunner
from server.batches.lines import BatchLine, parse_fields
from server.batches.output import answer_line, error_line
from server.batches.prefix_order import LineQueue, read_line
from server.batches.turns import Turns
from server.batches.usage import LineUsage

logger = logging.getLogger(__name__)


class Asking:
    """Asks the lines of a batch that are to do.

    Args:
        row: of the batch.
        path: of its input file.
        runner: asks.
        batches: knows what is to do.
        journal: keeps what became of lines.
        turns: says when.
        on_done: hears whether a line was answered, once that is kept.
    """

    def __init__(
        self,
        row: sqlite3.Row,
        path: Path,
        runner: LineRunner,
        batches: BatchStore,
        journal: Journal,
        turns: Turns,
        on_done: Callable[[bool], None],
    ) -> None:
        self._seq: int = row["seq"]
        self._owner: str = row["owner"]
        self._batch_id: str = row["id"]
        self._path = path
        self._runner = runner
        self._journal = journal
        self._turns = turns
        self._on_done = on_done
        self._queue = LineQueue(batches, self._seq, path)
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Ask until every line is done; cancelling gives up those that are being asked.

        Raises:
            EngineError: the server ends, or its engine is gone.
            OSError: the input file cannot be read.
        """
        try:
            while (ref := await self._next()) is not None:
                task = asyncio.create_task(self._ask(ref))
                self._asked.add(task)
                task.add_done_callback(lambda _: self._turns.give_back(self._owner, self._seq))
                self._forget_done()
            await asyncio.gather(*self._asked)
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)

    async def _next(self) -> LineRef | None:
        """Wait for a turn, and give the line whose it is."""
        await self._turns.take(self._owner, self._seq)
        ref = None
        try:
            ref = await self._journal.insist(self._queue.take)
        finally:
            if ref is None:
                self._turns.give_back(self._owner, self._seq)
        return ref

    def _forget_done(self) -> None:
        """Forget lines that are done; where one could not be asked, say why."""
        for task in [task for task in self._asked if task.done()]:
            self._asked.discard(task)
            task.result()

    async def _ask(self, ref: LineRef) -> None:
        try:
            entry = await self._answer(ref)
        except EngineError:
            raise
        except Exception as error:
            logger.exception("batch_line_failed id=%s line=%d", self._batch_id, ref.number)
            entry = Entry(self._seq, ref.number, False, _unforeseen(ref, error))
        await self._journal.put(entry)
        self._on_done(entry.is_success)

    async def _answer(self, ref: LineRef) -> Entry:
        line = await asyncio.to_thread(_read, self._path, ref)
        answer = await self._runner.run(line)
        text, usage = answer_line(line, answer), LineUsage.of_body(answer.body)
        return Entry(self._seq, ref.number, answer.is_success, text, usage)


def _read(path: Path, ref: LineRef) -> BatchLine:
    """Read a line that was found good before."""
    assert ref.custom_id is not None, "a line without an id is not asked"
    return parse_fields(from_json(read_line(path, ref)), ref.custom_id, ref.number)


def _unforeseen(ref: LineRef, error: Exception) -> bytes:
    return error_line(
        ref.custom_id,
        {
            "code": "server_error",
            "message": f"The server failed unexpectedly ({type(error).__name__}).",
            "param": None,
            "line": ref.number,
        },
    )
