"""The folder where a server keeps what must outlive it; one server at a time has it.

It is for its owner alone. Beside the database and files of batches it holds a random number, which
keys are digested with, so that a key opens after a restart what it opened before.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

SECRET_BYTES = 32
_OURS_ALONE = 0o700

logger = logging.getLogger(__name__)


class DataDirError(ConfigError):
    """The folder cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class NoDataDir:
    """A server that keeps nothing.

    Attributes:
        reason: why.
    """

    reason: str


class DataDir:
    """The folder, locked against other servers until it is closed.

    Args:
        path: made where it is not there.

    Attributes:
        path: see above.
        secret: of this folder, random.

    Raises:
        DataDirError: it cannot be written, or another server has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._make()
            self._lock = _lock(path / "lock")
            self.secret = _secret(path / "secret")
            for partial in self.uploads.iterdir():
                partial.unlink()
        except OSError as error:
            raise DataDirError(
                f"data_dir: {str(path)!r} cannot be used ({error.strerror}); name a folder that "
                "the server may write to with --data-dir."
            ) from error

    @property
    def database(self) -> Path:
        """Where the state is."""
        return self.path / "batches.sqlite3"

    @property
    def files(self) -> Path:
        """Where the contents of files are."""
        return self.path / "files"

    @property
    def uploads(self) -> Path:
        """Where files are that have not come to their end."""
        return self.path / "uploads"

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)

    def _make(self) -> None:
        self.path.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
        for folder in (self.files, self.uploads):
            folder.mkdir(mode=_OURS_ALONE, exist_ok=True)
        if self.path.stat().st_mode & 0o077:
            logger.warning("data_dir_open_to_others path=%s", self.path)


def find_data_dir(given: str | None) -> DataDir | NoDataDir:
    """Open the folder that was asked for, or else the user's own if that works.

    Raises:
        DataDirError: the one that was asked for cannot be used.
    """
    if given is not None:
        return DataDir(Path(given).expanduser())
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    try:
        return DataDir(Path(base) / "outdraft")
    except DataDirError as error:
        logger.warning("no_files_and_batches reason=%r", str(error))
        return NoDataDir(str(error))


def sync_folder(path: Path) -> None:
    """Make names that were added to a folder, or taken from it, last."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _lock(path: Path) -> int:
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(number, 32, 0).decode(errors="replace").strip()
        os.close(number)
        raise DataDirError(
            f"data_dir: {str(path.parent)!r} is in use by another server (process {owner}); give "
            "each server a folder of its own with --data-dir."
        ) from error
    os.ftruncate(number, 0)
    os.pwrite(number, f"{os.getpid()}\n".encode(), 0)
    return number


def _secret(path: Path) -> bytes:
    if path.exists():
        found = path.read_bytes()
        if len(found) == SECRET_BYTES:
            return found
    partial = path.with_suffix(".new")
    partial.unlink(missing_ok=True)
    number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "wb") as file:
        made = secrets.token_bytes(SECRET_BYTES)
        file.write(made)
        file.flush()
        os.fsync(number)
    partial.replace(path)
    sync_folder(path.parent)
    return made
