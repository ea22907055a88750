"""How long a step of each model takes, by its number of requests and rows.

Measured at a grid of shapes (`engine/runner/step_timer.py`) and read in between by interpolation.
Pure numbers: no models, no requests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class CostGrid:
    """Seconds of a pass, on a grid of shapes.

    Attributes:
        num_seqs: requests of a pass, ascending.
        rows_per_seq: rows of each request, ascending.
        seconds: [len(num_seqs)][len(rows_per_seq)].
    """

    num_seqs: Sequence[int]
    rows_per_seq: Sequence[int]
    seconds: Sequence[Sequence[float]]
    _columns: dict[int, list[float]] = field(default_factory=dict, init=False, repr=False)

    def at(self, num_seqs: int, rows_per_seq: float) -> float:
        """Give the seconds of a shape."""
        return interpolate(self.rows_per_seq, self._per_seq(num_seqs), rows_per_seq)

    def by_rows(self, num_seqs: int, max_rows: int) -> list[float]:
        """Give the seconds of a pass of `num_seqs` requests by its rows, never falling.

        Returns:
            One entry per number of rows from 0 to at least `max_rows`; those below `num_seqs`
            cost what `num_seqs` rows cost.
        """
        column = self._columns.setdefault(num_seqs, [])
        if len(column) <= max_rows:
            self._lengthen(column, num_seqs, max_rows)
        return column

    def _lengthen(self, column: list[float], num_seqs: int, max_rows: int) -> None:
        """Add the entries up to `max_rows`; those that are there never change."""
        per_seq = self._per_seq(num_seqs)
        least = column[-1] if column else 0.0
        for num_rows in range(len(column), max_rows + 1):
            seconds = interpolate(self.rows_per_seq, per_seq, max(1.0, num_rows / num_seqs))
            least = max(seconds, least)
            column.append(least)

    def _per_seq(self, num_seqs: int) -> list[float]:
        """Give the seconds of so many requests, by the rows of each."""
        return [
            interpolate(self.num_seqs, [row[place] for row in self.seconds], num_seqs)
            for place in range(len(self.rows_per_seq))
        ]

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` reads."""
        return {
            "num_seqs": list(self.num_seqs),
            "rows_per_seq": list(self.rows_per_seq),
            "seconds": [list(row) for row in self.seconds],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CostGrid:
        """Read what `to_json` gave."""
        return cls(content["num_seqs"], content["rows_per_seq"], content["seconds"])


@dataclass(frozen=True, slots=True)
class _Depth:
    """A target pass whose longest request has so many rows.

    Attributes:
        seconds: where all others have one row.
        per_row: of each row more.
        num_rows: of such a pass.
    """

    seconds: float
    per_row: float
    num_rows: int

    def at(self, num_rows: float) -> float:
        return self.seconds + self.per_row * max(0.0, num_rows - self.num_rows)


@dataclass(slots=True)
class StepCosts:
    """What passes of the target and of the draft model cost.

    A pass costs more than its rows where requests differ in length, as some kernels pad all of
    them to the longest.

    Attributes:
        target: by requests and rows, the same for each.
        draft: by requests, one row each; None without a draft model.
        lopsided: of the target, by requests and the rows of one of them, where the others have one
            row; None = only the sum of rows counts.
    """

    target: CostGrid
    draft: CostGrid | None = None
    lopsided: CostGrid | None = None
    _draft_passes: list[float] = field(default_factory=list, init=False, repr=False)
    _depths: dict[int, list[_Depth]] = field(default_factory=dict, init=False, repr=False)

    def target_pass(self, num_seqs: int, num_rows: float, longest: float) -> float:
        """Give the seconds of a target pass.

        Args:
            num_seqs: requests.
            num_rows: of all of them; may be an expectation.
            longest: rows of the longest, at least 1; may be an expectation.
        """
        depths = self._depths.setdefault(num_seqs, [])
        low = int(longest)
        while len(depths) < low + 1:
            depths.append(self._depth(num_seqs, len(depths) + 1))
        before, after = depths[low - 1 : low + 1]
        seconds = before.at(num_rows)
        return seconds + (after.at(num_rows) - seconds) * (longest - low)

    def _depth(self, num_seqs: int, longest: int) -> _Depth:
        uniform = self.target.by_rows(num_seqs, num_seqs * longest)
        num_rows, most_rows = num_seqs - 1 + longest, num_seqs * longest
        seconds = uniform[num_rows]
        if self.lopsided is not None and longest > 1:
            lopsided = self.lopsided.at(num_seqs, longest)
            # Noise must not make a pass cheaper than one of its rows alone, nor than a shorter one.
            least = max(seconds, self._depths[num_seqs][longest - 2].seconds)
            seconds = min(max(lopsided, least), max(uniform[most_rows], least))
        if most_rows == num_rows:
            return _Depth(seconds, 0.0, num_rows)
        per_row = max(0.0, uniform[most_rows] - seconds) / (most_rows - num_rows)
        return _Depth(seconds, per_row, num_rows)

    def draft_pass(self, num_seqs: float) -> float:
        """Give the seconds of a draft pass; that of a fraction of one request is that fraction."""
        if self.draft is None or num_seqs <= 0.0:
            return 0.0
        low = int(num_seqs)
        while len(self._draft_passes) < low + 2:
            count = len(self._draft_passes)
            self._draft_passes.append(self.draft.by_rows(count, count)[count] if count else 0.0)
        before, after = self._draft_passes[low : low + 2]
        return before + (after - before) * (num_seqs - low)


def interpolate(places: Sequence[int], values: Sequence[float], place: float) -> float:
    """Read a line through points; beyond the last two it goes on as between them."""
    if len(places) == 1:
        return values[0]
    right = min(max(bisect_right(places, place), 1), len(places) - 1)
    low, high = places[right - 1], places[right]
    share = (place - low) / (high - low)
    if right == len(places) - 1 and share > 1.0:
        # What noise made falling must not go on falling.
        return values[right] + max(0.0, values[right] - values[right - 1]) * (share - 1.0)
    return values[right - 1] + (values[right] - values[right - 1]) * max(share, 0.0)
