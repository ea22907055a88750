"""A row's best score with noise: who could win by a cheap bound, then the logarithms of these.

Each lane of a program keeps the token of the largest bound that it met, and the bound of the next.
The token of the largest bound of all, with its true noise, mostly exceeds all other bounds: it has
won. Else the lanes' tokens are compared, unless a lane met two that could win: then all tokens are.
Bounds are rounded as scores with noise are, so that none of these is ever above its bound.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gumbel_rows_triton import (
    gumbel,
    gumbel_bound,
    is_broken,
    load_peak,
    load_scores,
    noise_words,
    noise_words_of,
    scale,
)

_NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit  # type: ignore[untyped-decorator]
def lane_bounds(
    row: tl.tensor,
    slot: tl.tensor,
    split: tl.tensor,
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
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
    peak: tl.tensor,
    temperature: tl.tensor,
    limits: tl.tensor,
    seed: tl.tensor,
    choice: tl.tensor,
    position: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What scores with noise in each lane cannot exceed: its largest, the next, and whose it is."""
    lane_bound = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_next = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_col = tl.full([BLOCK], _NO_TOKEN, tl.int32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + tl.arange(0, BLOCK)
        scores = load_scores(
            row, slot, cols, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
            output_counts, counts_stride, draft_token_ids, draft_stride,
        )  # fmt: skip
        scores = scale(scores, peak, temperature)
        is_live = True
        if limits is not None:
            scores = tl.where(scores < tl.load(limits + row), float("-inf"), scores)
            is_live = tl.max(scores, axis=0) > float("-inf")
        if is_live:
            bounds = scores + gumbel_bound(noise_words(seed, choice, position, start, BLOCK))
            is_larger = bounds > lane_bound
            lane_next = tl.maximum(lane_next, tl.minimum(lane_bound, bounds))
            lane_col = tl.where(is_larger, cols, lane_col)
            lane_bound = tl.maximum(lane_bound, bounds)
    return lane_bound, lane_next, lane_col


@triton.jit  # type: ignore[untyped-decorator]
def best_of_all(
    row: tl.tensor,
    slot: tl.tensor,
    split: tl.tensor,
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
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
    peak: tl.tensor,
    temperature: tl.tensor,
    limits: tl.tensor,
    seed: tl.tensor,
    choice: tl.tensor,
    position: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_SECOND: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Compare all scores with noise: the best, the second where it is wanted, and whose it is."""
    largest = tl.full([], float("-inf"), tl.float32)
    runner_up = tl.full([], float("-inf"), tl.float32)
    winner = tl.full([], _NO_TOKEN, tl.int32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + tl.arange(0, BLOCK)
        scores = load_scores(
            row, slot, cols, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
            output_counts, counts_stride, draft_token_ids, draft_stride,
        )  # fmt: skip
        scores = scale(scores, peak, temperature)
        if limits is not None:
            scores = tl.where(scores < tl.load(limits + row), float("-inf"), scores)
        words = noise_words(seed, choice, position, start, BLOCK)
        # What does not exceed the floor changes nothing: of equals, the lower id came first.
        floor = runner_up if WITH_SECOND else largest
        if tl.max(scores + gumbel_bound(words), axis=0) > floor:
            scores += gumbel(words)
            top = tl.max(scores, axis=0)
            top_index = tl.min(tl.where(scores == top, cols, _NO_TOKEN), axis=0)
            if WITH_SECOND:
                others = tl.where(cols == top_index, float("-inf"), scores)
                next_best = tl.max(others, axis=0)
                runner_up = tl.maximum(runner_up, tl.minimum(largest, top))
                runner_up = tl.where(top > largest, tl.maximum(runner_up, next_best), runner_up)
            winner = tl.where(top > largest, top_index, winner)
            largest = tl.maximum(largest, top)
    return largest, runner_up, winner


@triton.jit  # type: ignore[untyped-decorator]
def noise_kernel(
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
    greedy_best: tl.tensor,
    temperatures: tl.tensor,
    num_tokens: tl.tensor,
    seeds: tl.tensor,
    choices: tl.tensor,
    limits: tl.tensor,
    best: tl.tensor,
    second: tl.tensor,
    index: tl.tensor,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_MARGINS: tl.constexpr,
) -> None:
    """Best score with noise of a part of a sampled, valid row; grid: (R, splits).

    With margins, the second as well.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    peak = load_peak(row, greedy_best, SPLITS)
    if (temperature == 0.0) | is_broken(peak):
        return
    position = tl.load(num_tokens + slot) + tl.load(offsets + row)
    seed, choice = tl.load(seeds + slot), tl.load(choices + slot)
    largest = tl.full([], float("-inf"), tl.float32)
    runner_up = tl.full([], float("-inf"), tl.float32)
    winner = tl.full([], _NO_TOKEN, tl.int32)
    is_open = tl.full([], WITH_MARGINS, tl.int1)
    if not WITH_MARGINS:
        lane_bound, lane_next, lane_col = lane_bounds(
            row, slot, split, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
            output_counts, counts_stride, draft_token_ids, draft_stride,
            peak, temperature, limits, seed, choice, position, CHUNK, BLOCK,
        )  # fmt: skip
        largest_bound = tl.max(lane_bound, axis=0)
        if largest_bound > float("-inf"):
            winner = tl.min(tl.where(lane_bound == largest_bound, lane_col, _NO_TOKEN), axis=0)
            score = load_scores(
                row, slot, winner, logits, logits_stride, vocab_size, offsets,
                bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
                penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
                output_counts, counts_stride, draft_token_ids, draft_stride,
            )  # fmt: skip
            noise = gumbel(noise_words_of(seed, choice, position, winner))
            largest = scale(score, peak, temperature) + noise
            num_able = tl.sum((lane_bound >= largest).to(tl.int32), axis=0)
            is_open = tl.max(lane_next, axis=0) >= largest
            if (num_able > 1) & (is_open == 0):
                scores = load_scores(
                    row, slot, lane_col, logits, logits_stride, vocab_size, offsets,
                    bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
                    penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
                    output_counts, counts_stride, draft_token_ids, draft_stride,
                )  # fmt: skip
                lane_noise = gumbel(noise_words_of(seed, choice, position, lane_col))
                scores = scale(scores, peak, temperature) + lane_noise
                largest = tl.max(scores, axis=0)
                winner = tl.min(tl.where(scores == largest, lane_col, _NO_TOKEN), axis=0)
    if is_open:
        largest, runner_up, winner = best_of_all(
            row, slot, split, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
            output_counts, counts_stride, draft_token_ids, draft_stride,
            peak, temperature, limits, seed, choice, position, CHUNK, BLOCK, WITH_MARGINS,
        )  # fmt: skip
    part = row * SPLITS + split
    tl.store(best + part, largest)
    tl.store(second + part, runner_up)
    tl.store(index + part, winner)
