"""The target's part of a step: which tokens it computes, and what each request gets from it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.request import TokenLogprobs
from engine.runner.input_batch import Span
from engine.runner.prompt_logprobs import num_prompt_rows
from engine.sampling.logprobs import RowLogprobs
from engine.sampling.sampler import SamplerOutput
from engine.speculative.proposer import Draft
from engine.speculative.verifier import Verification
from engine.step import ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput


def target_spans(scheduled: SchedulerOutput, draft: Draft) -> list[Span]:
    """Lay out the verify pass: each request's known tokens, then its drafts.

    Returns:
        One span per scheduled request; those that sample ask for the logits of their last known
        token and of every draft, those that score their prompt for those of the tokens before.
    """
    draft_token_ids = draft.token_ids.tolist()
    spans: list[Span] = []
    row = 0
    for share, num_drafts in zip(scheduled.scheduled, draft.num_draft_tokens, strict=True):
        request, start = share.request, share.request.num_computed_tokens
        token_ids = request.token_ids[start : start + share.num_tokens]
        num_logits = num_prompt_rows(share)
        if share.samples:
            token_ids += draft_token_ids[row][:num_drafts]
            num_logits += num_drafts + 1
            row += 1
        spans.append(Span(token_ids, start, share.block_ids, num_logits))
    return spans


def collect_outcomes(
    scheduled: SchedulerOutput,
    draft: Draft,
    sampled: SamplerOutput,
    verification: Verification,
    prompt_logprobs: Sequence[list[TokenLogprobs] | None],
) -> ModelOutput:
    """Hand the verified tokens back to their requests.

    Args:
        scheduled: the step.
        draft: what was drafted.
        sampled: the target's samples, one row per logit asked for.
        verification: accepted drafts and emitted tokens of the requests that sample.
        prompt_logprobs: of each share that wants them.
    """
    is_invalid = sampled.is_invalid.tolist() if bool(sampled.is_invalid.any()) else None
    outcomes: list[RequestOutcome] = []
    index = row = 0
    for position, share in enumerate(scheduled.scheduled):
        num_drafts = draft.num_draft_tokens[position]
        outcome = RequestOutcome(
            sampled=[],
            num_draft_tokens=num_drafts,
            num_draft_computed_tokens=draft.num_computed_tokens[position],
            prompt_logprobs=prompt_logprobs[position],
        )
        outcomes.append(outcome)
        if not share.samples:
            continue
        outcome.sampled = verification.emitted[index]
        outcome.num_accepted_tokens = verification.num_accepted[index]
        if share.request.wants_provenance:
            outcome.draft_token_ids = draft.token_ids[index, :num_drafts].tolist()
        if is_invalid is not None and any(is_invalid[row : row + len(outcome.sampled)]):
            outcome.error = share.request.reason_without_token
        outcome.logprobs = _logprobs(share, sampled.logprobs, row, len(outcome.sampled))
        index += 1
        row += num_drafts + 1
    return ModelOutput(outcomes)


def _logprobs(
    share: ScheduledRequest, logprobs: RowLogprobs | None, row: int, count: int
) -> list[TokenLogprobs] | None:
    wanted = share.request.params.logprobs
    if wanted is None or logprobs is None:
        return None
    return [logprobs.of_row(row + offset, wanted) for offset in range(count)]
