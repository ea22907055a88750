"""The file of a response cache: SQLite, one table, for one server at a time.

It knows rows and migrations; who writes when is `server.response_cache.disk`'s business.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# In the header of every file that is ours ("ODRC").
APPLICATION_ID = 0x4F445243
_ID_PLACE = slice(68, 72)
_HEADER_BYTES = 100
_LOCK_WAIT_S = 0.2
_ROWS_AT_ONCE = 100
# Number n brings a file from version n to n + 1; what was released is never changed.
MIGRATIONS = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL, created REAL NOT NULL, "
    "used REAL NOT NULL)",
)


class ForeignFileError(Exception):
    """The file is no response cache, or one of a later version."""


class Row(NamedTuple):
    """One answer.

    Attributes:
        key: see `server.response_cache.answer_key`.
        answer: as a tape wrote it.
        created: when it was made, in Unix seconds.
        used: when it was last given, in Unix seconds.
    """

    key: bytes
    answer: bytes
    created: float
    used: float


class Database:
    """An open file; close it. Nobody else can open it meanwhile.

    Args:
        path: of the file; it and its folder are made where they are missing, for this user alone.

    Raises:
        ForeignFileError: there is something else.
        sqlite3.Error: it is damaged, or another server has it open (`is_locked`).
        OSError: it can be neither read nor made.
    """

    def __init__(self, path: Path) -> None:
        _make(path)
        self._connection = sqlite3.connect(
            path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def rows(self) -> Iterator[list[Row]]:
        """Give all answers, a few at a time, what was used last first."""
        found = self._connection.execute(
            "SELECT key, answer, created, used FROM answers ORDER BY used DESC"
        )
        while rows := found.fetchmany(_ROWS_AT_ONCE):
            yield [Row(*row) for row in rows]

    def write(
        self, kept: Iterable[Row], dropped: Iterable[bytes], used: Iterable[tuple[bytes, float]]
    ) -> None:
        """Change the file, at once or not at all.

        Args:
            kept: answers, new or in the place of older ones.
            dropped: keys of what is forgotten.
            used: keys and when their answers were last given, in Unix seconds.
        """
        with self._transaction():
            # What is forgotten makes room first.
            self._many("DELETE FROM answers WHERE key = ?", [(key,) for key in dropped])
            self._many("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", list(kept))
            times = [(time, key) for key, time in used]
            self._many("UPDATE answers SET used = ? WHERE key = ?", times)

    def close(self) -> None:
        """Close the file; the log beside it is gone with that."""
        self._connection.close()

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # What is forgotten is wiped, and its room given back; a new file learns this first.
        execute("PRAGMA secure_delete = ON")
        execute("PRAGMA auto_vacuum = FULL")
        # Before the log beside it is used, so that it stands in the file itself.
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            (version,) = execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise ForeignFileError(
                    f"it has version {version}, and this server knows {len(MIGRATIONS)} at most"
                )
            for migration in MIGRATIONS[version:]:
                execute(migration)
            execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _many(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        if values:
            self._connection.executemany(statement, values)

    def _transaction(self) -> sqlite3.Connection:
        """Begin; the context ends it, for good or ill."""
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection


def is_locked(error: Exception) -> bool:
    """Whether a file could not be opened because another server has it."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _make(path: Path) -> None:
    """Make an empty file, or check that the one that is there is ours.

    Raises:
        ForeignFileError: it is something else.
        OSError: it can be neither read nor made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        header = os.read(number, _HEADER_BYTES)
        if header and header[_ID_PLACE] != APPLICATION_ID.to_bytes(4, "big"):
            raise ForeignFileError("it is not a response cache")
        # The files that SQLite puts beside it get the same mode.
        os.fchmod(number, 0o600)
    finally:
        # SQLite's locks are this process's, and closing any descriptor of the file ends them; so
        # this comes before it is opened, and one process opens it once.
        os.close(number)
