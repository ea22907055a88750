"""Why the server refuses or gives up a call whatever it asks for: who calls, how much, how slowly.

What a request asks for in vain is one of the engine's `InvalidRequestError`s; these are not.

    RefusalError
    ├── UnauthorisedError      no key, or one that nobody has
    ├── ForbiddenError         a key that is not good for this path, or a name that is not ours
    ├── OverloadedError        the queue is full
    ├── RateLimitedError       this caller has had what one caller may have
    ├── BodyTimeoutError       the body did not come in time
    └── SlowReaderError        nobody takes what is sent
"""

from __future__ import annotations

import math
from enum import StrEnum

from engine.errors import OutdraftError


class Refusal(StrEnum):
    """What refusals are counted as."""

    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    SLOW_READER = "slow_reader"
    SLOW_BODY = "slow_body"
    UNAUTHORISED = "unauthorised"
    WRONG_HOST = "wrong_host"


class RefusalError(OutdraftError):
    """A call that is not served, whatever it asks for.

    Args:
        message: what failed, the number that broke the limit, and what to do.
        code: a machine-readable reason, as OpenAI's error body has it.
        kind: the error's `type` there.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.headers = headers or {}


class UnauthorisedError(RefusalError):
    """The caller has no key, or one that nobody has."""

    def __init__(self, message: str) -> None:
        headers = {"www-authenticate": "Bearer"}
        super().__init__(message, code="invalid_api_key", headers=headers)


class ForbiddenError(RefusalError):
    """The caller's key is not good for this path, or the server is called by another's name."""


class OverloadedError(RefusalError):
    """There is no room for the call in the queue.

    Args:
        message: what is full.
        retry_after_s: seconds after which there may be room.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(
            message, code="queue_full", kind="requests", headers=retry_headers(retry_after_s)
        )


class RateLimitedError(RefusalError):
    """The caller has had what one caller may have.

    Args:
        message: which limit.
        kind: what is limited: `requests` or `tokens`.
        retry_after_s: seconds after which the call may be served.
    """

    def __init__(self, message: str, *, kind: str, retry_after_s: float) -> None:
        super().__init__(
            message, code="rate_limit_exceeded", kind=kind, headers=retry_headers(retry_after_s)
        )


class BodyTimeoutError(RefusalError):
    """The body did not come in time; the rest of it is not waited for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_timeout", headers={"connection": "close"})


class SlowReaderError(RefusalError):
    """What is sent is not taken."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="slow_reader")


def retry_headers(seconds: float) -> dict[str, str]:
    """Give the headers that say when to try again; clients of OpenAI read the finer one first."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    return {
        "retry-after": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(milliseconds),
    }
