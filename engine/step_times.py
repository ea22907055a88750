"""What steps take by their number of tokens, learnt while they run; pure numbers, no torch.

The machine's pace of the moment is told apart from the shape: machines drift by tens of percent
within seconds, and sizes that are compared were rarely seen in the same second. Between two sizes
that are known lies a line; beyond the largest nothing is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# What lies closer together counts as one size.
_SIZES_PER_DOUBLING = 4
_MEMORY_STEPS = 48
_PACE_STEPS = 16
# A measurement made while nobody was served is soon outweighed.
_TABLE_STEPS = 4.0


@dataclass(slots=True)
class _Size:
    """Steps of about one size, of which only the last ones count.

    Attributes:
        num_tokens: their mean.
        seconds: their mean, at the pace that they were seen at.
        num_steps: how many the means stand for.
    """

    num_tokens: float = 0.0
    seconds: float = 0.0
    num_steps: float = 0.0

    def add(self, num_tokens: int, seconds: float, weight: float = 1.0) -> None:
        self.num_steps = min(self.num_steps + weight, _MEMORY_STEPS)
        share = weight / self.num_steps
        self.num_tokens += (num_tokens - self.num_tokens) * share
        self.seconds += (seconds - self.seconds) * share


class StepTimes:
    """Seconds of a step, by its tokens."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._pace = 1.0
        self._num_observed = 0

    def expect(self, num_tokens: int, seconds: float) -> None:
        """Take a time that was measured before anybody was served."""
        self._sizes.setdefault(_place(num_tokens), _Size()).add(num_tokens, seconds, _TABLE_STEPS)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step that ran; both exceed 0."""
        size = self._sizes.setdefault(_place(num_tokens), _Size())
        if size.num_steps:
            expected = size.seconds * num_tokens / size.num_tokens
            # A step that the machine held up must not upset what is known.
            seconds = min(max(seconds, expected * self._pace / 2), expected * self._pace * 2)
            self._num_observed += 1
            seen = seconds / expected
            self._pace += (seen - self._pace) / min(self._num_observed, _PACE_STEPS)
        size.add(num_tokens, seconds / self._pace)

    def seconds(self, num_tokens: int) -> float | None:
        """Give what a step of so many tokens takes; None beyond the largest that was seen.

        Below the smallest it is taken to shrink with the tokens.
        """
        before = (0.0, 0.0)
        for place, seconds in self._known():
            if place >= num_tokens:
                return _between(before, (place, seconds), num_tokens)
            before = place, seconds
        return None

    def most_tokens(self, seconds: float, least: int) -> int:
        """Give how many tokens a step can have at most, to take no longer than so many seconds.

        Where all sizes that were seen are within, that is one size more than the largest, so that
        it is seen.

        Args:
            seconds: that it may take.
            least: tokens that it has in any case, at least 1.
        """
        low, low_s = float(least), min(seconds, self.seconds(least) or seconds)
        for place, place_s in self._known():
            if place <= least:
                continue
            if place_s > seconds:
                return int(low + (place - low) * (seconds - low_s) / (place_s - low_s))
            low, low_s = place, place_s
        return next_size(math.ceil(low))

    def size_to_try(self, limit: int) -> int | None:
        """Give the next larger size of which nothing is known; None where all up to a limit are."""
        largest = math.ceil(max((size.num_tokens for size in self._tried()), default=0.0))
        return min(limit, max(1, 2 * largest)) if largest < limit else None

    def worthwhile_tokens(self, share: float, limit: int) -> int:
        """Give the fewest tokens at which steps do at least a share of the most work per second.

        That is as far as is known, from steps that were tried a few times.
        """
        rates = [(size.num_tokens / size.seconds, size.num_tokens) for size in self._tried()]
        if not rates:
            return 1
        best = max(rate for rate, _ in rates)
        return min(limit, math.ceil(min(place for rate, place in rates if rate >= share * best)))

    def _tried(self) -> list[_Size]:
        return [size for size in self._sizes.values() if size.num_steps >= _TABLE_STEPS]

    def _known(self) -> list[tuple[float, float]]:
        """Give the sizes in order: tokens and seconds."""
        sizes = self._sizes.values()
        return sorted((size.num_tokens, size.seconds * self._pace) for size in sizes)


def next_size(num_tokens: int) -> int:
    """Give a number of tokens that lies one size beyond."""
    return max(num_tokens + 1, round(num_tokens * 2 ** (1 / _SIZES_PER_DOUBLING)))


def _place(num_tokens: int) -> int:
    return round(_SIZES_PER_DOUBLING * math.log2(num_tokens))


def _between(low: tuple[float, float], high: tuple[float, float], place: float) -> float:
    return low[1] + (high[1] - low[1]) * (place - low[0]) / (high[0] - low[0])
