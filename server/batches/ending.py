"""How work on a batch begins and ends in the database and its files, each in steps that last."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from server.batches.batch_store import BatchStore, LineRef
from server.batches.database import Database
from server.batches.intake import Intake
from server.batches.journal import Entry, Journal
from server.batches.output import LineError, error_line, line_error
from server.batches.status import Status

_STEP_LINES = 500
_UNASKED = {
    Status.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    Status.CANCELLED: (
        "batch_cancelled",
        "This request was not executed before the batch was cancelled.",
    ),
}


class Endings:
    """Begins and ends batches.

    Args:
        database: of batches.
        batches: in it.
        journal: writes what became of lines that nobody asks.
    """

    def __init__(self, database: Database, batches: BatchStore, journal: Journal) -> None:
        self._database = database
        self._batches = batches
        self._journal = journal

    async def begin(self, seq: int, intake: Intake) -> None:
        """Take a batch's lines, those that cannot be asked as done, unless it was cancelled.

        Raises:
            StorageError: nothing was taken.
        """
        entries = [
            Entry(seq, ref.number, False, error_line(ref.custom_id, line_error(error)))
            for ref, error in intake.bad
        ]

        def work(db: sqlite3.Connection) -> None:
            if self._batches.begin(db, seq, intake.refs) and entries:
                self._journal.write_in(db, entries)

        await self._database.run(work)

    async def end(self, seq: int, ends_as: Status) -> int:
        """End a batch, in whatever state it is, and give out its files.

        Args:
            seq: of the batch; none of its lines is being asked.
            ends_as: how it ends, unless that was decided before.

        Returns:
            How many of its lines were not asked.
        """
        await self._journal.settle()
        insist, batches = self._journal.insist, self._batches
        await insist(lambda: batches.finalize(seq, ends_as))
        row = await insist(lambda: batches.refresh(seq))
        if row["status"] not in (Status.FINALIZING, Status.CANCELLING):
            return 0
        num_unasked = 0
        while refs := await insist(lambda: batches.lines_to_do(seq, 0, _STEP_LINES)):
            entries = _unasked(seq, refs, Status(row["ends_as"]))
            await insist(partial(self._journal.write, entries))
            num_unasked += len(refs)
        await insist(lambda: batches.finish(seq))
        return num_unasked


def _unasked(seq: int, refs: Sequence[LineRef], ends_as: Status) -> list[Entry]:
    code, message = _UNASKED[ends_as]
    told: list[tuple[LineRef, LineError]] = [
        (ref, {"code": code, "message": message, "param": None, "line": ref.number}) for ref in refs
    ]
    return [Entry(seq, ref.number, False, error_line(ref.custom_id, error)) for ref, error in told]
