"""Which records are still to be answered: all but those that an earlier run finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.errors import ConfigError
from server.batches.lines import BatchLine, BatchLineError
from server.offline.outcome import DUPLICATE, Job, Recipe, key_of, key_of_number
from server.offline.records import Record


@dataclass(slots=True)
class FinishedRecords:
    """What stands in the output of earlier runs.

    Attributes:
        recipe: that its rows were made by.
        place: of the output, for errors.
        errors: how many of the rows that stay tell of which error.
        num_kept: rows that stay.
        num_dropped: rows that are to be made anew.
    """

    recipe: Recipe
    place: str
    errors: Counter[str] = field(default_factory=Counter)
    num_kept: int = 0
    num_dropped: int = 0
    _keys: set[int] = field(default_factory=set)

    def judge(self, line: bytes) -> bool:
        """Say whether a row may stay, and remember its record if so.

        Raises:
            ConfigError: it is no row of this command.
        """
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        past = self.recipe.past(row) if isinstance(row, dict) else None
        if past is None:
            number = self.num_kept + self.num_dropped + 1
            raise ConfigError(
                f"output: line {number} of {self.place} was not written by this command with "
                "these flags; name another file, or start anew with --overwrite."
            )
        if past.is_passing:
            self.num_dropped += 1
            return False
        self.num_kept += 1
        self._keys.add(past.key)
        if past.error is not None:
            self.errors[past.error] += 1
        return True

    def __contains__(self, key: int) -> bool:
        return key in self._keys


def jobs_of(
    records: Iterator[Record], recipe: Recipe, finished: FinishedRecords | None
) -> Iterator[Job | None]:
    """Give the records that are to be answered, and None for each that is not.

    Args:
        records: all of them.
        recipe: makes their requests.
        finished: those that are answered; None = nobody looks, and ids may come twice.
    """
    seen: set[int] = set()
    for record in records:
        asked = _asked(record, recipe)
        if finished is not None:
            key = key_of(asked)
            if key in seen:
                asked = _duplicate(asked)
                key = key_of_number(asked.number)
            seen.add(key)
            if key in finished:
                yield None
                continue
        yield Job(record, asked)


def _asked(record: Record, recipe: Recipe) -> BatchLine | BatchLineError:
    try:
        return recipe.line(record)
    except BatchLineError as error:
        return error


def _duplicate(asked: BatchLine | BatchLineError) -> BatchLineError:
    return BatchLineError(
        f"custom_id: {asked.custom_id!r:.80} stands on a line before this one.",
        number=asked.number,
        param="custom_id",
        code=DUPLICATE,
        custom_id=asked.custom_id,
    )
