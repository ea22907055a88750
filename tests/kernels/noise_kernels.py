"""Kernels that lay the sampler's noise open."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gumbel_rows_triton import gumbel, gumbel_bound, noise_words


@triton.jit
def noise_kernel(
    seeds: tl.tensor,
    choices: tl.tensor,
    positions: tl.tensor,
    noise: tl.tensor,
    bounds: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Noise of the tokens from 64 on, and its bounds."""
    words = noise_words(tl.load(seeds), tl.load(choices), tl.load(positions), 64, BLOCK)
    tl.store(noise + tl.arange(0, BLOCK), gumbel(words))
    tl.store(bounds + tl.arange(0, BLOCK), gumbel_bound(words))


@triton.jit
def bound_kernel(
    words: tl.tensor, noise: tl.tensor, bounds: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Noise of given words, [BLOCK] int64, and its bounds."""
    own = tl.load(words + tl.arange(0, BLOCK)).to(tl.uint32)
    tl.store(noise + tl.arange(0, BLOCK), gumbel(own))
    tl.store(bounds + tl.arange(0, BLOCK), gumbel_bound(own))
