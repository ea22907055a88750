"""Records as they come in: lines of JSON, rows of CSV and of Parquet, one at a time.

It knows how records are told apart, and refuses to know what they mean. Nothing is read before it
is asked for, but for one chunk; a source is never held in memory as a whole.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

JSONL, CSV, PARQUET = "jsonl", "csv", "parquet"
FORMATS = (JSONL, CSV, PARQUET)
STANDARD = "-"
_ENDINGS = {".csv": CSV, ".parquet": PARQUET, ".pq": PARQUET}
_CHUNK_BYTES = 2**16
_ROWS_PER_BATCH = 256
_BOM = b"\xef\xbb\xbf"


class BrokenRecordError(Exception):
    """A record that cannot be read.

    Args:
        code: a machine-readable reason.
        message: what is wrong with it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        number: of its line or row, from 1.
        content: the line as it is, the row's columns, or why neither could be read.
    """

    number: int
    content: bytes | dict[str, Any] | BrokenRecordError

    @property
    def fields(self) -> dict[str, Any]:
        """The record's fields.

        Raises:
            BrokenRecordError: it has none, or cannot be read.
        """
        if isinstance(self.content, BrokenRecordError):
            raise self.content
        if isinstance(self.content, dict):
            return self.content
        try:
            value = json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise BrokenRecordError("invalid_json", f"This is no JSON: {error}.") from error
        if not isinstance(value, dict):
            raise BrokenRecordError("invalid_record", "A record is a JSON object.")
        return value


def format_of(place: str, named: str | None) -> str:
    """Give the format of a file: as named, or as its name ends."""
    return named or _ENDINGS.get(Path(place).suffix.lower(), JSONL)


@dataclass(frozen=True, slots=True)
class Source:
    """Where records come from.

    Attributes:
        place: a path, or `-` for the standard input.
        kind: one of `FORMATS`.
        max_line_bytes: what a longer line has is passed over, and the line told as broken.
    """

    place: str
    kind: str
    max_line_bytes: int

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return self.kind != PARQUET and not Path(self.place).is_file()

    def check(self) -> None:
        """Check that it can be read.

        Raises:
            ConfigError: there is no such file, or it is not what it is said to be.
        """
        if self.kind == PARQUET:
            _parquet_file(self.place)
        elif self.place != STANDARD and (not self.is_stream or not Path(self.place).exists()):
            # What can be read only once is not opened only to look.
            with _opened(self.place):
                pass

    def read(self) -> Iterator[Record]:
        """Give the records.

        Raises:
            ConfigError: the source cannot be read.
        """
        if self.kind == PARQUET:
            yield from _parquet_rows(self.place)
            return
        if self.place == STANDARD:
            yield from self._text_records(sys.stdin.fileno())
            return
        with _opened(self.place) as file:
            yield from self._text_records(file.fileno())

    def count(self) -> int | None:
        """Count the records; None where they can be read only once."""
        if self.kind == PARQUET:
            return int(_parquet_file(self.place).metadata.num_rows)
        if self.is_stream:
            return None
        return sum(1 for _ in self.read())

    def _text_records(self, fd: int) -> Iterator[Record]:
        lines = read_lines(fd, self.max_line_bytes)
        yield from _csv_rows(lines) if self.kind == CSV else _json_lines(lines)


def read_lines(fd: int, max_bytes: int | None) -> Iterator[bytes | None]:
    """Give the lines of a file with their ends, each as soon as it is there.

    Args:
        fd: of the file.
        max_bytes: of a longer line nothing is kept, and None is given; None = keep all.
    """
    held, is_skipping = bytearray(), False
    while chunk := os.read(fd, _CHUNK_BYTES):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            held += chunk[start : end + 1]
            start = end + 1
            is_long = max_bytes is not None and len(held) > max_bytes
            yield None if is_skipping or is_long else bytes(held)
            held.clear()
            is_skipping = False
        held += chunk[start:]
        if max_bytes is not None and len(held) > max_bytes:
            held.clear()
            is_skipping = True
    if held or is_skipping:
        yield None if is_skipping else bytes(held)


def _json_lines(lines: Iterator[bytes | None]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield Record(number, _too_long())
            continue
        text = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if text:
            yield Record(number, text)


def _too_long() -> BrokenRecordError:
    return BrokenRecordError(
        "line_too_long", "The line is longer than --max-body-bytes allows; split or shorten it."
    )


def _csv_rows(lines: Iterator[bytes | None]) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(_csv_texts(lines))
    try:
        names = next(rows, [])
    except csv.Error as error:
        raise ConfigError(f"input: the header cannot be read ({error}).") from error
    if len(set(names)) < len(names):
        raise ConfigError("input: the header names a column twice.")
    number = 0
    while True:
        number += 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Record(number, BrokenRecordError("invalid_row", f"This is no CSV: {error}."))
            continue
        if row is None:
            return
        if not row:
            number -= 1
            continue
        yield Record(number, _csv_fields(names, row))


def _csv_fields(names: list[str], row: list[str]) -> dict[str, Any] | BrokenRecordError:
    if len(row) != len(names):
        return BrokenRecordError(
            "invalid_row", f"The row has {len(row)} values, the header {len(names)}."
        )
    return dict(zip(names, row, strict=True))


def _csv_texts(lines: Iterator[bytes | None]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line is None:
            raise ConfigError(f"input: line {number} is longer than --max-body-bytes allows.")
        text = line.removeprefix(_BOM) if number == 1 else line
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"input: line {number} is not UTF-8.") from error


def _parquet_rows(path: str) -> Iterator[Record]:
    file = _parquet_file(path)
    number = 0
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[group]):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, row)


def _parquet_file(path: str) -> Any:
    if path == STANDARD:
        raise ConfigError("input_format: Parquet is read from a file, not from a stream.")
    parquet = load_parquet()
    with _opened(path):
        pass
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"input: {path} is no Parquet file ({error}).") from error


def load_parquet() -> Any:
    """Give pyarrow's module for Parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow; install it with `pip install 'outdraft[tables]'`."
        ) from error
    return parquet


def _opened(path: str) -> Any:
    try:
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        raise ConfigError(f"input: cannot read {path}: {error.strerror}.") from error
