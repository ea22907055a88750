"""All that a server with a data directory has for files and batches, opened and closed together."""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from server.batches.batch_store import BatchStore, NewBatch, batch_object
from server.batches.data_dir import DataDir
from server.batches.database import Database
from server.batches.ending import Endings
from server.batches.file_store import Clock, FileStore
from server.batches.intake import LineLimits
from server.batches.journal import RETRY_S, Journal
from server.batches.line_run import LineRunner
from server.batches.worker import LOOK_S, BatchWorker
from server.config import ServerConfig
from server.keys import KeyRing
from server.metrics import ServerMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """When things happen.

    Attributes:
        now: gives Unix seconds.
        look_s: seconds between looks at whose time is over.
        retry_s: seconds after which what could not be written is tried again.
    """

    now: Clock = time.time
    look_s: float = LOOK_S
    retry_s: float = RETRY_S


class BatchService:
    """Files and batches of one server.

    Args:
        data_dir: locked.
        config: limits.
        metrics: of the server.
        pace: see above.

    Attributes:
        files: everybody's.
        batches: the same.
        worker: works on them, once started.

    Raises:
        DataDirError: the database cannot be opened.
    """

    def __init__(
        self,
        data_dir: DataDir,
        config: ServerConfig,
        metrics: ServerMetrics,
        pace: Pace | None = None,
    ) -> None:
        pace = pace or Pace()
        self._data_dir = data_dir
        self._num_places = config.batch_concurrency
        self._model = metrics.model_name
        self._database = Database(data_dir.database)
        self.files = FileStore(
            self._database, data_dir, max_stored_bytes=config.max_stored_bytes, now=pace.now
        )
        self.batches = BatchStore(self._database, pace.now)
        self.journal = Journal(self._database, self.files, pace.retry_s)
        self.worker = BatchWorker(
            self.files,
            self.batches,
            self.journal,
            Endings(self._database, self.batches, self.journal),
            LineLimits(config.max_batch_lines, config.max_batch_line_bytes),
            metrics.of_batches(),
            now=pace.now,
            look_s=pace.look_s,
        )

    async def start(self, app: FastAPI, keys: KeyRing) -> None:
        """Go on with what is there.

        Args:
            app: answers lines.
            keys: whose lines may be asked.

        Raises:
            StorageError: it is not known what is there.
        """

        def make_runner(owner: str) -> LineRunner | None:
            caller = keys.caller_of(owner)
            return None if caller is None else LineRunner(app, caller)

        await self.files.sweep()
        max_num_seqs: int = app.state.served.config.scheduler.max_num_seqs
        await self.worker.start(make_runner, self._num_places or max_num_seqs)
        logger.info("files_and_batches_ready path=%s", self._data_dir.path)

    async def create(self, asked: NewBatch) -> dict[str, Any]:
        """Take a batch, and begin to work on it.

        Returns:
            The batch as it is shown.

        Raises:
            InvalidRequestError: it cannot be taken as asked.
            StorageError: it could not be kept.
        """
        row = await self.batches.create(asked)
        logger.info("batch_created id=%s endpoint=%s", row["id"], row["endpoint"])
        self.worker.take(row)
        return self.shown(row)

    async def cancel(self, owner: str, batch_id: str) -> dict[str, Any]:
        """Have no more lines of a batch asked.

        Returns:
            The batch as it is shown.

        Raises:
            InvalidRequestError: the owner has none of that id, or it has ended.
            StorageError: that could not be kept.
        """
        row = await self.batches.cancel(owner, batch_id)
        logger.info("batch_cancelled id=%s status=%s", row["id"], row["status"])
        self.worker.cancel(row)
        return self.shown(row)

    def shown(self, row: sqlite3.Row) -> dict[str, Any]:
        """Give a batch as it is shown."""
        return batch_object(row, self._model, self.worker.paused(row))

    async def stop(self) -> None:
        """Ask nothing more; what is done is kept."""
        await self.worker.stop()

    async def close(self) -> None:
        """Stop, and let another server have the folder."""
        await self.stop()
        self._database.close()
        self._data_dir.close()
