"""Writes down what became of lines: what was put here once is on the disk, once, whatever happens.

Answers are appended to a batch's two files. How many bytes of each are good stands in the database,
beside which lines are done, and changes in one transaction with it; bytes beyond, which a server
left that ended in the middle, are cut off before more is written. What comes in while the disk is
busy is written together.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from server.batches.data_dir import sync_folder
from server.batches.database import Database
from server.batches.file_store import FileStore, write_through
from server.batches.storage_errors import StorageError
from server.batches.usage import LineUsage

Result = TypeVar("Result")
RETRY_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a line.

    Attributes:
        batch: its row.
        number: of the line.
        is_success: whether it was answered.
        text: of the file of answers, or of the file of errors, newline included.
        usage: tokens that it took.
    """

    batch: int
    number: int
    is_success: bool
    text: bytes
    usage: LineUsage = field(default_factory=LineUsage)


class Journal:
    """Takes entries, and writes them until they are written.

    Args:
        database: says what is good.
        files: where answers go.
        retry_s: seconds after which what failed is tried again.
    """

    def __init__(self, database: Database, files: FileStore, retry_s: float = RETRY_S) -> None:
        self._database = database
        self._files = files
        self._retry_s = retry_s
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._troubles: dict[object, StorageError] = {}

    @property
    def trouble(self) -> StorageError | None:
        """Why something cannot be written now; None = everything can."""
        return next(iter(self._troubles.values()), None)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._write_all(), name="batch-journal")

    async def stop(self) -> None:
        """End; what waits to be written has not been told to be, and is asked again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def put(self, entry: Entry) -> None:
        """Write an entry down; it lasts when this returns. Leaving early does not take it back."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        self._has_work.set()
        await asyncio.shield(written)

    async def settle(self) -> None:
        """Wait until everything that was put here is written."""
        while self._waiting:
            await asyncio.gather(*(asyncio.shield(written) for _, written in self._waiting))

    async def insist(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do something, and if the disk does not let us, again and again until it does."""
        name = object()
        try:
            while True:
                try:
                    return await work()
                except StorageError as error:
                    self._note(name, error)
                await asyncio.sleep(self._retry_s)
        finally:
            if self._troubles.pop(name, None) is not None and self.trouble is None:
                logger.info("batches_go_on")

    def _note(self, name: object, error: StorageError) -> None:
        if self.trouble is None:
            logger.error("batches_paused reason=%r retry_s=%g", str(error), self._retry_s)
        self._troubles[name] = error

    async def write(self, entries: Sequence[Entry]) -> None:
        """Write entries down at once.

        Raises:
            StorageError: none of them could be.
        """
        await self._database.run(lambda db: self.write_in(db, entries))

    def write_in(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        """Write entries down within a transaction, in the database's thread.

        Raises:
            OSError: they could not be written.
        """
        batches = {entry.batch for entry in entries}
        for batch in batches:
            self._write_batch(db, batch, [entry for entry in entries if entry.batch == batch])

    def _write_batch(self, db: sqlite3.Connection, batch: int, entries: list[Entry]) -> None:
        new = [entry for entry in entries if _mark_done(db, entry)]
        if not new:
            return
        row = db.execute("SELECT * FROM batches WHERE seq = ?", (batch,)).fetchone()
        sizes = {}
        for kind, is_success in (("output", True), ("error", False)):
            text = b"".join(entry.text for entry in new if entry.is_success is is_success)
            sizes[kind] = row[f"{kind}_bytes"] + len(text)
            if text:
                self._append(row[f"{kind}_id"], row[f"{kind}_bytes"], text)
        num_completed = sum(entry.is_success for entry in new)
        usage = LineUsage.total(entry.usage for entry in new)
        db.execute(
            "UPDATE batches SET output_bytes = ?, error_bytes = ?, completed = completed + ?, "
            "failed = failed + ?, input_tokens = input_tokens + ?, "
            "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?, "
            "reasoning_tokens = reasoning_tokens + ? WHERE seq = ?",
            (
                sizes["output"],
                sizes["error"],
                num_completed,
                len(new) - num_completed,
                usage.input_tokens,
                usage.cached_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
                batch,
            ),
        )

    def _append(self, file_id: str, num_good_bytes: int, text: bytes) -> None:
        path = self._files.path_of(file_id)
        is_new = not path.exists()
        with path.open("w+b" if is_new else "r+b") as file:
            file.truncate(num_good_bytes)
            file.seek(num_good_bytes)
            file.write(text)
            write_through(file)
        if is_new:
            sync_folder(self._files.folder)

    async def _write_all(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            if not self._waiting:
                continue
            taken = list(self._waiting)
            entries = [entry for entry, _ in taken]
            await self.insist(partial(self.write, entries))
            del self._waiting[: len(taken)]
            for _, written in taken:
                if not written.done():
                    written.set_result(None)
            if self._waiting:
                self._has_work.set()


def _mark_done(db: sqlite3.Connection, entry: Entry) -> bool:
    """Mark a line as done; gives whether it was not."""
    cursor = db.execute(
        "UPDATE lines SET is_done = 1 WHERE batch = ? AND number = ? AND is_done = 0",
        (entry.batch, entry.number),
    )
    return cursor.rowcount == 1
