"""What the scheduler has to say of its requests until somebody asks; no torch."""

from __future__ import annotations

from engine.request import Request, RequestDelta, TokenLogprobs
from engine.step import RequestOutcome, ScheduledRequest


class Outbox:
    """Collects one delta per thing that happened to a request."""

    def __init__(self) -> None:
        self._deltas: list[RequestDelta] = []

    def __len__(self) -> int:
        return len(self._deltas)

    def take(self) -> list[RequestDelta]:
        """Give everything that was said since the last time."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def say_end(self, request: Request, error: str | None = None) -> None:
        """Say that a request ended outside of a step's outcome."""
        self._deltas.append(_delta(request, [], error=error))

    def say_outcome(
        self,
        share: ScheduledRequest,
        outcome: RequestOutcome,
        taken: list[int],
        prompt_logprobs: list[TokenLogprobs],
    ) -> None:
        """Say what a share of a step gave, if there is anything to say.

        Args:
            share: the share.
            outcome: what came of it.
            taken: the emitted tokens that belong to the answer.
            prompt_logprobs: those that were not told yet.
        """
        if not taken and not prompt_logprobs and not share.request.is_finished:
            return
        delta = _delta(share.request, taken)
        if outcome.logprobs is not None:
            delta.logprobs = outcome.logprobs[: len(taken)]
        if prompt_logprobs:
            delta.prompt_logprobs = prompt_logprobs
        if taken and share.request.num_output_tokens == len(taken):
            delta.scheduled_time = share.request.scheduled_time
        if outcome.num_draft_tokens:
            delta.num_draft_tokens = outcome.num_draft_tokens
            delta.num_accepted_tokens = min(outcome.num_accepted_tokens, len(taken))
            delta.drafter = share.drafter
        delta.provenance = outcome.provenance
        self._deltas.append(delta)


def take_prompt_logprobs(share: ScheduledRequest, outcome: RequestOutcome) -> list[TokenLogprobs]:
    """Give those that were not told before a preemption, and count them as told."""
    if not outcome.prompt_logprobs:
        return []
    request = share.request
    num_told_again = request.num_prompt_logprobs - request.num_computed_tokens
    fresh = outcome.prompt_logprobs[num_told_again:]
    request.num_prompt_logprobs += len(fresh)
    return fresh


def _delta(request: Request, token_ids: list[int], error: str | None = None) -> RequestDelta:
    return RequestDelta(
        request_id=request.request_id,
        new_token_ids=token_ids,
        finish_reason=request.finish_reason,
        stop_reason=request.stop_reason,
        num_cached_tokens=request.num_cached_tokens or 0,
        error=error,
    )
