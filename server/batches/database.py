"""The database of files and batches: SQLite, in a thread of its own, one transaction at a time.

What a transaction wrote has reached the disk when it is over. The schema has a number, and older
ones are brought up to it; it knows nothing of what the tables mean.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from server.batches.data_dir import DataDirError
from server.batches.storage_errors import storage_error

Result = TypeVar("Result")

_FILES_AND_BATCHES = """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
);
CREATE INDEX files_by_owner ON files (owner, seq);
CREATE INDEX files_by_end ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    metadata TEXT,
    output_lifetime_s INTEGER,
    status TEXT NOT NULL,
    ends_as TEXT,
    errors TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER,
    output_id TEXT NOT NULL,
    output_bytes INTEGER NOT NULL DEFAULT 0,
    error_id TEXT NOT NULL,
    error_bytes INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX batches_by_owner ON batches (owner, seq);
CREATE TABLE lines (
    batch INTEGER NOT NULL REFERENCES batches (seq),
    number INTEGER NOT NULL,
    custom_id TEXT,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    is_done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE INDEX lines_to_do ON lines (batch, number) WHERE is_done = 0;
"""
# The number of a schema is how many of these were applied.
MIGRATIONS = (_FILES_AND_BATCHES,)


class Database:
    """The database, open until it is closed.

    Args:
        path: of its file; made where it is not there.

    Raises:
        DataDirError: it cannot be opened, or was written by a newer server.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-database")
        try:
            self._connection = self._thread.submit(_open, path).result()
        except sqlite3.Error as error:
            raise DataDirError(
                f"data_dir: the database {str(path)!r} cannot be opened ({error})."
            ) from error

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do something in a transaction: all of it lasts, or nothing is changed.

        Raises:
            StorageError: it could not be done.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.run_here, work)

    def run_here(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do the same in the calling thread, which must be the database's own.

        Raises:
            StorageError: it could not be done.
        """
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            raise storage_error(error) from error
        return result

    def close(self) -> None:
        """Finish what was asked for, and close."""
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    path.chmod(0o600)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        connection.close()
        raise DataDirError(
            f"data_dir: the database {str(path)!r} has schema {version}, and this version of "
            f"Outdraft knows schemas up to {len(MIGRATIONS)}; use a newer version."
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
    return connection
