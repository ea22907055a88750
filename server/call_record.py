"""One HTTP call from its first byte to the end of what it asked for, as the log and traces tell it.

It holds times, counts and names, and no word of a request. Whoever works for a call finds it in
the context of its task, also tasks that outlive the call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.log_format import REQUEST_ID
from engine.request import FinishReason, SpeculationStats


class Phase(NamedTuple):
    """A part of a choice's life.

    Attributes:
        name: `queue`, `prefill` or `decode`.
        started: seconds on the monotonic clock.
        ended: the same.
    """

    name: str
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.ended - self.started)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRecord:
    """One choice that has ended; times are seconds on the monotonic clock.

    Attributes:
        index: of the choice.
        num_prompt_tokens: tokens of its prompt.
        num_tokens: tokens of the answer.
        finish_reason: why it ended.
        arrived: when it was given to the engine.
        scheduled: when the engine first computed it; None where it had no token.
        first_token: when its first token came, if one did.
        last_token: when its last one came.
        ended: when it ended.
    """

    index: int
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    arrived: float
    scheduled: float | None
    first_token: float | None
    last_token: float | None
    ended: float

    @property
    def seconds(self) -> float:
        """From arrival to end."""
        return self.ended - self.arrived

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Its life, part by part; nothing is known of one that had no token."""
        if self.scheduled is None or self.first_token is None:
            return ()
        return (
            Phase("queue", self.arrived, self.scheduled),
            Phase("prefill", self.scheduled, self.first_token),
            Phase("decode", self.first_token, self.ended),
        )

    @property
    def seconds_per_token(self) -> float | None:
        """Time per token behind the first; None where there is none."""
        if self.first_token is None or self.last_token is None or self.num_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecord:
    """What a call was answered with.

    Attributes:
        answer_id: its id on the wire; some wires spell it with an underscore.
        temperature: of every choice.
        top_p: the same.
        max_tokens: the same, if there is such a limit.
        num_prompt_tokens: each prompt once.
        num_cached_tokens: of these, found in the prefix cache.
        num_tokens: of all choices.
        choices: of all prompts.
        speculation: over all choices.
        error: class of the error that ended it, if one did.
    """

    answer_id: str
    temperature: float
    top_p: float
    max_tokens: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    choices: tuple[ChoiceRecord, ...]
    speculation: SpeculationStats
    error: str | None


@dataclass(slots=True, kw_only=True)
class Call:
    """A call, and what is known of it so far; it is over once, when its answer is, too.

    Attributes:
        request_id: as told in `x-request-id`.
        method: of HTTP.
        path: as decoded, without the query.
        trace_headers: the caller's `traceparent` and `tracestate`, where given.
        on_over: hears once that everything is known.
        started: seconds on the monotonic clock.
        ended: the same, once it is over.
        status: of HTTP; None where nothing was answered.
        error: class of the error that the caller was told, if any.
        answer: what was generated, if anything was.
        cache: `hit` or `miss` where the response cache had to do with it.
    """

    request_id: str
    method: str
    path: str
    on_over: Callable[[Call], None]
    trace_headers: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    status: int | None = None
    error: str | None = None
    answer: AnswerRecord | None = None
    cache: str | None = None
    _is_answered: bool = False
    _is_generating: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started

    def begin_answer(self) -> None:
        """Note that something is being generated, which may outlive the call."""
        self._is_generating = True

    def end_answer(self, answer: AnswerRecord) -> None:
        """Note that it has ended, in whatever way."""
        self._is_generating = False
        self.answer = answer
        self.error = self.error or answer.error
        self._tell()

    def end(self) -> None:
        """Note that nothing more will be sent."""
        self._is_answered = True
        self._tell()

    def _tell(self) -> None:
        if self._is_answered and not self._is_generating:
            self.ended = time.monotonic()
            self.on_over(self)


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def note_request_id(record: logging.LogRecord) -> bool:
    """Give a record of the log the id of the call that it is about."""
    call = current_call.get()
    if call is not None and not hasattr(record, REQUEST_ID):
        setattr(record, REQUEST_ID, call.request_id)
    return True


def note_error(error: BaseException) -> None:
    """Note the error that the current call is answered with."""
    call = current_call.get()
    if call is not None:
        call.error = type(error).__name__
