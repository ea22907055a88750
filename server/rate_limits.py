"""How much each caller has had: calls and tokens a minute, and calls at once. It knows no HTTP.

A limit per minute is a bucket that fills evenly: a caller who was quiet for a minute may spend all
of it at once. What an answer will cost is not known before it is there, so its tokens are taken as
they come, and a caller may end up in debt, which the next call waits for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from server.refusals import RateLimitedError

MAX_ACCOUNTS = 10_000
_MINUTE_S = 60.0


class Bucket:
    """What may be spent, up to a limit that fills again within a minute.

    Args:
        limit: units per minute, and at once.
        now: seconds on the monotonic clock.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._updated = now

    def left(self, now: float) -> float:
        """Give what may be spent now; below 0 is a debt."""
        gained = (now - self._updated) * self.limit / _MINUTE_S
        self._left = min(float(self.limit), self._left + gained)
        self._updated = now
        return self._left

    def spend(self, amount: float, now: float) -> None:
        """Take something out, whether or not there is as much."""
        self.left(now)
        self._left -= amount

    def wait_s(self, amount: float, now: float) -> float:
        """Give the seconds until there is as much; 0 when there is."""
        return max(0.0, amount - self.left(now)) * _MINUTE_S / self.limit


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may have; None = any number.

    Attributes:
        requests_per_minute: calls.
        tokens_per_minute: tokens of prompts and answers.
        concurrent_requests: calls that are answered at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def are_none(self) -> bool:
        """Whether anything goes."""
        return self == CallerLimits()


class Account:
    """What one caller has had.

    Args:
        limits: what it may have.

    Attributes:
        num_open: its calls that are being answered.
    """

    def __init__(self, limits: CallerLimits) -> None:
        now = time.monotonic()
        self._limits = limits
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = None if requests is None else Bucket(requests, now)
        self._tokens = None if tokens is None else Bucket(tokens, now)
        self.num_open = 0

    @property
    def is_idle(self) -> bool:
        """Whether a fresh account would be the same."""
        now = time.monotonic()
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]
        return self.num_open == 0 and all(bucket.left(now) >= bucket.limit for bucket in buckets)

    def take_request(self) -> None:
        """Count a call.

        Raises:
            RateLimitedError: there were too many within a minute.
        """
        if self._requests is None:
            return
        now = time.monotonic()
        wait_s = self._requests.wait_s(1, now)
        if wait_s > 0:
            raise RateLimitedError(
                f"Rate limit reached: {self._requests.limit} requests per minute. "
                f"Please try again in {wait_s:.1f}s.",
                kind="requests",
                retry_after_s=wait_s,
            )
        self._requests.spend(1, now)

    def check(self, num_prompt_tokens: int) -> None:
        """Check that one more call may be answered; nothing is counted.

        Raises:
            RateLimitedError: too many are, or the tokens of the minute are spent.
        """
        at_once = self._limits.concurrent_requests
        if at_once is not None and self.num_open >= at_once:
            raise RateLimitedError(
                f"Rate limit reached: {at_once} requests at once. "
                "Please try again when one of them has ended.",
                kind="requests",
                retry_after_s=1.0,
            )
        if self._tokens is None:
            return
        # More than a minute's tokens could never be had; such a prompt waits for a full bucket.
        wanted = min(max(1, num_prompt_tokens), self._tokens.limit)
        wait_s = self._tokens.wait_s(wanted, time.monotonic())
        if wait_s > 0:
            raise RateLimitedError(
                f"Rate limit reached: {self._tokens.limit} tokens per minute; this prompt has "
                f"{num_prompt_tokens}. Please try again in {wait_s:.1f}s.",
                kind="tokens",
                retry_after_s=wait_s,
            )

    def spend_tokens(self, num_tokens: int) -> None:
        """Count tokens of a prompt or an answer."""
        if self._tokens is not None:
            self._tokens.spend(num_tokens, time.monotonic())

    def headers(self) -> dict[str, str]:
        """Give OpenAI's headers of what is limited, what is left, and when all of it will be."""
        now = time.monotonic()
        given = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                given[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                given[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.left(now))))
                given[f"x-ratelimit-reset-{name}"] = duration(bucket.wait_s(bucket.limit, now))
        return given


class Accounts:
    """The accounts of all callers; of so many addresses the longest unheard of are forgotten.

    Args:
        limits: what each caller may have.
    """

    def __init__(self, limits: CallerLimits) -> None:
        self.limits = limits
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, name: str) -> Account:
        """Give a caller's account; a new one is full."""
        if not name:
            return Account(CallerLimits())
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(self.limits)
            self._forget()
        self._accounts.move_to_end(name)
        return account

    def _forget(self) -> None:
        """Make room: whoever would start anew anyway first, else whoever was silent for longest."""
        if len(self._accounts) <= MAX_ACCOUNTS:
            return
        idle = next((name for name, account in self._accounts.items() if account.is_idle), None)
        self._accounts.pop(next(iter(self._accounts)) if idle is None else idle)


def duration(seconds: float) -> str:
    """Write a time as OpenAI's headers do: 350ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{shown}s" if minutes else f"{shown}s"
