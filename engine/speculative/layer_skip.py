"""Drafts with some of the target's own layers, over the target's own keys and values.

Layer skipping without training (SWIFT, Xia et al. 2410.06916). The layers that are kept read what
the target has written and write the drafts' keys and values into the slots that the verify pass of
the same step fills anew, so nothing lags, nothing is kept twice and nobody else ever reads them.
"""

from __future__ import annotations

import torch

from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import SamplingBatch
from engine.speculative.draft_chains import ChainDrafter, chains_of, num_drafts_of
from engine.speculative.margin_gate import DraftGate
from engine.speculative.proposer import Draft
from engine.step import SchedulerOutput


class LayerSkipProposer:
    """The target with fewer layers as its own draft.

    Args:
        runner: runs the kept layers over the target's storage.
        sampler: the pipeline that also samples the target.
        gate: ends chains early; None = nobody does.
    """

    def __init__(
        self, runner: ModelRunner, sampler: Sampler, gate: DraftGate | None = None
    ) -> None:
        self._drafter = ChainDrafter(runner, sampler, gate=gate)
        self._sampler = sampler

    @torch.inference_mode()
    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Draft; see `Proposer.propose`."""
        shares = scheduled.scheduled
        spans: list[Span] = []
        for share in shares:
            if share.num_draft_tokens:
                assert share.samples, "drafts follow the last known token"
                start = share.request.num_computed_tokens
                spans.append(Span(share.request.token_ids[start:], start, share.block_ids, 1))
        chains = chains_of(shares, self._sampler)
        token_ids = self._drafter.draft(spans, chains, sampling)
        counts = num_drafts_of(chains, shares)
        # The verify pass computes for both, so the draft never lags.
        num_computed = [
            share.request.num_computed_tokens + share.num_tokens + share.num_draft_tokens
            for share in shares
        ]
        return Draft(token_ids, counts, num_computed)
