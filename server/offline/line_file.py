"""Where answers go: a file that is whole after any end of the process, or a pipe.

A line is written at once and as a whole. What a file lacks of its last line, because the process
was killed or the disk is full, is cut off again; so a file holds whole lines and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from engine.errors import ConfigError, OutdraftError
from server.offline.records import read_lines

# May the line stay, and the lines behind it?
Judge = Callable[[bytes], bool]


class OutputError(OutdraftError):
    """An answer could not be written."""


class ReaderGoneError(Exception):
    """Nobody reads the answers any more."""


class Destination(Protocol):
    """Takes lines."""

    def write(self, line: bytes) -> None:
        """Write a line with its end.

        Raises:
            OutputError: it could not be written, and nothing of it is there.
            ReaderGoneError: nobody reads any more.
        """

    def close(self) -> None:
        """Give the file back."""


class Pipe:
    """Something that takes bytes and cannot take them back: a pipe, a terminal, a device.

    Args:
        fd: to write to; it is closed with this.
        name: for errors.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    def write(self, line: bytes) -> None:
        """See `Destination`; waits until the reader has taken it."""
        try:
            _write_all(self._fd, line)
        except BrokenPipeError as error:
            raise ReaderGoneError(self._name) from error
        except OSError as error:
            raise _output_error(self._name, error) from error

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class LineFile:
    """A regular file of whole lines, which only one process writes to.

    Args:
        path: of the file; made where there is none.

    Raises:
        ConfigError: it cannot be written, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"output: cannot write {path}: {error.strerror}.") from error
        self._lock(self._fd)
        self._size = 0

    def start_anew(self) -> None:
        """Drop what it holds."""
        os.ftruncate(self._fd, 0)
        self._size = 0

    def keep(self, judge: Judge, *, until_first: bool = False) -> None:
        """Keep the whole lines that `judge` says may stay, and drop the others and a torn one.

        Args:
            judge: is asked about each line.
            until_first: drop also what stands behind the first line that must go.

        Raises:
            OutputError: the file cannot be written anew.
        """
        try:
            self._keep(judge, until_first)
        except OSError as error:
            raise _output_error(str(self._path), error) from error

    def write(self, line: bytes) -> None:
        """See `Destination`."""
        try:
            _write_all(self._fd, line)
        except OSError as error:
            # Cutting needs no room, also on a full disk.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            raise _output_error(str(self._path), error) from error
        self._size += len(line)

    def close(self) -> None:
        """Let the system write it to the disk, and close it."""
        with contextlib.suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)

    def _keep(self, judge: Judge, until_first: bool) -> None:
        """Cut where the first line must go; copy what stays behind it."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._size = 0
        copy: LineFile | None = None
        for line in read_lines(self._fd, None):
            assert line is not None, "no limit was given"
            if not line.endswith(b"\n"):
                break
            if judge(line):
                if copy is None:
                    self._size += len(line)
                else:
                    copy.write(line)
            elif until_first:
                break
            elif copy is None:
                copy = self._copy()
        if copy is not None:
            self._become(copy)
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)

    def _copy(self) -> LineFile:
        """Begin a file beside this one with the lines that were kept so far."""
        copy = LineFile(self._path.with_name(f"{self._path.name}.resuming"))
        copy.start_anew()
        offset = 0
        while offset < self._size:
            part = os.pread(self._fd, min(2**20, self._size - offset), offset)
            copy.write(part)
            offset += len(part)
        return copy

    def _become(self, copy: LineFile) -> None:
        os.fsync(copy._fd)
        copy._path.replace(self._path)
        os.close(self._fd)
        self._fd, self._size = copy._fd, copy._size

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # not every file system has locks
            os.close(fd)
            raise ConfigError(f"output: another process writes to {self._path}.") from error


def is_regular(path: str) -> bool:
    """Whether a path is, or can become, a regular file."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return True


def same_file(source: str, output: str) -> bool:
    """Whether two paths are one regular file."""
    try:
        return is_regular(source) and Path(source).samefile(output)
    except OSError:
        return False


def open_device(path: str) -> Pipe:
    """Open what is no regular file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        return Pipe(os.open(path, os.O_WRONLY), path)
    except OSError as error:
        raise ConfigError(f"output: cannot write {path}: {error.strerror}.") from error


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _output_error(name: str, error: OSError) -> OutputError:
    return OutputError(f"output: cannot write {name}: {error.strerror}.")
