"""A language model small enough to enumerate: its logits are a table over the last two tokens.

Also the requests that sample from it, and the loop that an engine runs around the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.request import Request
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.sampling_params import SamplingParams
from engine.speculative.verifier import Verification, verify

Verify = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], Verification]


def make_request(
    prompt: Sequence[int] = (0, 1),
    answer: Sequence[int] = (),
    *,
    name: str = "request",
    eos: frozenset[int] = frozenset(),
    choice: int = 0,
    **params: object,
) -> Request:
    """A request that already has `answer`; the seed is 0 unless given."""
    settings = {"seed": 0, "max_tokens": None, **params}
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt),
        params=SamplingParams(**settings),  # type: ignore[arg-type]
        eos_token_ids=eos,
        choice_index=choice,
        token_ids=[*prompt, *answer],
    )


@dataclass(frozen=True)
class TableModel:
    """Logits as a function of the last two tokens.

    Attributes:
        table: [vocab, vocab, vocab], float32: logits after tokens (a, b).
    """

    table: torch.Tensor

    @classmethod
    def random(cls, vocab_size: int, seed: int, spread: float = 1.5) -> TableModel:
        """A model of independent normal logits."""
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size, vocab_size, vocab_size)
        return cls(torch.randn(shape, generator=generator) * spread)

    def near(self, seed: int, distance: float) -> TableModel:
        """A model whose logits differ from these by normal noise."""
        other = TableModel.random(self.table.shape[0], seed, distance)
        return TableModel(self.table + other.table)

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self.table.shape[0]

    def logits(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[num_contexts, vocab], float32, freshly allocated."""
        last = torch.tensor([list(context[-2:]) for context in contexts]).reshape(-1, 2)
        return self.table[last[:, 0], last[:, 1]].clone()


def generate(
    requests: list[Request],
    target: TableModel,
    draft: TableModel | None,
    *,
    num_draft_tokens: int,
    num_new_tokens: int,
    verify_with: Verify = verify,
) -> list[list[int]]:
    """Generate as the engine does: draft, verify, append, until every answer is long enough.

    Returns:
        The first `num_new_tokens` of each answer.
    """
    sampler = Sampler(target.vocab_size)
    while waiting := [r for r in requests if r.num_output_tokens < num_new_tokens]:
        batch = SamplingBatch.build(waiting, num_draft_tokens, target.vocab_size)
        drafts = propose(waiting, draft, sampler, batch, num_draft_tokens)
        rows = Rows.ragged([num_draft_tokens] * len(waiting))
        sampled = sampler.sample(
            target.logits(contexts_of(waiting, drafts, rows)), batch, rows, drafts
        )
        result = verify_with(sampled.token_ids, drafts, [num_draft_tokens] * len(waiting))
        for request, emitted in zip(waiting, result.emitted, strict=True):
            request.token_ids.extend(emitted)
    start = requests[0].num_prompt_tokens
    return [request.token_ids[start : start + num_new_tokens] for request in requests]


def propose(
    requests: list[Request],
    draft: TableModel | None,
    sampler: Sampler,
    batch: SamplingBatch,
    num_draft_tokens: int,
) -> torch.Tensor:
    """Draft with the noise that the target will use: [num_requests, num_draft_tokens], int64."""
    drafts = torch.zeros(len(requests), num_draft_tokens, dtype=torch.int64)
    for offset in range(num_draft_tokens):
        assert draft is not None, "somebody has to draft"
        rows = Rows(range(len(requests)), [offset] * len(requests))
        logits = draft.logits(contexts_of(requests, drafts, rows))
        sampled = sampler.sample(logits, batch, rows, drafts, with_logprobs=False)
        drafts[:, offset] = sampled.token_ids
    return drafts


def contexts_of(requests: list[Request], drafts: torch.Tensor, rows: Rows) -> list[list[int]]:
    """The tokens in front of each row's."""
    prefixes = drafts.tolist()
    return [
        requests[index].token_ids[-2:] + prefixes[index][:offset]
        for index, offset in zip(rows.request_index, rows.offset, strict=True)
    ]
