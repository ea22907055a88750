"""The kernel of `kernels/synthetic_limits.py`: one program per request."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.decode_state import Dice


def synthetic_limits_triton(
    dice: Dice,
    num_tokens: torch.Tensor,
    request_slots: torch.Tensor,
    num_drafts: torch.Tensor,
    limits: torch.Tensor,
    max_drafts: int,
) -> None:
    """Do what `synthetic_limits` does."""
    if len(limits) == 0:
        return
    synthetic_limits_kernel[(len(limits),)](
        dice.seeds,
        dice.choices,
        dice.rates,
        num_tokens,
        request_slots,
        num_drafts,
        limits,
        len(dice.rates),
        BLOCK=triton.next_power_of_2(max(1, max_drafts)),
        num_warps=1,
    )


@triton.jit(do_not_specialize=["num_rates"])  # type: ignore[untyped-decorator]
def synthetic_limits_kernel(
    seeds: tl.tensor,
    choices: tl.tensor,
    rates: tl.tensor,
    num_tokens: tl.tensor,
    request_slots: tl.tensor,
    num_drafts: tl.tensor,
    limits: tl.tensor,
    num_rates: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (requests,)."""
    request = tl.program_id(0)
    slot = tl.load(request_slots + request).to(tl.int64)
    count = tl.load(num_drafts + request)
    seed = tl.load(seeds + slot)
    key_low = (seed & 0xFFFFFFFF).to(tl.uint32)
    key_high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    choice = tl.load(choices + slot).to(tl.uint32)
    start = tl.load(num_tokens + slot)
    place = tl.arange(0, BLOCK)
    position = (start + place).to(tl.uint32)
    zeros = tl.zeros([BLOCK], tl.uint32)
    word, _, _, _ = tl.philox_impl(
        zeros, position, zeros + choice, zeros + 1, zeros + key_low, zeros + key_high
    )
    draw = (word.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)
    rate = tl.load(rates + tl.minimum(place, num_rates - 1))
    is_rejected = (place < count) & (draw >= rate)
    tl.store(limits + request, tl.min(tl.where(is_rejected, place, count), axis=0))
