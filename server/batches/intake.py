"""Reads a batch's input file once, before any line is asked: where lines are, and which are wrong.

A file of any size passes through it line by line; no more of a line is held than one may have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from server.batches.batch_store import LineRef
from server.batches.lines import BatchLineError, LineParser
from server.batches.output import LineError, line_error

_BOM = b"\xef\xbb\xbf"
_MAX_TOLD = 100


@dataclass(frozen=True, slots=True)
class LineLimits:
    """What a batch may hold.

    Attributes:
        max_lines: of a batch.
        max_line_bytes: of each.
    """

    max_lines: int = 50_000
    max_line_bytes: int = 4 * 2**20


@dataclass(slots=True)
class Intake:
    """What a file holds.

    Attributes:
        refs: every line that is not blank.
        bad: those that cannot be asked.
        fault: why the file as a whole cannot be answered, if it cannot.
    """

    refs: list[LineRef] = field(default_factory=list)
    bad: list[tuple[LineRef, BatchLineError]] = field(default_factory=list)
    fault: LineError | None = None

    @property
    def errors(self) -> list[LineError]:
        """What a batch says that has nothing to ask; empty where there is something."""
        if self.fault is not None:
            return [self.fault]
        if not self.refs:
            return [_fault("empty_file", "The input file has no lines.")]
        if len(self.bad) < len(self.refs):
            return []
        return [line_error(error) for _, error in self.bad[:_MAX_TOLD]]


def read_input(path: Path, endpoint: str, limits: LineLimits) -> Intake:
    """Read a file; in whatever thread, since it takes a while.

    Args:
        path: of the file.
        endpoint: that every line must name.
        limits: of lines.
    """
    intake = Intake()
    parser = LineParser((endpoint,), limits.max_line_bytes)
    try:
        _read(path, intake, parser, limits)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        intake.fault = _fault("unreadable_file", f"The input file cannot be read: {reason}.")
    return intake


def _read(path: Path, intake: Intake, parser: LineParser, limits: LineLimits) -> None:
    with path.open("rb") as file:
        for number, start, raw in _lines(file, limits.max_line_bytes):
            if len(intake.refs) == limits.max_lines:
                intake.fault = _fault(
                    "too_many_lines",
                    f"The input file has more than {limits.max_lines} lines, which a batch may "
                    "have at most. Split it.",
                    number,
                )
                break
            _take(intake, parser, number, start, raw)


def _take(intake: Intake, parser: LineParser, number: int, start: int, raw: bytes) -> None:
    try:
        custom_id: str | None = parser.parse(raw, number).custom_id
        error = None
    except BatchLineError as found:
        error, custom_id = found, found.custom_id
    ref = LineRef(number, custom_id, start, len(raw))
    intake.refs.append(ref)
    if error is not None:
        intake.bad.append((ref, error))


def _lines(file: BufferedReader, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Give every line that is not blank: its number, where it begins, and itself.

    Of one that is too long only so much is given that this can be seen.
    """
    number = 0
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    # A line's end is not counted.
    limit = max_line_bytes + 2
    while raw := file.readline(limit):
        number += 1
        end = start + len(raw)
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(limit)):
            end += len(rest)
        stripped = raw.rstrip(b"\r\n")
        if stripped.strip():
            yield number, start, stripped
        start = end


def _fault(code: str, message: str, line: int | None = None) -> LineError:
    return {"code": code, "message": message, "param": "input_file_id", "line": line}
