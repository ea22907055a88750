"""Whether there is room for one more call: the bound of the queue, and what its caller has had.

It knows requests and who asks, from the door until they end. How many run at once, and who comes
first, is the engine's to say.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.errors import InvalidRequestError
from engine.metrics import EngineStats
from engine.request import Request
from server.keys import Caller
from server.metrics import ServerMetrics
from server.rate_limits import Account, Accounts, CallerLimits
from server.refusals import OverloadedError, RateLimitedError, Refusal

_NUM_ENDS = 64
_UNKNOWN_WAIT_S = 5.0
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many may wait; None = any number.

    Attributes:
        max_requests: answers that have not begun, beside those that the engine has room for.
        max_tokens: tokens of their prompts.
        num_seats: answers that the engine makes at once at most.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    num_seats: int = 1


class Admission:
    """Counts who waits, who is being answered, and how fast answers end.

    An answer waits until its first token; each of `n` choices is one. Background work gives way to
    all others in the engine, so it takes nobody's place here; its callers bound it themselves.

    Args:
        limits: of the queue.
        accounts: of the callers.
        read_stats: gives the engine's counters.
        metrics: hears of refusals.

    Attributes:
        num_waiting: answers that have not begun.
        num_waiting_tokens: tokens of their prompts.
        num_begun: answers that have, and have not ended.
    """

    def __init__(
        self,
        limits: QueueLimits,
        accounts: Accounts,
        read_stats: Callable[[], EngineStats],
        metrics: ServerMetrics,
    ) -> None:
        self.accounts = accounts
        self._limits = limits
        self._read_stats = read_stats
        self._metrics = metrics
        self._ends: deque[float] = deque(maxlen=_NUM_ENDS)
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        self.num_begun = 0

    def enter(
        self, caller: Caller, prompts: Sequence[Sequence[Request]], *, takes_places: bool = True
    ) -> Ticket:
        """Let a call in, all of its answers or none.

        Args:
            caller: who asks.
            prompts: the requests of each prompt.
            takes_places: whether the engine has to work for it; otherwise only its caller's limits
                hold.

        Returns:
            What keeps its places; tell it how the call goes on, and close it.

        Raises:
            OverloadedError: the queue is full.
            RateLimitedError: the caller has had what one caller may have.
            InvalidRequestError: the call would not even fit an empty queue.
        """
        waiting = {
            request.request_id: request.num_prompt_tokens
            for prompt in prompts
            for request in prompt
            # Background work takes no places of those who wait for an answer.
            if takes_places and not request.is_finished and not request.is_background
        }
        account = self.accounts.of("" if caller.is_admin else caller.account)
        num_prompt_tokens = sum(prompt[0].num_prompt_tokens for prompt in prompts)
        try:
            account.check(num_prompt_tokens)
        except RateLimitedError:
            self._metrics.count_refusal(Refusal.RATE_LIMITED)
            raise
        self._check_room(len(waiting), sum(waiting.values()))
        account.num_open += 1
        account.spend_tokens(num_prompt_tokens)
        self.num_waiting += len(waiting)
        self.num_waiting_tokens += sum(waiting.values())
        return Ticket(self, account, waiting)

    def begin(self, num_prompt_tokens: int) -> None:
        """Note that an answer has begun."""
        self.leave_queue(num_prompt_tokens)
        self.num_begun += 1

    def leave_queue(self, num_prompt_tokens: int) -> None:
        """Note that an answer waits no longer."""
        self.num_waiting -= 1
        self.num_waiting_tokens -= num_prompt_tokens

    def end(self, *, is_over: bool) -> None:
        """Note that an answer that had begun has ended.

        Args:
            is_over: whether it came to its end; false = it was given up.
        """
        self.num_begun -= 1
        if is_over:
            self._ends.append(time.monotonic())

    def _check_room(self, num_new: int, num_tokens: int) -> None:
        if not num_new:
            return
        limits = self._limits
        if limits.max_requests is not None:
            self._check_fits("n", "answers", num_new, limits.max_requests + limits.num_seats)
            excess = self.num_waiting + num_new - limits.max_requests - self._num_free_seats()
            if excess > 0:
                self._refuse(
                    f"{self.num_waiting} requests are waiting already, and {limits.max_requests} "
                    f"may; this call has {num_new}.",
                    excess,
                )
        max_tokens = limits.max_tokens
        if max_tokens is None:
            return
        self._check_fits("prompt", "prompt tokens", num_tokens, max_tokens)
        if self.num_waiting_tokens + num_tokens > max_tokens:
            self._refuse(
                f"{self.num_waiting_tokens} prompt tokens are waiting already, and "
                f"{max_tokens} may; this call has {num_tokens}.",
                num_new,
            )

    def _num_free_seats(self) -> int:
        """Give how many of those that wait the engine will take at once."""
        stats = self._read_stats()
        if stats.num_waiting > stats.num_background_waiting:
            # It left some waiting, so it lacks seats, or blocks.
            return 0
        return max(0, self._limits.num_seats - self.num_begun)

    def _check_fits(self, param: str, what: str, number: int, limit: int) -> None:
        if number > limit:
            raise InvalidRequestError(
                f"{param}: this call asks for {number} {what} at once, and {limit} fit this "
                "server's queue when it is empty. Ask for less at a time.",
                param=param,
                code="invalid_value",
            )

    def _refuse(self, reason: str, num_to_end: int) -> None:
        wait_s = self._wait_s(num_to_end)
        self._metrics.count_refusal(Refusal.QUEUE_FULL)
        raise OverloadedError(
            f"The server is overloaded: {reason} Please try again in {wait_s:.0f}s.",
            retry_after_s=wait_s,
        )

    def _wait_s(self, num_to_end: int) -> float:
        """Estimate when as many answers will have ended, by the pace of the last ones."""
        if not self._ends:
            return _UNKNOWN_WAIT_S
        elapsed_s = time.monotonic() - self._ends[0]
        wait_s = num_to_end * elapsed_s / len(self._ends)
        return min(max(wait_s, 1.0), _LONGEST_WAIT_S)


@dataclass(slots=True)
class Ticket:
    """The places of one call's answers, and what it costs its caller.

    Attributes:
        admission: where the places are.
        account: of the caller.
        waiting: requests that have not begun, and the tokens of their prompts.
    """

    admission: Admission
    account: Account
    waiting: dict[str, int]
    _begun: set[str] = field(default_factory=set)
    _is_closed: bool = False

    def begin(self, request_id: str) -> None:
        """Note that an answer's first token is there."""
        num_prompt_tokens = self.waiting.pop(request_id, None)
        if num_prompt_tokens is not None:
            self._begun.add(request_id)
            self.admission.begin(num_prompt_tokens)

    def spend(self, num_tokens: int) -> None:
        """Count tokens of an answer."""
        self.account.spend_tokens(num_tokens)

    def end(self, request_id: str) -> None:
        """Note that an answer has come to its end."""
        self.begin(request_id)
        if request_id in self._begun:
            self._begun.discard(request_id)
            self.admission.end(is_over=True)

    def close(self) -> None:
        """Give back every place."""
        if self._is_closed:
            return
        self._is_closed = True
        self.account.num_open -= 1
        for num_prompt_tokens in self.waiting.values():
            self.admission.leave_queue(num_prompt_tokens)
        for _ in self._begun:
            self.admission.end(is_over=False)
        self.waiting.clear()
        self._begun.clear()


def open_door(
    read_stats: Callable[[], EngineStats],
    metrics: ServerMetrics,
    limits: QueueLimits | None = None,
    caller_limits: CallerLimits | None = None,
) -> Admission:
    """Make an admission; without limits, of whoever asks."""
    accounts = Accounts(caller_limits or CallerLimits())
    return Admission(limits or QueueLimits(), accounts, read_stats, metrics)
