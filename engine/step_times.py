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

    def most_tokens(self, num_tokens: int, slowdown: float) -> int:
        """Give how many tokens a step can have at most, to be slower by no more than a share.

        Where all larger sizes that were seen are within, that is one size more than the largest,
        so that it is seen; beside a step that is itself larger than all, nobody knows.

        Args:
            num_tokens: of the step that it is compared with, at least 1.
            slowdown: the share.

        Returns:
            At least `num_tokens`.
        """
        known = sorted((size.num_tokens, size.seconds) for size in self._sizes.values())
        if not known or known[-1][0] < num_tokens:
            return num_tokens
        low, low_s = float(num_tokens), _seconds_at(known, num_tokens)
        limit_s = low_s * (1.0 + slowdown)
        for place, seconds in known:
            if place <= num_tokens:
                continue
            if seconds > limit_s:
                return int(low + (place - low) * (limit_s - low_s) / (seconds - low_s))
            low, low_s = place, seconds
        return next_size(math.ceil(low))


def next_size(num_tokens: int) -> int:
    """Give a number of tokens that lies one size beyond."""
    return max(num_tokens + 1, round(num_tokens * 2 ** (1 / _SIZES_PER_DOUBLING)))


def _place(num_tokens: int) -> int:
    return round(_SIZES_PER_DOUBLING * math.log2(num_tokens))


def _seconds_at(known: list[tuple[float, float]], num_tokens: int) -> float:
    """Read a line through the sizes; below the smallest time shrinks with the tokens."""
    before = (0.0, 0.0)
    for place, seconds in known:
        if place >= num_tokens:
            share = (num_tokens - before[0]) / (place - before[0])
            return before[1] + (seconds - before[1]) * share
        before = place, seconds
    return before[1]
