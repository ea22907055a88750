"""What passes cost now: the table measured at start-up, corrected by what steps really take.

The table knows shapes; the machine at hand, sampling, and all that goes with a pass make it slower,
and not always in proportion. Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.speculative.host_times import HostTimes
from engine.speculative.step_costs import StepCosts

_MEMORY_STEPS = 1000
# Steps of one size weigh like so many at most, so that rare sizes have their say.
_MOST_STEPS = 20.0
_SIZES_PER_DOUBLING = 3
# Weight of the steps that are assumed to be in proportion; they lie far apart, real ones close.
_PRIOR_STEPS = 6.0
_PRIOR_PLACES = (0.5, 1.5)
_SLOPES = (0.5, 1.6)
_FIT_STEPS = 4
_PACE_STEPS = 16
_PLAIN_WEIGHT = 3.0
_CLUSTERING_STEPS = 50
_LEAST_CLUSTERING = 0.2


@dataclass(slots=True)
class _Sums:
    """Steps of about one size, old ones fading."""

    num: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    time: int = 0

    def fade(self, time: int) -> None:
        """Weigh less as time passes, and never more than what counts."""
        keep = (1.0 - 1.0 / _MEMORY_STEPS) ** (time - self.time)
        keep = min(keep, _MOST_STEPS / max(self.num, _MOST_STEPS))
        self.num, self.x, self.y = self.num * keep, self.x * keep, self.y * keep
        self.xx, self.xy = self.xx * keep, self.xy * keep
        self.time = time

    def add(self, x: float, y: float, weight: float) -> None:
        self.num += weight
        self.x += weight * x
        self.y += weight * y
        self.xx += weight * x * x
        self.xy += weight * x * y


@dataclass(slots=True)
class Line:
    """Real seconds by a table's seconds: the pace of the moment times a shape learnt slowly.

    Machines drift by tens of percent within seconds, so sizes are compared at the pace that they
    were seen at. The shape is a proportion, unless steps say else.

    Attributes:
        start: seconds that do not depend on the table's.
        slope: real seconds per second of the table.
    """

    start: float = 0.0
    slope: float = 1.0
    _pace: float = field(default=1.0, init=False)
    _shape: tuple[float, float] = field(default=(0.0, 1.0), init=False)
    _sizes: dict[int, _Sums] = field(default_factory=dict, init=False)
    _time: int = field(default=0, init=False)

    def at(self, seconds: float) -> float:
        """Give the real seconds for some of the table's, which exceed 0."""
        return self.start + self.slope * seconds

    def observe(self, x: float, y: float, weight: float = 1.0) -> None:
        """Learn that what the table says takes `x` took `y` seconds."""
        # A step that the machine held up must not upset the line.
        y = min(max(y, self.at(x) / 2), self.at(x) * 2)
        self._time += 1
        start, slope = self._shape
        seen = y / (start + slope * x)
        self._pace += (seen - self._pace) / min(self._time, _PACE_STEPS)
        size = self._sizes.setdefault(round(_SIZES_PER_DOUBLING * math.log2(x)), _Sums())
        size.fade(self._time)
        size.add(x, y / self._pace, weight)
        # The shape of many steps moves little by little.
        if self._time % _FIT_STEPS == 0:
            self._fit()
        start, slope = self._shape
        self.start, self.slope = self._pace * start, self._pace * slope

    def _fit(self) -> None:
        """Least squares, with steps added that are exactly in proportion."""
        total = _Sums()
        for size in self._sizes.values():
            size.fade(self._time)
            total.num, total.x, total.y = total.num + size.num, total.x + size.x, total.y + size.y
            total.xx, total.xy = total.xx + size.xx, total.xy + size.xy
        ratio, mean = total.y / total.x, total.x / total.num
        for place in _PRIOR_PLACES:
            total.add(place * mean, place * mean * ratio, _PRIOR_STEPS)
        num, x, y = total.num, total.x, total.y
        slope = (num * total.xy - x * y) / (num * total.xx - x * x)
        slope = min(max(slope, _SLOPES[0] * ratio), _SLOPES[1] * ratio)
        self._shape = (y - slope * x) / num, slope


@dataclass(slots=True)
class PassPrices:
    """Seconds of passes.

    A machine that is held up is slower for both models, and a draft that rests is not timed: so
    what the draft's passes take is learnt in proportion to how slow the target's are.

    Args:
        costs: the table.

    Attributes:
        target: real seconds of the target's passes by the table's.
        draft: real seconds of all draft passes of a step by the table's, if the draft's were as
            slow as the target's.
        host: what steps take beside.
    """

    costs: StepCosts
    target: Line = field(default_factory=Line)
    draft: Line = field(default_factory=Line)
    host: HostTimes = field(default_factory=HostTimes)
    _clustering: float = field(default=1.0, init=False)

    def target_pass(self, num_seqs: int, num_rows: float, longest: float = 1.0) -> float:
        """Give the real seconds of a target pass; see `StepCosts.target_pass`."""
        return self.target.at(self.costs.target_pass(num_seqs, num_rows, longest))

    def plain_step(self, num_seqs: int) -> float:
        """Give the real seconds of a step without drafts."""
        return self.target_pass(num_seqs, num_seqs) + self.host.of(num_seqs, has_drafts=False)

    def draft_pass(self, num_seqs: float) -> float:
        """Give the real seconds of one more draft pass of a step that drafts."""
        return self.costs.draft_pass(num_seqs) * self.target.slope * self.draft.slope

    def drafting(self, pass_seconds: float, *, ends_alike: bool) -> float:
        """Give the real seconds of drafting, expected passes of which add up to so many."""
        share = self._clustering if ends_alike else 1.0
        return max(self.draft.start, 0.0) + share * pass_seconds

    def observe_plan(self, pass_seconds: float, chain_lengths: Sequence[int]) -> None:
        """Learn how far passes fall short of what was expected, as chains of a step end alike.

        Args:
            pass_seconds: expected, were chains to end independently.
            chain_lengths: what became of them.
        """
        seen = sum(map(self.draft_pass, _chains_by_pass(chain_lengths))) / pass_seconds
        seen = min(max(seen, _LEAST_CLUSTERING), 1.0)
        self._clustering += (seen - self._clustering) / _CLUSTERING_STEPS

    def observe(
        self,
        num_seqs: int,
        num_rows: int,
        longest: int,
        chain_lengths: Sequence[int],
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step in which everybody decoded and no draft had to catch up.

        Args:
            num_seqs: requests.
            num_rows: rows of the target.
            longest: rows of the request that has most.
            chain_lengths: drafts of each chain that a model drafted.
            draft_seconds: what drafting took beyond what the target would have had to do anyway.
            target_seconds: what the target took, with what drafting did for it.
        """
        # Plain steps are few where drafts are in use, and all that these are compared with.
        weight = _PLAIN_WEIGHT if num_rows == num_seqs else 1.0
        expected = self.costs.target_pass(num_seqs, num_rows, longest)
        self.target.observe(expected, target_seconds, weight)
        counts = _chains_by_pass(chain_lengths)
        if counts:
            seconds = sum(map(self.costs.draft_pass, counts)) * self.target.slope
            self.draft.observe(seconds, draft_seconds)


def _chains_by_pass(chain_lengths: Sequence[int]) -> list[int]:
    longest = max(chain_lengths, default=0)
    return [sum(length > place for length in chain_lengths) for place in range(longest)]
