"""Drafts with a smaller model that shares the target's vocabulary, blocks and noise.

The draft's keys and values live in the target's logical blocks, in tensors of their own. They may
lag behind the target's (all drafts accepted, speculation off for a while); the scheduler hands out
the catch-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import SamplingBatch
from engine.speculative.draft_chains import ChainDrafter, chains_of, num_drafts_of
from engine.speculative.margin_gate import DraftGate
from engine.speculative.proposer import Draft
from engine.step import ScheduledRequest, SchedulerOutput


class DraftModelProposer:
    """A draft model with its own keys and values in the shared blocks.

    Args:
        runner: the draft model.
        sampler: the pipeline that also samples the target.
        max_len: positions that the draft model knows.
        gate: ends chains early; None = nobody does.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sampler: Sampler,
        max_len: int,
        gate: DraftGate | None = None,
    ) -> None:
        self._drafter = ChainDrafter(runner, sampler, gate=gate)
        self._sampler = sampler
        self._max_len = max_len
        self._last_token_id = runner.loaded.vocab_size - 1

    @torch.inference_mode()
    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Compute the draft's part of the step, then draft; see `Proposer.propose`."""
        shares = scheduled.scheduled
        if not any(map(_concerns_draft, shares)):
            return self._nothing(shares, sampling)
        spans = [self._known_tokens(share) for share in shares]
        num_computed = [span.start + len(span.token_ids) for span in spans]
        spans = [span for span in spans if span.token_ids]
        chains = chains_of(shares, self._sampler)
        token_ids = self._drafter.draft(spans, chains, sampling)
        counts = num_drafts_of(chains, shares)
        drafting = [index for index, share in enumerate(shares) if share.num_draft_tokens]
        for index, chain in zip(drafting, chains, strict=True):
            num_computed[index] += max(0, chain.length - 1)
        return Draft(token_ids, counts, num_computed)

    def _nothing(self, shares: Sequence[ScheduledRequest], sampling: SamplingBatch) -> Draft:
        token_ids = torch.zeros(
            len(sampling.requests), 0, dtype=torch.int64, device=sampling.device
        )
        num_computed = [share.request.num_draft_computed_tokens for share in shares]
        return Draft(token_ids, [0] * len(shares), num_computed)

    def _known_tokens(self, share: ScheduledRequest) -> Span:
        request = share.request
        start = request.num_draft_computed_tokens
        end = start + share.num_catch_up_tokens
        # A lone token that nothing is drafted from can wait: it is caught up when it is needed.
        is_idle = share.num_tokens == 1 and share.num_draft_tokens == 0
        if share.is_draft_current and not is_idle and not share.draft_rests:
            end += share.num_tokens
        end = max(start, min(end, self._max_len))
        num_logits = 1 if share.num_draft_tokens else 0
        # A padded vocabulary may be narrower than the target's; what lies beyond is never text.
        token_ids = [
            min(token_id, self._last_token_id) for token_id in request.token_ids[start:end]
        ]
        return Span(token_ids, start, share.block_ids, num_logits)


def _concerns_draft(share: ScheduledRequest) -> bool:
    is_followed = share.num_tokens > 1 and not share.draft_rests
    return bool(share.num_draft_tokens or share.num_catch_up_tokens or is_followed)
