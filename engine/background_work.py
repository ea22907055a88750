"""How much of a step may be background work, so that nobody else notices it; no torch.

Beside real-time work, background work gets as many tokens as lengthen the step by no more than a
share, judged by what steps took so far. Alone it has the whole step; only its prompts are taken
in small parts while somebody who comes would have to wait for them. Who of the background work is
served first is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from engine.request import Request
from engine.step import ModelOutput, ScheduledRequest, SchedulerOutput
from engine.step_times import StepTimes, next_size

# Where real-time requests came within so many seconds, more of them are to be expected.
_RECENT_S = 60.0
# One of so many shared steps goes beyond what is known to be right, and another one has real-time
# work alone: both change. They are rare enough not to be seen among the slowest of a hundred.
_TRY_STEPS = 128


class BackgroundWork:
    """Watches who is there and what steps take.

    Args:
        slowdown: share by which background work may lengthen a step with real-time work in it.
        max_num_seqs: requests of a step at most.
        clock: seconds, monotonic.
    """

    def __init__(self, slowdown: float, max_num_seqs: int, clock: Callable[[], float]) -> None:
        self._slowdown = slowdown
        self._max_num_seqs = max_num_seqs
        self._clock = clock
        self._num_requests = {False: 0, True: 0}
        self._seen_real_time: float | None = None
        self._num_shared_steps = 0
        self._decoding = StepTimes()
        self._with_prompts = StepTimes()

    def enter(self, request: Request) -> None:
        """Note that a request has come."""
        self._num_requests[request.is_background] += 1

    def leave(self, request: Request) -> None:
        """Note that a request has ended."""
        self._num_requests[request.is_background] -= 1

    def turns(self) -> list[bool]:
        """Give who is served in a step, one after the other: whether it is background work."""
        if self._num_requests[False]:
            self._seen_real_time = self._clock()
        return [whose for whose, count in self._num_requests.items() if count] or [False]

    @property
    def is_guest(self) -> bool:
        """Whether background work is not alone."""
        return self._num_requests[False] > 0

    def most_tokens(self, others: Collection[ScheduledRequest], num_left: int) -> int:
        """Give how many tokens of background work a step may have.

        Args:
            others: what real-time requests are given in it.
            num_left: tokens that they leave.
        """
        if others:
            return min(num_left, self._num_beside(others))
        if not self._is_somebody_expected:
            return num_left
        # No longer than a step in which everybody decodes.
        most = self._with_prompts.most_tokens(self._max_num_seqs, self._slowdown)
        return min(num_left, most)

    def expect(self, seconds_of: Callable[[int], float]) -> None:
        """Take what steps that decode so many tokens took before anybody was served."""
        num_tokens = 1
        while num_tokens <= self._max_num_seqs:
            self._decoding.expect(num_tokens, seconds_of(num_tokens))
            num_tokens *= 2

    def observe(self, scheduled: SchedulerOutput, output: ModelOutput, seconds: float) -> None:
        """Learn from a step what such a step takes."""
        shares = scheduled.scheduled
        num_tokens = sum(share.num_tokens for share in shares)
        num_tokens += sum(outcome.num_draft_tokens for outcome in output.outcomes)
        others = [share for share in shares if not share.request.is_background]
        self._times_of(others or shares).observe(num_tokens, seconds)

    @property
    def _is_somebody_expected(self) -> bool:
        seen = self._seen_real_time
        return seen is not None and self._clock() - seen < _RECENT_S

    def _num_beside(self, others: Collection[ScheduledRequest]) -> int:
        num_tokens = sum(share.num_tokens + share.num_draft_tokens for share in others)
        most = self._times_of(others).most_tokens(num_tokens, self._slowdown)
        self._num_shared_steps += 1
        if self._slowdown == 0.0 or self._num_shared_steps % _TRY_STEPS == 0:
            most = num_tokens
        elif self._num_shared_steps % _TRY_STEPS == _TRY_STEPS // 2:
            most = next_size(most)
        return most - num_tokens

    def _times_of(self, shares: Iterable[ScheduledRequest]) -> StepTimes:
        """Give the times to compare with: a row that is sampled takes longer than others."""
        is_decoding = all(share.num_tokens == 1 for share in shares)
        return self._decoding if is_decoding else self._with_prompts
