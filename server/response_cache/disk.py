"""Keeps a response cache's file as its memory is, from a thread of its own.

Nobody waits for it, and nothing that goes wrong here fails a request: it is logged once, and the
cache goes on in memory.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from server.response_cache.database import Database, ForeignFileError, Row, is_locked

_TRY_AGAIN_S = 5.0
# A disk that hangs must not keep a server from ending.
_LAST_WRITES_S = 10.0

logger = logging.getLogger(__name__)

_FAULTS = (sqlite3.Error, OSError, ForeignFileError)


class Disk:
    """A file, and what has yet to be written to it.

    Args:
        path: of the file.
        on_rows: hears, in the thread, of what the file had, in parts; of nothing at the end.
        open_database: opens the file.
    """

    def __init__(
        self,
        path: Path,
        on_rows: Callable[[list[Row]], None],
        open_database: Callable[[Path], Database] = Database,
    ) -> None:
        self._path = path
        self._on_rows = on_rows
        self._open = open_database
        self._news = threading.Condition()
        self._is_closing = False
        self._is_lost = False
        # By key, so that what waits is never more than what is in memory; None = forget it.
        self._waiting: dict[bytes, Row | None] = {}
        self._used: dict[bytes, float] = {}
        self._thread = threading.Thread(target=self._run, name="response-cache", daemon=True)

    def start(self) -> None:
        """Open the file and read it, in the background."""
        self._thread.start()

    def put(self, row: Row) -> None:
        """Write an answer soon."""
        self._change(row.key, row)

    def drop(self, key: bytes) -> None:
        """Forget an answer soon."""
        self._change(key, None)

    def touch(self, key: bytes, used: float) -> None:
        """Note soon when an answer was last given, in Unix seconds."""
        with self._news:
            if not self._is_lost:
                self._used[key] = used
                self._news.notify()

    def close(self) -> None:
        """Write what has not been written, and close the file."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        self._thread.join(_LAST_WRITES_S)
        if self._thread.is_alive():
            logger.error(
                "response_cache_not_closed path=%s waited_s=%g", self._path, _LAST_WRITES_S
            )

    def _change(self, key: bytes, row: Row | None) -> None:
        with self._news:
            if not self._is_lost:
                self._waiting[key] = row
                self._news.notify()

    def _run(self) -> None:
        database: Database | None = None
        try:
            database = self._open_when_free()
            if database is not None:
                self._read_all(database)
                self._write_all(database)
        except _FAULTS as error:
            logger.error(
                "response_cache_disk_lost path=%s error=%r kept=in_memory_only",
                self._path,
                str(error),
            )
        finally:
            self._forget()
            if database is not None:
                _close(database)

    def _open_when_free(self) -> Database | None:
        """Open the file once no other server has it; None if this one ends before."""
        is_told = False
        while True:
            try:
                return self._open(self._path)
            except sqlite3.Error as error:
                if not is_locked(error):
                    raise
            if not is_told:
                logger.warning("response_cache_disk_in_use path=%s by=another_server", self._path)
                is_told = True
            with self._news:
                if self._news.wait_for(lambda: self._is_closing, _TRY_AGAIN_S):
                    return None

    def _read_all(self, database: Database) -> None:
        for rows in database.rows():
            if self._is_closing:
                return
            self._on_rows(rows)
        self._on_rows([])

    def _write_all(self, database: Database) -> None:
        """Write what comes, until the end."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._used or self._is_closing)
                waiting, self._waiting = self._waiting, {}
                used, self._used = self._used, {}
            if not waiting and not used:
                return
            database.write(
                [row for row in waiting.values() if row is not None],
                [key for key, row in waiting.items() if row is None],
                list(used.items()),
            )

    def _forget(self) -> None:
        """Nothing is written any more, so nothing need wait."""
        with self._news:
            self._is_lost = True
            self._waiting.clear()
            self._used.clear()


def _close(database: Database) -> None:
    try:
        database.close()
    except sqlite3.Error as error:
        logger.error("response_cache_disk_not_closed error=%r", str(error))
