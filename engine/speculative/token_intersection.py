"""Drafts of another vocabulary by the tokens that both have: token-level intersection (TLI).

The draft's logits are put in the places of the target's ids and sampled there, so penalties,
grammars, filters and noise are those of the target's own pipeline (Timor et al. 2502.05202).
"""

from __future__ import annotations

import torch

from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import SamplingBatch
from engine.speculative.draft_chains import ChainDrafter
from engine.speculative.foreign_draft import ForeignModel, ForeignRound, catch_up
from engine.speculative.margin_gate import DraftGate
from engine.speculative.proposer import Draft
from engine.step import SchedulerOutput


class TokenIntersectionProposer:
    """Drafts among the tokens that both vocabularies have (TLI).

    Args:
        model: the draft.
        sampler: the pipeline that also samples the target.
        vocab_size: the width of the target's logits.
        gate: ends chains early; None = nobody does.
    """

    def __init__(
        self,
        model: ForeignModel,
        sampler: Sampler,
        vocab_size: int,
        gate: DraftGate | None = None,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._texts = model.make_texts(is_mapped=True)
        loaded = model.runner.loaded
        self._draft_ids = [0] * vocab_size
        outside = [-torch.inf] * vocab_size
        for target_id, draft_id in model.bridge.draft_ids.items():
            if target_id < vocab_size and draft_id < loaded.vocab_size:
                self._draft_ids[target_id] = draft_id
                outside[target_id] = 0.0
        table = torch.tensor(self._draft_ids, device=loaded.device)
        self._outside = torch.tensor(outside, device=loaded.device)
        self._drafter = ChainDrafter(
            model.runner,
            sampler,
            to_target=lambda logits: logits[:, table].add_(self._outside),
            to_draft=lambda token_ids: table[token_ids],
            gate=gate,
        )

    @torch.inference_mode()
    def propose(self, scheduled: SchedulerOutput, sampling: SamplingBatch) -> Draft:
        """Draft; see `Proposer.propose`."""
        drafts = ForeignRound.begin(scheduled, self._texts, self._sampler)
        for drafting in drafts.followed:
            drafting.num_passes = drafting.share.num_draft_tokens
        spans, ready = catch_up(drafts.followed, self._texts, self._model)
        chains = [drafting.chain for drafting in ready]
        token_ids = self._drafter.draft(spans, chains, sampling)
        rows = token_ids.tolist()
        for drafting, chain in zip(ready, chains, strict=True):
            drafting.num_drafts = chain.length
            row = rows[drafting.row][: chain.length]
            drafting.settle([self._draft_ids[token_id] for token_id in row])
        return drafts.end(ready, token_ids)
