"""Rows of logits become tokens; probabilities are never written to memory.

    x = logits + bias + (0 or -inf by the grammar's bit), in float32
    x = penalised(x)                                 repetition (CTRL, 1909.05858), presence,
                                                     frequency; as of the row's own drafts
    y = (x - max x) / temperature                    y = x at temperature 1
    y = -inf below each of the limits that min-p (2407.01082), top-k and top-p (1904.09751) set
    u = (philox4x32_10(counter, seed) + 1/2) * 2^-32 Salmon et al. 2011; the counter is
                                                     (id // 4, position, choice, 0), lane id % 4
    token = argmax(y - log(-log(u)))                 Gumbel-max; the lowest id wins ties
    token = argmax(x)                                where the temperature is 0

Shapes: logits [R, >= vocab_size]; everything else in `kernels/sample_rows.py`. A row's token
depends on its own logits and settings only. Both logarithms are taken in float64 and rounded once,
top-p adds its weights up in float64, all else is float32, one rounding per operation.
"""

from __future__ import annotations

import torch

from kernels.philox import gumbel_rows
from kernels.sample_rows import SampledRows, SampleRows

__all__ = ["SampleRows", "SampledRows", "gumbel_sample", "gumbel_sample_reference"]

_NEVER = float("-inf")
_TINY = torch.finfo(torch.float32).tiny


def gumbel_sample(
    logits: torch.Tensor,
    rows: SampleRows,
    *,
    with_logprobs: bool = False,
    with_margins: bool = False,
) -> SampledRows:
    """Sample one token per row.

    Args:
        logits: [R, >= vocab_size], float32, bfloat16 or float16; any row stride; not written.
        rows: how.
        with_logprobs: log probabilities and ranks are wanted.
        with_margins: margins are wanted.

    Raises:
        ValueError: tensors do not fit one another.
    """
    rows.check(logits)
    if logits.is_cuda:
        from kernels.gumbel_sample_triton import gumbel_sample_triton

        return gumbel_sample_triton(
            logits, rows, with_logprobs=with_logprobs, with_margins=with_margins
        )
    return gumbel_sample_reference(
        logits, rows, with_logprobs=with_logprobs, with_margins=with_margins
    )


def gumbel_sample_reference(
    logits: torch.Tensor,
    rows: SampleRows,
    *,
    with_logprobs: bool = False,
    with_margins: bool = False,
) -> SampledRows:
    """Do what `gumbel_sample` does, in plain torch on any device."""
    raw = logits[:, : rows.vocab_size].float()
    scores = _penalized(_banned(raw, rows), rows)
    if rows.has_noise:
        is_sampled = rows.temperature[rows.slots] > 0.0
        perturbed = _warped(scores, rows) + _noise(rows)
        scores = torch.where(is_sampled[:, None], perturbed, scores)
    token_ids = scores.argmax(dim=-1, keepdim=True)
    best = scores.gather(-1, token_ids)
    is_invalid = ~best.isfinite()
    token_ids = token_ids.masked_fill(is_invalid, 0)
    logprobs = ranks = margins = None
    if with_logprobs:
        chosen = raw.gather(-1, token_ids)
        logprobs = (chosen - torch.logsumexp(raw, dim=-1, keepdim=True)).squeeze(-1)
        ranks = (raw > chosen).sum(dim=-1) + 1
    if with_margins:
        others = scores.scatter(-1, token_ids, _NEVER)
        lead = best - others.amax(dim=-1, keepdim=True)
        margins = lead.masked_fill(is_invalid, float("nan")).squeeze(-1)
    return SampledRows(token_ids.squeeze(-1), is_invalid.squeeze(-1), logprobs, ranks, margins)


def _banned(scores: torch.Tensor, rows: SampleRows) -> torch.Tensor:
    """Add biases, and -inf where a grammar's bit is 0; a NaN stays one."""
    if rows.bias_row is not None and rows.biases is not None:
        index = rows.bias_row[rows.slots]
        biases = rows.biases[index.clamp(min=0), : rows.vocab_size]
        scores = torch.where((index >= 0)[:, None], scores + biases, scores)
    if rows.mask_row is not None and rows.bitmask is not None:
        words = rows.bitmask[rows.mask_row.clamp(min=0)]
        shifts = torch.arange(32, device=words.device, dtype=torch.int32)
        bits = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, : rows.vocab_size]
        is_banned = (bits == 0) & (rows.mask_row >= 0)[:, None]
        scores = torch.where(is_banned, scores + _NEVER, scores)
    return scores


def _penalized(scores: torch.Tensor, rows: SampleRows) -> torch.Tensor:
    if rows.penalty_row is None:
        return scores
    assert rows.in_prompt is not None, "penalties come with what they count"
    assert rows.output_counts is not None, "penalties come with what they count"
    index = rows.penalty_row[rows.slots]
    picks = index.clamp(min=0)
    counts = rows.output_counts[picks, : rows.vocab_size]
    if rows.draft_token_ids is not None:
        drafts = rows.draft_token_ids[rows.slots]  # [R, K]
        order = torch.arange(drafts.shape[1], device=drafts.device)
        is_counted = (order < rows.offsets[:, None]) & (drafts >= 0) & (drafts < rows.vocab_size)
        counts.scatter_add_(1, torch.where(is_counted, drafts, 0), is_counted.float())

    def column(values: torch.Tensor | None) -> torch.Tensor:
        assert values is not None, "penalties come together"
        return values[rows.slots][:, None]

    is_in_output = counts.clamp(max=1.0)
    is_seen = torch.maximum(rows.in_prompt[picks, : rows.vocab_size], is_in_output)
    factors = is_seen * column(rows.repetition_excess) + 1.0
    penalized = scores.clamp(min=0.0) / factors + scores.clamp(max=0.0) * factors
    penalized -= is_in_output * column(rows.presence)
    penalized -= counts * column(rows.frequency)
    return torch.where((index >= 0)[:, None], penalized, scores)


def _warped(scores: torch.Tensor, rows: SampleRows) -> torch.Tensor:
    """Apply temperature and filters to all rows, the greedy among them for nothing."""
    temperature = rows.temperature[rows.slots][:, None].clamp(min=_TINY)
    shifted = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    scores = torch.where(temperature == 1.0, scores, shifted)
    if not rows.has_filters:
        return scores
    min_p = rows.min_p[rows.slots][:, None]
    limit = scores.amax(dim=-1, keepdim=True) + torch.log(min_p.double()).float()
    scores = scores.masked_fill(scores < limit, _NEVER)

    best = torch.sort(scores, dim=-1, descending=True).values
    top_k = rows.top_k[rows.slots][:, None].long()
    last = torch.where(top_k > 0, top_k, rows.vocab_size).clamp(max=rows.vocab_size) - 1
    limit = best.gather(-1, last)
    scores = scores.masked_fill(scores < limit, _NEVER)
    best = best.masked_fill(best < limit, _NEVER)

    top_p = rows.top_p[rows.slots][:, None]
    mass = (best - best[:, :1]).exp().cumsum(dim=-1, dtype=torch.float64)
    total = (scores - best[:, :1]).exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    last = (mass < total * top_p).sum(dim=-1, keepdim=True).clamp(max=rows.vocab_size - 1)
    is_dropped = (scores < best.gather(-1, last)) & (top_p < 1.0)
    return scores.masked_fill(is_dropped, _NEVER)


def _noise(rows: SampleRows) -> torch.Tensor:
    """The Gumbel noise of every row: [R, vocab_size], float32."""
    slots = rows.slots
    positions = rows.num_tokens[slots] + rows.offsets
    return gumbel_rows(rows.seed[slots], rows.choice[slots].long(), positions, rows.vocab_size)
