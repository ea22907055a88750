"""Throw the dice that accept drafts at given rates, on the device: for benchmarks alone.

    limit[i] = number of leading places j < num_drafts[i] with
               draw(seed, choice, num_tokens + j) < rates[min(j, len(rates) - 1)]
    draw     = (word + 1/2) * 2^-32, in float64

where the word is the first of Philox4x32-10 (Salmon et al. 2011, section 3.3) for the counter
(0, position, choice, 1) and the key (seed low, seed high). `engine/sampling/noise.py` defines the
draws, and `engine/speculative/synthetic_acceptance.py` throws the same dice on the host. Shapes:
B requests, whose slots are rows of `DecodeState`.
"""

from __future__ import annotations

import torch

from kernels.decode_state import Dice
from kernels.philox import philox

_DRAWS = 1


def synthetic_limits(
    dice: Dice,
    num_tokens: torch.Tensor,
    request_slots: torch.Tensor,
    num_drafts: torch.Tensor,
    limits: torch.Tensor,
    *,
    max_drafts: int,
) -> None:
    """Write how many drafts of each request the dice accept; `commit` takes them.

    Args:
        dice: of all slots.
        num_tokens: [num_slots] int64, known tokens of each slot before the commit.
        request_slots: [B] int32.
        num_drafts: [B] int32.
        limits: [B] int32, is overwritten.
        max_drafts: no request has more.
    """
    if limits.is_cuda:
        from kernels.synthetic_limits_triton import synthetic_limits_triton

        synthetic_limits_triton(dice, num_tokens, request_slots, num_drafts, limits, max_drafts)
    else:
        synthetic_limits_reference(dice, num_tokens, request_slots, num_drafts, limits, max_drafts)


def synthetic_limits_reference(
    dice: Dice,
    num_tokens: torch.Tensor,
    request_slots: torch.Tensor,
    num_drafts: torch.Tensor,
    limits: torch.Tensor,
    max_drafts: int,
) -> None:
    """Do what `synthetic_limits` does in torch; also the path of the CPU."""
    slots, counts = request_slots.long(), num_drafts.long()
    places = torch.arange(max_drafts, device=limits.device)
    draws = _draws(
        dice.seeds[slots, None], dice.choices[slots, None], num_tokens[slots, None] + places
    )
    is_accepted = draws < dice.rates[places.clamp(max=len(dice.rates) - 1)]
    is_accepted &= places < counts[:, None]
    limits.copy_(is_accepted.long().cumprod(dim=1).sum(dim=1))


def _draws(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Draw per (seed, choice, position), broadcast; int64 to float64, above 0 and below 1."""
    draws = torch.full_like(positions, _DRAWS)
    words = philox((torch.zeros_like(positions), positions, choices, draws), seeds)
    return (words[0].double() + 0.5) * 2.0**-32
