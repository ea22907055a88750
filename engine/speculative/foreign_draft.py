"""What every draft of another vocabulary does, however its tokens reach the target.

It keeps texts of its own, brings them up to date for the requests that are to draft, and leaves
out those whose grammar has no choice. Nothing is computed for requests that draft nothing, and no
step computes more than the draft's share of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad

from engine.request import Request
from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.sampling.sampler import Sampler
from engine.speculative.draft_chains import Chain
from engine.speculative.draft_texts import DraftText, DraftTexts
from engine.speculative.proposer import Draft
from engine.speculative.vocabulary_bridge import VocabularyBridge
from engine.step import ScheduledRequest, SchedulerOutput


@dataclass(slots=True)
class ForeignModel:
    """A draft model, its blocks, and the way between the vocabularies.

    Attributes:
        runner: runs the model over a storage of its own.
        bridge: between the target's tokens and its own.
        max_num_tokens: tokens of one pass at most.
    """

    runner: ModelRunner
    bridge: VocabularyBridge
    max_num_tokens: int

    def make_texts(self, *, is_mapped: bool) -> DraftTexts:
        """Make room for texts: answers token by token, or all of them written as texts."""
        storage, max_len = self.runner.storage, self.runner.loaded.max_model_len
        write = self._map if is_mapped else self._write
        return DraftTexts(write, storage.num_blocks, storage.block_size, max_len)

    def _write(
        self, request: Request, written: Sequence[int], num_seen: int
    ) -> tuple[int, list[int]]:
        if num_seen == 0:
            return 0, self.bridge.write_prompt(request.token_ids)
        return self.bridge.write_on(written, request.token_ids[num_seen:])

    def _map(
        self, request: Request, written: Sequence[int], num_seen: int
    ) -> tuple[int, list[int]]:
        bridge = self.bridge
        if num_seen:
            return len(written), bridge.map_on(request.token_ids[num_seen:])
        answer = request.token_ids[request.num_prompt_tokens :]
        return 0, bridge.write_prompt(request.prompt_token_ids) + bridge.map_on(answer)


@dataclass(slots=True)
class Drafting:
    """A request that drafts in this step.

    Attributes:
        index: among the step's shares.
        row: among the requests that sample.
        share: its share.
        text: in the draft's tokens.
        num_passes: tokens to draft at most, of the draft's own.
        num_drafts: the target's tokens that came of it.
    """

    index: int
    row: int
    share: ScheduledRequest
    text: DraftText
    num_passes: int = 0
    num_drafts: int = 0

    @property
    def chain(self) -> Chain:
        """Where the draft goes on."""
        return Chain(self.row, self.num_passes, len(self.text.token_ids), self.text.block_ids)

    def settle(self, drafted: list[int]) -> None:
        """Note what was drafted; the last token was never computed."""
        self.text.drafted = drafted
        self.text.num_computed = len(self.text.token_ids) + max(0, len(drafted) - 1)


@dataclass(slots=True)
class _Forced:
    """A request whose grammar leaves no choice about its next tokens.

    Attributes:
        index: among the step's shares.
        row: among the requests that sample.
        token_ids: the tokens; the draft might have none of them, and nobody has to ask it.
    """

    index: int
    row: int
    token_ids: list[int]


@dataclass(slots=True)
class ForeignRound:
    """The requests of a step that draft.

    Attributes:
        scheduled: the step.
        forced: those that need no model.
        followed: the others, those that lack the least of their texts first.
    """

    scheduled: SchedulerOutput
    forced: list[_Forced] = field(default_factory=list)
    followed: list[Drafting] = field(default_factory=list)

    @classmethod
    def begin(cls, scheduled: SchedulerOutput, texts: DraftTexts, sampler: Sampler) -> ForeignRound:
        """Bring the texts of those up to date that need the model."""
        texts.release(scheduled.preempted)
        started = cls(scheduled)
        sampling = [(i, share) for i, share in enumerate(scheduled.scheduled) if share.samples]
        for row, (index, share) in enumerate(sampling):
            if not share.num_draft_tokens:
                continue
            known = sampler.forced_tokens(share.request, share.num_draft_tokens)
            if known:
                started.forced.append(_Forced(index, row, known))
            else:
                text = texts.follow(share.request)
                started.followed.append(Drafting(index, row, share, text))
        started.followed.sort(key=lambda drafting: drafting.text.num_missing)
        return started

    def end(self, ready: list[Drafting], token_ids: torch.Tensor) -> Draft:
        """Give drafts to their requests; a text that is up to date counts as computed."""
        shares = self.scheduled.scheduled
        counts = [0] * len(shares)
        num_computed = [share.request.num_draft_computed_tokens for share in shares]
        for drafting in ready:
            counts[drafting.index] = drafting.num_drafts
            num_computed[drafting.index] = drafting.share.request.num_tokens + drafting.num_drafts
        if self.forced:
            longest = max(len(forced.token_ids) for forced in self.forced)
            token_ids = pad(token_ids, (0, max(0, longest - token_ids.shape[1])))
        for forced in self.forced:
            counts[forced.index] = len(forced.token_ids)
            known = torch.tensor(forced.token_ids, dtype=torch.int64)
            token_ids[forced.row, : len(known)] = known
        return Draft(token_ids, counts, num_computed)


def catch_up(
    followed: list[Drafting], texts: DraftTexts, model: ForeignModel
) -> tuple[list[Span], list[Drafting]]:
    """Lay out the first pass: all that is missing of the texts, as far as the budget goes.

    Returns:
        The spans, and the requests that have caught up; only these ask for logits, in order.
    """
    spans: list[Span] = []
    ready: list[Drafting] = []
    budget = model.max_num_tokens
    last_token_id = model.runner.loaded.vocab_size - 1
    for drafting in followed:
        text = drafting.text
        if budget == 0 or not texts.reserve(text, drafting.num_passes):
            continue
        num_tokens = min(text.num_missing, budget)
        is_ready = num_tokens == text.num_missing
        start, end = text.num_computed, text.num_computed + num_tokens
        # Tokenizers may have tokens that the model was never given.
        token_ids = [min(token_id, last_token_id) for token_id in text.token_ids[start:end]]
        spans.append(Span(token_ids, start, text.block_ids, int(is_ready)))
        budget -= num_tokens
        text.num_computed = end
        if is_ready:
            ready.append(drafting)
    return spans, ready
