"""How many tokens a step may compute after one that did not fit into memory; no torch."""

from __future__ import annotations

# Steps that must go well before a larger one is tried.
_NUM_STEPS_TO_GROW = 32


class StepLimit:
    """Halves at each failure, and doubles after a while of none.

    Args:
        most: tokens per step while nothing fails.

    Attributes:
        num_tokens: tokens that the next step may compute.
        num_shed: steps that did not fit so far.
        is_tight: whether the last one was not long ago, so that steps run one by one.
    """

    def __init__(self, most: int) -> None:
        self.num_tokens = most
        self.num_shed = 0
        self.is_tight = False
        self._most = most
        self._num_good_steps = 0

    def shrink(self, num_tokens: int) -> None:
        """Note that a step of so many tokens did not fit."""
        self.num_shed += 1
        self.is_tight = True
        self.num_tokens = max(1, min(self.num_tokens, num_tokens) // 2)
        self._num_good_steps = 0

    def grow(self) -> None:
        """Note that a step went well."""
        if not self.is_tight:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= _NUM_STEPS_TO_GROW:
            self.is_tight = self.num_tokens < self._most
            self.num_tokens = min(self._most, 2 * self.num_tokens)
            self._num_good_steps = 0
