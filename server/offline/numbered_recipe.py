"""Rows with the number of their record beside them, from which a table is made in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from server.batches.lines import BatchLine, BatchLineError
from server.batches.output import LineAnswer
from server.offline.outcome import Job, Outcome, PastRow, Recipe, TableShape
from server.offline.records import Record


@dataclass(frozen=True, slots=True)
class NumberedRecipe:
    """Another recipe, whose rows are put into `{"line": number, "record": row}`.

    Attributes:
        inner: the other.
    """

    inner: Recipe

    @property
    def table_shape(self) -> TableShape:
        """See `Recipe`."""
        return self.inner.table_shape

    def line(self, record: Record) -> BatchLine:
        """See `Recipe`."""
        return self.inner.line(record)

    def answered(self, job: Job, answer: LineAnswer) -> Outcome:
        """See `Recipe`."""
        return _numbered(job, self.inner.answered(job, answer))

    def failed(self, job: Job, error: BatchLineError) -> Outcome:
        """See `Recipe`."""
        return _numbered(job, self.inner.failed(job, error))

    def past(self, row: dict[str, Any]) -> PastRow | None:
        """See `Recipe`."""
        record = row.get("record")
        has_number = isinstance(row.get("line"), int)
        return self.inner.past(record) if has_number and isinstance(record, dict) else None


def _numbered(job: Job, outcome: Outcome) -> Outcome:
    number = job.record.number
    return replace(outcome, row=b'{"line": %d, "record": %s}\n' % (number, outcome.row.strip()))
