"""Batches: what was asked, how far it is, and which of its lines are still to do.

Every change is one transaction. It knows no engine, and neither who works on a batch nor when.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.errors import InvalidRequestError
from server.batches.database import Database
from server.batches.file_store import (
    INPUT,
    OUTPUT,
    Clock,
    find_file,
    insert_file,
    new_file_id,
)
from server.batches.output import LineError
from server.batches.status import OPEN, Status
from server.errors import NotStoredError

MAX_OPEN_BATCHES = 100


_OPEN = ", ".join(f"'{status}'" for status in OPEN)
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What is asked for.

    Attributes:
        owner: whose it is.
        endpoint: that answers every line.
        input_file_id: of the lines.
        completion_window: as it was asked for.
        window_s: the same, in seconds.
        metadata: the owner's labels.
        output_lifetime_s: seconds after which the files of answers are deleted; None = never.
    """

    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: int
    metadata: Mapping[str, str] | None = None
    output_lifetime_s: int | None = None


class LineRef(NamedTuple):
    """Where a line lies in its input file.

    Attributes:
        number: from 1.
        custom_id: the owner's name for it, where it has one.
        start: byte at which it begins.
        length: its bytes.
    """

    number: int
    custom_id: str | None
    start: int
    length: int


class BatchStore:
    """The batches of every owner.

    Args:
        database: knows them.
        now: gives Unix seconds.
    """

    def __init__(self, database: Database, now: Clock = time.time) -> None:
        self._database = database
        self._now = now

    async def create(self, asked: NewBatch) -> sqlite3.Row:
        """Add a batch.

        Raises:
            NotStoredError: the owner has no such file.
            InvalidRequestError: the file is for something else, or too many batches are open.
            StorageError: it could not be kept.
        """

        def work(db: sqlite3.Connection) -> sqlite3.Row:
            file = find_file(db, asked.owner, asked.input_file_id, param="input_file_id")
            if file["purpose"] != INPUT:
                raise InvalidRequestError(
                    f"input_file_id: a file with purpose {INPUT!r} is needed, and this one has "
                    f"{file['purpose']!r}.",
                    param="input_file_id",
                    code="invalid_value",
                )
            _check_open(db, asked.owner)
            return self._insert(db, asked)

        return await self._database.run(work)

    async def find(self, owner: str, batch_id: str) -> sqlite3.Row:
        """Give one of an owner's batches.

        Raises:
            NotStoredError: the owner has none of that id.
        """
        return await self._database.run(lambda db: _find(db, owner, batch_id))

    async def refresh(self, seq: int) -> sqlite3.Row:
        """Give a batch that is known to be there as it is now."""
        return await self._database.run(lambda db: _row(db, seq))

    async def page(self, owner: str, limit: int, after: str | None) -> list[sqlite3.Row]:
        """Give an owner's batches, the latest first: one more than `limit`, if there are so many.

        Raises:
            NotStoredError: there is none to go on after.
        """

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            last = None if after is None else _find(db, owner, after, param="after")["seq"]
            return db.execute(
                "SELECT * FROM batches WHERE owner = ? AND (? IS NULL OR seq < ?) "
                "ORDER BY seq DESC LIMIT ?",
                (owner, last, last, limit + 1),
            ).fetchall()

        return await self._database.run(work)

    async def open_batches(self) -> list[sqlite3.Row]:
        """Give everybody's batches that have not ended, the oldest first."""
        return await self._database.run(
            lambda db: db.execute(
                f"SELECT * FROM batches WHERE status IN ({_OPEN}) ORDER BY seq"
            ).fetchall()
        )

    async def counts(self) -> dict[str, int]:
        """Count everybody's batches by status."""
        rows = await self._database.run(
            lambda db: db.execute("SELECT status, count(*) FROM batches GROUP BY status").fetchall()
        )
        return {row[0]: row[1] for row in rows}

    async def cancel(self, owner: str, batch_id: str) -> sqlite3.Row:
        """Mark a batch to be cancelled; one that is being cancelled is left as it is.

        Raises:
            NotStoredError: the owner has none of that id.
            InvalidRequestError: it has ended, or is about to.
        """

        def work(db: sqlite3.Connection) -> sqlite3.Row:
            row = _find(db, owner, batch_id)
            if row["status"] in (Status.CANCELLING, Status.CANCELLED):
                return row
            if row["status"] not in (Status.VALIDATING, Status.IN_PROGRESS):
                raise InvalidRequestError(
                    f"Cannot cancel a batch with status {row['status']!r}.",
                    param="batch_id",
                    code="batch_has_ended",
                )
            self._move(db, row["seq"], Status.CANCELLING, Status.CANCELLED)
            return _row(db, row["seq"])

        return await self._database.run(work)

    async def fail(self, seq: int, errors: Sequence[LineError]) -> None:
        """End a batch whose file has nothing to answer, unless it was cancelled meanwhile."""

        def work(db: sqlite3.Connection) -> None:
            if _row(db, seq)["status"] == Status.VALIDATING:
                self._move(db, seq, Status.FAILED)
                db.execute("UPDATE batches SET errors = ? WHERE seq = ?", (json.dumps(errors), seq))

        await self._database.run(work)

    async def finalize(self, seq: int, ends_as: Status) -> None:
        """Note that no line is asked any more; a batch that is cancelled is left as it is."""

        def work(db: sqlite3.Connection) -> None:
            if _row(db, seq)["status"] == Status.IN_PROGRESS:
                self._move(db, seq, Status.FINALIZING, ends_as)

        await self._database.run(work)

    async def finish(self, seq: int) -> None:
        """End a batch of whose lines every one is in one of its files, and give these out."""

        def work(db: sqlite3.Connection) -> None:
            row = _row(db, seq)
            kept = [("output", row["output_bytes"]), ("error", row["error_bytes"])]
            for kind, num_bytes in kept:
                if num_bytes:
                    file = (row[f"{kind}_id"], row["owner"], OUTPUT)
                    name = f"{row['id']}_{kind}.jsonl"
                    lifetime_s = row["output_lifetime_s"]
                    insert_file(db, (*file, name, num_bytes), int(self._now()), lifetime_s)
            db.execute("DELETE FROM lines WHERE batch = ?", (seq,))
            self._move(db, seq, Status(row["ends_as"]))

        await self._database.run(work)

    async def lines_to_do(self, seq: int, after: int, limit: int) -> list[LineRef]:
        """Give lines that are not answered, behind a number, in the order of the file."""
        rows = await self._database.run(
            lambda db: db.execute(
                "SELECT number, custom_id, start, length FROM lines "
                "WHERE batch = ? AND number > ? AND is_done = 0 ORDER BY number LIMIT ?",
                (seq, after, limit),
            ).fetchall()
        )
        return [LineRef(*row) for row in rows]

    def begin(self, db: sqlite3.Connection, seq: int, refs: Sequence[LineRef]) -> bool:
        """Take the lines of a batch's file, unless it was cancelled meanwhile.

        Returns:
            Whether they were taken.
        """
        if _row(db, seq)["status"] != Status.VALIDATING:
            return False
        db.executemany(
            "INSERT INTO lines (batch, number, custom_id, start, length) VALUES (?, ?, ?, ?, ?)",
            [(seq, *ref) for ref in refs],
        )
        db.execute("UPDATE batches SET total = ? WHERE seq = ?", (len(refs), seq))
        self._move(db, seq, Status.IN_PROGRESS)
        return True

    def _move(
        self, db: sqlite3.Connection, seq: int, status: Status, ends_as: Status | None = None
    ) -> None:
        db.execute(
            f"UPDATE batches SET status = ?, {status}_at = ?, ends_as = coalesce(?, ends_as) "
            "WHERE seq = ?",
            (status, int(self._now()), ends_as, seq),
        )

    def _insert(self, db: sqlite3.Connection, asked: NewBatch) -> sqlite3.Row:
        created_at = int(self._now())
        batch_id = f"batch_{uuid.uuid4().hex}"
        metadata = None if asked.metadata is None else json.dumps(dict(asked.metadata))
        values = {
            "id": batch_id,
            "owner": asked.owner,
            "endpoint": asked.endpoint,
            "input_file_id": asked.input_file_id,
            "completion_window": asked.completion_window,
            "metadata": metadata,
            "output_lifetime_s": asked.output_lifetime_s,
            "status": Status.VALIDATING,
            "created_at": created_at,
            "expires_at": created_at + asked.window_s,
            "output_id": new_file_id(),
            "error_id": new_file_id(),
        }
        places = ", ".join("?" * len(values))
        db.execute(
            f"INSERT INTO batches ({', '.join(values)}) VALUES ({places})", tuple(values.values())
        )
        return _find(db, asked.owner, batch_id)


def batch_object(row: sqlite3.Row, model: str, paused: str | None = None) -> dict[str, Any]:
    """Give a batch as OpenAI shows it, and why it stands still, where it does.

    Args:
        row: of the batch.
        model: that answers here.
        paused: why it cannot go on now.
    """
    has_ended = row["status"] not in OPEN
    errors = json.loads(row["errors"]) if row["errors"] else None
    shown = {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "model": model,
        "errors": None if errors is None else {"object": "list", "data": errors},
        "input_file_id": row["input_file_id"],
        "completion_window": row["completion_window"],
        "status": row["status"],
        "output_file_id": row["output_id"] if has_ended and row["output_bytes"] else None,
        "error_file_id": row["error_id"] if has_ended and row["error_bytes"] else None,
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        **{name: row[name] for name in _TIMES},
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "usage": {
            "input_tokens": row["input_tokens"],
            "input_tokens_details": {"cached_tokens": row["cached_tokens"]},
            "output_tokens": row["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
            "total_tokens": row["input_tokens"] + row["output_tokens"],
        },
        "metadata": json.loads(row["metadata"]) if row["metadata"] else None,
    }
    return shown if paused is None or has_ended else {**shown, "paused": paused}


def _check_open(db: sqlite3.Connection, owner: str) -> None:
    num_open: int = db.execute(
        f"SELECT count(*) FROM batches WHERE owner = ? AND status IN ({_OPEN})", (owner,)
    ).fetchone()[0]
    if num_open >= MAX_OPEN_BATCHES:
        raise InvalidRequestError(
            f"{num_open} batches of yours have not ended, and {MAX_OPEN_BATCHES} may be open. "
            "Wait for one of them, or cancel it.",
            code="too_many_batches",
        )


def _find(
    db: sqlite3.Connection, owner: str, batch_id: str, param: str = "batch_id"
) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM batches WHERE owner = ? AND id = ?", (owner, batch_id)
    ).fetchone()
    if row is None:
        raise NotStoredError(f"No such batch: {batch_id[:100]!r}.", param=param, code="not_found")
    return row


def _row(db: sqlite3.Connection, seq: int) -> sqlite3.Row:
    row: sqlite3.Row = db.execute("SELECT * FROM batches WHERE seq = ?", (seq,)).fetchone()
    return row
