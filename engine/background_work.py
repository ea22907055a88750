"""How much of a step may be background work, so that nobody else notices it; no torch.

Beside real-time work, background work gets as many tokens as lengthen the step by no more than a
share, judged by what steps took so far. Alone it has the whole step, unless real-time requests
came lately: who comes next waits for the step under way, so steps are kept short then, beside the
time that callers wait for a first token anyway. Who of the background work is served first is the
scheduler's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from statistics import median

from engine.request import Request
from engine.step import ModelOutput, ScheduledRequest, SchedulerOutput
from engine.step_in_making import StepInMaking
from engine.step_times import StepTimes, next_size

# Where real-time requests came within so many seconds, more of them are to be expected.
_RECENT_S = 60.0
# One of so many steps with real-time work has nothing else in it, as what that takes changes too.
_ALONE_STEPS = 16
# One of so many goes beyond what is known to be right: too few to be the slowest of a hundred.
_TRY_STEPS = 512
# Nobody is in the others yet; who comes waits for one of these at most.
_TRY_STEPS_ALONE = 128
_NUM_WAITS = 64
# Of steps in which nobody is in the background one of so many is enough to know what they take.
_WATCHED_STEPS = 8
# Larger steps do more per second, but where step times grow with their tokens only a little.
_WORTHWHILE = 0.75
# Steps of so few tokens are tried at once.
_SMALL_TOKENS = 8


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
        self._num_alone_steps = 0
        self._num_booked = 0
        self._waits_s: deque[float] = deque(maxlen=_NUM_WAITS)
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
    def num_requests(self) -> int:
        """Requests of background work that have not ended."""
        return self._num_requests[True]

    def begin_turn(self, step: StepInMaking, is_for_background: bool) -> None:
        """Say in a step whose turn it is, and what is left for background work if it is its own."""
        step.is_for_background = is_for_background
        if not is_for_background:
            return
        step.is_for_guests = self._num_requests[False] > 0
        others = list(step.shares.values())
        num_tokens, num_requests = self._limits(others, step.budget)
        step.budget = min(step.budget, num_tokens)
        step.num_seats = min(step.num_seats, len(others) + num_requests)

    def expect(self, seconds_of: Callable[[int], float]) -> None:
        """Take what steps that decode so many tokens took before anybody was served."""
        num_tokens = 1
        while num_tokens <= self._max_num_seqs:
            self._decoding.expect(num_tokens, seconds_of(num_tokens))
            num_tokens *= 2

    def observe(self, scheduled: SchedulerOutput, output: ModelOutput, seconds: float) -> None:
        """Learn from a step that was booked what such a step takes, and how long callers waited."""
        self._num_booked += 1
        if not self._num_requests[True] and self._num_booked % _WATCHED_STEPS:
            return
        shares, now = scheduled.scheduled, self._clock()
        num_tokens = sum(share.num_tokens for share in shares)
        num_tokens += sum(outcome.num_draft_tokens for outcome in output.outcomes)
        others = [share for share in shares if not share.request.is_background]
        self._times_of(others or shares).observe(num_tokens, seconds)
        for share, outcome in zip(shares, output.outcomes, strict=True):
            request = share.request
            is_first = 0 < request.num_output_tokens <= len(outcome.sampled)
            if is_first and not request.is_background:
                self._waits_s.append(now - request.arrival_time)

    @property
    def _is_somebody_expected(self) -> bool:
        seen = self._seen_real_time
        return seen is not None and self._clock() - seen < _RECENT_S

    def _limits(self, others: Collection[ScheduledRequest], num_left: int) -> tuple[int, int]:
        """Give how many tokens of background work a step may have, and of how many requests."""
        if others:
            most = self._num_beside(others)
            return most, most
        if self._is_somebody_expected:
            return self._num_alone()
        return num_left, self._max_num_seqs

    def _num_beside(self, others: Collection[ScheduledRequest]) -> int:
        num_tokens = sum(share.num_tokens + share.num_draft_tokens for share in others)
        times = self._times_of(others)
        seconds = times.seconds(num_tokens)
        self._num_shared_steps += 1
        is_alone = self._num_shared_steps % _ALONE_STEPS == 0
        if is_alone or self._slowdown == 0.0 or seconds is None:
            return 0
        most = times.most_tokens((1.0 + self._slowdown) * seconds, num_tokens)
        if self._num_shared_steps % _TRY_STEPS == 1:
            most = next_size(most)
        return most - num_tokens

    def _num_alone(self) -> tuple[int, int]:
        """Give the limits of a step that does much, and soon is over for whoever comes then."""
        width = min(self._max_num_seqs, self._num_requests[True])
        most = self._decoding.worthwhile_tokens(_WORTHWHILE, width)
        larger = self._decoding.size_to_try(width)
        self._num_alone_steps += 1
        if larger is not None and (
            larger <= _SMALL_TOKENS or self._num_alone_steps % _TRY_STEPS_ALONE == 0
        ):
            most = larger
        wait_s = median(self._waits_s) if self._waits_s else 0.0
        seconds = max(self._decoding.seconds(most) or 0.0, self._slowdown * wait_s)
        of_prompts = self._with_prompts.most_tokens(seconds, most)
        return of_prompts, self._decoding.most_tokens(seconds, most)

    def _times_of(self, shares: Iterable[ScheduledRequest]) -> StepTimes:
        """Give the times to compare with: a row that is sampled takes longer than others."""
        is_decoding = all(share.num_tokens == 1 for share in shares)
        return self._decoding if is_decoding else self._with_prompts
