"""Where a row's top-k and top-p limits lie, roughly: the scores around them are gathered.

`kernels/gumbel_search_triton.py` searches among these. What bounds the limits from below:

- top-k: of any partition of the row into at least k groups, the k-th largest of the groups' largest
  scores is no more than the k-th largest score. `peak_kernel` has left these.
- top-p alone: `narrow_kernel` adds up the mass above a few pivots, and again between two of them,
  until few scores are left in between (pivots as in FlashInfer, 2501.01005, many at a time, most of
  them where the masses at both ends let the limit be expected). Its sums only say where to look;
  what counts are the sums of `gather_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gumbel_rows_triton import from_key, is_broken, load_peak, load_scores, scale, to_key
from kernels.gumbel_search_triton import find_kth, min_p_limit

NUM_PIVOTS = 7
_PIVOTS = tl.constexpr(NUM_PIVOTS)
_SLACK = tl.constexpr(1e-4)


@triton.jit  # type: ignore[untyped-decorator]
def pivot(
    low: tl.tensor, high: tl.tensor, top: tl.tensor, estimate: tl.tensor, number: tl.tensor
) -> tl.tensor:
    """Cut a bracket into quarters, and four times closely around the estimate; 1 is the first.

    A bracket without an upper end is cut evenly, and the last pivot is the row's top.
    """
    is_open = high > top
    evenly = low + (top - low) / _PIVOTS * number
    evenly = tl.where(number == _PIVOTS, top, evenly)
    width = high - low
    distance = tl.where((number == 4) | (number == 7), 1.0 / 24.0, 1.0 / 96.0)
    closely = estimate + width * tl.where(number < 6, -distance, distance)
    closely = tl.minimum(tl.maximum(closely, low), high)
    within = tl.where(number < 4, low + width * 0.25 * number, closely)
    return tl.where(is_open, evenly, within)


@triton.jit  # type: ignore[untyped-decorator]
def quantile(share: tl.tensor) -> tl.tensor:
    """Nearly the normal distribution's, up to a factor (Tukey's lambda); finite at 0 and 1."""
    share = tl.minimum(tl.maximum(share, 1e-4), 1.0 - 1e-4).to(tl.float32)
    return tl.exp(0.135 * tl.log(share)) - tl.exp(0.135 * tl.log(1.0 - share))


@triton.jit  # type: ignore[untyped-decorator]
def find_bracket(
    row: tl.tensor,
    num_rows: tl.tensor,
    top: tl.tensor,
    top_p: tl.tensor,
    floor: tl.tensor,
    vocab_size: tl.tensor,
    brackets: tl.tensor,
    pivot_mass: tl.tensor,
    ROUND: tl.constexpr,
    SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Where a row's top-p limit lies, as of the rounds before.

    Low, high, if that is narrow enough, and an estimate in between.
    """
    if ROUND == 0:
        # The top weighs 1, so vocab_size tokens of weight (1 - top_p) / vocab_size are too light.
        reach = tl.log((1.0 - top_p) / (2.0 * vocab_size)).to(tl.float32)
        low = tl.maximum(top + reach, floor)
        high = tl.full([], float("inf"), tl.float32)
        is_narrow = tl.full([], 0.0, tl.float32)
        estimate = low
    else:
        place = brackets + ((ROUND - 1) * num_rows + row) * 4
        low, high = tl.load(place), tl.load(place + 1)
        is_narrow, estimate = tl.load(place + 2), tl.load(place + 3)
        if is_narrow == 0.0:
            numbers = tl.arange(0, _PIVOTS + 1)
            parts = ((ROUND - 1) * num_rows + row) * SPLITS + tl.arange(0, SPLITS)
            part_mass = tl.load(pivot_mass + parts[:, None] * (_PIVOTS + 1) + numbers[None, :])
            mass = tl.sum(part_mass, axis=0)
            total = tl.sum(tl.where(numbers == 0, mass, 0.0), axis=0)
            pivots = pivot(low, high, top, estimate, numbers)
            is_within = (numbers > 0) & (mass >= total * top_p * (1.0 + _SLACK))
            is_beyond = (numbers > 0) & (mass < total * top_p * (1.0 - _SLACK))
            low = tl.max(tl.where(is_within, pivots, low), axis=0)
            high = tl.min(tl.where(is_beyond, pivots, high), axis=0)
            mass_low = tl.min(tl.where(is_within, mass, total), axis=0)
            mass_high = tl.max(tl.where(is_beyond, mass, 0.0), axis=0)
            lightest = tl.exp(low - top)
            is_narrow = (mass_low - mass_high <= 0.99 * CAPACITY * lightest).to(tl.float32)
            # Where many scores lie around the limit, their mass is as smooth as a normal law's.
            at_low, at_high = quantile(mass_low / total), quantile(mass_high / total)
            part = (at_low - quantile(top_p)) / tl.maximum(at_low - at_high, 1e-6)
            part = tl.minimum(tl.maximum(part, 0.0), 1.0)
            estimate = low + (high - low) * part
    return low, high, is_narrow, estimate


@triton.jit  # type: ignore[untyped-decorator]
def masses_above(
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
    top: tl.tensor,
    floor: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    estimate: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Mass of a part of a row: of what min-p keeps, and from each pivot on."""
    mass0 = tl.zeros([BLOCK], tl.float32)
    mass1 = tl.zeros([BLOCK], tl.float32)
    mass2 = tl.zeros([BLOCK], tl.float32)
    mass3 = tl.zeros([BLOCK], tl.float32)
    mass4 = tl.zeros([BLOCK], tl.float32)
    mass5 = tl.zeros([BLOCK], tl.float32)
    mass6 = tl.zeros([BLOCK], tl.float32)
    mass7 = tl.zeros([BLOCK], tl.float32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + tl.arange(0, BLOCK)
        scores = load_scores(
            row, slot, cols, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency,
            in_prompt, prompt_stride, output_counts, counts_stride, draft_token_ids, draft_stride,
        )  # fmt: skip
        scores = scale(scores, peak, temperature)
        weights = tl.where(scores >= floor, tl.exp(scores - top), 0.0)
        mass0 += weights
        mass1 = tl.where(scores >= pivot(low, high, top, estimate, 1), mass1 + weights, mass1)
        mass2 = tl.where(scores >= pivot(low, high, top, estimate, 2), mass2 + weights, mass2)
        mass3 = tl.where(scores >= pivot(low, high, top, estimate, 3), mass3 + weights, mass3)
        mass4 = tl.where(scores >= pivot(low, high, top, estimate, 4), mass4 + weights, mass4)
        mass5 = tl.where(scores >= pivot(low, high, top, estimate, 5), mass5 + weights, mass5)
        mass6 = tl.where(scores >= pivot(low, high, top, estimate, 6), mass6 + weights, mass6)
        mass7 = tl.where(scores >= pivot(low, high, top, estimate, 7), mass7 + weights, mass7)
    return (
        tl.sum(mass0, axis=0),
        tl.sum(mass1, axis=0),
        tl.sum(mass2, axis=0),
        tl.sum(mass3, axis=0),
        tl.sum(mass4, axis=0),
        tl.sum(mass5, axis=0),
        tl.sum(mass6, axis=0),
        tl.sum(mass7, axis=0),
    )


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def narrow_kernel(
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
    brackets: tl.tensor,
    pivot_mass: tl.tensor,
    num_rows: tl.tensor,
    group_best: tl.tensor,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    CAPACITY: tl.constexpr,
    ROUND: tl.constexpr,
) -> None:
    """Mass above pivots in a part of a row that has top-p and no top-k; grid: (R, splits).

    Round 0 also finds the lower ends of rows with top-k.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    top_p = tl.load(top_ps + slot)
    peak = load_peak(row, greedy_best, SPLITS)
    top_k = tl.load(top_ks + slot)
    if (temperature == 0.0) | ((top_p >= 1.0) & (top_k <= 0)) | is_broken(peak):
        return
    top = tl.where(temperature == 1.0, peak, 0.0)
    floor = min_p_limit(top, tl.load(min_ps + slot))
    if top_k > 0:
        if (ROUND == 0) & (split == 0):
            low = floor
            if top_k <= NUM_GROUPS:
                groups = tl.load(group_best + row * NUM_GROUPS + tl.arange(0, NUM_GROUPS))
                least = from_key(find_kth(to_key(groups), top_k, 2))
                low = tl.maximum(floor, scale(least, peak, temperature))
            tl.store(brackets + row * 4, low)
        return
    low, high, is_narrow, estimate = find_bracket(
        row, num_rows, top, top_p, floor, vocab_size, brackets, pivot_mass, ROUND, SPLITS, CAPACITY
    )
    if split == 0:
        place = brackets + (ROUND * num_rows + row) * 4
        tl.store(place, low)
        tl.store(place + 1, high)
        tl.store(place + 2, is_narrow)
        tl.store(place + 3, estimate)
    if is_narrow != 0.0:
        return
    mass0, mass1, mass2, mass3, mass4, mass5, mass6, mass7 = masses_above(
        row, slot, split, logits, logits_stride, vocab_size, offsets,
        bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
        penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
        output_counts, counts_stride, draft_token_ids, draft_stride,
        peak, temperature, top, floor, low, high, estimate, CHUNK, BLOCK,
    )  # fmt: skip
    place = pivot_mass + ((ROUND * num_rows + row) * SPLITS + split) * (_PIVOTS + 1)
    tl.store(place + 0, mass0)
    tl.store(place + 1, mass1)
    tl.store(place + 2, mass2)
    tl.store(place + 3, mass3)
    tl.store(place + 4, mass4)
    tl.store(place + 5, mass5)
    tl.store(place + 6, mass6)
    tl.store(place + 7, mass7)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def gather_kernel(
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
    brackets: tl.tensor,
    pivot_mass: tl.tensor,
    num_rows: tl.tensor,
    num_near: tl.tensor,
    near: tl.tensor,
    mass: tl.tensor,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CAPACITY: tl.constexpr,
    ROUND: tl.constexpr,
) -> None:
    """Gather the scores near the limit in a part of a row, and add up mass; grid: (R, splits)."""
    row, split = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    top_p, top_k = tl.load(top_ps + slot), tl.load(top_ks + slot)
    peak = load_peak(row, greedy_best, SPLITS)
    if (temperature == 0.0) | ((top_p >= 1.0) & (top_k <= 0)) | is_broken(peak):
        return
    top = tl.where(temperature == 1.0, peak, 0.0)
    floor = min_p_limit(top, tl.load(min_ps + slot))
    high = tl.full([], float("inf"), tl.float32)
    if top_k > 0:
        low = tl.load(brackets + row * 4)
    else:
        low, high, _, _ = find_bracket(
            row, num_rows, top, top_p, floor, vocab_size, brackets, pivot_mass,
            ROUND, SPLITS, CAPACITY,
        )  # fmt: skip
    kept_mass = tl.zeros([BLOCK], tl.float32)
    high_mass = tl.zeros([BLOCK], tl.float32)
    # Bit i says that the lane's token of block i is near.
    lane_near = tl.zeros([BLOCK], tl.uint32)
    lane_count = tl.zeros([BLOCK], tl.int32)
    bit = tl.full([], 1, tl.uint32)
    for first in range(0, CHUNK, BLOCK):
        start = split * CHUNK + first
        cols = start + tl.arange(0, BLOCK)
        scores = load_scores(
            row, slot, cols, logits, logits_stride, vocab_size, offsets,
            bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
            penalty_row, repetition_excess, presence, frequency,
            in_prompt, prompt_stride, output_counts, counts_stride, draft_token_ids, draft_stride,
        )  # fmt: skip
        scores = scale(scores, peak, temperature)
        weights = tl.exp(scores - top)
        kept_mass = tl.where(scores >= floor, kept_mass + weights, kept_mass)
        high_mass = tl.where(scores >= high, high_mass + weights, high_mass)
        is_near = (scores >= low) & (scores < high) & (scores > float("-inf"))
        lane_near |= tl.where(is_near, bit, 0)
        bit = bit << 1
        lane_count += is_near.to(tl.int32)
    part = row * SPLITS + split
    tl.store(mass + part, tl.sum(kept_mass.to(tl.float64), axis=0))
    tl.store(mass + num_rows * SPLITS + part, tl.sum(high_mass.to(tl.float64), axis=0))
    num_left = tl.max(lane_count, axis=0)
    if num_left > 0:
        count = tl.sum(lane_count, axis=0)
        places = tl.atomic_add(num_near + row, count, sem="relaxed")
        places += tl.cumsum(lane_count, axis=0) - lane_count
        target = near + row.to(tl.int64) * CAPACITY
        while num_left > 0:
            num_left -= 1
            # The exponent of a power of 2 says which it is.
            is_left = lane_near != 0
            lowest = lane_near ^ (lane_near & (lane_near - 1))
            number = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            lane_near ^= lowest
            cols = split * CHUNK + number * BLOCK + tl.arange(0, BLOCK)
            scores = load_scores(
                row, slot, tl.where(is_left, cols, vocab_size), logits, logits_stride, vocab_size,
                offsets, bias_row, biases, bias_stride, mask_row, bitmask, mask_stride,
                penalty_row, repetition_excess, presence, frequency, in_prompt, prompt_stride,
                output_counts, counts_stride, draft_token_ids, draft_stride,
            )  # fmt: skip
            scores = scale(scores, peak, temperature)
            tl.store(target + places, scores, mask=is_left & (places < CAPACITY))
            places += 1
