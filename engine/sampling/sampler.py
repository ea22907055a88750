"""From logits to tokens: one pipeline for target and draft rows, with drafts and without.

A row's token is `argmax(processed logits + noise)`, where both depend only on the row's logits,
its request's parameters and tokens, the drafts in front of it and its position, never on the batch.
Order: allowed ids, bad words, biases, min_tokens, penalties, temperature, min-p, top-k, top-p,
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from engine.request import Request
from engine.sampling import logits_processors as processors
from engine.sampling.logprobs import RowLogprobs, compute_logprobs
from engine.sampling.request_state import NoiseRows, TokenBiases, TokenCounts, has_bias
from engine.sampling.sampling_batch import (
    FREQUENCY,
    MIN_P,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TOP_P,
    Rows,
    SamplingBatch,
)


@dataclass(slots=True, eq=False)
class SamplerOutput:
    """One pass's tokens.

    Attributes:
        token_ids: `[num_rows]`, int64; 0 in invalid rows.
        is_invalid: `[num_rows]`, bool: the logits held NaN or +inf, or no token was possible.
        logprobs: of the model itself, when a request asked for them.
    """

    token_ids: torch.Tensor
    is_invalid: torch.Tensor
    logprobs: RowLogprobs | None = None


class Sampler:
    """Samples rows of logits and keeps what penalties and biases need between steps.

    Args:
        vocab_size: the widest logits that will be sampled.
        device: where logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._counts = TokenCounts(vocab_size, torch.device(device))
        self._biases = TokenBiases(vocab_size, torch.device(device))
        self._noise = NoiseRows()

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        ended = list(request_ids)
        self._counts.evict(ended)
        self._biases.evict(ended)

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None = None,
        *,
        with_logprobs: bool = True,
    ) -> SamplerOutput:
        """Sample one token per row.

        Args:
            logits: `[num_rows, vocab]`, any float type; float32 logits may be overwritten.
            batch: this step's requests.
            rows: what each row samples.
            draft_token_ids: `[num_requests, max_offset]`, int64; a row at offset j reads the first
                j of its request. None where every offset is 0.
            with_logprobs: False for drafts, whose log probabilities nobody asks for.
        """
        logits = logits.float()
        num_top = _wanted_logprobs(batch) if with_logprobs else None
        raw = logits
        if not batch.is_argmax_only:
            raw = logits if num_top is None else logits.clone()
            self.perturb(logits, batch, rows, draft_token_ids)
        token_ids, is_invalid = processors.choose(logits)
        logprobs = None if num_top is None else compute_logprobs(raw, token_ids, num_top)
        return SamplerOutput(token_ids, is_invalid, logprobs)

    @torch.inference_mode()
    def perturb(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Process rows in place and add their noise; the token is the argmax.

        Args and shapes are those of `sample`, logits in float32.
        """
        self.process(logits, batch, rows, draft_token_ids)
        sampling = batch.select(rows, lambda params: not params.is_greedy)
        if sampling:
            noise = self._noise.rows(batch, rows, sampling)[:, : logits.shape[-1]]
            _on_rows(logits, sampling, lambda part: part.add_(noise))
        return logits

    @torch.inference_mode()
    def process(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply everything but the noise in place: softmax gives the probabilities sampled from.

        Greedy rows are left without temperature and filters. Args and shapes are those of `sample`,
        logits in float32.
        """
        self._ban_and_bias(logits, batch, rows, draft_token_ids)
        self._penalize(logits, batch, rows, draft_token_ids)
        _warp(logits, batch, rows)
        return logits

    def _ban_and_bias(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None,
    ) -> None:
        biased = batch.select(rows, has_bias)
        if biased:
            request_index = [rows.request_index[row] for row in biased]
            bias = self._biases.rows(batch.requests, request_index)[:, : logits.shape[-1]]
            _on_rows(logits, biased, lambda part: processors.add_bias(part, bias))
        banned = _too_early_ends(batch, rows) + _word_ends(batch, rows, draft_token_ids)
        banned = [(row, token_id) for row, token_id in banned if token_id < logits.shape[-1]]
        if banned:
            row_indices, token_ids = (list(column) for column in zip(*banned, strict=True))
            processors.ban_tokens(logits, row_indices, token_ids)

    def _penalize(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None,
    ) -> None:
        penalized = batch.select(rows, lambda params: params.has_penalties)
        if not penalized:
            return
        request_index = [rows.request_index[row] for row in penalized]
        in_prompt, counts = self._counts.rows(batch.requests, batch.num_tokens, request_index)
        offsets = [rows.offset[row] for row in penalized]
        if any(offsets):
            assert draft_token_ids is not None, "a row behind drafts needs their ids"
            _count_drafts(counts, draft_token_ids, request_index, offsets)
        width = logits.shape[-1]
        in_prompt, counts = in_prompt[:, :width], counts[:, :width]
        values = _values_of(batch, request_index)

        def penalize(part: torch.Tensor) -> None:
            processors.apply_penalties(
                part,
                in_prompt | (counts > 0),
                counts,
                repetition=values[:, REPETITION],
                presence=values[:, PRESENCE],
                frequency=values[:, FREQUENCY],
            )

        _on_rows(logits, penalized, penalize)


def _warp(logits: torch.Tensor, batch: SamplingBatch, rows: Rows) -> None:
    """Temperature and filters, each on the rows that ask for it."""

    def stage(chosen: list[int], change: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        if chosen:
            values = _values_of(batch, [rows.request_index[row] for row in chosen])
            _on_rows(logits, chosen, lambda part: change(part, values))

    stage(
        batch.select(rows, lambda params: params.temperature not in (0.0, 1.0)),
        lambda part, values: processors.scale_by_temperature(part, values[:, TEMPERATURE]),
    )
    stage(
        batch.select(rows, lambda params: not params.is_greedy and params.min_p > 0.0),
        lambda part, values: processors.keep_min_p(part, values[:, MIN_P]),
    )
    limited = batch.select(rows, lambda params: not params.is_greedy and params.top_k > 0)
    limits = [batch.requests[rows.request_index[row]].params.top_k for row in limited]
    stage(
        limited,
        lambda part, _: processors.keep_top_k(
            part, torch.tensor(limits).to(part.device), max(limits)
        ),
    )
    stage(
        batch.select(rows, lambda params: not params.is_greedy and params.top_p < 1.0),
        lambda part, values: processors.keep_top_p(part, values[:, TOP_P]),
    )


def _on_rows(
    logits: torch.Tensor, chosen: list[int], change: Callable[[torch.Tensor], object]
) -> None:
    """Change some rows in place; all of them without a copy."""
    if len(chosen) == logits.shape[0]:
        change(logits)
        return
    index = torch.tensor(chosen).to(logits.device)
    part = logits[index]
    change(part)
    logits[index] = part


def _values_of(batch: SamplingBatch, request_index: list[int]) -> torch.Tensor:
    return batch.values[torch.tensor(request_index).to(batch.device)]


def _wanted_logprobs(batch: SamplingBatch) -> int | None:
    wanted = [r.params.logprobs for r in batch.requests if r.params.logprobs is not None]
    return max(wanted, default=None)


def _count_drafts(
    counts: torch.Tensor,
    draft_token_ids: torch.Tensor,
    request_index: list[int],
    offsets: list[int],
) -> None:
    """Count each row's own draft prefix as part of its answer."""
    width = max(offsets)
    index = torch.tensor([request_index, offsets]).to(counts.device)
    drafts = draft_token_ids[index[0], :width]  # [num_rows, width]
    is_before = torch.arange(width, device=counts.device) < index[1][:, None]
    counts.scatter_add_(1, torch.where(is_before, drafts, 0), is_before.int())


def _too_early_ends(batch: SamplingBatch, rows: Rows) -> list[tuple[int, int]]:
    """(row, token id) of every token that would end an answer before `min_tokens`."""
    banned: list[tuple[int, int]] = []
    for row in batch.select(rows, lambda params: params.min_tokens > 0):
        request = batch.requests[rows.request_index[row]]
        num_tokens = batch.num_tokens[rows.request_index[row]]
        num_output_tokens = num_tokens - request.num_prompt_tokens + rows.offset[row]
        if num_output_tokens < request.params.min_tokens:
            ends = request.eos_token_ids | set(request.params.stop_token_ids)
            banned.extend((row, token_id) for token_id in sorted(ends))
    return banned


def _word_ends(
    batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor | None
) -> list[tuple[int, int]]:
    """(row, token id) of every token that would complete a bad word of several tokens."""
    watched = batch.select(rows, lambda p: any(len(word) > 1 for word in p.bad_words_token_ids))
    if not watched:
        return []
    drafts = None if draft_token_ids is None else draft_token_ids.tolist()
    banned: list[tuple[int, int]] = []
    for row in watched:
        index, offset = rows.request_index[row], rows.offset[row]
        request = batch.requests[index]
        longest = max(len(word) for word in request.params.bad_words_token_ids)
        context = _last_tokens(request, batch.num_tokens[index], longest)
        if offset:
            assert drafts is not None, "a row behind drafts needs their ids"
            context = context + drafts[index][:offset]
        for word in request.params.bad_words_token_ids:
            start = tuple(context[len(context) - len(word) + 1 :])
            if len(word) > 1 and len(context) >= len(word) - 1 and start == word[:-1]:
                banned.append((row, word[-1]))
    return banned


def _last_tokens(request: Request, num_tokens: int, count: int) -> list[int]:
    return request.token_ids[max(0, num_tokens - count) : num_tokens]
