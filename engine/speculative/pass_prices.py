"""What passes cost now: the table measured at start-up, corrected by what steps really take.

The table knows shapes; the machine at hand, sampling, and all that goes with a pass make it slower,
and not always in proportion. Pure Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.speculative.step_costs import StepCosts

_MEMORY_STEPS = 400
# Weight of the steps that are assumed to be in proportion; they lie far apart, real ones close.
_PRIOR_STEPS = 5.0
_PRIOR_PLACES = (0.5, 1.5)
_SLOPES = (0.5, 2.0)


@dataclass(slots=True)
class Line:
    """Real seconds by a table's seconds, learnt from steps: proportional, unless they say else.

    Attributes:
        start: seconds that do not depend on the table's.
        slope: real seconds per second of the table.
    """

    start: float = 0.0
    slope: float = 1.0
    _num: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def at(self, seconds: float) -> float:
        """Give the real seconds for some of the table's, which exceed 0."""
        return self.start + self.slope * seconds

    def observe(self, x: float, y: float) -> None:
        """Learn that what the table says takes `x` took `y` seconds."""
        if self._num >= 1.0:
            # A step that the machine held up must not upset the line.
            y = min(max(y, self.at(x) / 3), self.at(x) * 3)
        keep = 1.0 - 1.0 / _MEMORY_STEPS
        self._num = self._num * keep + 1.0
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y
        self._fit()

    def _fit(self) -> None:
        """Least squares, with steps added that are exactly in proportion."""
        ratio, mean = self._y / self._x, self._x / self._num
        num, x, y, xx, xy = self._num, self._x, self._y, self._xx, self._xy
        for place in _PRIOR_PLACES:
            at = place * mean
            num += _PRIOR_STEPS
            x += _PRIOR_STEPS * at
            y += _PRIOR_STEPS * at * ratio
            xx += _PRIOR_STEPS * at * at
            xy += _PRIOR_STEPS * at * at * ratio
        slope = (num * xy - x * y) / (num * xx - x * x)
        self.slope = min(max(slope, _SLOPES[0] * ratio), _SLOPES[1] * ratio)
        self.start = (y - self.slope * x) / num


@dataclass(slots=True)
class PassPrices:
    """Seconds of passes.

    Args:
        costs: the table.

    Attributes:
        target: real seconds of the target's passes by the table's.
        draft: real seconds of all draft passes of a step by the table's.
    """

    costs: StepCosts
    target: Line = field(default_factory=Line)
    draft: Line = field(default_factory=Line)

    def target_by_rows(self, num_seqs: int, max_rows: int) -> list[float]:
        """Give the table's seconds of a target pass by its rows; see `CostGrid.by_rows`."""
        return self.costs.target.by_rows(num_seqs, max_rows)

    def target_pass(self, num_seqs: int, num_rows: int) -> float:
        """Give the real seconds of a target pass."""
        return self.target.at(self.target_by_rows(num_seqs, num_rows)[num_rows])

    def draft_pass(self, num_seqs: float) -> float:
        """Give the real seconds of one more draft pass of a step that drafts."""
        return self.costs.draft_pass(num_seqs) * self.draft.slope

    def observe(
        self,
        num_seqs: int,
        num_rows: int,
        chain_lengths: Sequence[int],
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step in which everybody decoded and no draft had to catch up.

        Args:
            num_seqs: requests.
            num_rows: rows of the target.
            chain_lengths: drafts of each chain that a model drafted.
            draft_seconds: what drafting took.
            target_seconds: what the target took.
        """
        self.target.observe(self.target_by_rows(num_seqs, num_rows)[num_rows], target_seconds)
        longest = max(chain_lengths, default=0)
        if longest:
            counts = [sum(length > place for length in chain_lengths) for place in range(longest)]
            self.draft.observe(sum(map(self.costs.draft_pass, counts)), draft_seconds)
