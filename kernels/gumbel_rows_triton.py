"""What every kernel of `kernels/gumbel_sample.py` asks of a row: scores, their peak, its noise.

A row is read anew by every kernel and never stored: that costs less than writing float32 scores.
These functions run inside kernels; they know pointers and nothing of the order of kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def load_logits(
    row: tl.tensor,
    cols: tl.tensor,
    logits: tl.tensor,
    logits_stride: tl.tensor,
    vocab_size: tl.tensor,
) -> tl.tensor:
    """Logits of some tokens as the model gave them, float32; -inf past the vocabulary."""
    source = logits + row.to(tl.int64) * logits_stride + cols
    return tl.load(source, mask=cols < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def load_scores(
    row: tl.tensor,
    slot: tl.tensor,
    cols: tl.tensor,
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
) -> tl.tensor:
    """Logits of some tokens after biases, grammar and penalties; -inf past the vocabulary.

    Rounded operation by operation as the reference is: kernels are launched without contraction
    into fused multiply-adds.
    """
    scores = load_logits(row, cols, logits, logits_stride, vocab_size)
    is_inside = cols < vocab_size
    if biases is not None:
        own = tl.load(bias_row + slot).to(tl.int64)
        source = biases + own * bias_stride + cols
        scores += tl.load(source, mask=is_inside & (own >= 0), other=0.0)
    if bitmask is not None:
        own = tl.load(mask_row + row).to(tl.int64)
        source = bitmask + own * mask_stride + cols // 32
        words = tl.load(source, mask=is_inside & (own >= 0), other=-1)
        # Added, not stored: a NaN must stay one, so that a broken row is noticed.
        scores += tl.where(((words >> (cols % 32)) & 1) == 0, float("-inf"), 0.0)
    if penalty_row is not None:
        own = tl.load(penalty_row + slot).to(tl.int64)
        if own >= 0:
            counts = tl.load(output_counts + own * counts_stride + cols, mask=is_inside, other=0.0)
            if draft_token_ids is not None:
                num_drafts = tl.load(offsets + row)
                drafts = draft_token_ids + slot.to(tl.int64) * draft_stride
                while num_drafts > 0:
                    num_drafts -= 1
                    counts += tl.where(cols == tl.load(drafts + num_drafts), 1.0, 0.0)
            is_in_output = tl.minimum(counts, 1.0)
            is_seen = tl.load(in_prompt + own * prompt_stride + cols, mask=is_inside, other=0.0)
            is_seen = tl.maximum(is_seen, is_in_output)
            factors = is_seen * tl.load(repetition_excess + slot) + 1.0
            # As sums of parts above and below 0, each by selection: a NaN lands in both.
            above = tl.where(scores < 0.0, 0.0, scores)
            below = tl.where(scores > 0.0, 0.0, scores)
            scores = tl.div_rn(above, factors) + below * factors
            scores = scores - is_in_output * tl.load(presence + slot)
            scores = scores - counts * tl.load(frequency + slot)
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def load_peak(
    row: tl.tensor,
    greedy_best: tl.tensor,
    SPLITS: tl.constexpr,
) -> tl.tensor:
    """A row's largest score before temperature; NaN where the row has one."""
    parts = tl.load(greedy_best + row * SPLITS + tl.arange(0, SPLITS))
    is_nan = parts != parts
    peak = tl.max(tl.where(is_nan, float("-inf"), parts), axis=0)
    return tl.where(tl.max(is_nan.to(tl.int32), axis=0) > 0, float("nan"), peak)


@triton.jit  # type: ignore[untyped-decorator]
def is_broken(peak: tl.tensor) -> tl.tensor:
    """Whether a row has no token: its largest score is NaN or infinite."""
    return (peak != peak) | (peak == float("inf")) | (peak == float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def scale(scores: tl.tensor, peak: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Scores after temperature; as they are at temperature 1."""
    if temperature != 1.0:
        scores = tl.div_rn(scores - peak, temperature)
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def noise_words(
    seed: tl.tensor,
    choice: tl.tensor,
    position: tl.tensor,
    start: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Philox words of the tokens `start` up to `start + BLOCK`, both multiples of 4; uint32."""
    groups = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    nothing = tl.zeros_like(groups)
    own_position = nothing + position.to(tl.uint32)
    own_choice = nothing + choice.to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, groups, own_position, own_choice, nothing)
    return tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))


@triton.jit  # type: ignore[untyped-decorator]
def noise_words_of(
    seed: tl.tensor, choice: tl.tensor, position: tl.tensor, cols: tl.tensor
) -> tl.tensor:
    """Philox words of any tokens; uint32."""
    groups = (cols // 4).to(tl.uint32)
    nothing = groups & 0
    own_position = nothing + position.to(tl.uint32)
    own_choice = nothing + choice.to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, groups, own_position, own_choice, nothing)
    lane = cols % 4
    return tl.where(lane < 2, tl.where(lane == 0, word0, word1), tl.where(lane == 2, word2, word3))


@triton.jit  # type: ignore[untyped-decorator]
def gumbel(words: tl.tensor) -> tl.tensor:
    """-log(-log(u)) of Philox words, in float64, rounded once to float32."""
    uniform = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2^-32
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def gumbel_bound(words: tl.tensor) -> tl.tensor:
    """Something above the noise of Philox words, without a logarithm.

    -log(u) >= 1 - u, so that -log(-log(u)) <= -log(1 - u); and where 1 - u = 2^e * (1 + m), its
    binary logarithm is at least e + m, which is what its bits read as one number say. The first gap
    is small where noise is large, the second at most 0.06; 0.001 is far beyond rounding errors.
    """
    rest = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    log2_rest = rest.to(tl.int32, bitcast=True).to(tl.float32) * 1.1920928955078125e-07 - 127.0
    return 0.001 - 0.6931471805599453 * log2_rest


@triton.jit  # type: ignore[untyped-decorator]
def to_key(values: tl.tensor) -> tl.tensor:
    """Map float32 to uint32 of the same order; NaN apart."""
    bits = values.to(tl.uint32, bitcast=True)
    return bits ^ tl.where((bits >> 31) == 1, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit  # type: ignore[untyped-decorator]
def from_key(keys: tl.tensor) -> tl.tensor:
    """The inverse of `to_key`."""
    bits = keys ^ tl.where((keys >> 31) == 1, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)
