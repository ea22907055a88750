"""One API call being generated: its requests, the text of every choice, and what it all cost.

It joins the engine's deltas with detokenising and stop texts; the shape of answers on the wire is
left to `server.answers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from engine.errors import DeadlinePassedError, EngineError
from engine.outputs import speculation_metrics
from engine.request import (
    PREDICTION,
    FinishReason,
    Request,
    RequestDelta,
    SpeculationStats,
    TokenLogprobs,
)
from engine.tokenization import IncrementalDetokenizer, TokenBytes
from server.admission import Ticket
from server.call_record import AnswerRecord, Call, ChoiceRecord
from server.metrics import ServerMetrics
from server.protocol.provenance import Pass
from server.protocol.usage import Metrics, Usage
from server.provenance import UntoldPasses
from server.refusals import Refusal
from server.response_cache.tape import AnswerSource, Replay, Tape


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one step added to one choice.

    Attributes:
        index: of the choice, prompt by prompt.
        pieces: the text that each token released, so whole characters that are no part of a stop
            text; the last token of an answer also releases what was held back.
        token_ids: tokens that belong to the answer.
        logprobs: one entry per token when asked for.
        token_offsets: where the text of each token begins, in characters; with logprobs.
        finish_reason: set once, on the last delta of the choice.
        stop_reason: the stop token or stop text that ended it, if one did.
        prompt_logprobs: of the prompt tokens from the second on, as far as they are computed; on
            the first choice of a prompt, when asked for.
        passes: where tokens come from, as far as their text is certain; when asked for.
    """

    index: int
    pieces: list[str]
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    token_offsets: list[int]
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    prompt_logprobs: list[TokenLogprobs] | None = None
    passes: Sequence[Pass] = ()

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell: text is still held back."""
        has_scores = self.logprobs or self.prompt_logprobs
        has_news = self.finish_reason is not None or has_scores or self.passes
        return not any(self.pieces) and not has_news


@dataclass(slots=True)
class PredictionCounts:
    """How a predicted output did as a draft.

    Attributes:
        num_accepted_tokens: predicted tokens that became part of the answer unseen.
        num_rejected_tokens: predicted tokens that were verified in vain.
    """

    num_accepted_tokens: int = 0
    num_rejected_tokens: int = 0

    def observe(self, delta: RequestDelta, num_taken: int) -> None:
        """Count a step whose draft was the prediction."""
        num_accepted = min(delta.num_accepted_tokens, num_taken)
        self.num_accepted_tokens += num_accepted
        self.num_rejected_tokens += delta.num_draft_tokens - num_accepted


class Choice:
    """One answer as it grows."""

    def __init__(
        self, index: int, request: Request, tokens: TokenBytes, shown_ids: frozenset[int]
    ) -> None:
        self.index = index
        self.request_id = request.request_id
        self.num_prompt_tokens = request.num_prompt_tokens
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None
        self.record: ChoiceRecord | None = None
        self.speculation = SpeculationStats()
        self.prediction = PredictionCounts()
        self._detokenizer = IncrementalDetokenizer(
            tokens,
            request.params,
            request.prompt_token_ids,
            shown_ids=shown_ids,
            has_offsets=request.wants_provenance,
        )
        wants_passes = request.wants_provenance
        self._untold = UntoldPasses(tokens, self._detokenizer) if wants_passes else None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return self._detokenizer.num_tokens

    def take(self, delta: RequestDelta) -> ChoiceDelta:
        """Add what a step gave; a stop text ends the choice."""
        text = self._detokenizer
        first = text.num_tokens
        pieces = list(self._read(delta))
        num_taken = text.num_tokens - first
        delta.observe(self.speculation, num_taken)
        if delta.drafter == PREDICTION:
            self.prediction.observe(delta, num_taken)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        self.scheduled_time = self.scheduled_time or delta.scheduled_time
        is_stopped = text.stopped_by is not None
        self.finish_reason = FinishReason.STOP if is_stopped else delta.finish_reason
        return ChoiceDelta(
            index=self.index,
            pieces=pieces,
            token_ids=delta.new_token_ids[:num_taken],
            logprobs=delta.logprobs[:num_taken] if delta.logprobs is not None else None,
            token_offsets=text.token_offsets[first:],
            finish_reason=self.finish_reason,
            stop_reason=text.stopped_by if is_stopped else delta.stop_reason,
            prompt_logprobs=delta.prompt_logprobs,
            passes=() if self._untold is None else self._tell(self._untold, delta, pieces),
        )

    def end(self, reason: FinishReason, arrived: float) -> ChoiceRecord:
        """Note that the choice has ended; gives what there is to tell of it.

        Args:
            reason: why.
            arrived: when it was given to the engine; seconds on the monotonic clock.
        """
        self.finish_reason = reason
        self.record = ChoiceRecord(
            index=self.index,
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=self.num_tokens,
            finish_reason=reason,
            arrived=arrived,
            scheduled=self.scheduled_time,
            first_token=self.first_token_time,
            last_token=self.last_token_time,
            ended=time.monotonic(),
        )
        return self.record

    def _tell(self, untold: UntoldPasses, delta: RequestDelta, pieces: list[str]) -> list[Pass]:
        return untold.take(delta, "".join(pieces), is_over=self.finish_reason is not None)

    def _read(self, delta: RequestDelta) -> Iterator[str]:
        """Give the text that each token releases, up to the token that completes a stop text."""
        text = self._detokenizer
        is_last = delta.finish_reason is not None
        for place, token_id in enumerate(delta.new_token_ids, start=1):
            is_end = is_last and place == len(delta.new_token_ids)
            is_stop_token = is_end and delta.finish_reason is FinishReason.STOP
            yield text.add([token_id], is_last=is_end, ends_with_stop_token=is_stop_token)
            if text.stopped_by is not None:
                return
        if is_last and not delta.new_token_ids:
            yield text.add([], is_last=True)


class Generation:
    """Streams the choices of one API call; use it as a context, so that leaving aborts the rest.

    Args:
        call_id: the id of the answer on the wire.
        prompts: the requests of each prompt, made at the door.
        tokens: the model's token bytes.
        source: gets the requests, at once.
        metrics: hears of times and outcomes.
        ticket: keeps the places of the call until it ends.
        timeout_s: seconds after which what has not ended is given up; None = never.
        shown_ids: special tokens that stay in the text whatever `skip_special_tokens` says, since
            somebody reads them.
        synthetic_acceptance: see `engine.door.ModelInfo`.
        call: hears what became of it.
        tape: takes the answer down; None = nobody wants to keep it.

    Raises:
        EngineError: the engine is not there.
    """

    def __init__(
        self,
        call_id: str,
        prompts: Sequence[Sequence[Request]],
        tokens: TokenBytes,
        source: AnswerSource,
        metrics: ServerMetrics,
        ticket: Ticket,
        *,
        timeout_s: float | None = None,
        shown_ids: frozenset[int] = frozenset(),
        synthetic_acceptance: tuple[float, ...] = (),
        call: Call | None = None,
        tape: Tape | None = None,
    ) -> None:
        requests = [request for prompt in prompts for request in prompt]
        self.call_id = call_id
        self._prompts = prompts
        self._metrics = metrics
        self._synthetic_acceptance = synthetic_acceptance
        self._choices = {
            request.request_id: Choice(index, request, tokens, shown_ids)
            for index, request in enumerate(requests)
        }
        self._started = time.monotonic()
        self._is_closed = False
        self._source = source
        self._ticket = ticket
        self._call = call
        self._tape = tape
        try:
            self._stream = source.submit(requests)
        except EngineError:
            ticket.close()
            raise
        if call is not None:
            call.begin_answer()
        self._alarm: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(timeout_s, self._expire, timeout_s)

    @property
    def num_choices(self) -> int:
        """Answers over all prompts."""
        return len(self._choices)

    @property
    def is_replay(self) -> bool:
        """Whether all of it is remembered, and nobody works for it."""
        return isinstance(self._source, Replay)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish_reason is not None for choice in self._choices.values())

    @property
    def usage(self) -> Usage:
        """Tokens so far: each prompt once, the answers of all choices."""
        num_prompt = sum(prompt[0].num_prompt_tokens for prompt in self._prompts)
        num_answer = sum(choice.num_tokens for choice in self._choices.values())
        num_cached = sum(
            self._choices[prompt[0].request_id].num_cached_tokens for prompt in self._prompts
        )
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answer,
            "total_tokens": num_prompt + num_answer,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }

    @property
    def is_synthetic(self) -> bool:
        """Whether drafts are accepted unseen, so that the answer must say so."""
        return bool(self._synthetic_acceptance)

    @property
    def speculation(self) -> Metrics:
        """Speculation counts over all choices, and of each."""
        choices = [
            {"index": choice.index, **speculation_metrics(choice.speculation)}
            for choice in self._choices.values()
        ]
        counts = speculation_metrics(self._speculation_total(), self._synthetic_acceptance)
        return {"speculative_decoding": {**counts, "choices": choices}}

    @property
    def prediction_counts(self) -> PredictionCounts:
        """How the predicted output did, over all choices."""
        counts = [choice.prediction for choice in self._choices.values()]
        return PredictionCounts(
            sum(count.num_accepted_tokens for count in counts),
            sum(count.num_rejected_tokens for count in counts),
        )

    async def __aiter__(self) -> AsyncIterator[ChoiceDelta]:
        async for delta in self._stream:
            choice = self._choices[delta.request_id]
            self._observe_tokens(choice, len(delta.new_token_ids))
            shown = choice.take(delta)
            if self._tape is not None:
                self._tape.add(choice.index, delta)
            if shown.finish_reason is not None:
                self._end(choice, shown.finish_reason)
            yield shown

    def fail(self, error: BaseException) -> None:
        """Give up what has not ended because of an error that is told inside a stream."""
        self._metrics.observe_error(error)
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Give up what has not ended, and tell what became of the call.

        Args:
            error: what ended the call early; None is a client that left.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._stream.close()
        self._ticket.close()
        outcome = FinishReason.ERROR if isinstance(error, Exception) else FinishReason.ABORT
        for choice in self._choices.values():
            if choice.record is None:
                self._observe_end(choice.end(outcome, self._started))
        if self._call is not None:
            self._call.end_answer(self._record(error))

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)

    def _end(self, choice: Choice, reason: FinishReason) -> None:
        """Note that a choice has come to its own end; with the last one the answer is whole."""
        self._ticket.end(choice.request_id)
        self._stream.abort(choice.request_id)
        self._observe_end(choice.end(reason, self._started))
        if self._tape is not None and self.is_finished:
            self._tape.end()

    def _observe_end(self, choice: ChoiceRecord) -> None:
        if self.is_replay:
            self._metrics.observe_replayed_choice(choice)
        else:
            self._metrics.observe_choice(choice)

    def _speculation_total(self) -> SpeculationStats:
        total = SpeculationStats()
        for choice in self._choices.values():
            total.add(choice.speculation)
        return total

    def _record(self, error: BaseException | None) -> AnswerRecord:
        usage = self.usage
        records = [choice.record for choice in self._choices.values()]
        params = self._prompts[0][0].params
        return AnswerRecord(
            answer_id=self.call_id,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_tokens,
            num_prompt_tokens=usage["prompt_tokens"],
            num_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            num_tokens=usage["completion_tokens"],
            choices=tuple(record for record in records if record is not None),
            speculation=self._speculation_total(),
            error=type(error).__name__ if isinstance(error, Exception) else None,
        )

    def _expire(self, timeout_s: float) -> None:
        """Give up what has not ended; whoever reads is told, after what came in time."""
        self._metrics.count_refusal(Refusal.TIMEOUT)
        open_ids = self._stream.open_ids
        self._stream.put(
            DeadlinePassedError(
                f"The answer was not complete within {timeout_s:g} seconds and was given up. "
                "Ask for less, or allow it more time."
            )
        )
        self._source.abort(open_ids)

    def _observe_tokens(self, choice: Choice, num_tokens: int) -> None:
        if num_tokens == 0:
            return
        now = time.monotonic()
        self._ticket.spend(num_tokens)
        if choice.last_token_time is None:
            self._ticket.begin(choice.request_id)
            choice.first_token_time = now
            if not self.is_replay:
                self._metrics.observe_first_token(now - self._started)
        elif not self.is_replay:
            self._metrics.observe_tokens(num_tokens, now - choice.last_token_time)
        choice.last_token_time = now
