"""The output of a run: opened anew or where an earlier run ended, and a table made in the end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engine.errors import ConfigError
from server.offline.jobs import FinishedRecords
from server.offline.line_file import Destination, LineFile, Pipe, is_regular, open_device
from server.offline.outcome import Recipe
from server.offline.records import JSONL, PARQUET, STANDARD, Source, load_parquet
from server.offline.tables import NumberedRows, write_table


class Existing(Enum):
    """What becomes of an output that exists."""

    RESUME = "it goes on"
    OVERWRITE = "it begins anew"
    REFUSE = "it stays as it is"


@dataclass(frozen=True, slots=True)
class Output:
    """Where the rows go.

    Attributes:
        place: a path, or `-` for the standard output.
        kind: one of `server.offline.records.FORMATS`.
        existing: what to do if it is there.
        is_ordered: whether rows stand in the order of their records.
    """

    place: str
    kind: str = JSONL
    existing: Existing = Existing.RESUME
    is_ordered: bool = False

    def __post_init__(self) -> None:
        if self.kind == PARQUET:
            load_parquet()
        if self.is_table and (self.is_stream or not is_regular(self.place)):
            raise ConfigError(f"output_format: {self.kind} is written to a file, not to a stream.")
        if self.is_stream and self.existing is Existing.OVERWRITE:
            raise ConfigError("overwrite: the standard output has nothing to overwrite.")
        if Path(self.place).is_dir():
            raise ConfigError(f"output: cannot write {self.place}: it is a folder.")

    @property
    def is_stream(self) -> bool:
        """Whether it is the standard output."""
        return self.place == STANDARD

    @property
    def is_table(self) -> bool:
        """Whether it is a table, whose rows are kept in another file until all are there."""
        return self.kind != JSONL

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.place)

    @property
    def rows_path(self) -> Path:
        """The file of lines that rows are written to as they come."""
        return self.path.with_name(f"{self.path.name}.rows.jsonl") if self.is_table else self.path

    @property
    def is_complete(self) -> bool:
        """Whether a table is there and nothing is left to be done for it."""
        may_stay = self.is_table and self.existing is Existing.RESUME
        return may_stay and self.path.exists() and not self.rows_path.exists()

    def open(self, recipe: Recipe) -> tuple[Destination, FinishedRecords | None]:
        """Open it, and give what it holds of earlier runs; None where that cannot be known.

        Raises:
            ConfigError: it cannot be written, or is there and must stay.
            OutputError: what it holds cannot be written anew.
        """
        if self.is_stream:
            return Pipe(take_standard_output(), "the standard output"), None
        if not is_regular(self.place):
            return open_device(self.place), None
        self._check_existing()
        file, finished = LineFile(self.rows_path), FinishedRecords(recipe, str(self.rows_path))
        if self.existing is Existing.OVERWRITE:
            file.start_anew()
        else:
            file.keep(finished.judge, until_first=self.is_ordered)
        return file, finished

    def finish(self, recipe: Recipe, source: Source, *, may_go_on: bool) -> None:
        """Make the table, if it is one.

        Args:
            recipe: that the rows were made by.
            source: of the records.
            may_go_on: keep the rows, as some of them are worth another try.

        Raises:
            OutputError: it could not be written.
        """
        if not self.is_table:
            return
        kept = Path(source.place) if source.kind == PARQUET else None
        write_table(NumberedRows(self.rows_path, recipe.table_shape), self.path, self.kind, kept)
        if not may_go_on:
            self.rows_path.unlink()

    def _check_existing(self) -> None:
        if self.existing is not Existing.REFUSE:
            return
        for path in (self.path, self.rows_path):
            if path.exists() and path.stat().st_size:
                raise ConfigError(
                    f"output: {path} exists; go on with --resume, start anew with --overwrite, or "
                    "name another file."
                )


def take_standard_output() -> int:
    """Take the standard output for answers alone; what else is printed goes to the standard error.

    Returns:
        Its file descriptor, which processes that are started later do not have.
    """
    taken = os.dup(1)
    os.dup2(2, 1)
    return taken
