"""The best of each row's scores without noise, how parts join, and the rank of what was taken.

`peak_kernel` finds each row's largest score, which is a greedy row's token; `merge_kernel` joins
the programs that share a row, here and in `kernels/gumbel_noise_triton.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gumbel_rows_triton import (
    is_broken,
    load_logits,
    load_peak,
    load_scores,
)

_LOWEST = tl.constexpr(-3.0e38)
_NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit  # type: ignore[untyped-decorator]
def peak_kernel(
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
    slots: tl.tensor,
    offsets: tl.tensor,
    bias_row: tl.tensor,
    biases: tl.tensor,
    bias_stride: tl.tensor,
    mask_row: tl.tensor,
    bitmask: tl.tensor,
    mask_stride: tl.tensor,
    penalty_row: tl.tensor,
    repetition_excess: tl.tensor,
    presence: tl.tensor,
    frequency: tl.tensor,
    in_prompt: tl.tensor,
    prompt_stride: tl.tensor,
    output_counts: tl.tensor,
    counts_stride: tl.tensor,
    draft_token_ids: tl.tensor,
    draft_stride: tl.tensor,
    best: tl.tensor,
    second: tl.tensor,
    index: tl.tensor,
    raw_best: tl.tensor,
    raw_sum: tl.tensor,
    group_best: tl.tensor,
    num_near: tl.tensor,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    WITH_LOGPROBS: tl.constexpr,
) -> None:
    """Best and second score of a part of a row, and what log-softmax needs; grid: (R, splits).

    Everything is kept per lane until the end, so that the loop waits for nobody.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    lanes = tl.arange(0, BLOCK)
    lane_best = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_second = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_index = tl.full([BLOCK], _NO_TOKEN, tl.int32)
    lane_nan = tl.zeros([BLOCK], tl.int32)
    lane_raw = tl.full([BLOCK], _LOWEST, tl.float32)
    lane_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + lanes
        scores = load_scores(
            row, slot, cols, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency,
            in_prompt, prompt_stride, output_counts, counts_stride, draft_token_ids, draft_stride,
        )  # fmt: skip
        lane_nan |= (scores != scores).to(tl.int32)
        is_better = scores > lane_best
        lane_second = tl.where(is_better, lane_best, tl.maximum(lane_second, scores))
        lane_index = tl.where(is_better, cols, lane_index)
        lane_best = tl.where(is_better, scores, lane_best)
        if WITH_LOGPROBS:
            raw = load_logits(row, cols, logits, logits_stride, vocab_size)
            larger = tl.maximum(lane_raw, raw)
            lane_sum = lane_sum * tl.exp(lane_raw - larger) + tl.exp(raw - larger)
            lane_raw = larger
    part = row * SPLITS + split
    largest = tl.max(lane_best, axis=0)
    winner = tl.min(tl.where(lane_best == largest, lane_index, _NO_TOKEN), axis=0)
    others = tl.where(lane_index == winner, lane_second, lane_best)
    has_nan = tl.max(lane_nan, axis=0) > 0
    tl.store(best + part, tl.where(has_nan, float("nan"), largest))
    tl.store(second + part, tl.max(others, axis=0))
    tl.store(index + part, winner)
    if WITH_LOGPROBS:
        raw_largest = tl.max(lane_raw, axis=0)
        tl.store(raw_best + part, raw_largest)
        tl.store(raw_sum + part, tl.sum(lane_sum * tl.exp(lane_raw - raw_largest), axis=0))
    if group_best is not None:
        # A group is what shares a lane, or several lanes.
        OWN: tl.constexpr = NUM_GROUPS // SPLITS
        groups = tl.max(tl.reshape(lane_best, [OWN, BLOCK // OWN]), axis=1)
        tl.store(group_best + row * NUM_GROUPS + split * OWN + tl.arange(0, OWN), groups)
        if split == 0:
            tl.store(num_near + row, 0)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def merge_kernel(
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
    slots: tl.tensor,
    temperatures: tl.tensor,
    best: tl.tensor,
    second: tl.tensor,
    index: tl.tensor,
    raw_best: tl.tensor,
    raw_sum: tl.tensor,
    token_ids: tl.tensor,
    is_invalid: tl.tensor,
    ranks: tl.tensor,
    logprobs: tl.tensor,
    margins: tl.tensor,
    num_rows: tl.tensor,
    SPLITS: tl.constexpr,
    HAS_NOISE: tl.constexpr,
) -> None:
    """Join the parts of a row; grid: (R,)."""
    row = tl.program_id(0)
    invalid = is_broken(load_peak(row, best, SPLITS))
    parts = row * SPLITS + tl.arange(0, SPLITS)
    if HAS_NOISE:
        is_sampled = tl.load(temperatures + tl.load(slots + row)) != 0.0
        parts += tl.where(is_sampled, num_rows * SPLITS, 0)
    scores = tl.load(best + parts)
    largest = tl.max(scores, axis=0)
    indices = tl.load(index + parts)
    token = tl.min(tl.where(scores == largest, indices, _NO_TOKEN), axis=0)
    token = tl.where(invalid, 0, token)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(is_invalid + row, invalid)
    if margins is not None:
        others = tl.where(indices == token, tl.load(second + parts), scores)
        lead = largest - tl.max(others, axis=0)
        tl.store(margins + row, tl.where(invalid, float("nan"), lead))
    if logprobs is not None:
        raw_parts = row * SPLITS + tl.arange(0, SPLITS)
        raw_largest = tl.load(raw_best + raw_parts)
        raw_peak = tl.max(raw_largest, axis=0)
        total = tl.sum(tl.load(raw_sum + raw_parts) * tl.exp(raw_largest - raw_peak), axis=0)
        chosen = load_logits(row, token, logits, logits_stride, vocab_size)
        tl.store(logprobs + row, chosen - (raw_peak + tl.log(total)))
        tl.store(ranks + row, 1)


@triton.jit  # type: ignore[untyped-decorator]
def rank_kernel(
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
    token_ids: tl.tensor,
    ranks: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the tokens of a part of a row whose logit is larger; grid: (R, splits)."""
    row, split = tl.program_id(0), tl.program_id(1)
    chosen = load_logits(row, tl.load(token_ids + row), logits, logits_stride, vocab_size)
    larger = tl.zeros([BLOCK], tl.int32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + tl.arange(0, BLOCK)
        larger += (load_logits(row, cols, logits, logits_stride, vocab_size) > chosen).to(tl.int32)
    tl.atomic_add(ranks + row, tl.sum(larger, axis=0).to(tl.int64))
