"""Files: whose they are and what they are for, in the database; what they hold, in a folder.

A file's place follows from its id, which is made here. Rows are written behind contents and taken
away before them, so that what a row names is there; what no row names is swept away at the start.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import InvalidRequestError, OutdraftError
from server.batches.data_dir import DataDir, sync_folder
from server.batches.database import Database
from server.errors import NotStoredError

INPUT = "batch"
OUTPUT = "batch_output"
PURPOSES = (INPUT, OUTPUT)
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class FilePage:
    """Which files are listed.

    Attributes:
        limit: at most.
        order: by when they were made.
        after: the id of the one before the first.
        purpose: of each; None = any.
    """

    limit: int
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    purpose: str | None = None


class FileStore:
    """The files of every owner.

    Args:
        database: knows them.
        data_dir: holds them.
        max_stored_bytes: of one owner at most.
        now: gives Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        data_dir: DataDir,
        *,
        max_stored_bytes: int,
        now: Clock = time.time,
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._max_stored_bytes = max_stored_bytes
        self._now = now

    @property
    def folder(self) -> Path:
        """Where contents are."""
        return self._data_dir.files

    @property
    def uploads(self) -> Path:
        """Where contents are that have not come to their end."""
        return self._data_dir.uploads

    def path_of(self, file_id: str) -> Path:
        """Give where the content of one of our files is; the id is one that we made."""
        return self._data_dir.files / file_id

    async def check_quota(self, owner: str, num_bytes: int) -> None:
        """Check that an owner may keep so much more.

        Raises:
            InvalidRequestError: it may not.
        """
        await self._database.run(lambda db: self._check_quota(db, owner, num_bytes))

    async def keep(
        self, owner: str, upload: Path, *, filename: str, lifetime_s: int | None
    ) -> dict[str, Any]:
        """Keep what was uploaded, under an id of ours.

        Args:
            owner: whose it is.
            upload: where it is; complete, and on the disk.
            filename: as its owner calls it.
            lifetime_s: seconds after which it is deleted; None = never.

        Returns:
            The file as it is shown.

        Raises:
            InvalidRequestError: the owner may not keep so much more.
            StorageError: it could not be kept.
        """
        file_id = new_file_id()

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            num_bytes = upload.stat().st_size
            self._check_quota(db, owner, num_bytes)
            upload.replace(self.path_of(file_id))
            sync_folder(self._data_dir.files)
            row = (file_id, owner, INPUT, filename, num_bytes)
            insert_file(db, row, int(self._now()), lifetime_s)
            return file_object(find_file(db, owner, file_id))

        try:
            return await self._database.run(work)
        except OutdraftError:
            self.path_of(file_id).unlink(missing_ok=True)
            raise

    async def show(self, owner: str, file_id: str) -> dict[str, Any]:
        """Give what is known of a file.

        Raises:
            NotStoredError: the owner has none of that id.
        """
        return await self._database.run(lambda db: file_object(find_file(db, owner, file_id)))

    async def page(self, owner: str, query: FilePage) -> dict[str, Any]:
        """List an owner's files.

        Raises:
            NotStoredError: there is none to go on after.
        """

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            is_down = query.order == "desc"
            where, values = "owner = ?", [owner]
            if query.purpose is not None:
                where += " AND purpose = ?"
                values.append(query.purpose)
            if query.after is not None:
                where += f" AND seq {'<' if is_down else '>'} ?"
                values.append(find_file(db, owner, query.after, param="after")["seq"])
            rows = db.execute(
                f"SELECT * FROM files WHERE {where} ORDER BY seq {'DESC' if is_down else 'ASC'} "
                "LIMIT ?",
                (*values, query.limit + 1),
            ).fetchall()
            return listed([file_object(row) for row in rows], query.limit)

        return await self._database.run(work)

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotStoredError: the owner has none of that id.
            InvalidRequestError: a batch that has not ended reads it.
        """

        def work(db: sqlite3.Connection) -> None:
            find_file(db, owner, file_id)
            batch = reader_of(db, file_id)
            if batch is not None:
                raise InvalidRequestError(
                    f"file_id: {batch} reads this file; cancel it first.",
                    param="file_id",
                    code="file_in_use",
                )
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))

        await self._database.run(work)
        await self._database.run(lambda _: self.path_of(file_id).unlink(missing_ok=True))

    async def delete_expired(self) -> int:
        """Delete files whose time is over and that nobody reads; gives how many."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows = db.execute("SELECT id FROM files WHERE expires_at <= ?", (int(self._now()),))
            ids = [row["id"] for row in rows.fetchall() if reader_of(db, row["id"]) is None]
            db.executemany("DELETE FROM files WHERE id = ?", [(file_id,) for file_id in ids])
            return ids

        ids = await self._database.run(work)
        for file_id in ids:
            self.path_of(file_id).unlink(missing_ok=True)
        return len(ids)

    async def sweep(self) -> None:
        """Delete contents that nothing names: what a server left that ended in the middle."""

        def work(db: sqlite3.Connection) -> None:
            known = {row[0] for row in db.execute("SELECT id FROM files")}
            for name in ("output_id", "error_id"):
                known |= {row[0] for row in db.execute(f"SELECT {name} FROM batches")}
            for path in self._data_dir.files.iterdir():
                if path.name not in known:
                    path.unlink()

        await self._database.run(work)

    def _check_quota(self, db: sqlite3.Connection, owner: str, num_bytes: int) -> None:
        stored: int = db.execute(
            "SELECT coalesce(sum(bytes), 0) FROM files WHERE owner = ?", (owner,)
        ).fetchone()[0]
        if stored + num_bytes > self._max_stored_bytes:
            raise InvalidRequestError(
                f"file: {stored} bytes of yours are kept, {num_bytes} come with this one, and "
                f"{self._max_stored_bytes} may be in all. Delete files first.",
                param="file",
                code="storage_quota_exceeded",
            )


def new_file_id() -> str:
    """Make an id that no other file has."""
    return f"file-{uuid.uuid4().hex}"


def insert_file(
    db: sqlite3.Connection,
    row: tuple[str, str, str, str, int],
    created_at: int,
    lifetime_s: int | None,
) -> None:
    """Add a file: its id, owner, purpose, name and bytes."""
    expires_at = None if lifetime_s is None else created_at + lifetime_s
    db.execute(
        "INSERT INTO files (id, owner, purpose, filename, bytes, created_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*row, created_at, expires_at),
    )


def find_file(
    db: sqlite3.Connection, owner: str, file_id: str, param: str = "file_id"
) -> sqlite3.Row:
    """Find one of an owner's files.

    Raises:
        NotStoredError: the owner has none of that id.
    """
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM files WHERE owner = ? AND id = ?", (owner, file_id)
    ).fetchone()
    if row is None:
        raise NotStoredError(
            f"No such File object: {file_id[:100]!r}.", param=param, code="not_found"
        )
    return row


def reader_of(db: sqlite3.Connection, file_id: str) -> str | None:
    """Give the id of a batch that still reads a file, if there is one."""
    row = db.execute(
        "SELECT id FROM batches WHERE input_file_id = ? "
        "AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
        (file_id,),
    ).fetchone()
    return None if row is None else str(row["id"])


def file_object(row: sqlite3.Row) -> dict[str, Any]:
    """Give a file as OpenAI shows it."""
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }


def listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Give a page of a list of which one more was looked for than there may be."""
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(found) > limit,
    }


def write_through(file: Any) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())
