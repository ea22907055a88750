"""CSV and Parquet made of the rows of a finished run, in the order of their records.

Rows are read from the run's own file a few at a time, in two passes: which columns there are, and
of which types, is known only after the last one. Every column of the source keeps its place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.offline.line_file import OutputError
from server.offline.outcome import TableShape
from server.offline.parquet_columns import ParquetColumns
from server.offline.records import CSV, load_parquet, read_lines

_ROWS_PER_GROUP = 4096

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NumberedRows:
    """The rows of a finished run.

    Attributes:
        path: of the file with numbered rows.
        shape: of the table.
    """

    path: Path
    shape: TableShape

    def groups(self) -> Iterator[list[Row]]:
        """Give the rows by their numbers, some at a time."""
        places = self._places()
        with self.path.open("rb") as file:
            for start in range(0, len(places), _ROWS_PER_GROUP):
                rows = []
                for _, offset in places[start : start + _ROWS_PER_GROUP]:
                    file.seek(offset)
                    rows.append(json.loads(file.readline())["record"])
                yield rows

    def columns(self) -> list[str]:
        """Give the columns that any row has."""
        found: dict[str, None] = {}
        for rows in self.groups():
            for row in rows:
                found |= dict.fromkeys(row)
        last = self.shape.last
        return [n for n in found if n not in last] + [n for n in last if n in found]

    def _places(self) -> list[tuple[int, int]]:
        places, offset = [], 0
        with self.path.open("rb", buffering=0) as file:
            for line in read_lines(file.fileno(), None):
                assert line is not None, "no limit was given"
                places.append((int(json.loads(line)["line"]), offset))
                offset += len(line)
        return sorted(places)


def write_table(rows: NumberedRows, path: Path, kind: str, source: Path | None) -> None:
    """Write a table, whole or not at all.

    Args:
        rows: of the table.
        path: of the file.
        kind: CSV or Parquet.
        source: the Parquet file whose columns keep their types; None = there is none.

    Raises:
        OutputError: it could not be written.
    """
    making = path.with_name(f"{path.name}.writing")
    try:
        if kind == CSV:
            _write_csv(rows, making)
        else:
            _write_parquet(rows, making, source)
        making.replace(path)
    except OSError as error:
        making.unlink(missing_ok=True)
        raise OutputError(f"output: cannot write {path}: {error.strerror or error}.") from error


def _write_csv(rows: NumberedRows, path: Path) -> None:
    columns = rows.columns()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for group in rows.groups():
            writer.writerows([_csv_value(row.get(name)) for name in columns] for row in group)


def _csv_value(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _write_parquet(rows: NumberedRows, path: Path, source: Path | None) -> None:
    parquet = load_parquet()
    kept = None if source is None else parquet.read_schema(source)
    columns = ParquetColumns(rows.columns(), kept, texts=rows.shape.texts)
    for group in rows.groups():
        columns.study(group)
    with parquet.ParquetWriter(path, columns.schema()) as writer:
        for group in rows.groups():
            writer.write_table(columns.table(group))
