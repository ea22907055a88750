"""What passes cost now: the table measured at start-up, corrected by what steps really take.

The table knows shapes; the machine at hand, sampling, and all that goes with a pass make it slower,
and not always in proportion. Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.speculative.host_times import Drafting, HostTimes
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
_COMPARED_STEPS = 16
_SEEN = (0.5, 2.0)
_FACTORS = (0.8, 1.6)


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
class VerifyShare:
    """How much dearer a pass that verifies is than the table says, where a plain one is not.

    Sampling and bookkeeping go by rows, and begin with the first draft; no table of passes shows
    that. Steps of both kinds are compared where they stand close to each other in time, as
    machines drift.

    Attributes:
        factor: on the table's seconds of passes that verify drafts.
    """

    factor: float = 1.0
    _seen: dict[bool, float] = field(default_factory=dict, init=False)
    _last: bool | None = field(default=None, init=False)
    _num_compared: int = field(default=0, init=False)

    def observe(self, seen: float, *, verifies: bool) -> None:
        """Learn that a step took `seen` times what was expected of it."""
        seen = min(max(seen, _SEEN[0]), _SEEN[1])
        is_change, self._last = self._last is not verifies, verifies
        before = self._seen.get(verifies, seen)
        self._seen[verifies] = before + (seen - before) / _PACE_STEPS
        other = self._seen.get(not verifies)
        if is_change and other is not None:
            self._num_compared += 1
            ratio = seen / other if verifies else other / seen
            self.factor *= ratio ** (1.0 / min(1 + self._num_compared, _COMPARED_STEPS))
            self.factor = min(max(self.factor, _FACTORS[0]), _FACTORS[1])


_AS_THE_TABLE = Line()


class Chains(NamedTuple):
    """What a model drafted in a step.

    Attributes:
        lengths: drafts of each chain.
        drafting: how they were made.
    """

    lengths: Sequence[int]
    drafting: Drafting


@dataclass(slots=True)
class PassPrices:
    """Seconds of passes.

    A machine that is held up is slower for both models, and a draft that rests is not timed: so
    what the draft's passes take is learnt in proportion to how slow the target's are.

    Args:
        costs: the table.

    Attributes:
        target: real seconds of the target's passes by the table's.
        drafts: real seconds of all draft passes of a step by the table's, if the draft's were as
            slow as the target's, by how the step drafts.
        verify: what verifying costs beyond the table.
        host: what steps take beside.
    """

    costs: StepCosts
    target: Line = field(default_factory=Line)
    drafts: dict[Drafting, Line] = field(default_factory=dict)
    verify: VerifyShare = field(default_factory=VerifyShare)
    host: HostTimes = field(default_factory=HostTimes)
    _clustering: float = field(default=1.0, init=False)

    def target_pass(self, num_seqs: int, num_rows: float, longest: float = 1.0) -> float:
        """Give the real seconds of a target pass; see `StepCosts.target_pass`."""
        return self.target.at(self._by_table(num_seqs, num_rows, longest))

    def plain_step(self, num_seqs: int) -> float:
        """Give the real seconds of a step without drafts."""
        return self.target_pass(num_seqs, num_seqs) + self.host.of(num_seqs, Drafting.NONE)

    def draft_pass(self, num_seqs: float, drafting: Drafting) -> float:
        """Give the real seconds of one more draft pass of a step that drafts."""
        return self.costs.draft_pass(num_seqs) * self.target.slope * self._line(drafting).slope

    def drafting(self, pass_seconds: float, drafting: Drafting) -> float:
        """Give the real seconds of drafting, expected passes of which add up to so many."""
        # A gate ends chains of one step alike, so that passes are fewer.
        share = self._clustering if drafting is Drafting.GATED else 1.0
        return max(self._line(drafting).start, 0.0) + share * pass_seconds

    def observe_plan(self, pass_seconds: float, chain_lengths: Sequence[int]) -> None:
        """Learn how far passes fall short of what was expected, as chains of a step end alike.

        Args:
            pass_seconds: expected, were chains to end independently.
            chain_lengths: what became of them.
        """
        counts = _chains_by_pass(chain_lengths)
        seen = sum(self.draft_pass(count, Drafting.GATED) for count in counts) / pass_seconds
        seen = min(max(seen, _LEAST_CLUSTERING), 1.0)
        self._clustering += (seen - self._clustering) / _CLUSTERING_STEPS

    def observe(
        self,
        num_seqs: int,
        num_rows: int,
        longest: int,
        chains: Chains,
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step in which everybody decoded and no draft had to catch up.

        Args:
            num_seqs: requests.
            num_rows: rows of the target.
            longest: rows of the request that has most.
            chains: that a model drafted.
            draft_seconds: what drafting took beyond what the target would have had to do anyway.
            target_seconds: what the target took, with what drafting did for it.
        """
        # Plain steps are few where drafts are in use, and all that these are compared with.
        verifies = num_rows > num_seqs
        weight = 1.0 if verifies else _PLAIN_WEIGHT
        expected = self._by_table(num_seqs, num_rows, longest)
        self.verify.observe(target_seconds / self.target.at(expected), verifies=verifies)
        self.target.observe(expected, target_seconds, weight)
        counts = _chains_by_pass(chains.lengths)
        if counts:
            seconds = sum(map(self.costs.draft_pass, counts)) * self.target.slope
            line = self.drafts.setdefault(chains.drafting, Line())
            line.observe(seconds, draft_seconds)

    def _line(self, drafting: Drafting) -> Line:
        """Give the line of a way to draft; the other's, where it was never seen."""
        other = Drafting.FREE if drafting is Drafting.GATED else Drafting.GATED
        return self.drafts.get(drafting) or self.drafts.get(other) or _AS_THE_TABLE

    def _by_table(self, num_seqs: int, num_rows: float, longest: float) -> float:
        seconds = self.costs.target_pass(num_seqs, num_rows, longest)
        return seconds * self.verify.factor if num_rows > num_seqs else seconds


def _chains_by_pass(chain_lengths: Sequence[int]) -> list[int]:
    longest = max(chain_lengths, default=0)
    return [sum(length > place for length in chain_lengths) for place in range(longest)]
