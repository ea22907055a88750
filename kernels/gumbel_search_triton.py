"""The limits of min-p, top-k and top-p: below which score a row's tokens are dropped.

Each filter keeps all scores from some score of the row on, so a row has one limit, found without
sorting: bit by bit of the scores' order-preserving integer image, among the scores that
`kernels/gumbel_limits_triton.py` gathered near the limit. Where too many lie there (thousands of
equal scores, a top-k beyond the number of groups), the whole row is searched: slower, and as exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gumbel_rows_triton import from_key, is_broken, load_peak, load_scores, scale, to_key


@triton.jit  # type: ignore[untyped-decorator]
def min_p_limit(top: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """Below this, min-p drops; `top` is the row's largest score after temperature."""
    threshold = top + tl.log(tl.maximum(min_p, 1.1754944e-38).to(tl.float64)).to(tl.float32)
    return tl.where(min_p > 0.0, threshold, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def find_kth(keys: tl.tensor, wanted: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The largest key that at least `wanted` keys reach, of so many above 0."""
    return find_mass(keys, (keys > 0).to(tl.int32), wanted, BITS)


@triton.jit  # type: ignore[untyped-decorator]
def find_mass(
    keys: tl.tensor, weights: tl.tensor, wanted: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """The largest key such that what reaches it weighs at least `wanted`.

    All of it does, and `wanted` is above 0; keys of 0 weigh nothing. Settles some bits at a time, 1
    or 2, behind those that all keys share.
    """
    highest = tl.max(keys, axis=0)
    lowest = tl.min(tl.where(keys > 0, keys, 0xFFFFFFFF), axis=0)
    # The exponent of a difference is the place of its first bit, or by rounding the place above.
    exponent = ((highest ^ lowest).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    num_steps = tl.minimum(tl.maximum((exponent + BITS) // BITS, 0), 32 // BITS)
    steps = tl.arange(0, 2**BITS).to(tl.uint32)
    shift = (num_steps * BITS % 32).to(tl.uint32)
    key = tl.where(num_steps == 32 // BITS, 0, (highest >> shift) << shift).to(tl.uint32)
    while num_steps > 0:
        num_steps -= 1
        shift = (num_steps * BITS).to(tl.uint32)
        is_above = keys[:, None] >= (key + (steps << shift))[None, :]
        above = tl.sum(tl.where(is_above, weights[:, None], 0), axis=0)
        num_passed = tl.sum(((above >= wanted) & (steps > 0)).to(tl.int32), axis=0)
        key += num_passed.to(tl.uint32) << shift
    return key


@triton.jit  # type: ignore[untyped-decorator]
def search_near(
    row: tl.tensor,
    top: tl.tensor,
    limit: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    count: tl.tensor,
    near: tl.tensor,
    kept_mass: tl.tensor,
    high_mass: tl.tensor,
    CAPACITY: tl.constexpr,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A row's limit among its gathered scores, at most `SIZE`, and whether it is there."""
    lanes = tl.arange(0, SIZE)
    is_near = lanes < count
    scores = tl.load(near + row.to(tl.int64) * CAPACITY + lanes, mask=is_near, other=0.0)
    keys = tl.where(is_near, to_key(scores), 0)
    if (top_k > 0) & (count >= top_k):
        limit = tl.maximum(limit, from_key(find_kth(keys, top_k, BITS)))
    is_found = top_p >= 1.0
    if is_found == 0:
        weights = tl.where(is_near & (scores >= limit), tl.exp(scores - top), 0.0).to(tl.float64)
        near_mass = tl.sum(weights, axis=0)
        wanted = tl.where(top_k > 0, near_mass, kept_mass) * top_p
        wanted -= tl.where(top_k > 0, 0.0, high_mass)
        # Sums of a row's parts are good to a ten-millionth.
        is_found = (wanted > 0.0) & (near_mass >= wanted) & ((top_k > 0) | (top_p < 1.0 - 1e-6))
        if is_found:
            limit = tl.maximum(limit, from_key(find_mass(keys, weights, wanted, BITS)))
    return limit, is_found


@triton.jit  # type: ignore[untyped-decorator]
def search_all(
    row: tl.tensor,
    slot: tl.tensor,
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
    top: tl.tensor,
    limit: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    NUM_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """A row's limit among all of its scores, bit by bit."""
    # First the top-k limit, then the top-p limit above it.
    for is_mass in range(2):
        wanted = tl.where(is_mass == 1, top_p, top_k.to(tl.float64))
        has_limit = tl.where(is_mass == 1, top_p < 1.0, top_k > 0)
        key = tl.full([], 0, tl.uint32)
        bit = tl.full([], 0, tl.uint32)
        num_steps = tl.where(has_limit, 33, 0)
        step = 0
        # Step 0 measures the whole; the others settle one bit each.
        while step < num_steps:
            lane_sum = tl.zeros([BLOCK], tl.float64)
            for start in range(0, NUM_BLOCKS * BLOCK, BLOCK):
                cols = start + tl.arange(0, BLOCK)
                scores = load_scores(
                    row, slot, cols, logits, logits_stride, vocab_size, offsets,
                    bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
                    penalty_row, repetition_excess, presence, frequency, in_prompt,
                    prompt_stride, output_counts, counts_stride, draft_token_ids, draft_stride,
                )  # fmt: skip
                scores = scale(scores, peak, temperature)
                weights = tl.where(is_mass == 1, tl.exp(scores - top), 1.0)
                is_above = (scores >= limit) & (scores > float("-inf"))
                is_above &= to_key(scores) >= (key | bit)
                lane_sum += tl.where(is_above, weights, 0.0).to(tl.float64)
            measured = tl.sum(lane_sum, axis=0)
            if step == 0:
                wanted = tl.where(is_mass == 1, wanted * measured, wanted)
                # With fewer tokens than top-k keeps, no bit is ever set.
                bit = tl.where(measured >= wanted, 0x80000000, 0).to(tl.uint32)
            else:
                key = tl.where(measured >= wanted, key | bit, key)
                bit = bit >> 1
            step += 1
        if key > 0:
            limit = tl.maximum(limit, from_key(key))
    return limit


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def limit_kernel(
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
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    num_rows: tl.tensor,
    num_near: tl.tensor,
    near: tl.tensor,
    mass: tl.tensor,
    limits: tl.tensor,
    SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
    FEW: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Find a row's limit, -inf where nothing is dropped; grid: (R,).

    `num_near` becomes -1 in rows that were searched as a whole.
    """
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    top_p, top_k = tl.load(top_ps + slot), tl.load(top_ks + slot)
    peak = load_peak(row, greedy_best, SPLITS)
    if (temperature == 0.0) | is_broken(peak):
        tl.store(limits + row, float("-inf"))
        return
    top = tl.where(temperature == 1.0, peak, 0.0)
    limit = min_p_limit(top, tl.load(min_ps + slot))
    if (top_p < 1.0) | (top_k > 0):
        count = tl.load(num_near + row)
        parts = row * SPLITS + tl.arange(0, SPLITS)
        kept_mass = tl.sum(tl.load(mass + parts), axis=0)
        high_mass = tl.sum(tl.load(mass + num_rows * SPLITS + parts), axis=0)
        least = limit
        is_found = count < 0
        if count <= FEW:
            limit, is_found = search_near(
                row, top, least, top_k, top_p, count, near, kept_mass, high_mass,
                CAPACITY, FEW, 2,
            )  # fmt: skip
        elif count <= CAPACITY:
            limit, is_found = search_near(
                row, top, least, top_k, top_p, count, near, kept_mass, high_mass,
                CAPACITY, CAPACITY, 1,
            )  # fmt: skip
        if is_found == 0:
            tl.store(num_near + row, -1)
            limit = search_all(
                row, slot, logits, logits_stride, vocab_size, offsets,
                bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
                penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
                output_counts, counts_stride, draft_token_ids, draft_stride,
                peak, temperature, top, least, top_k, top_p, NUM_BLOCKS, BLOCK,
            )  # fmt: skip
    tl.store(limits + row, limit)
