"""What may go wrong where files and batches are kept.

StorageError                  it could not be written or read
├── StorageFullError          there is no room left
└── NoDataDirError            this server keeps no files and batches at all; says why
"""

from __future__ import annotations

import errno
import sqlite3

from engine.errors import OutdraftError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StorageError(OutdraftError):
    """Files or batches could not be written or read.

    Attributes:
        code: a machine-readable reason.
    """

    code = "storage_failed"


class StorageFullError(StorageError):
    """There is no room left for files and batches."""

    code = "storage_full"


class NoDataDirError(StorageError):
    """This server keeps no files and batches."""

    code = "data_dir_unavailable"


def storage_error(error: OSError | sqlite3.Error) -> StorageError:
    """Say what a failure of the disk or of the database means for who asked."""
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if isinstance(error, sqlite3.Error):
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if is_full:
        return StorageFullError(
            "The server's disk is full, so this could not be kept. Delete files that are not "
            "needed any more, or tell whoever runs this server."
        )
    # Paths are the server's own business.
    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
    return StorageError(f"The server could not write or read its data directory: {reason}.")
