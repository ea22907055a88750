"""Drafts chains of tokens with a model: one small pass per token, for all requests at once.

The tokens are sampled by the target's own pipeline with the target's own noise, so draft and target
choose the same token as often as their distributions allow (coupled sampling, Daliri et al.
2408.07978; `engine/sampling/noise.py`). What a grammar forces needs no pass: it joins the known
tokens of the first one, and the chain goes on behind it. A gate may end a chain early. It knows
where a chain goes on, not whose model drafts nor where its keys and values lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.runner.chain_passes import ChainPasses
from engine.runner.input_batch import Span
from engine.runner.model_runner import ModelRunner
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.speculative.margin_gate import DraftGate, Verdict
from engine.step import ScheduledRequest


@dataclass(slots=True)
class Chain:
    """One request's chain.

    Attributes:
        row: among the requests that sample.
        length: tokens to draft, at least 1; those worth verifying, afterwards, perhaps none.
        num_known: known tokens in front of the chain, in the draft's own counting.
        block_ids: where the draft's keys and values go.
        forced: the first tokens of the chain, where a grammar leaves no choice.
    """

    row: int
    length: int
    num_known: int
    block_ids: list[int]
    forced: list[int] = field(default_factory=list)

    @property
    def num_passes(self) -> int:
        """Tokens that the model has to draft, one in each pass."""
        return self.length - len(self.forced)

    def first_span(self, span: Span, last_token_id: int) -> Span:
        """The chain's part of the first pass, what is forced included."""
        if not self.forced:
            return span
        # Nobody computes the last draft before it is known.
        computed = [min(token_id, last_token_id) for token_id in self.forced[: self.length - 1]]
        token_ids = [*span.token_ids, *computed]
        return Span(token_ids, span.start, span.block_ids, 1 if self.num_passes else 0)

    def span(self, offset: int) -> Span:
        """The token drafted last, in front of the one at `offset`."""
        return Span((0,), self.num_known + offset - 1, self.block_ids, 1)


def chains_of(shares: Sequence[ScheduledRequest], sampler: Sampler) -> list[Chain]:
    """Give the chains of a step's requests, where the draft counts the target's tokens."""
    sampling = [share for share in shares if share.samples]
    return [
        Chain(
            row,
            share.num_draft_tokens,
            share.request.num_tokens,
            share.block_ids,
            sampler.forced_tokens(share.request, share.num_draft_tokens),
        )
        for row, share in enumerate(sampling)
        if share.num_draft_tokens
    ]


def num_drafts_of(chains: Sequence[Chain], shares: Sequence[ScheduledRequest]) -> list[int]:
    """Give the drafts of each of a step's requests, once its chains are drafted."""
    counts = iter(chain.length for chain in chains)
    return [next(counts) if share.num_draft_tokens else 0 for share in shares]


class ChainDrafter:
    """Drafts with one model.

    Args:
        runner: of the model.
        sampler: the pipeline that also samples the target.
        to_target: puts the model's logits in the places of the target's ids; None = they are.
        to_draft: turns the target's ids into the model's; None = they are.
        gate: ends chains early; None = all are drafted in full.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sampler: Sampler,
        *,
        to_target: Callable[[torch.Tensor], torch.Tensor] | None = None,
        to_draft: Callable[[torch.Tensor], torch.Tensor] | None = None,
        gate: DraftGate | None = None,
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._to_target = to_target
        self._to_draft = to_draft
        self._gate = gate

    def draft(
        self, spans: list[Span], chains: list[Chain], sampling: SamplingBatch
    ) -> torch.Tensor:
        """Draft all chains.

        Args:
            spans: the first pass; those of the chains ask for the logits of their last token, in
                the chains' order.
            chains: what to draft; their lengths fall where the gate ends them.
            sampling: the requests that sample.

        Returns:
            [num_sampling, longest], int64, in the target's ids; 0 where there is no draft.
        """
        token_ids = _forced(chains, sampling)
        spans = self._first_spans(spans, chains)
        num_passes = max((chain.num_passes for chain in chains), default=0)
        last: torch.Tensor | None = None
        passes: ChainPasses | None = None
        if spans and not num_passes:
            self._runner.execute(spans)
        for index in range(num_passes):
            going_on = [chain for chain in chains if chain.num_passes > index]
            if not going_on:
                break
            if len(going_on) < len(chains):
                passes = None
            chains = going_on
            rows = [chain.row for chain in chains]
            offsets = [len(chain.forced) + index for chain in chains]
            if index:
                last = token_ids[_places(rows, [offset - 1 for offset in offsets])]
                last = last if self._to_draft is None else self._to_draft(last)
                if passes is None:
                    places = zip(chains, offsets, strict=True)
                    spans = [chain.span(offset) for chain, offset in places]
                    passes = self._runner.chain_passes(spans, num_passes - index)
            asked = Rows(rows, offsets)
            self._sampler.begin(sampling, asked, token_ids)
            if passes is not None and last is not None:
                logits = passes.run(last)
            else:
                logits = self._runner.execute(spans, last_token_ids=last)
            if self._to_target is not None:
                logits = self._to_target(logits)
            # Checkpoints pad their vocabularies apart; the target's ids are the ones that count.
            logits = logits[:, : sampling.vocab_size]
            sampled = self._sampler.sample(
                logits,
                sampling,
                asked,
                token_ids,
                with_logprobs=False,
                with_margins=self._gate is not None and self._gate.is_listening,
            )
            token_ids[_places(rows, offsets)] = sampled.token_ids
            if sampled.margins is not None:
                self._judge(chains, offsets, sampled.margins, sampling)
        return token_ids

    def _judge(
        self,
        chains: Sequence[Chain],
        offsets: Sequence[int],
        margins: torch.Tensor,
        sampling: SamplingBatch,
    ) -> None:
        """Let the gate end chains. Where a grammar forced the beginning, it has no say."""
        assert self._gate is not None, "margins are taken for the gate"
        free = [place for place, chain in enumerate(chains) if not chain.forced]
        if not free:
            return
        requests = [sampling.requests[chains[place].row] for place in free]
        leads = margins.tolist()
        verdicts = self._gate.judge(requests, [leads[place] for place in free])
        for place, verdict in zip(free, verdicts, strict=True):
            if verdict is not Verdict.GO_ON:
                chains[place].length = offsets[place] + (verdict is Verdict.END)

    def _first_spans(self, spans: list[Span], chains: list[Chain]) -> list[Span]:
        last_token_id = self._runner.loaded.vocab_size - 1
        waiting = iter(chains)
        return [
            next(waiting).first_span(span, last_token_id) if span.num_logits else span
            for span in spans
        ]


def _places(rows: list[int], offsets: list[int]) -> tuple[Any, Any]:
    """Index one place of each row; a slice, where they are a piece of a column.

    Lists become tensors, which takes longer than everything else that a draft does on the host.
    """
    first, offset = rows[0], offsets[0]
    if offsets.count(offset) == len(offsets) and rows == list(range(first, first + len(rows))):
        return slice(first, first + len(rows)), offset
    return rows, offsets


def _forced(chains: Sequence[Chain], sampling: SamplingBatch) -> torch.Tensor:
    """Write what is forced into the drafts: [num_sampling, longest], int64, else 0."""
    longest = max((chain.length for chain in chains), default=0)
    shape = (len(sampling.requests), longest)
    if not any(chain.forced for chain in chains):
        return torch.zeros(shape, dtype=torch.int64, device=sampling.device)
    token_ids = torch.zeros(shape, dtype=torch.int64)
    for chain in chains:
        token_ids[chain.row, : len(chain.forced)] = torch.tensor(chain.forced, dtype=torch.int64)
    return token_ids.to(sampling.device)
