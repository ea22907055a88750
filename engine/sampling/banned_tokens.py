"""Tokens that a row's own context makes impossible: ends that come too early, ends of bad words.

Each function gives (row, token id) pairs, and gives none at no cost when no request asks for it.
"""

from __future__ import annotations

import torch

from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.sampling_params import SamplingParams

Banned = list[tuple[int, int]]


def too_early_ends(batch: SamplingBatch, rows: Rows) -> Banned:
    """Find the end-of-sequence and stop tokens of rows that are short of `min_tokens`."""
    banned: Banned = []
    for row in batch.select(rows, _has_min_tokens):
        index = rows.request_index[row]
        request = batch.requests[index]
        num_output_tokens = batch.num_tokens[index] - request.num_prompt_tokens + rows.offset[row]
        if num_output_tokens < request.params.min_tokens:
            ends = request.eos_token_ids | set(request.params.stop_token_ids)
            banned.extend((row, token_id) for token_id in sorted(ends))
    return banned


def long_word_ends(
    batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor | None
) -> Banned:
    """Find the tokens that would complete a bad word of two or more tokens.

    Args:
        batch: this step's requests.
        rows: the rows of the pass.
        draft_token_ids: `[num_requests, max_offset]`, int64; None where every offset is 0.
    """
    watched = batch.select(rows, _has_long_words)
    if not watched:
        return []
    drafts = None if draft_token_ids is None else draft_token_ids.tolist()
    banned: Banned = []
    for row in watched:
        index, offset = rows.request_index[row], rows.offset[row]
        request, num_tokens = batch.requests[index], batch.num_tokens[index]
        words = [word for word in request.params.bad_words_token_ids if len(word) > 1]
        longest = max(len(word) for word in words) - 1
        context = request.token_ids[max(0, num_tokens - longest) : num_tokens]
        if offset:
            assert drafts is not None, "a row behind drafts needs their ids"
            context = context + drafts[index][:offset]
        banned.extend((row, word[-1]) for word in words if _ends_with(context, word[:-1]))
    return banned


def _ends_with(context: list[int], start: tuple[int, ...]) -> bool:
    return tuple(context[-len(start) :]) == start


def _has_min_tokens(params: SamplingParams) -> bool:
    return params.min_tokens > 0


def _has_long_words(params: SamplingParams) -> bool:
    return any(len(word) > 1 for word in params.bad_words_token_ids)
